"""Continual learning: one objective, every known method a setting of it, plug-ins for all of them."""
