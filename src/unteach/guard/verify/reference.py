"""The published model that a candidate is compared with."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from unteach.errors import CheckpointError
from unteach.guard.manifest import FreezeManifest, stamped
from unteach.guard.verify.collect import Found, WeightSet
from unteach.guard.verify.hashes import is_component, model_digest
from unteach.guard.verify.reader import Entry

__all__ = ["Reference"]


class Reference:
    """The base, known to be the one that the manifest is of.

    Attributes:
        policy: the manifest.
        tensors: the component's tensors.
        parts: other components → their sets of weights (several when there are variants).
        pipeline: whether the base is a whole pipeline, so that a component which it lacks is an extra one.
        stamped: whether the component's weights carry the manifest's digest.

    Raises:
        CheckpointError: the manifest is not of this base.
    """

    def __init__(self, policy: FreezeManifest, found: Found, path: Path) -> None:
        self.policy, self.found = policy, found
        self.stamped = False
        inside = [part for part in found.sets if part.folder == policy.component]
        self.pipeline = (path / "model_index.json").is_file()
        self.tensors = self._chosen(inside or [part for part in found.sets if part.folder == ""], path)
        self.parts: dict[str, list[WeightSet]] = {}
        for part in found.sets:
            if part.folder not in ("", policy.component) and "/" not in part.folder:
                self.parts.setdefault(part.folder, []).append(part)
        self._good: set[str] = set()

    def part(self, name: str) -> list[Mapping[str, Entry]]:
        """The base's weights of another component, checked against the manifest if it knows them; empty without."""
        sets: list[Mapping[str, Entry]] = [dict(part.entries) for part in self.parts.get(name, ())]
        wanted = self.policy.components.get(name)
        if sets and wanted is not None and name not in self._good:
            if not any(is_component(tensors, wanted) for tensors in sets):
                raise CheckpointError(
                    f"the manifest is not of this base: its '{name}' is another one",
                    fix="give the pipeline that the manifest was made for",
                )
            self._good.add(name)
        return sets

    def index(self) -> dict[str, object] | None:
        """The base's ``model_index.json``; None when it is no pipeline."""
        return self.found.json("model_index.json") if self.pipeline else None

    def folder(self, name: str) -> str | None:
        """Where the files of a part are in the base, "" being the base itself; None when it is not known."""
        if self.pipeline:
            return name if any(file.startswith(f"{name}/") for file in self.found.paths) else None
        return "" if name == self.policy.component and self.found.paths else None

    def _chosen(self, sets: Sequence[WeightSet], path: Path) -> Mapping[str, Entry]:
        shapes = {tensor.name: tensor.shape for tensor in self.policy.tensors}
        why = f"no weights of '{self.policy.component}'" if not sets else "other tensors than the manifest lists"
        for part in sets:
            tensors = dict(part.entries)
            if {name: entry.shape for name, entry in tensors.items()} != shapes:
                continue
            stamp = stamped(part.metadata)
            if stamp is not None and stamp != self.policy.digest():
                raise CheckpointError(
                    f"the base {path} is stamped with another manifest: this one was swapped or edited",
                    found=f"digest {self.policy.digest()[:12]}, the stamp says {stamp[:12]!r}",
                    fix="use the manifest that the base was published with",
                )
            if model_digest(tensors) == self.policy.model:
                self.stamped = stamp is not None
                return tensors
            why = "other weights"
        raise CheckpointError(
            f"the manifest is not of this base ({path})", found=why, fix="give the model that the manifest was made for"
        )
