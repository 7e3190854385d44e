"""Prompts × seeds → images: one generator an image, so that any batch size gives the same picture.

The pipeline's own public ``__call__`` does the sampling, so a picture here is the picture that a user of the
pipeline gets (up to the order of floating-point sums).
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.core.run import same
from unteach.diffusion.families import Pipeline
from unteach.diffusion.foreign import unremarked
from unteach.diffusion.model import Model, weights_digest
from unteach.errors import CheckpointError, ConfigError, NumericsError
from unteach.records.base import check_heading

_FORMAT, _VERSION = "unteach-sample", 1
Output = Literal["image", "latent"]


@dataclass(frozen=True)
class Settings:
    """How to sample, in diffusers' argument names; height and width in pixels."""

    num_inference_steps: int
    guidance_scale: float
    height: int
    width: int
    output: Output


@dataclass(frozen=True)
class Chunk:
    """Finished items: ``images[i]`` belongs to ``prompts[rows[i]]`` and ``seeds[rows[i]]``."""

    rows: tuple[int, ...]
    images: Tensor


def sample(
    model: Model | Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 20,
    guidance_scale: float = 3.0,
    batch_size: int = 32,
    height: int | None = None,
    width: int | None = None,
    output: Output = "image",
    out: Path | str | None = None,
    events: Events = SILENT,
) -> Tensor:
    """Draw one picture for each pair of a prompt and a seed.

    Args:
        model: a model, or a diffusers pipeline, whose parts are then frozen (:meth:`Model.of`). Its pipeline is not
            changed: sampling uses a copy with a fresh scheduler of the same config.
        prompts: N prompts.
        seeds: N seeds; item i is a function of ``prompts[i]``, ``seeds[i]`` and the settings alone.
        num_inference_steps: sampling steps.
        guidance_scale: classifier-free guidance; at most 1 turns it off.
        batch_size: pictures at a time; changes speed and memory, not the pictures.
        height: in pixels; None is the model's own.
        width: in pixels; None is the model's own.
        output: "image" gives ``(N, 3, H, W)`` in [0, 1], "latent" scaled latents ``(N, C, h, w)``.
        out: a folder that receives every finished batch; the same call goes on where it stopped.
        events: told "sample", the pictures drawn and all of them.

    Returns:
        float32 on the CPU, in the order of the prompts.

    Raises:
        ConfigError: lengths differ, or a setting is out of range.
        CheckpointError: ``out`` holds pictures of another model, other prompts, seeds or settings, or is
            damaged.
        NumericsError: a picture is not finite (float16 overflow).
    """
    chunks = iterate(
        model,
        prompts,
        seeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=batch_size,
        height=height,
        width=width,
        output=output,
        out=out,
        events=events,
    )
    result: Tensor | None = None
    for chunk in chunks:
        if result is None:
            result = chunk.images.new_empty(len(prompts), *chunk.images.shape[1:])
        result[list(chunk.rows)] = chunk.images
    if result is None:
        raise ConfigError("there is nothing to sample", fix="pass at least one prompt and seed")
    return result


def iterate(
    model: Model | Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 20,
    guidance_scale: float = 3.0,
    batch_size: int = 32,
    height: int | None = None,
    width: int | None = None,
    output: Output = "image",
    out: Path | str | None = None,
    events: Events = SILENT,
) -> Iterator[Chunk]:
    """As :func:`sample`, batch by batch, for runs whose pictures do not fit in memory at once.

    Batches that ``out`` holds already come first.
    """
    model = Model.of(model)
    settings = _settings(model, num_inference_steps, guidance_scale, height, width, output)
    _check_items(prompts, seeds, batch_size)
    store = None if out is None else _Store(Path(out), _config(model, prompts, seeds, settings))
    todo = dict.fromkeys(range(len(prompts)))
    done = 0
    for chunk in store.finished() if store else ():
        for row in chunk.rows:
            del todo[row]
        done += len(chunk.rows)
        events.step("sample", done, len(prompts))
        yield chunk
    rows = list(todo)
    for start in range(0, len(rows), batch_size):
        part = tuple(rows[start : start + batch_size])
        images = _draw(model, [prompts[row] for row in part], [int(seeds[row]) for row in part], settings)
        chunk = Chunk(part, images)
        if store:
            store.add(chunk)
        done += len(part)
        events.step("sample", done, len(prompts))
        yield chunk
    events.close()


