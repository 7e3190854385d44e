"""The built-in world: the bundled text-to-image model of EmojiCanvas and its judges."""

from pathlib import Path

__all__ = ["model_path"]


def model_path() -> Path:
    """The folder of the bundled model (a diffusers pipeline) and of its judges (``judges/*.safetensors``)."""
    return Path(__file__).parent / "model"
