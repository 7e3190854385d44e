"""``unteach list``: what there is, one line each."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
            "methods": lambda: _methods(self.verbose),
            "presets": _presets,
            "models": _models,
            "learners": lambda: _learners(self.verbose),
            "plugins": lambda: _plugins(self.verbose),
            "streams": _streams,
            "networks": _networks,
            "masks": lambda: _masks(self.verbose),
            "attacks": lambda: _attacks(self.verbose),
            "domains": _domains,
            "families": _families,
            "styles": lambda: _table([(style, f"drawn by the icon set {STYLE_SETS[style]}") for style in STYLES]),
            "objects": lambda: _table([(o.name, f"{o.category}; also called {o.synonym}") for o in OBJECTS]),
        }
        if self.what == "overview":
            say("methods\n" + "\n".join(f"  {line}" for line in _methods(self.verbose)))
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


def _methods(verbose: bool) -> Iterator[str]:
    from unteach.erase import methods

    lines = list(_table([(name, _first_line(methods[name])) for name in methods]))
    for name, line in zip(methods, lines, strict=True):
        yield line
        if verbose:
            yield from _settings(methods[name])


def _bounds(field: "dataclasses.Field[object]") -> str:
    signs = (("low", "≥"), ("high", "≤"), ("above", ">"))
    bounds = [f"{sign} {field.metadata[key]:g}" for key, sign in signs if abs(field.metadata.get(key, 1e999)) < 1e999]
    return f"  ({', '.join(bounds)})" if bounds else ""


def _presets() -> Iterator[str]:
    from unteach.erase import methods

    return _table([(name, methods.describe(name)) for name in methods.presets])


def _learners(verbose: bool) -> Iterator[str]:
    from unteach.continual.methods import methods

    rows = [(name, f"{_first_line(methods[name])} [{methods[name].form}]") for name in methods]
    for name, line in zip(methods, _table(rows), strict=True):
        yield line
        if verbose:
            yield from _settings(methods[name])
    yield from _table([(name, f"preset of {methods.presets[name][0]}") for name in methods.presets])


def _plugins(verbose: bool) -> Iterator[str]:
    from unteach.continual.plugins import plugins

    for name, line in zip(plugins, _table([(name, _first_line(plugins[name])) for name in plugins]), strict=True):
        yield line
        if verbose:
            yield from _settings(plugins[name])
    yield from _table([(name, f"preset of {plugins.presets[name][0]}") for name in plugins.presets])


def _streams() -> Iterator[str]:
    from unteach.continual.streams import streams

    return _table([(name, (streams[name].__doc__ or "").strip().splitlines()[0]) for name in streams])


def _networks() -> Iterator[str]:
    from unteach.continual.networks import networks

    return _table([(name, (networks[name].__doc__ or "").strip().splitlines()[0]) for name in networks])


def _masks(verbose: bool) -> Iterator[str]:
    from unteach.guard.methods import guards

    for name, line in zip(guards, _table([(name, guards.describe(name)) for name in guards]), strict=True):
        yield line
        if verbose:
            yield from _settings(guards[name])
    yield from _table([(name, f"preset of {guards.presets[name][0]}") for name in guards.presets])


def _attacks(verbose: bool) -> Iterator[str]:
    from unteach.attack import attacks

    for name, line in zip(attacks, _table([(name, attacks.describe(name)) for name in attacks]), strict=True):
        yield line
        if verbose:
            yield from _settings(attacks[name])
    yield from _table([(name, f"preset of {attacks.describe(name)}") for name in attacks.presets])


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
