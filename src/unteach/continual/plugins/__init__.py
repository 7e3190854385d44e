"""Plug-ins around a step of any method; importing this registers them all."""

from unteach.continual.plugins import controls, refresh, sharpness  # noqa: F401
from unteach.continual.plugins.base import Plugin, PluginState, plugins

__all__ = ["Plugin", "PluginState", "plugins"]
