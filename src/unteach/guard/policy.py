"""The mask of a model in memory, with its freeze policy; and whether a model is the one that a policy is for."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from unteach.diffusion.delta import versions
from unteach.diffusion.export import loaded
from unteach.diffusion.families import Pipeline
from unteach.diffusion.model import Model
from unteach.errors import ModelError
from unteach.guard.learn import Learned
from unteach.guard.manifest import FreezeManifest
from unteach.guard.verify.hashes import InMemory, component_digest
from unteach.guard.verify.reader import Safetensors
from unteach.records.mask import Mask, Measure, Policy, Provenance, Step

__all__ = ["check_model", "mask_of", "mask_of_learned"]


def mask_of(
    model: Model | Pipeline,
    frozen: Collection[str],
    *,
    name: str,
    method: Mapping[str, Any],
    scores: Mapping[str, float] | None = None,
    measure: Measure = "tensors",
    rho: float | None = None,
    seed: int = 0,
    illegal: Sequence[str] = (),
    innocent: Sequence[str] = (),
    digests: Mapping[str, str] | None = None,
    policy: str | None = None,
    erased: Mapping[str, Any] | None = None,
    model_name: str | None = None,
    log: Sequence[Mapping[str, float]] = (),
    **history: Any,
) -> Mask:
    """The mask of a model, with hashes of what it freezes; it vouches for the pipeline's other parts too.

    Args:
        model: what it is for, and what will be published: a model, or a diffusers pipeline.
        frozen: names of the frozen tensors.
        name: what to call the method in tables.
        method: its settings.
        scores: tensor → score.
        measure, rho: the budget that was asked for.
        seed: root of all draws.
        illegal, innocent: names of the domains that it was made from.
        digests: name of a data set → digest.
        policy: id of the policy; made from the model and the frozen names when None.
        erased: record of the erasure that was applied, for the provenance.
        model_name: for a reader; the model's folder when None.
        log: as in :class:`unteach.guard.learn.Learned`.
        history: steps, seconds, environment, command, as in :class:`Mask`.

    Raises:
        ModelError: a name that the denoiser has not, or its tensors cannot be hashed.
        NumericsError: a frozen value or a score is not finite.
    """
    model = Model.of(model)
    shapes = {key: tuple(value.shape) for key, value in model.denoiser.named_parameters()}
    if unknown := sorted({*frozen, *(scores or {})} - shapes.keys()):
        raise ModelError(f"{len(unknown)} names of the mask are not in the denoiser", found=unknown[0])
    component = model.conventions.denoiser
    made = {"name": name, **method, "illegal": list(illegal), "innocent": list(innocent)}
    manifest = FreezeManifest.from_model(
        model.denoiser,
        frozen,
        scores,
        policy=policy,
        family=model.family,
        component=component,
        granularity=method.get("granularity", "tensor"),
        measure=measure,
        rho=rho,
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
            Step(int(row["step"]), float(row["mean"]), float(row["jaccard"]), float(row["largest"])) for row in log
        ),
        **history,
    )


def mask_of_learned(model: Model, learned: Learned, *, name: str, **more: Any) -> Mask:
    """A learned mask; arguments as in :func:`mask_of`, what ``learned`` knows is taken from there."""
    config = learned.config
    return mask_of(
        model,
        learned.frozen,
        name=name,
        method=config.to_dict(),
        scores=learned.scores,
        measure=config.budget,
        rho=config.rho,
        seed=learned.seed,
        digests=learned.data,
        log=learned.log,
        steps=learned.steps,
        **more,
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
