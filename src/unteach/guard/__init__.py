"""Guarding a model before it is published: learn what to freeze, sign it, enforce it, verify it."""
