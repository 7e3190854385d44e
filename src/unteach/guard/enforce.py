"""Enforce a freeze mask while someone's own code trains.

:func:`enforce` takes a model and its optimiser, makes the mask hold in both, and leaves them the objects that they
were, so a training script goes on unchanged. It is a help for those who mean to keep to a policy: whoever runs the
script can take the lines out again (freezeasguard §6.1), which is what :mod:`unteach.guard.verify` is there to see.

Adapters and fused projections are recognised by their shape (a ``base_layer``, a ``to_qkv`` beside ``to_q``), so
neither peft nor diffusers is needed here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unteach.core import freeze as core
from unteach.core.state import read_json
from unteach.errors import ConfigError, ModelError

__all__ = ["Guarded", "adapter_targets", "check_adapters", "check_fused", "enforce", "load_frozen"]


@runtime_checkable
class HasFrozen(Protocol):
    """Anything that lists frozen tensors, such as a :class:`unteach.guard.manifest.FreezeManifest`."""

    @property
    def frozen(self) -> Sequence[str]:
        """Names of the frozen tensors."""


Policy = str | Path | HasFrozen | core.Names
"""A manifest, its path, names, or a mask (name to True or False)."""


class Guarded:
    """A model and an optimiser in which a mask holds. Made by :func:`enforce`; also a context manager.

    Leaving the context without an error verifies, and in any case releases.

    Attributes:
        model, optimizer, ema: the very objects that were handed in.
        frozen: names, shapes and digests of the frozen tensors.
        share: how much of the model they are.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, frozen: core.Frozen, ema: object) -> None:
        self.model, self.optimizer, self.frozen, self.ema = model, optimizer, frozen, ema
        self.share = core.share(model, frozen.names)
        self._held: list[nn.Parameter] = []
        self._hook = None if optimizer is None else _inner(optimizer).register_step_pre_hook(self._before_step)

    def check(self, model: nn.Module | None = None) -> None:
        """Check what can be seen without reading weights: gradients, the optimiser's groups, adapters, fusing.

        Called by itself before the first step of the optimiser.

        Raises:
            ModelError: a frozen tensor would train, or something trains in its place; says what and the way out.
        """
        model = self.model if model is None else model
        found = self.frozen.find(model)
        check_adapters(model, self.frozen.names)
        check_fused(model, self.frozen.names)
        self._held = list(found.values())
        self._check_held()

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
        """What is left to train, for an optimiser that is built after this."""
        return list(self.frozen.trainable(self.model).values())

    def release(self) -> None:
        """End the guard: no checks any more, old ``requires_grad``; the optimiser is not refilled."""
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
        if self._held:
            self._check_held()
        else:
            self.check()

    def _check_held(self) -> None:
        """Nothing frozen has a gradient or is in the optimiser; cheap enough for every step."""
        ids = {id(parameter) for parameter in self._held}
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        inside = any(id(parameter) in ids for group in groups for parameter in group["params"])
        moving = any(parameter.requires_grad or parameter.grad is not None for parameter in self._held)
        if inside or moving:
            raise ModelError(
                "frozen tensors are about to be trained",
                found="they are in the optimiser" if inside else "they have requires_grad or a gradient",
                fix="do not add them to the optimiser or switch gradients on after enforce()",
            )


def enforce(
    model: nn.Module, optimizer: Optimizer | None = None, *, frozen: Policy, ema: object | None = None
) -> Guarded:
    """Make a mask hold in a model and its optimiser; both stay the objects that they are.

    Call it when the optimiser is made and before ``accelerator.prepare`` or DDP / FSDP. From then on frozen
    tensors get no gradient and the optimiser no longer knows them: no state, no momentum, no decay. Before the
    first step, and in part before every one, it is checked that this is still so.

    Args:
        model: what is trained; adapters may be in it already.
        optimizer: any torch optimiser that updates the model's own parameters; None when it is built later
            from :meth:`Guarded.trainable`.
        frozen: a manifest, its path, names, or a mask. Empty changes nothing at all.
        ema: a running average to check and settle: diffusers' ``EMAModel``, ``AveragedModel`` or a copy of the
            model, or a mapping from names to tensors.

    Raises:
        ModelError: a name that the model does not have; an adapter on a frozen module; fused projections.
        ConfigError: a mask that contradicts itself, an optimiser of other tensors, a wrapped model.
    """
    names = load_frozen(frozen)
    core.share(model, names)  # names are right before anything is changed
    held = [name for name in names if not isinstance(names, Mapping) or names[name]]
    check_adapters(model, held)
    check_fused(model, held)
    if optimizer is not None:
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            raise ConfigError(
                "the optimiser holds none of the model's parameters, so the mask cannot hold in it",
                found=f"{type(optimizer).__name__} over other tensors (another model, or copies of the weights)",
                fix="build the optimiser from this model's parameters and enforce before accelerator.prepare",
            )
    found = core.freeze(model, names)
    if ema is not None:
        try:
            _averages(ema, model, found)
        except ConfigError:  # refused now, not after the training
            found.release(model)
            raise
    if optimizer is not None:
        core.drop(_inner(optimizer), found.find(model).values())
    return Guarded(model, optimizer, found, ema)


