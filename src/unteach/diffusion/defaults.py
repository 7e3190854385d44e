"""What a configuration means where it says nothing: the defaults of the classes of diffusers and transformers."""

import inspect
from typing import Any

import diffusers
import transformers
from diffusers.configuration_utils import ConfigMixin

__all__ = ["defaults"]

_CONFIGS = {
    "clip": "CLIPConfig", "clip_text_model": "CLIPTextConfig", "clip_vision_model": "CLIPVisionConfig",
    "t5": "T5Config",
}  # fmt: skip


def defaults(kind: str) -> dict[str, Any]:
    """Default of every key of a configuration.

    Args:
        kind: a class of diffusers ("UNet2DConditionModel") or a model type of transformers ("clip_text_model").

    Returns:
        Key to value, tuples as lists; empty for a kind that is not known.
    """
    if kind in _CONFIGS:
        found = dict(getattr(transformers, _CONFIGS[kind])().to_dict())
    else:
        made = getattr(diffusers, kind, None)
        if not (inspect.isclass(made) and issubclass(made, ConfigMixin)):
            return {}
        parameters = inspect.signature(made.__init__).parameters.values()
        found = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}
