"""What every method of erasing is: a frozen, checked configuration with a name, and ``run``.

A method is one file: its configuration next to its maths, and one line that registers it.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from unteach.core.masks import select
from unteach.core.registry import Methods
from unteach.core.settings import Settings, setting
from unteach.diffusion.delta import WeightDelta
from unteach.diffusion.model import Model
from unteach.erase.job import Job
from unteach.errors import ModelError

__all__ = ["Method", "make", "methods", "setting"]

methods: Methods["Method"] = Methods("method")
"""Every method of erasing, by name, and their presets."""


@dataclass(frozen=True, kw_only=True)
class Method(Settings, ABC):
    """A method of erasing and its settings; immutable, checked as a whole when it is made.

    Args:
        strength: factor on the finished difference of weights; 1 is the method itself, 0 changes nothing.
        train: which tensors move, as regular expressions on whole parameter names; none given means the text's key
            and value projections (in UCE: the layers that read nothing but the text).
        kept_words: how many prompts of random words of the model's own tokenizer are kept beside the user's
            (:mod:`unteach.erase.kept`); 0 keeps only what is given, as the papers do.
        contexts: how many prompts with such words around its name a concept gets beside the user's own; 0: none.

    Raises:
        ConfigError: lists every wrong setting at once.
    """

    kind: ClassVar[str] = "method"

    strength: float = setting(1.0)
    train: tuple[str, ...] = ()
    kept_words: int = setting(240, low=0)
    contexts: int = setting(256, low=0)

    def retained(self, job: Job) -> list[str]:
        """The prompts whose pictures must stay: the user's own, then those of ``kept_words``."""
        own = dict.fromkeys(prompt for concept in job.concepts for prompt in concept.retain)
        return [*own, *job.kept(self.kept_words)]

    @abstractmethod
    def run(self, job: Job) -> WeightDelta:
        """Erase ``job.concepts`` from ``job.model`` and return the difference; the model stays as it was."""

    def offered(self, model: Model) -> list[str]:
        """The tensors that move where ``train`` names none."""
        return model.cross_attention_kv()

    def selected(self, model: Model) -> dict[str, nn.Parameter]:
        """The denoiser's tensors that move, by name, in the model's order.

        Raises:
            ModelError: there are none: the patterns match nothing, or the denoiser has no cross-attention.
        """
        if self.train:
            return select(model.denoiser, self.train)
        names = self.offered(model)
        if not names:
            raise ModelError(
                f"'{self.name}' edits cross-attention, and this denoiser has none",
                found=f"a {type(model.denoiser).__name__} of family '{model.family}'",
                fix="use a text-conditioned denoiser, or name the tensors to change with 'train'",
            )
        return select(model.denoiser, [re.escape(name) for name in names])

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Method":
        """The method that :meth:`to_dict` described; ``method`` may also name a preset.

        Raises:
            ConfigError: an unknown method, unknown settings (with near misses), wrong values: all at once.
        """
        values = dict(record)
        return make(values.pop("method", getattr(cls, "name", None)), **values)


def make(name: object, /, **settings: Any) -> Method:
    """The method or preset of this name, with ``settings`` laid over its own.

    Raises:
        ConfigError: no such name (near misses are listed), or wrong settings (all are listed).
    """
    return methods.make(name, **settings)
