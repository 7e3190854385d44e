"""The memory of past samples, and how it is chosen what stays in it."""
