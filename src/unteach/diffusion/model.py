"""A text-to-image model behind one small interface, whatever its family: encode, noise, predict, decode.

The only branches on family are in :mod:`unteach.diffusion.families`. Latents are ``(B, C, h, w)`` in the
scale the denoiser sees, images ``(B, 3, H, W)`` in [0, 1], timesteps ``(B,)`` as the model's schedule has them
(:mod:`unteach.diffusion.schedule`).
"""

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unteach.core import state
from unteach.core.kernels import mend_group_norms
from unteach.core.registry import near
from unteach.diffusion import conventions
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.families import Family, Pipeline, families
from unteach.diffusion.foreign import foreign
from unteach.diffusion.loading import inspect, known_families, load_pipeline
from unteach.diffusion.texts import check_tokenizer
from unteach.diffusion.wrappers import check_plain
from unteach.errors import ConfigError, DataError, ModelError

_CACHE_BYTES = 256 * 2**20


def load(path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> "Model":
    """Load a local diffusers folder; nothing is downloaded and only safetensors files are read.

    Args:
        path: the folder that ``save_pretrained`` wrote.
        dtype: number format of every part: denoiser, VAE and text encoders, whatever they were saved in.
        device: where the parts go.

    Raises:
        ModelError: the folder is missing, damaged, of an unknown family or without safetensors weights.
        ConfigError: the dtype or the device cannot be used.
    """
    found = inspect(path)
    return Model(load_pipeline(found, dtype, device), path=found.folder)


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's tensors, taken in float32.

    Weights saved in float16 have the same digest whether they are loaded in float16 or in float32.
    """
    tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    wide = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    return state.digest(wide)


class Model:
    """A diffusers pipeline and its family's conventions.

    All parts are put in evaluation mode and frozen; who trains sets ``requires_grad`` on the tensors chosen,
    or passes replacement tensors to :meth:`predict`.

    Args:
        pipe: a loaded pipeline of a known family.
        path: where it came from, for messages and records.

    Attributes:
        pipe: the pipeline, as it was given.
        family: the family's name ("sd", "sdxl", "sd3").
        conventions: the family itself.
        schedule: noise rates and prediction type.
        latent_shape: ``(C, h, w)`` at the model's own resolution.

    Raises:
        ModelError: the pipeline's class is of no known family, its parts do not fit each other, are wrapped
            (:mod:`unteach.diffusion.wrappers`), or are called in another way (:mod:`unteach.diffusion.conventions`).
    """

    def __init__(self, pipe: Pipeline, path: Path | None = None) -> None:
        matching = [families[name] for name in families if type(pipe) is families[name].pipeline]
        if not matching:
            raise ModelError(
                "this pipeline is not of a known model family",
                found=type(pipe).__name__,
                fix=f"known families: {known_families()}",
            )
        self.pipe = pipe
        self.path = path
        self.conventions: Family = matching[0]()
        self.family: str = self.conventions.name
        for part in self.parts:
            module = getattr(pipe, part)
            if not isinstance(module, nn.Module):
                raise ModelError(f"the pipeline has no '{part}'", found=type(module).__name__)
            check_plain(module, f"the part '{part}'")
            module.eval().requires_grad_(False)
            mend_group_norms(module)
        for name, encoder in self.conventions.tokenizers.items():
            if encoder in self.parts:
                with foreign(f"the '{name}' of the pipeline does not work", fix="fetch or save the folder again"):
                    check_tokenizer(getattr(pipe, name), getattr(pipe, encoder), name)
        self.schedule = self.conventions.schedule(pipe)
        self.latent_shape = self.conventions.latent_shape(pipe)
        channels = int(pipe.vae.config.latent_channels)
        if self.latent_shape[0] != channels:
            raise ModelError(
                "the denoiser does not take plain latents (an inpainting model?)",
                found=f"{self.latent_shape[0]} input channels, the VAE has {channels}",
            )
        self._names = frozenset(name for name, _ in self.denoiser.named_parameters())
        self._cache: OrderedDict[str, Conditioning] = OrderedDict()
        self._cache_bytes = 0
        self._digest: str | None = None
        conventions.check(self)

    @classmethod
    def of(cls, given: "Model | Pipeline", *, edit: bool = False) -> "Model":
        """The model itself, or one made of a diffusers pipeline, whose parts are then frozen.

        Args:
            given: a model or a loaded pipeline.
            edit: its weights will be changed: look again whether they were wrapped since the model was made.

        Raises:
            ModelError: it is neither, the pipeline is of no known family, or its weights are wrapped.
        """
        if not isinstance(given, Model):
            return cls(given)
        if edit:
            check_plain(given.denoiser)
        return given

    def __repr__(self) -> str:
        return f"Model(family={self.family!r}, prediction={self.prediction!r}, path={str(self.path)!r})"

    @property
    def denoiser(self) -> nn.Module:
        """The network that is edited (U-Net or transformer)."""
        module: nn.Module = getattr(self.pipe, self.conventions.denoiser)
        return module

    @property
    def parts(self) -> list[str]:
        """Names of the pipeline's networks, without those that were left out."""
        return self.conventions.parts(self.pipe)

    @property
    def prediction(self) -> str:
        """What the denoiser's output means: "epsilon", "v_prediction" or "flow"."""
        return self.schedule.prediction

    @property
    def num_timesteps(self) -> int:
        """Number of training timesteps; where time is continuous, the unit of the denoiser's times."""
        return len(self.schedule)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(3, H, W)`` at the model's own resolution."""
        _, h, w = self.latent_shape
        factor = int(self.pipe.vae_scale_factor)
        return 3, h * factor, w * factor

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's dtype."""
        return next(self.denoiser.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The denoiser's device."""
        return next(self.denoiser.parameters()).device

    # Text

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Encode prompts, without gradients; a prompt is encoded once and remembered (up to 256 MiB in all).

        Each prompt is encoded alone, so its embedding does not depend on its neighbours. The result is a
        copy.

        Raises:
            ConfigError: no prompts, or something that is not a list of strings.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError("prompts are a list of strings", found=repr(prompts)[:80])
        rows = {prompt: self._row(prompt) for prompt in dict.fromkeys(prompts)}
        return Conditioning.cat([rows[prompt] for prompt in prompts])

    @torch.no_grad()
    def unconditional(self, batch: int = 1) -> Conditioning:
        """What guidance starts from, ``batch`` rows: the pipeline's own choice when there is no negative
        prompt.

        In "sd" this is the empty prompt; SDXL's config usually asks for zeros instead.
        """
        return self.conventions.unconditional(self.pipe).index([0] * batch)

    def forget_prompts(self) -> None:
        """Drop remembered embeddings; to be called after a text encoder or a tokenizer was changed."""
        self._cache.clear()
        self._cache_bytes = 0

    def _row(self, prompt: str) -> Conditioning:
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
            return self._cache[prompt]
        row = self.conventions.encode(self.pipe, [prompt])
        self._cache[prompt] = row
        self._cache_bytes += _size(row)
        while self._cache_bytes > _CACHE_BYTES and len(self._cache) > 1:
            self._cache_bytes -= _size(self._cache.popitem(last=False)[1])
        return row

    # Images

    @torch.no_grad()
    def to_latents(self, images: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Encode images to scaled latents.

        Args:
            images: ``(B, 3, H, W)``, floating, in [0, 1].
            generator: draws from the posterior (one generator, or one an image); None takes its mode.

        Raises:
            DataError: another shape, type or range.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise DataError("images are floating (B, 3, H, W) in [0, 1]", found=f"{images.dtype} {tuple(images.shape)}")
        if images.numel() and not (images.min().item() >= 0 and images.max().item() <= 1):
            raise DataError(
                "images are in [0, 1]",
                found=f"{images.min().item():.3g} to {images.max().item():.3g}",
                fix="divide bytes by 255; map [-1, 1] by (x + 1) / 2",
            )
        with self._vae() as vae:
            posterior = vae.encode(images.to(self.device, vae.dtype) * 2 - 1).latent_dist
            raw = posterior.mode() if generator is None else posterior.sample(generator)
            latents: Tensor = self.conventions.scale_latents(vae, raw)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents to images ``(B, 3, H, W)``, clamped to [0, 1]; gradients flow to the latents."""
        with self._vae() as vae:
            raw = self.conventions.unscale_latents(vae, latents.to(self.device, vae.dtype))
            images: Tensor = vae.decode(raw, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    @contextlib.contextmanager
    def _vae(self) -> Iterator[Any]:
        """The VAE; one that overflows in float16 (``force_upcast``) is in float32 inside the block."""
        vae = self.pipe.vae
        upcast = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
        # nn.Module.to: diffusers' own remarks on every cast.
        if upcast:
            nn.Module.to(vae, torch.float32)
        try:
            yield vae
        finally:
            if upcast:
                nn.Module.to(vae, torch.float16)

    # Diffusion

    def noise(self, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """The noisy latent x_t, at least float32 (doco §1.1)."""
        return self.schedule.noise(x0, eps, t)

    def predict(
        self, x_t: Tensor, t: Tensor | float, cond: Conditioning, params: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """The denoiser's raw output, ``(B, C, h, w)``, in the denoiser's dtype.

        Args:
            x_t: noisy latents.
            t: timesteps, ``(B,)`` or one for all.
            cond: one row a latent, or one row for all.
            params: tensors that stand in for the denoiser's parameters of these names in this call only: a
                frozen teacher costs just the tensors that differ. Gradients flow to them.

        Raises:
            ModelError: ``params`` has a name that the denoiser has not.
            ConfigError: the number of prompts does not fit the latents.
        """
        for name in params or ():
            if name not in self._names:
                raise ModelError(f"the denoiser has no parameter called '{name}'", fix=near(name, self._names))
        timesteps = torch.as_tensor(t, device=x_t.device)
        return self.conventions.call(self.pipe, x_t.to(self.dtype), timesteps, cond.expand(x_t.shape[0]), params)

    def target(self, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """What :meth:`predict` should give for this latent and noise."""
        return self.schedule.target(x0, eps, t)

    def to_x0(self, x_t: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        """The clean latent that an output implies: not clamped, at least float32."""
        return self.schedule.to_x0(x_t, out, t)

    def to_eps(self, x_t: Tensor, out: Tensor, t: Tensor | float) -> Tensor:
        """The noise that an output implies, at least float32."""
        return self.schedule.to_eps(x_t, out, t)

    # Weights

    def cross_attention_kv(self) -> list[str]:
        """Names of the text's key and value projections (doco §1.2), in the model's order."""
        pattern = re.compile(self.conventions.cross_attention_kv)
        return [name for name, _ in self.denoiser.named_parameters() if pattern.fullmatch(name)]

    def text_layers(self) -> dict[str, str]:
        """Weights of linear layers that read nothing but the text → which part of the conditioning, in order."""
        found = self.conventions.text_layers.items()
        names = [name for name, _ in self.denoiser.named_parameters()]
        return {name: part for name in names for pattern, part in found if re.fullmatch(pattern, name)}

    def digest(self, *, fresh: bool = False) -> str:
        """SHA-256 of the denoiser's weights (:func:`weights_digest`).

        It is computed once; after weights were changed in place ask with ``fresh=True``. Applying or undoing
        a delta does so by itself.
        """
        if fresh or self._digest is None:
            self._digest = weights_digest(self.denoiser)
        return self._digest

    def weights_changed(self) -> None:
        """Tell the model that its denoiser was changed in place: the next digest is computed anew."""
        self._digest = None


def editable(given: Model | nn.Module | Pipeline) -> Model | nn.Module:
    """What a change of weights can be applied to: a model, a pipeline (as a model), or a denoiser alone.

    Raises:
        ModelError: its weights are wrapped, so that a change would not be used.
    """
    if isinstance(given, nn.Module):
        check_plain(given)
        return given
    return Model.of(given, edit=True)


def _size(row: Conditioning) -> int:
    return sum(part.numel() * part.element_size() for part in row.tensors().values())
