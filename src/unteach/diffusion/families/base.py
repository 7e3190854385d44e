"""What a model family has to say about itself. The rest of the package is the same for all families."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unteach.core.registry import Registry
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.schedule import Schedule

# diffusers' constructors have no complete annotations; a pipeline is therefore typed as Any throughout.
Pipeline = Any
_ROLES = (("norm", r".*norm\w*"), ("q", r"(to|add)_q(_proj)?"), ("k", r"(to|add)_k(_proj)?"),
          ("v", r"(to|add)_v(_proj)?"), ("out", r"to_(add_)?out"))  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """Where a parameter is, and what kind of layer it belongs to.

    Attributes:
        part: the stretch of the data flow: "conv_in", "down_blocks.0", "mid_block", "transformer_blocks.3".
        block: the unit inside it that repeats: "down_blocks.0.resnets.1"; the part where there is none.
        kind: "cross-attention" (in joint attention: the text's own projections), "self-attention", "feed-forward",
            "transformer" (the rest of a transformer block), "resnet", "resampling", "embedding" or "other".
        role: "q", "k", "v" or "out" in an attention, "norm", else "".
    """

    part: str
    block: str
    kind: str
    role: str


@dataclass(frozen=True)
class Segment:
    """Text states that stand one behind the other, one for each token of one tokenizer, or of several that agree.

    Attributes:
        tokenizers: attributes of the pipeline.
        start: place of the first state in ``Conditioning.hidden``.
        length: number of states; longer prompts are cut.
        marked: whether the first state is a start mark's, equal in all prompts.
    """

    tokenizers: tuple[str, ...]
    start: int
    length: int
    marked: bool = True


class Family(ABC):
    """The conventions of one diffusers pipeline class. Has no state: every method is given the pipeline.

    Attributes:
        name: the name in :data:`families`.
        pipeline: the diffusers class, equal to ``_class_name`` in ``model_index.json``.
        denoiser: the attribute of the pipeline that holds the network being edited; also its prefix in LoRA
            files.
        arguments: what the denoiser calls its noisy latents and their times.
        components: parts that must be there, and their class.
        tokenizers: its tokenizers, each with the text encoder that reads its tokens.
        optional: those of both that may be left out.
        schedulers: classes of schedulers that a folder may name.
        loading: extra arguments of ``from_pretrained``: parts that are left out are None.
        embeddings: parts of the conditioning that the pipeline's ``__call__`` takes, and its name for each; those of
            guidance have ``negative_`` before the name.
        cross_attention_kv: regex (``fullmatch``) for the names of the text's key and value projections.
        text_layers: regex for the names of linear layers that read nothing but the text, and the part of the
            conditioning that each reads.
        part, block: regexes of what a parameter's name begins with, for :meth:`layers`; else its first word counts.
        kinds: kinds of layers, each with the regex (``fullmatch``) of its parameters; the first that fits counts.
    """

    name: ClassVar[str]
    pipeline: ClassVar[Any]
    denoiser: ClassVar[str]
    arguments: ClassVar[tuple[str, str]] = ("sample", "timestep")
    components: ClassVar[Mapping[str, str]]
    tokenizers: ClassVar[Mapping[str, str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    schedulers: ClassVar[tuple[str, ...]]
    loading: ClassVar[Mapping[str, Any]]
    embeddings: ClassVar[Mapping[str, str]]
    cross_attention_kv: ClassVar[str]
    text_layers: ClassVar[Mapping[str, str]]
    part: ClassVar[str]
    block: ClassVar[str]
    kinds: ClassVar[tuple[tuple[str, str], ...]]

    @abstractmethod
    def schedule(self, pipe: Pipeline) -> Schedule:
        """Noise rates, times and what the denoiser's output means, from the scheduler's config."""

    @abstractmethod
    def latent_shape(self, pipe: Pipeline) -> tuple[int, int, int]:
        """Channels, height and width of a latent at the model's own resolution."""

    @abstractmethod
    def encode(self, pipe: Pipeline, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts with the pipeline's own text encoders, at the model's own resolution."""

    @abstractmethod
    def inputs(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> dict[str, Any]:
        """The denoiser's keyword arguments; ``t`` is ``()`` or ``(B,)``."""

    def call(
        self, pipe: Pipeline, x_t: Tensor, t: Tensor, cond: Conditioning, params: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The denoiser's output, ``(B, C, h, w)``, with ``params`` in place of its parameters of these names."""
        denoiser, given = getattr(pipe, self.denoiser), self.inputs(x_t, t, cond) | {"return_dict": False}
        (out,) = denoiser(**given) if params is None else functional_call(denoiser, dict(params), (), given)
        result: Tensor = out
        return result

    def pipeline_inputs(self, cond: Conditioning, negative: Conditioning | None) -> dict[str, Any]:
        """The keyword arguments of the pipeline's ``__call__`` that stand for the encoded prompts."""
        given = {argument: cond[part] for part, argument in self.embeddings.items()}
        if negative is not None:
            given |= {f"negative_{argument}": negative[part] for part, argument in self.embeddings.items()}
        return given

    def unconditional(self, pipe: Pipeline) -> Conditioning:
        """One row: what the pipeline itself uses for guidance when no negative prompt is given (an empty one)."""
        return self.encode(pipe, [""])

    def parts(self, pipe: Pipeline) -> list[str]:
        """The components that this pipeline has."""
        return [part for part in self.components if part not in self.optional or getattr(pipe, part) is not None]

    def segments(self, pipe: Pipeline) -> tuple[Segment, ...]:
        """The text states in their order; those of all tokenizers side by side, unless a family says otherwise."""
        length = min(int(getattr(pipe, name).model_max_length) for name in self.tokenizers)
        return (Segment(tuple(self.tokenizers), 0, length),)

    def noised(self, scheduler: Any, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the denoiser gets to see in the pipeline for this latent, noise and time ``()``."""
        seen: Tensor = scheduler.scale_model_input(scheduler.add_noise(x0, eps, t[None]), t)
        return seen

    def pixels(self, pipe: Pipeline) -> int:
        """Height and width are multiples of this; diffusers asks for 8, the latents for the VAE's own factor."""
        return max(8, int(pipe.vae_scale_factor))

    def scale_latents(self, vae: Any, raw: Tensor) -> Tensor:
        """From the VAE's own latents to those the denoiser sees."""
        return raw * float(vae.config.scaling_factor)

    def unscale_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """The inverse of :meth:`scale_latents`."""
        return latents / float(vae.config.scaling_factor)

    @classmethod
    def layers(cls, names: Iterable[str]) -> dict[str, Layer]:
        """Parameter name → its place and kind of layer; names that are not known count as "other"."""
        found = {}
        for name in names:
            top, last = name.partition(".")[0], name.rpartition(".")[0].removesuffix(".0").rpartition(".")[2]
            part, block = (re.match(pattern, name) for pattern in (cls.part, cls.block))
            kind = next((kind for kind, pattern in cls.kinds if re.fullmatch(pattern, name)), "other")
            role = next((role for role, pattern in _ROLES if re.fullmatch(pattern, last)), "")
            found[name] = Layer(part[0] if part else top, block[0] if block else top, kind, role)
        return found


families: Registry[type[Family]] = Registry("model family")


def layers(names: Iterable[str]) -> dict[str, Layer]:
    """As :meth:`Family.layers`, by the family that knows most of the names: for files that do not say which it is."""
    names = list(names)
    tables = [families[name].layers(names) for name in families]
    return max(tables, key=lambda table: sum(layer.kind != "other" for layer in table.values()))


def module_device(module: nn.Module) -> torch.device:
    """Where a module's first parameter is."""
    return next(module.parameters()).device
