"""Measuring images/sec on the user's machine."""
