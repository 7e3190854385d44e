"""Check adapter files: none may sit on a module that owns a frozen tensor, or on another component."""

from collections.abc import Callable, Mapping

from unteach.guard.manifest import FreezeManifest, FrozenTensor
from unteach.guard.verify.collect import WeightSet
from unteach.guard.verify.names import Adapters, Target
from unteach.guard.verify.reader import FLOATS, Entry

__all__ = ["AdapterCheck"]


class AdapterCheck:
    """Checks sets of adapter weights, and reports through ``add`` as
    :class:`~unteach.guard.verify.verdict.Finding` reads.

    Args:
        policy: the manifest.
        tensors: the base's tensors.
        add: takes outcome, kind, where, detail and, by name, tensor.
        frozen: compares a tensor that replaces a frozen one.

    Attributes:
        finder: what keys are about.
        modules: that carry an adapter.
    """

    def __init__(
        self,
        policy: FreezeManifest,
        tensors: Mapping[str, Entry],
        add: Callable[..., None],
        frozen: Callable[[FrozenTensor, Entry, WeightSet], None],
    ) -> None:
        self.policy, self.tensors, self._add, self._frozen = policy, tensors, add, frozen
        self.finder = Adapters(tensors, policy.component)
        self.modules: set[str] = set()
        self._rows = {tensor.name: tensor for tensor in policy.tensors}
        self._held = set(policy.frozen)

    def any(self, part: WeightSet) -> bool:
        """Whether a key of these weights is an adapter's."""
        return any(self.finder.targets(key) for key, _ in part.entries)

    def check(self, part: WeightSet) -> None:
        """Every key of one adapter file."""
        told: set[tuple[str, str]] = set()
        for key, entry in part.entries:
            targets = self.finder.targets(key)
            if not targets:
                detail = "a key that names no module of this base: of another base, or of an unknown kind of adapter"
                self._add("undecidable", "unknown", part.label, detail, tensor=key)
            held = [target for target in targets if target.module and self._owned(target)]
            for target in targets:
                if target.component is not None:
                    if ("component", target.component) not in told:
                        detail = f"an adapter on '{target.component}', which the policy does not leave free"
                        self._add("violates", "component", part.label, detail, tensor=key)
                    told.add(("component", target.component))
                elif target.tensor is not None:
                    self._replaced(target.tensor, entry, part)
                elif target.module is not None:
                    self.modules.add(target.module)
                    sure = len(held) == len(targets)
                    if target in held and ("module", target.module) not in told:
                        self._on_frozen(target.module, key, part.label, sure)
                        told.add(("module", target.module))
                    elif not held:
                        self._check_shape(target, key, entry, part.label)

    def _owned(self, target: Target) -> bool:
        return target.tensor is None and any(name in self._held for name in self._inside(target.module or ""))

    def _inside(self, module: str) -> tuple[str, ...]:
        return self.finder.modules[module]

    def _on_frozen(self, module: str, key: str, where: str, sure: bool) -> None:
        frozen = [name for name in self._inside(module) if name in self._held]
        if sure:
            detail = f"an adapter on a module that owns the frozen '{frozen[0]}'"
            self._add("violates", "adapter", where, detail, tensor=module)
        else:
            detail = f"can be read as an adapter on '{module}', which owns a frozen tensor, or on another module"
            self._add("undecidable", "unknown", where, detail, tensor=key)

    def _replaced(self, name: str, entry: Entry, part: WeightSet) -> None:
        row = self._rows[name]
        if entry.shape != row.shape:
            detail = f"replaces a tensor of shape {row.shape} by one of {entry.shape}"
            self._add("violates", "shape", part.label, detail, tensor=name)
        elif row.frozen and entry.dtype not in FLOATS:
            detail = f"replaces a frozen tensor in a format that cannot be compared ({entry.dtype})"
            self._add("undecidable", "quantised", part.label, detail, tensor=name)
        elif row.frozen:
            self._frozen(row, entry, part)

    def _check_shape(self, target: Target, key: str, entry: Entry, where: str) -> None:
        weight = self.tensors.get(f"{target.module}.weight")
        if target.side is None or weight is None or len(weight.shape) < 2 or len(entry.shape) < 2:
            return
        axis = 1 if target.side == "A" else 0
        if entry.shape[axis] != weight.shape[axis]:
            detail = f"has shape {entry.shape} for a weight of {weight.shape}: of another base?"
            self._add("violates", "shape", where, detail, tensor=key)
