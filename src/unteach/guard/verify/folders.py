"""Judge an upload's folders as a loader reads them: what is whole, what is redirected, what is configured otherwise."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from unteach.guard.verify import configurations, peft_config, tokenizers
from unteach.guard.verify.collect import Found, alike, inside
from unteach.guard.verify.reader import bounded_bytes
from unteach.guard.verify.reference import Reference

__all__ = ["FolderCheck"]

_CONFIGS = ("config.json", "scheduler_config.json", "preprocessor_config.json")
_ELSEWHERE = ("modular_model_index.json", "modular_config.json", "quantize_config.json", "quantization_config.json")
"""Read by some loaders, to take parts from other places or to transform weights."""
_READ = {alike(name) for name in (*_CONFIGS, *tokenizers.FILES, "model_index.json", "adapter_config.json")}
Add = Callable[..., None]


class FolderCheck:
    """Checks what lies beside the weights of an upload.

    Args:
        found: the upload.
        reference: the base.
        add: takes outcome, kind, where, detail and, by name, tensor.

    Attributes:
        notes: what was not compared.
    """

    def __init__(self, found: Found, reference: Reference, add: Add) -> None:
        self.found, self.reference, self._add = found, reference, add
        self.component = reference.policy.component
        self.notes: list[str] = []
        self._base_index = reference.index()
        self._frozen = set(reference.policy.frozen)
        self._pipelines = set(found.pipelines)
        self._folders: dict[str, list[str]] = {}
        for name in found.paths:
            folder, _, file = name.rpartition("/")
            self._folders.setdefault(folder, []).append(file)

    def part(self, folder: str) -> str:
        """The part of a pipeline that a folder is named like; "" for the folder of a file."""
        whole = "" if folder in self._pipelines or not self.found.paths else self.found.root
        name = folder.rpartition("/")[2] if folder else whole
        return self.component if alike(name) == alike(self.component) else name

    def pipelines(self, whole: Mapping[str, bool]) -> None:
        """Every ``model_index.json``, and whether the component that it loads was there whole.

        Args:
            whole: folder → whether it holds weights of the component under a name that loaders read.
        """
        for folder in sorted(self._pipelines):
            where = inside(folder, "model_index.json")
            index = self.found.json(where)
            for _, detail in configurations.index_problems(index, self._base_index, self.component):
                self._add("undecidable", "configuration", where, detail)
            place = inside(folder, self.component)
            if not whole.get(place):
                detail = f"the pipeline's '{self.component}' is not there whole, under a name that loaders read"
                self._add("undecidable", "unknown", place, detail)
            if self._base_index is None:
                self.notes.append(f"not compared: {where} (the base given is no pipeline)")
                continue
            gone = configurations.left_out(index, self._base_index)
            gone += [part for part in self._parts(index) if inside(folder, part) not in self._folders]
            if gone:
                self.notes.append(f"parts of the base's pipeline that are left out: {', '.join(sorted(set(gone)))}")

    def configurations(self, judged: Mapping[str, str]) -> None:
        """Every configuration that a loader of these folders reads.

        Args:
            judged: folder with weights → the part of the pipeline that these were compared as.
        """
        for folder, files in self._folders.items():
            for file in files:
                if alike(file) in _READ and file != alike(file):
                    detail = "some file systems take this name for one that loaders read"
                    self._add("undecidable", "unknown", inside(folder, file), detail)
            for file in sorted(set(_ELSEWHERE) & set(files)):
                detail = "some loaders take parts from where this file says, or transform them"
                self._add("undecidable", "configuration", inside(folder, file), detail)
            name = judged.get(folder, self.part(folder))
            parent = folder.rpartition("/")[0]
            of_pipeline = bool(folder) and parent in self._pipelines
            if of_pipeline and folder in judged and "config.json" not in files:
                detail = "the part has no config.json, so that a loader takes it from elsewhere or guesses"
                self._add("undecidable", "configuration", folder, detail)
            known = self.reference.folder(name)
            if folder in judged or of_pipeline or (known is not None and known != ""):
                self._part(folder, files, name, known)
            elif "config.json" in files:
                self._redirects(self.found.json(inside(folder, "config.json")), inside(folder, "config.json"))

    def adapter_configs(self, adapters: Mapping[str, bool], modules: Mapping[str, tuple[str, ...]]) -> None:
        """Every ``adapter_config.json``.

        Args:
            adapters: folder with weights → whether all of these were checked as adapters.
            modules: modules of the base → names of the tensors in them.
        """
        for folder, files in self._folders.items():
            if "adapter_config.json" not in files:
                continue
            where = inside(folder, "adapter_config.json")
            beside = {"config.json", "model_index.json"} & set(files)
            if beside or not adapters.get(folder):
                detail = "lies beside something else than an adapter: loaders then take weights from where it says"
                self._add("undecidable", "configuration", where, detail)
            for problem in peft_config.problems(self.found.json(where), modules, self._frozen):
                self.settings(problem, where)

    def settings(self, problem: peft_config.Problem, where: str) -> None:
        """Add one problem of an adapter's settings."""
        outcome, kind, detail, module = problem
        self._add(outcome, kind, where, detail, tensor=module)

    def _parts(self, index: Mapping[str, Any]) -> Iterator[str]:
        for part, entry in index.items():
            if isinstance(entry, list) and entry != [None, None] and part in (self._base_index or {}):
                yield part

    def _part(self, folder: str, files: list[str], name: str, known: str | None) -> None:
        """The configurations of one part beside the base's."""
        for file in _CONFIGS:
            where = inside(folder, file)
            mine = self.found.json(where) if file in files else None
            theirs = inside(known, file) if known is not None else ""
            if mine is None:
                continue
            self._redirects(mine, where)
            if name == self.component:
                self._switched_off(mine, where)
            if theirs not in self.reference.found.paths:
                self.notes.append(f"not compared: {where} (the base given has none)")
                continue
            keys = configurations.differing(self.reference.found.json(theirs), mine)
            if keys:
                shown = ", ".join(keys[:6]) + (", …" if len(keys) > 6 else "")
                detail = f"the configuration of '{name}' differs from the base's: {shown:.300}"
                self._add("undecidable", "configuration", where, detail)
        if set(files) & set(tokenizers.FILES[:4]):
            self._tokenizer(folder, name, known)

    def _redirects(self, config: Mapping[str, Any], where: str) -> None:
        for key in configurations.redirects(config):
            detail = f"sets {key}: weights or code from elsewhere, or weights that are transformed"
            self._add("undecidable", "configuration", where, detail)

    def _switched_off(self, config: Mapping[str, Any], where: str) -> None:
        gone = configurations.off(config, [tensor.name for tensor in self.reference.policy.tensors])
        held = [name for name in gone if name in self._frozen]
        if gone:
            detail = f"makes no module for {len(gone)} tensors, {len(held)} of them frozen: loaders pass over these"
            self._add("violates", "configuration", where, detail, tensor=(held or gone)[0])

    def _tokenizer(self, folder: str, name: str, known: str | None) -> None:
        if known is None:
            self.notes.append(f"not compared: the tokenizer '{folder or name}' (the base given has none)")
            return
        mine = _tokenizer_files(self.found, folder)
        problems = tokenizers.differing(_tokenizer_files(self.reference.found, known), mine)
        if problems:
            detail = f"the tokenizer differs from the base's in {', '.join(problems[:6]):.300}"
            self._add("undecidable", "configuration", folder or name, detail)


def _tokenizer_files(found: Found, folder: str) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for file in tokenizers.FILES:
        where = inside(folder, file)
        if where in found.paths:
            if file.endswith(".json"):
                files[file] = found.json(where)
            else:
                files[file] = bounded_bytes(found.paths[where], f"'{where}'", work=found.work).decode(
                    "utf-8", "replace"
                )
    return files
