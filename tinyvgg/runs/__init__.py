"""Runs: the one loop, the folder it writes, the checkpoints in it, and signals that stop it."""
