"""Disk half: class folders or a zip in, uint8 shards out. Nothing here imports torch."""
