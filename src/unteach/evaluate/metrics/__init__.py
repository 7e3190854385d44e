"""Metrics: pure functions from pictures and judges' answers to numbers with intervals."""
