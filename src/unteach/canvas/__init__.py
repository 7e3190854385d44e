"""The built-in world: the bundled text-to-image model of EmojiCanvas and its judges."""

from pathlib import Path

__all__ = ["CANVAS", "folder_of", "is_canvas", "model_path"]

CANVAS = "canvas"
"""What the bundled model is called."""


def model_path() -> Path:
    """The folder of the bundled model (a diffusers pipeline) and of its judges (``judges/*.safetensors``)."""
    return Path(__file__).parent / "model"


def folder_of(model: str) -> Path:
    """The folder of a model by name or path: the bundled one for "canvas"."""
    return model_path() if model == CANVAS else Path(model).expanduser()


def is_canvas(model: str) -> bool:
    """Whether this is the bundled model, for whose pictures there are judges."""
    return model == CANVAS or folder_of(model).resolve() == model_path().resolve()
