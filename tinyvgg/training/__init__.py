"""Training: shards and a recipe in, checkpoints and metrics out."""
