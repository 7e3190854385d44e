"""Enforce a freeze mask while someone's own code trains.

:func:`enforce` takes a model and its optimizer, makes the mask hold in both, and leaves them the objects that they
were, so a training script goes on unchanged. It is a help for those who mean to keep to a policy: whoever runs the
script can take the lines out again (freezeasguard §6.1), which is what :mod:`unteach.guard.verify` is there to see.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unteach.core import freeze as core
from unteach.core.kernels import mend_group_norms
from unteach.core.state import read_json
from unteach.errors import ConfigError, ModelError
from unteach.guard.wrapped import check_adapters, check_fused, owning

__all__ = ["Guarded", "adapter_targets", "check_adapters", "check_fused", "enforce", "load_frozen"]


@runtime_checkable
class HasFrozen(Protocol):
    """Anything that lists frozen tensors, such as a :class:`unteach.guard.manifest.FreezeManifest`."""

    @property
    def frozen(self) -> Sequence[str]:
        """Names of the frozen tensors."""


Policy = str | Path | HasFrozen | core.Names
"""A manifest, its path, names, or a mask (name to True or False)."""
Others = Literal["refuse", "warn"]
"""What to do about an optimizer that trains something beside the model."""
log = logging.getLogger(__name__)


class Guarded:
    """A model and an optimizer in which a mask holds. Made by :func:`enforce`; also a context manager.

    Leaving the context without an error verifies, and in any case releases.

    Attributes:
        model, optimizer, ema: the very objects that were passed.
        frozen: names, shapes and digests of the frozen tensors.
        share: how much of the model they are.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | None, frozen: core.Frozen, ema: object, others: Others = "refuse"
    ) -> None:
        self.model, self.optimizer, self.frozen, self.ema = model, optimizer, frozen, ema
        self._others, self._groups = others, 0 if optimizer is None else _count(optimizer)
        self.share = core.share(model, frozen.names)
        self._held: list[nn.Parameter] = []
        self._hook = None if optimizer is None else _inner(optimizer).register_step_pre_hook(self._before_step)

    def check(self, model: nn.Module | None = None) -> None:
        """Check what can be seen without reading weights: gradients, the optimizer's groups, adapters, fusing.

        Called by itself before the first step of the optimizer.

        Raises:
            ModelError: a frozen tensor would train, or something trains in its place; says what and the way out.
        """
        model = self.model if model is None else model
        found = self.frozen.find(model)
        check_adapters(model, self.frozen.names)
        check_fused(model, self.frozen.names)
        self._held = list(found.values())
        self._check_held()
        if self.optimizer is not None and _count(self.optimizer) > self._groups:
            _check_others(model, self.optimizer, self._others)  # added after enforce()
            self._groups = _count(self.optimizer)

    def verify(self, model: nn.Module | None = None) -> None:
        """Check that every frozen tensor, and its average in ``ema``, is bit for bit what it was.

        Args:
            model: the model to look at; needed with FSDP (what ``accelerator.prepare`` returned; every process
                calls), else the guarded one.

        Raises:
            ModelError: names the tensors that moved, or what :meth:`check` found.
        """
        model = self.model if model is None else model
        check_adapters(model, self.frozen.names)
        check_fused(model, self.frozen.names)
        self.frozen.verify(model)
        drifted = [name for name, shadow in self._averages().items() if core.mark(shadow) != self.frozen.marks[name]]
        if drifted:
            raise ModelError(
                f"the averages of {len(drifted)} of {len(self.frozen.names)} frozen tensors drifted by rounding",
                found=", ".join(drifted[:6]),
                fix="call settle() on the guard before the averages are used or saved",
            )

    @torch.no_grad()
    def settle(self) -> None:
        """Put the frozen tensors into the running average as they are.

        ``diffusers`` and ``torch`` averages need no such thing; one that computes d·a + (1 - d)·w rounds in
        every step, also where a = w.
        """
        found = self.frozen.find(self.model)
        for name, shadow in self._averages().items():
            shadow.copy_(found[name])

    def trainable(self) -> list[nn.Parameter]:
        """What is left to train, for an optimizer that is built after this."""
        return list(self.frozen.trainable(self.model).values())

    def release(self) -> None:
        """End the guard: no checks any more, old ``requires_grad``; the optimizer is not refilled."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        self.frozen.release(self.model)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.verify()
        finally:
            self.release()

    def _averages(self) -> dict[str, Tensor]:
        return {} if self.ema is None else _averages(self.ema, self.model, self.frozen)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._held and _count(optimizer) <= self._groups:
            self._check_held()
        else:
            self.check()

    def _check_held(self) -> None:
        """Nothing frozen has a gradient or is in the optimizer; cheap enough for every step."""
        ids = {id(parameter) for parameter in self._held}
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        inside = any(id(parameter) in ids for group in groups for parameter in group["params"])
        moving = any(parameter.requires_grad or parameter.grad is not None for parameter in self._held)
        if inside or moving:
            raise ModelError(
                "frozen tensors are about to be trained",
                found="they are in the optimizer" if inside else "they have requires_grad or a gradient",
                fix="do not add them to the optimizer or switch gradients on after enforce()",
            )


def enforce(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    frozen: Policy,
    ema: object | None = None,
    others: Others = "refuse",
) -> Guarded:
    """Make a mask hold in a model and its optimizer; both stay the objects that they are.

    Call it when the optimizer is made and before ``accelerator.prepare`` or DDP / FSDP. From then on frozen
    tensors get no gradient and the optimizer no longer knows them: no state, no momentum, no decay. Before the
    first step, and in part before every one, it is checked that this is still so.

    Args:
        model: what is trained; adapters may be in it already.
        optimizer: any torch optimizer that updates the model's own parameters; None when it is built later
            from :meth:`Guarded.trainable`.
        frozen: a manifest, its path, names, or a mask. Empty changes nothing at all. With a manifest the frozen
            tensors must be the ones that it is of, or their 16-bit cast; so a training that kept to it can be resumed.
            To hold other weights pass its names, ``manifest.frozen``.
        ema: a running average to check and settle: diffusers' ``EMAModel``, ``AveragedModel`` or a copy of the
            model, or a mapping from names to tensors.
        others: what to do about an optimizer that also holds tensors of another component, such as the text encoder:
            "refuse", because verification compares the other components with the published ones, or "warn".

    Raises:
        ModelError: a name that the model does not have; a manifest of other weights; an adapter on a frozen module;
            fused projections; something that trains beside the model.
        ConfigError: a mask that contradicts itself, an optimizer of other tensors, a wrapped model.
    """
    if others not in get_args(Others):
        raise ConfigError('\'others\' is "refuse" or "warn"', found=repr(others))
    frozen = _read(frozen)
    names = load_frozen(frozen)
    core.share(model, names)  # names are right before anything is changed
    held = [name for name in names if not isinstance(names, Mapping) or names[name]]
    check_adapters(model, held)
    check_fused(model, held)
    if optimizer is not None:
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ConfigError(
                "the optimizer holds none of the model's parameters, so the mask cannot hold in it",
                found=f"{type(optimizer).__name__} over other tensors (another model, or copies of the weights)",
                fix="build the optimizer from this model's parameters and enforce before accelerator.prepare",
            )
        if held:
            _check_others(model, optimizer, others)
    found = core.freeze(model, names)
    if held:
        mend_group_norms(model)
    try:
        _check_weights(model, found, frozen)
    except ModelError:
        found.release(model)
        raise
    if ema is not None:
        try:
            _averages(ema, model, found)
        except ConfigError:  # refused now, not after the training
            found.release(model)
            raise
    if optimizer is not None:
        core.drop(_inner(optimizer), found.find(model).values())
    return Guarded(model, optimizer, found, ema, others)


def load_frozen(policy: Policy) -> core.Names:
    """The names (or the mask) of a policy: a manifest, its path, a JSON file with a list of names, or names.

    Raises:
        CheckpointError: the file is missing or damaged.
        ConfigError: it is none of these.
    """
    policy = _read(policy)
    if isinstance(policy, HasFrozen):
        return tuple(policy.frozen)
    if isinstance(policy, Mapping):
        return dict(policy)
    if isinstance(policy, Iterable):
        return tuple(policy)
    raise ConfigError("this is not a policy", found=type(policy).__name__, fix="pass a manifest, its path, or names")


def _read(policy: Policy) -> Policy:
    """The policy, read where it is a path."""
    if not isinstance(policy, str | Path):
        return policy
    content = read_json(policy)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return tuple(content)
    from unteach.guard.manifest import FreezeManifest

    return FreezeManifest.load(policy)


def _check_weights(model: nn.Module, found: core.Frozen, policy: Policy) -> None:
    """Refuse a manifest of other weights: a mask is for the weights that it was learned on.

    Raises:
        ModelError: names the frozen tensors that are not the manifest's.
    """
    hashes = {row.name: row.hashes for row in getattr(policy, "tensors", ()) if row.frozen}
    if not hashes:
        return
    from unteach.guard.verify.hashes import CASTS, InMemory, matches

    kinds = {dtype: cast for cast, dtype in CASTS.items()}
    tensors = found.find(model)
    wrong = [
        name
        for name, mark in found.marks.items()
        if name in hashes
        and hashes[name].get(kinds.get(mark.dtype, "")) != mark.digest
        and (hasattr(tensors[name], "full_tensor") or matches(InMemory(tensors[name]), hashes[name]) is None)
    ]
    if wrong:
        raise ModelError(
            f"the manifest is of other weights: {len(wrong)} of {len(found.marks)} frozen tensors are not those here",
            found=", ".join(wrong[:6]),
            fix="train the published model that the manifest came with; to hold other weights pass manifest.frozen",
        )


def _check_others(model: nn.Module, optimizer: Optimizer, others: Others) -> None:
    """Notice what trains beside the model: a verifier compares the other components with the published ones.

    Raises:
        ModelError: something does, and ``others`` is "refuse".
    """
    own = {id(parameter) for parameter in model.parameters()}
    beside = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
    if not beside:
        return
    what = f"{len(beside)} tensors with {sum(p.numel() for p in beside)} parameters that are not the model's"
    problem = "the optimizer also trains something beside the model, such as a text encoder"
    if others == "refuse":
        raise ModelError(
            problem,
            found=what,
            fix="leave them out, because verification compares the other components with the published ones; "
            "or pass others='warn'",
        )
    log.warning("%s (%s); verification compares the other components with the published ones", problem, what)


def _count(optimizer: Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def adapter_targets(model: nn.Module, frozen: Policy, targets: Sequence[str]) -> list[str]:
    """The modules that ``targets`` mean and that own no frozen tensor, for ``LoraConfig(target_modules=...)``.

    Args:
        model: the plain model, before adapters are added.
        frozen: as in :func:`enforce`.
        targets: module names or their ends, as PEFT reads a list: "to_k" is every module whose name is that or
            ends in ".to_k".

    Raises:
        ConfigError: nothing matches, or all that matches is frozen.
    """
    if isinstance(targets, str):
        raise ConfigError("targets must be a list of module names", found=f"'{targets}'", fix="put it in a list")
    owners = owning(model, load_frozen(frozen))
    modules = list(core.unwrap(model).named_modules())
    hits = [(n, m) for n, m in modules if any(n == t or n.endswith(f".{t}") for t in targets)]
    free = [name for name, module in hits if not any(part in owners for part in module.modules())]
    if not free:
        raise ConfigError(
            "no module is left for adapters",
            found=f"{len(hits)} modules match {list(targets)}" + (", all of them own frozen tensors" if hits else ""),
            fix="name other modules",
        )
    return free


def _averages(ema: object, model: nn.Module, frozen: core.Frozen) -> dict[str, Tensor]:
    """The running averages of the frozen tensors, by name; those that the average does not track are left out."""
    if isinstance(ema, Mapping):
        return {name: ema[name] for name in frozen.names if name in ema}
    if isinstance(ema, nn.Module):
        known = core.named(ema)
        return {name: known[name] for name in frozen.names}
    shadows = getattr(ema, "shadow_params", None)
    if isinstance(shadows, list | tuple):
        names = {id(parameter): name for name, parameter in frozen.find(model).items()}
        everything = list(model.parameters())
        if len(shadows) == len(everything):
            pairs = zip(everything, shadows, strict=True)
            return {names[id(parameter)]: shadow for parameter, shadow in pairs if id(parameter) in names}
        if len(shadows) == len(frozen.trainable(model)):
            return {}  # it was made from what trains, and does not know the frozen ones
    raise ConfigError(
        "this average of weights cannot be matched with the model's tensors",
        found=type(ema).__name__,
        fix="pass an EMAModel over model.parameters(), a module of the model's kind, or a mapping of names to tensors",
    )


def _inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside accelerate's wrapper."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
