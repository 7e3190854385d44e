"""Slow, obvious twins of fast code, with the same interface."""
