"""Tensors only: gradient rules, masks, the training loop, checkpoints, seeds, the registry."""