def load_frozen(policy: Policy) -> core.Names:
    """The names (or the mask) of a policy: a manifest, its path, a JSON file with a list of names, or names.

    Raises:
        CheckpointError: the file is missing or damaged.
        ConfigError: it is none of these.
    """
    if isinstance(policy, str | Path):
        content = read_json(policy)
        if isinstance(content, list) and all(isinstance(name, str) for name in content):
            return tuple(content)
        from unteach.guard.manifest import FreezeManifest

        policy = FreezeManifest.load(policy)
    if isinstance(policy, HasFrozen):
        return tuple(policy.frozen)
    if isinstance(policy, Mapping):
        return dict(policy)
    if isinstance(policy, Iterable):
        return tuple(policy)
    raise ConfigError("this is not a policy", found=type(policy).__name__, fix="pass a manifest, its path, or names")


def check_adapters(model: nn.Module, frozen: core.Names) -> None:
    """Refuse adapters on modules that own a frozen tensor: they change its effect and leave its bits alone.

    An adapter is a module with parameters of its own around a ``base_layer`` (LoRA and most of PEFT), with a
    copy beside ``original_module``, with a child called ``lora``, or an attention's ``processor`` with parameters.

    Raises:
        ModelError: lists the modules.
    """
    owners = _owners(model, frozen)
    bad = {name for name, modules in _adapters(model) if any(module in owners for module in modules)}
    if bad:
        raise ModelError(
            f"{len(bad)} adapters are on frozen modules",
            found=", ".join(sorted(bad)[:6]),
            fix="leave these modules out: target_modules=adapter_targets(model, frozen, [...])",
        )


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
    owners = _owners(model, load_frozen(frozen))
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


def check_fused(model: nn.Module, frozen: core.Names) -> None:
    """Refuse projections that were fused after the mask was made: the fused copy trains in a frozen one's place.

    Raises:
        ModelError: lists the modules.
    """
    owners = _owners(model, frozen)
    bad = []
    for name, module in model.named_modules():
        children = dict(module.named_children())
        for fused, parts in _FUSED.items():
            if fused in children and any(p in children and _holds(children[p], owners) for p in parts):
                bad.append(f"{name}.{fused}")
    if bad:
        raise ModelError(
            f"{len(bad)} fused projections stand in for frozen ones",
            found=", ".join(bad[:6]),
            fix="load the model anew and do not call fuse_qkv_projections (undoing it leaves the copies behind)",
        )


_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


def _owners(model: nn.Module, frozen: core.Names) -> set[nn.Module]:
    """The modules that hold a frozen tensor themselves, tied ones included."""
    known = core.named(model)
    held = {id(known[n]) for n in frozen if n in known and (not isinstance(frozen, Mapping) or frozen[n])}
    return {m for m in model.modules() if any(id(p) in held for p in m.parameters(recurse=False))}


def _holds(module: nn.Module, owners: set[nn.Module]) -> bool:
    return any(part in owners for part in module.modules())


def _adapters(model: nn.Module) -> Iterator[tuple[str, Iterable[nn.Module]]]:
    """Every adapter: its name, and the modules whose effect it changes."""
    for name, module in model.named_modules():
        children = dict(module.named_children())
        for inner in ("base_layer", "original_module"):
            if inner in children:
                base = {id(parameter) for parameter in children[inner].parameters()}
                if any(id(parameter) not in base for parameter in module.parameters()):
                    yield name, children[inner].modules()
        if "base_layer" not in children and any("lora" in child.lower() for child in children):
            yield name, [module]
        if "processor" in children and any(True for _ in children["processor"].parameters()):
            yield f"{name}.processor", module.modules()


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
    """The optimiser inside accelerate's wrapper."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer
