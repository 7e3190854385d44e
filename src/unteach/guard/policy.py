"""The mask of a model in memory, with its freeze policy; and whether a model is the one that a policy is for."""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from unteach.diffusion.delta import versions
from unteach.diffusion.export import loaded
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import ConfigError, ModelError, NumericsError
from unteach.guard.data import GuardData
from unteach.guard.manifest import FreezeManifest
from unteach.guard.methods.base import Guard, Job, Selection
from unteach.guard.verify.hashes import InMemory, component_digest
from unteach.guard.verify.reader import Safetensors
from unteach.records import environment
from unteach.records.mask import Mask, Policy, Provenance, Step

__all__ = ["check_model", "mask_by", "mask_of"]


def mask_by(guard: Guard, model: Model | Pipeline, data: GuardData, job: Job, **more: Any) -> Mask:
    """Run a guard and give its mask.

    Args:
        guard: how to choose.
        model: what will be published: a model, or a diffusers pipeline.
        data: what must not be learned and what must.
        job: seed, folder and events.
        more: further arguments of :func:`mask_of`.

    Raises:
        NumericsError: it diverged or gained nothing; what it left in the job's folder is removed, as it helps nobody.
        ConfigError: a guard that changes the weights themselves.
    """
    begin, model = time.monotonic(), Model.of(model, edit=True)
    try:
        made = guard.run(model, data, job)
    except NumericsError:
        if job.out is not None:
            shutil.rmtree(job.out, ignore_errors=True)
        raise
    job.events.close()
    if made.mask is None or made.delta is not None:
        raise ConfigError(f"the guard '{guard.name}' changes weights: what it gives is no mask alone")
    more |= {"seconds": round(time.monotonic() - begin, 3), "environment": vars(environment.collect())}
    return mask_of(model, made.mask, guard, seed=job.seed, digests=data.digests(), **more)


def mask_of(
    model: Model | Pipeline,
    chosen: Selection,
    guard: Guard,
    *,
    name: str | None = None,
    seed: int = 0,
    illegal: Sequence[str] = (),
    innocent: Sequence[str] = (),
    digests: Mapping[str, str] | None = None,
    policy: str | None = None,
    erased: Mapping[str, Any] | None = None,
    model_name: str | None = None,
    **history: Any,
) -> Mask:
    """The mask of a model, with hashes of what it freezes; it vouches for the pipeline's other parts too.

    Args:
        model: what it is for, and what will be published: a model, or a diffusers pipeline.
        chosen: what is frozen.
        guard: what chose it.
        name: what to call the guard in tables, such as a preset; its own name when None.
        seed: root of all draws.
        illegal, innocent: names of the domains that it was made from.
        digests: name of a data set → digest.
        policy: id of the policy; made from the model and the frozen names when None.
        erased: record of the erasure that was applied, for the provenance.
        model_name: for a reader; the model's folder when None.
        history: seconds, environment, command, as in :class:`Mask`.

    Raises:
        ModelError: a name that the denoiser has not, or its tensors cannot be hashed.
        NumericsError: a frozen value or a score is not finite.
    """
    model = Model.of(model)
    shapes = {key: tuple(value.shape) for key, value in model.denoiser.named_parameters()}
    if unknown := sorted({*chosen.frozen, *chosen.scores} - shapes.keys()):
        raise ModelError(f"{len(unknown)} names of the mask are not in the denoiser", found=unknown[0])
    component = model.conventions.denoiser
    made = {"name": name or guard.name, **guard.to_dict(), "illegal": list(illegal), "innocent": list(innocent)}
    manifest = FreezeManifest.from_model(
        model.denoiser,
        chosen.frozen,
        chosen.scores,
        policy=policy,
        family=model.family,
        component=component,
        granularity=chosen.granularity,
        measure=chosen.measure,
        rho=chosen.rho,
        provenance=Provenance(
            {**made, **({"erased": dict(erased)} if erased else {})}, (seed,), dict(digests or {}), versions()
        ),
        components={part: _component(model, part) for part in model.parts if part != component},
    )
    check_model(model, manifest, "the mask")
    return Mask(
        manifest=Policy(**vars(manifest)),
        model_name=model_name or (model.path.name if model.path else ""),
        log=tuple(
            Step(int(row["step"]), float(row["mean"]), float(row["jaccard"]), float(row["largest"]))
            for row in chosen.log
        ),
        steps=chosen.steps,
        **history,
    )


def check_model(model: Model, policy: Policy, what: str) -> None:
    """Refuse a model with other tensors or other weights than ``what`` is for.

    Raises:
        ModelError: says which.
    """
    # Buffers, too: a transformer's table of positions is saved and hashed with its weights.
    own, shapes = {name: tuple(value.shape) for name, value in model.denoiser.state_dict().items()}, policy.shapes
    if own != shapes:
        odd = sorted(own.items() ^ shapes.items())
        raise ModelError(f"{what} is for another model", found=f"{len(odd)} differences, such as '{odd[0][0]}'")
    found = model.digest(fresh=True)
    if found != policy.model:
        raise ModelError(
            f"{what} is for other weights than these",
            found=f"digest {found[:12]}, expected {policy.model[:12]}",
            fix="give the model and the erasure (--erased) that the mask was learned on",
        )


def _component(model: Model, part: str) -> str:
    """Digest of another part of the pipeline as it will be published: from its files, where it was loaded from some."""
    if model.path is None:
        return component_digest({k: InMemory(v) for k, v in getattr(model.pipe, part).state_dict().items()})
    with ExitStack() as stack:
        files = [stack.enter_context(Safetensors(path)) for path in loaded(model, part)]
        return component_digest({name: entry for file in files for name, entry in file.entries.items()})
