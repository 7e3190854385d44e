"""Make a mask hold: frozen tensors get no gradient, no optimizer state, no decay, and keep every bit.

Names are dotted parameter names of the plain model. Wrappers (DDP, FSDP, ``torch.compile``, activation checkpointing,
PEFT) put segments of their own into names; :func:`named` takes them out again, so a mask that was learned on the plain
model is found in the wrapped one. A tied parameter is one tensor: one of its names freezes it under all of them.
"""

import contextlib
import difflib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from unteach.errors import ConfigError, ModelError

__all__ = ["Frozen", "Mark", "Names", "Share", "drop", "freeze", "mark", "named", "share", "unwrap", "whole"]

Names = Collection[str] | Mapping[str, bool]
"""Names of frozen tensors, or a mask: name to True (frozen) or False (trainable)."""

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)

_PIECE = 1 << 24  # bytes hashed at a time
_SEGMENTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer", "original_module"}
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel"}  # decide once which gradients to expect
_HOLDERS = {"DistributedDataParallel", "DataParallel", "AveragedModel"}  # hold the model as `.module`


@dataclass(frozen=True)
class Mark:
    """What a tensor was: shape, dtype and the SHA-256 (hex) of its bytes in row-major order."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    digest: str


@dataclass(frozen=True)
class Share:
    """How much of a model is frozen; a tied parameter counts once."""

    frozen_tensors: int
    tensors: int
    frozen_parameters: int
    parameters: int

    @property
    def of_tensors(self) -> float:
        """Share of the tensors in [0, 1] (the paper's ρ)."""
        return self.frozen_tensors / max(self.tensors, 1)

    @property
    def of_parameters(self) -> float:
        """Share of the parameters in [0, 1]; what time and memory depend on."""
        return self.frozen_parameters / max(self.parameters, 1)


@dataclass(frozen=True, eq=False)
class Frozen:
    """The frozen tensors of a model, and what they were when they were frozen. Holds no tensor itself.

    Attributes:
        marks: name to mark, in the model's order, each tensor under its first name.
        before: name to the ``requires_grad`` that the tensor had.
    """

    marks: Mapping[str, Mark]
    before: Mapping[str, bool] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the frozen tensors, in the model's order."""
        return tuple(self.marks)

    def find(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The frozen tensors in the model, or in what it was wrapped in; ModelError when one is not there."""
        return _find(model, named(model), self.marks)

    def trainable(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What is not frozen and has ``requires_grad``, by name, each tensor once."""
        held = {id(parameter) for parameter in self.find(model).values()}
        return {n: p for n, p in _once(named(model)).items() if p.requires_grad and id(p) not in held}

    def moved(self, model: nn.Module) -> dict[str, str]:
        """The frozen tensors that are not bit for bit what they were, and what is different about each.

        Where parameters are sharded (FSDP) this is a collective call: every process makes it, with the model
        that the wrapper returned.

        Raises:
            ModelError: a tensor is not there any more.
        """
        found = {}
        with whole(model):
            for name, parameter in self.find(model).items():
                new, old = mark(parameter), self.marks[name]
                if new.shape != old.shape:
                    shard = len(new.shape) == 1 and len(old.shape) != 1
                    hint = " (a shard: pass the model that FSDP returned)" if shard else ""
                    found[name] = f"shape {old.shape} became {new.shape}{hint}"
                elif new.dtype != old.dtype:
                    found[name] = f"{old.dtype} became {new.dtype}"
                elif new.digest != old.digest:
                    found[name] = "values changed"
        return found

    def verify(self, model: nn.Module) -> None:
        """Check that every frozen tensor is bit for bit what it was; see :meth:`moved`.

        Raises:
            ModelError: names the tensors that moved.
        """
        moved = self.moved(model)
        if moved:
            raise ModelError(
                f"{len(moved)} of {len(self.marks)} frozen tensors are not what they were",
                found=_listed([f"{name}: {what}" for name, what in moved.items()]),
                fix="find what writes to them: a later optimizer, a cast, a merged adapter, an average of weights",
            )

    def release(self, model: nn.Module) -> None:
        """Give every frozen tensor its old ``requires_grad`` back; optimizers are not refilled."""
        for name, parameter in self.find(model).items():
            parameter.requires_grad_(self.before[name])


def freeze(model: nn.Module, names: Names) -> Frozen:
    """Freeze tensors of a model: no ``requires_grad``, no gradient; remember what they are.

    Freeze before the model is wrapped for several processes: wrappers decide once which gradients to expect.
    An optimizer that already holds the tensors still decays them; see :func:`drop`.

    Args:
        model: the plain model, or one that PEFT, ``torch.compile`` or activation checkpointing has wrapped.
        names: parameter names, or a mask. Any name of a tied parameter will do.

    Raises:
        ModelError: a name that the model does not have (near names are listed), or a tensor without data.
        ConfigError: a mask that contradicts itself on a tied parameter; a trainable parameter that shares
            memory with a frozen one; a model that is already wrapped in DDP or FSDP.
    """
    known = named(model)
    chosen = _chosen(model, known, names)
    _check_memory(known, chosen)
    wrapped = next((type(m).__name__ for m in model.modules() if type(m).__name__ in _WRAPPERS), None)
    if any(hasattr(parameter, "full_tensor") for parameter in chosen.values()):
        wrapped = "fully_shard"
    if wrapped is not None and any(parameter.requires_grad for parameter in chosen.values()):
        raise ConfigError(
            "tensors must be frozen before the model is wrapped for several processes",
            found=wrapped,
            fix="freeze first, then wrap (with accelerate: before accelerator.prepare)",
        )
    with whole(model):
        marks = {name: mark(parameter) for name, parameter in _find(model, named(model), chosen).items()}
    before = {name: parameter.requires_grad for name, parameter in chosen.items()}
    for parameter in chosen.values():
        parameter.requires_grad_(False)
        parameter.grad = None
    return Frozen(marks, before)


def drop(optimizer: AnyOptimizer, frozen: Iterable[Tensor]) -> AnyOptimizer:
    """Take tensors and their state out of an optimizer, in place, and return it.

    Only this keeps a frozen tensor from decoupled weight decay and from momentum that it already has. Groups
    stay, even empty ones, so learning-rate schedulers and options by group still fit.
    """
    gone = {id(tensor) for tensor in frozen}
    for group in optimizer.param_groups:
        keep = [i for i, parameter in enumerate(group["params"]) if id(parameter) not in gone]
        for key in ("params", "param_names"):
            if key in group:
                group[key][:] = [group[key][i] for i in keep]
    for parameter in [p for p in optimizer.state if id(p) in gone]:
        del optimizer.state[parameter]
    return optimizer


def share(model: nn.Module, names: Names) -> Share:
    """How many tensors and parameters of the model a mask freezes; errors as in :func:`freeze`."""
    known = named(model)
    chosen, everything = _chosen(model, known, names).values(), _once(known).values()
    held, total = (sum(parameter.numel() for parameter in group) for group in (chosen, everything))
    return Share(len(chosen), len(everything), held, total)


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter under every name that it has in the plain model, without the segments of wrappers.

    Raises:
        ConfigError: FSDP has flattened the parameters, so they have no names; or two get the same name.
    """
    known: dict[str, nn.Parameter] = {}
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        segments = name.split(".")
        if segments[-1] == "_flat_param":
            raise ConfigError(
                "FSDP has flattened the parameters, so a mask by name cannot hold",
                found=name,
                fix="wrap with use_orig_params=True",
            )
        plain = ".".join(segment for segment in segments if segment not in _SEGMENTS)
        if known.setdefault(plain, parameter) is not parameter:
            raise ConfigError(
                f"two parameters are called '{plain}' once the names of wrappers are taken out", found=name
            )
    return known


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, ``AveragedModel``, FSDP, ``torch.compile`` and ``PeftModel``, adapters still in it."""
    while True:
        base = dict(model.named_children()).get("base_model")
        if type(model).__name__ in _HOLDERS:
            model = model.get_submodule("module")
        elif hasattr(model, "_orig_mod") or hasattr(model, "_fsdp_wrapped_module"):
            model = model.get_submodule("_orig_mod" if hasattr(model, "_orig_mod") else "_fsdp_wrapped_module")
        elif (
            hasattr(model, "peft_config") and base is not None and hasattr(base, "model")
        ):  # PeftModel -> LoraModel -> model
            model = model.get_submodule("base_model.model")
        else:
            return model


@contextlib.contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside, parameters that FSDP shards are whole, to be read only. Every process must take part."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        from torch.distributed.fsdp import FullyShardedDataParallel

        with FullyShardedDataParallel.summon_full_params(model, writeback=False):
            yield
    else:
        yield


def mark(tensor: Tensor) -> Mark:
    """Shape, dtype and digest of a tensor; a sharded DTensor is gathered first (a collective call).

    Raises:
        ModelError: the tensor is on the meta device.
    """
    if tensor.is_meta:
        raise ModelError("a tensor without data cannot be frozen", found="meta device", fix="load the weights first")
    data = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    sha = hashlib.sha256()
    for piece in data.detach().contiguous().reshape(-1).view(torch.uint8).split(_PIECE):
        # A copy, because numpy pins the storage that it looks into, and FSDP has to free it.
        sha.update(piece.to("cpu", copy=True).numpy().data)
    return Mark(tuple(data.shape), data.dtype, sha.hexdigest())


def _chosen(model: nn.Module, known: Mapping[str, nn.Parameter], names: Names) -> dict[str, nn.Parameter]:
    """The parameters that a mask freezes, in the model's order, under their first names."""
    if isinstance(names, str):
        raise ConfigError("names must be a list or a mask", found=f"the string '{names}'", fix="put it in a list")
    mask = names if isinstance(names, Mapping) else dict.fromkeys(names, True)
    wish: dict[int, tuple[str, bool]] = {}
    for name, parameter in _find(model, known, mask).items():
        other, wanted = wish.setdefault(id(parameter), (name, mask[name]))
        if wanted != mask[name]:
            raise ConfigError(
                f"'{name}' and '{other}' are one tied parameter, but the mask freezes only one of them",
                fix="freeze both names, or none",
            )
    return {name: p for name, p in _once(known).items() if wish.get(id(p), ("", False))[1]}


def _find(model: nn.Module, known: Mapping[str, nn.Parameter], names: Collection[str]) -> dict[str, nn.Parameter]:
    """The parameters of these names; full names, with wrappers' segments, are known too."""
    raw = dict(model.named_parameters(remove_duplicate=False)) if any(name not in known for name in names) else {}
    missing = [name for name in names if name not in known and name not in raw]
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} names are not parameters of {type(model).__name__}",
            found=_listed(missing),
            fix=f"{_hint(missing[0], known)}; is this the model that the mask was made for?",
        )
    return {name: known[name] if name in known else raw[name] for name in names}


