"""Inference: a checkpoint in, accuracy and predictions out."""
