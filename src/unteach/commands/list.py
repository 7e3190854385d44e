"""``unteach list``: what there is, one line each."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from tyro.conf import Positional

from unteach.canvas import model_path
from unteach.commands.console import say
from unteach.commands.verb import Verb
from unteach.data.vocabulary import OBJECTS, STYLE_SETS, STYLES

__all__ = ["List"]

Subject = Literal[
    "overview",
    "methods",
    "presets",
    "models",
    "styles",
    "objects",
    "families",
    "learners",
    "plugins",
    "streams",
    "networks",
    "masks",
    "attacks",
    "domains",
]


METHODS: Mapping[str, tuple[str, str]] = {
    "methods": ("erase", "methods"),
    "learners": ("continual.methods", "methods"),
    "plugins": ("continual.plugins", "plugins"),
    "masks": ("guard.methods", "guards"),
    "attacks": ("attack", "attacks"),
}
"""Registries: module and name in it."""


@dataclass(frozen=True, kw_only=True)
class List(Verb):
    """Say what there is: methods, presets, models, families, and what the bundled model can draw."""

    what: Positional[Subject] = "overview"
    """overview is methods and presets."""
    verbose: bool = False
    """Methods: with their settings and defaults."""

    def run(self, command: str) -> int:
        """Print the list that was asked for."""
        lists: dict[str, Callable[[], Iterator[str]]] = {
            **{what: lambda what=what: _methods(what, self.verbose) for what in METHODS},  # type: ignore[misc]
            "presets": _presets,
            "models": _models,
            "streams": lambda: _functions("continual.streams"),
            "networks": lambda: _functions("continual.networks"),
            "domains": _domains,
            "families": _families,
            "styles": lambda: _table([(style, f"drawn by the icon set {STYLE_SETS[style]}") for style in STYLES]),
            "objects": lambda: _table([(o.name, f"{o.category}; also called {o.synonym}") for o in OBJECTS]),
        }
        if self.what == "overview":
            say("methods\n" + "\n".join(f"  {line}" for line in _methods("methods", self.verbose)))
            say("presets\n" + "\n".join(f"  {line}" for line in _presets()))
            say("also: unteach list " + "|".join(key for key in lists if key not in ("methods", "presets")))
            return 0
        for line in lists[self.what]():
            say(line)
        return 0


def _table(rows: list[tuple[str, str]]) -> Iterator[str]:
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        yield f"{name:<{width}}  {text}"


def _methods(what: str, verbose: bool) -> Iterator[str]:
    """A registry of methods, then its presets; those of erasing are a list of their own."""
    module, name = METHODS[what]
    known = getattr(import_module(f"unteach.{module}"), name)
    forms = {key: f" [{known[key].form}]" if hasattr(known[key], "form") else "" for key in known}
    for key, line in zip(known, _table([(key, known.describe(key) + forms[key]) for key in known]), strict=True):
        yield line
        if verbose:
            yield from _settings(known[key])
    if what != "methods":
        yield from _table([(key, f"preset of {known.presets[key][0]}") for key in known.presets])


def _functions(module: str) -> Iterator[str]:
    known = getattr(import_module(f"unteach.{module}"), module.rpartition(".")[2])
    return _table([(key, (known[key].__doc__ or "").strip().splitlines()[0]) for key in known])


def _bounds(field: "dataclasses.Field[object]") -> str:
    signs = (("low", "≥"), ("high", "≤"), ("above", ">"))
    bounds = [f"{sign} {field.metadata[key]:g}" for key, sign in signs if abs(field.metadata.get(key, 1e999)) < 1e999]
    return f"  ({', '.join(bounds)})" if bounds else ""


def _presets() -> Iterator[str]:
    from unteach.erase import methods

    return _table([(name, methods.describe(name)) for name in methods.presets])


def _domains() -> Iterator[str]:
    from unteach.data.emoji import index

    rows = []
    for name, spec in index()["domains"].items():
        objects, styles = ({item[key] for item in spec["items"]} for key in ("object", "style"))
        rows.append((name, f"{len(spec['items'])} icons, {len(objects)} objects in {len(styles)} styles"))
    return _table([*rows, ("FOLDER", "pictures with metadata.jsonl")])


def _settings(kind: type) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        yield f"    {field.name} = {field.default!r}{_bounds(field)}"


def _models() -> Iterator[str]:
    index = model_path() / "model_index.json"
    kind = json.loads(index.read_text(encoding="utf-8")).get("_class_name") if index.is_file() else None
    built_in = f"the bundled model: {len(OBJECTS)} objects in {len(STYLES)} styles, 32 × 32 pixels"
    state = f" ({kind})" if kind else " (not in this installation)"
    return _table([("canvas", built_in + state), ("FOLDER", "any local diffusers folder; see: unteach list families")])


def _families() -> Iterator[str]:
    from unteach.diffusion.families import families

    rows = [(name, _first_line(families[name])) for name in families]
    return _table(rows)


def _first_line(thing: type) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0].replace("``", "")