def _once(known: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Each tensor once, under its first name."""
    first: dict[int, str] = {}
    for name, parameter in known.items():
        first.setdefault(id(parameter), name)
    return {name: known[name] for name in first.values()}


def _check_memory(known: Mapping[str, nn.Parameter], chosen: Mapping[str, nn.Parameter]) -> None:
    """Raise when a trainable parameter lies in the memory of a frozen one: training would move both."""
    held = {id(parameter) for parameter in chosen.values()}
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for name, parameter in _once(known).items():
        data = parameter.detach()
        if hasattr(data, "full_tensor") or data.is_meta or data.numel() == 0:
            continue
        size = data.element_size()
        start = int(data.storage_offset()) * size
        end = start + size + size * sum((int(n) - 1) * int(s) for n, s in zip(data.shape, data.stride(), strict=True))
        spans.setdefault(data.untyped_storage().data_ptr(), []).append((start, end, name))
    for place in spans.values():
        last = {True: (0, ""), False: (0, "")}  # how far the frozen and the trainable ones reach
        for start, end, name in sorted(place):
            is_held = id(known[name]) in held
            reach, other = last[not is_held]
            if start < reach:
                raise ConfigError(
                    "a frozen and a trainable parameter share memory, so training would move both",
                    found=f"'{other}' and '{name}'",
                    fix="freeze both, or give one of them its own copy",
                )
            last[is_held] = max(last[is_held], (end, name))


def _hint(name: str, known: Collection[str]) -> str:
    """Near names, or a few of the model's names when none is near."""
    hits = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known)[:3]
    return "the model has " + ", ".join(f"'{hit}'" for hit in hits)


def _listed(items: Sequence[str], most: int = 6) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
