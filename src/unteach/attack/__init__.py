"""Attacks on erased and guarded models."""
