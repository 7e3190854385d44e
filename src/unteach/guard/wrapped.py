"""What changes a frozen module's effect and leaves its bits alone: adapters, and fused copies of projections.

Both are recognised by their shape (a ``base_layer``, a ``to_qkv`` beside ``to_q``), so neither peft nor diffusers is
needed here.
"""

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from unteach.core import freeze as core
from unteach.errors import ModelError

__all__ = ["check_adapters", "check_fused", "owning"]


def check_adapters(model: nn.Module, frozen: core.Names) -> None:
    """Refuse adapters on modules that own a frozen tensor: they change its effect and leave its bits alone.

    An adapter is a module with parameters of its own around a ``base_layer`` (LoRA and most of PEFT), with a
    copy beside ``original_module``, with a child called ``lora``, or an attention's ``processor`` with parameters.

    Raises:
        ModelError: lists the modules.
    """
    owners = owning(model, frozen)
    bad = {name for name, modules in _adapters(model) if any(module in owners for module in modules)}
    if bad:
        raise ModelError(
            f"{len(bad)} adapters are on frozen modules",
            found=", ".join(sorted(bad)[:6]),
            fix="leave these modules out: target_modules=adapter_targets(model, frozen, [...])",
        )


def check_fused(model: nn.Module, frozen: core.Names) -> None:
    """Refuse projections that were fused after the mask was made: the fused copy trains in a frozen one's place.

    Raises:
        ModelError: lists the modules.
    """
    owners = owning(model, frozen)
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


def owning(model: nn.Module, frozen: core.Names) -> set[nn.Module]:
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