def _draw(model: Model, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Tensor:
    # A shallow copy shares the networks; a scheduler keeps state between steps, so it gets its own.
    pipe = copy.copy(model.pipe)
    with unremarked():
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    guided = settings.guidance_scale > 1
    negative = model.unconditional(len(prompts)) if guided else None
    training = model.denoiser.training
    model.denoiser.eval()
    try:
        with unremarked():
            images: Tensor = pipe(
                **model.conventions.pipeline_inputs(model.encode(prompts), negative),
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                height=settings.height,
                width=settings.width,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="pt" if settings.output == "image" else "latent",
                return_dict=False,
            )[0]
    finally:
        model.denoiser.train(training)
    bad = (~torch.isfinite(images).flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise NumericsError(
            f"{len(bad)} of {len(prompts)} pictures are not finite",
            found=f"first: prompt '{prompts[bad[0]]}', seed {seeds[bad[0]]}, weights in {model.dtype}",
            fix="load the model in float32, or look for damage in its weights",
        )
    return images.detach().to("cpu", torch.float32)


def _settings(
    model: Model,
    num_inference_steps: int,
    guidance_scale: float,
    height: int | None,
    width: int | None,
    output: Output,
) -> Settings:
    _, own_height, own_width = model.image_shape
    size = (own_height if height is None else height, own_width if width is None else width)
    unit = model.conventions.pixels(model.pipe)
    problems = [
        f"{name} must be a positive multiple of {unit}, found {value}"
        for name, value in zip(("height", "width"), size, strict=True)
        if value <= 0 or value % unit
    ]
    if not 1 <= num_inference_steps <= model.num_timesteps:
        problems.append(f"num_inference_steps must be from 1 to {model.num_timesteps}, found {num_inference_steps}")
    if not 0 <= guidance_scale < float("inf"):
        problems.append(f"guidance_scale must be a number from 0 on, found {guidance_scale}")
    if output not in ("image", "latent"):
        problems.append(f"output must be 'image' or 'latent', found '{output}'")
    if problems:
        raise ConfigError.many(problems, where="sampling")
    return Settings(num_inference_steps, float(guidance_scale), *size, output)


def _check_items(prompts: Sequence[str], seeds: Sequence[int], batch_size: int) -> None:
    if isinstance(prompts, str):
        raise ConfigError("prompts are a list, one for each seed", found=f"the text '{prompts[:40]}'")
    if len(prompts) != len(seeds):
        raise ConfigError(
            "there must be one seed for each prompt", found=f"{len(prompts)} prompts and {len(seeds)} seeds"
        )
    if batch_size < 1:
        raise ConfigError("batch_size must be at least 1", found=batch_size)


def _config(model: Model, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> dict[str, Any]:
    """Everything that a picture depends on; batch size and device are not in it."""
    modules = {name: part for name, part in model.pipe.components.items() if isinstance(part, nn.Module)}
    scheduler = {key: value for key, value in model.pipe.scheduler.config.items() if not key.startswith("_")}
    return {
        "family": model.family,
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": {name: weights_digest(part) for name, part in modules.items()},
        "scheduler": {"class": type(model.pipe.scheduler).__name__, **scheduler},
        "settings": asdict(settings),
        "prompts": list(prompts),
        "seeds": [int(seed) for seed in seeds],
    }


class _Store:
    """A folder of finished batches: ``sample.json`` says of what, each ``rows-*.safetensors`` is a batch."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.fingerprint = state.fingerprint(config)
        self.count = len(config["prompts"])
        record = folder / "sample.json"
        if record.exists():
            found = state.read_json(record)
            self._check(record, found, config)
        elif any(folder.glob("rows-*.safetensors")):
            raise CheckpointError(
                f"{folder} holds sampled rows, but no sample.json that says of what",
                fix="choose an empty folder, or delete its rows-*.safetensors",
            )
        else:
            header = {"format": _FORMAT, "version": _VERSION, "fingerprint": self.fingerprint}
            state.write_json(record, {**header, "config": config})

    def _check(self, record: Path, found: Any, config: dict[str, Any]) -> None:
        check_heading(found, _FORMAT, _VERSION, str(record))
        if found.get("fingerprint") != self.fingerprint:
            same(record.parent, found.get("config"), config)
            raise CheckpointError(f"{record} was edited", fix="choose another folder, or delete this one")

    def finished(self) -> Iterator[Chunk]:
        seen: set[int] = set()
        for file in sorted(self.folder.glob("rows-*.safetensors")):
            tensors, meta = state.load(file)
            rows = tuple(tensors["rows"].tolist()) if "rows" in tensors else ()
            fits = meta.get("fingerprint") == self.fingerprint and "images" in tensors
            if not fits or seen & set(rows) or not all(0 <= row < self.count for row in rows):
                raise CheckpointError(f"{file} does not belong to this run", fix="delete it and run again")
            seen.update(rows)
            yield Chunk(rows, tensors["images"])

    def add(self, chunk: Chunk) -> None:
        tensors = {"rows": torch.tensor(chunk.rows, dtype=torch.int64), "images": chunk.images}
        name = f"rows-{chunk.rows[0]:07d}.safetensors"
        state.save(self.folder / name, tensors, {"fingerprint": self.fingerprint})
