"""From options and a configuration file to what one erasure will do: everything is checked, all mistakes together.

Later beats earlier: defaults, then the file of ``--config``, then the command line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from unteach.canvas import concepts as canvas
from unteach.canvas import model_path
from unteach.commands.options import Erase
from unteach.core import reading, state
from unteach.core.registry import near
from unteach.data.concepts import ConceptSet
from unteach.diffusion.loading import inspect
from unteach.erase import Method, make
from unteach.errors import CheckpointError, ConfigError, UnteachError

T = TypeVar("T")
CANVAS = "canvas"
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LISTS = ("names", "prompts", "captions", "retain")
ONE_CONCEPT = ("target", "anchor", "kind", *LISTS)
TEXTS = ("model", "target", "anchor", "kind", "method", "device", "dtype", "out")
NUMBERS = {"seed": 0, "threads": 1, "save_every": 1}
KEYS = (*TEXTS, *LISTS, *NUMBERS, "concepts", "settings")
DEFAULTS: Mapping[str, Any] = {
    "model": CANVAS,
    "seed": 0,
    "device": "auto",
    "dtype": "float32",
    "save_every": 25,
}
DECISIVE = ("method", "settings", "concepts", "seed", "dtype")
"""What must be equal for a run to go on; the model is compared by its weights."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One erasure, resolved and checked.

    Attributes:
        model: "canvas" or a folder, as given.
        concepts: what to erase, complete with prompts.
        method: the configured method.
        seed: root of every random draw.
        device: a torch device.
        dtype: name of a torch dtype.
        threads: processor threads; None is torch's own choice.
        save_every: steps between two checkpoints.
        out: folder of the run; None for a dry run only.
    """

    model: str
    concepts: ConceptSet
    method: Method
    seed: int
    device: str
    dtype: str
    threads: int | None
    save_every: int
    out: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``--config`` reads back to an equal plan (without ``out``)."""
        settings = self.method.to_dict()
        found = {
            "model": self.model,
            "concepts": self.concepts.to_dicts(),
            "method": settings.pop("method"),
            "settings": settings,
            "seed": self.seed,
            "device": self.device,
            "dtype": self.dtype,
            "save_every": self.save_every,
        }
        return found if self.threads is None else {**found, "threads": self.threads}

    def folder(self) -> Path:
        """Folder of the model."""
        return folder_of(self.model)

    def pairs_dropped(self) -> list[str]:
        """One line for each concept of which some captions give no pair."""
        lines = []
        for concept in self.concepts:
            dropped = {reason: count for reason, count in concept.dropped().items() if count}
            if dropped:
                listed = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
                lines.append(f"'{concept.target}': of {len(concept.captions)} captions dropped: {listed}")
        return lines

    def check_folder(self) -> bool:
        """Whether ``out`` holds this very run, begun or finished.

        Raises:
            CheckpointError: it holds another one; nothing is changed.
        """
        if self.out is None or not (path := self.out / "config.json").exists():
            return False
        old, new = state.read_table(path), self.to_dict()
        changed = [key for key in DECISIVE if state.canonical(old.get(key)) != state.canonical(new[key])]
        if changed:
            raise CheckpointError(
                f"{self.out} holds a run with other settings; nothing was changed",
                found="; ".join(_difference(key, old.get(key), new[key]) for key in changed),
                fix="use the old settings to go on with it, or another --out to start anew",
            )
        return True


def resolve(options: Erase) -> Plan:
    """Merge and check everything that can be checked without loading the model.

    Raises:
        UnteachError: the one mistake, or a ConfigError that lists all of them.
    """
    found = Mistakes()
    values = {**DEFAULTS, **_merged(options, found)}
    model = values["model"]
    values.setdefault("method", "doco-canvas" if model == CANVAS else "doco")
    if isinstance(model, str):
        found.catch(lambda: inspect(folder_of(model)))
    device = found.catch(lambda: device_of(values["device"]))
    found.catch(lambda: dtype_of(values["dtype"]))
    concepts = _concepts(values, found)
    method = found.catch(lambda: make(values["method"], **values.get("settings", {})))
    if "out" not in values and not options.dry_run:
        found.say("no folder for the result was given: add --out DIR")
    found.stop()
    assert device is not None and concepts is not None and method is not None  # else it has stopped
    return Plan(
        model=model,
        concepts=concepts,
        method=method,
        seed=values["seed"],
        device=device,
        dtype=values["dtype"],
        threads=values.get("threads"),
        save_every=values["save_every"],
        out=Path(values["out"]) if "out" in values else None,
    )


class Mistakes:
    """Collects errors, so that all are reported at once."""

    def __init__(self) -> None:
        self.errors: list[UnteachError] = []

    def say(self, problem: str) -> None:
        """Add a mistake in words."""
        self.errors.append(ConfigError(problem))

    def catch(self, make: Callable[[], T]) -> T | None:
        """What ``make`` gives, or None if it raised one of our errors, which is kept."""
        try:
            return make()
        except UnteachError as error:
            self.errors.append(error)
            return None

    def stop(self) -> None:
        """Raise what was found: a single error as it is, several as one."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigError.many([line for error in self.errors for line in _lines(error)], where="the command")


def folder_of(model: str) -> Path:
    """The folder of a model: the bundled one for "canvas"."""
    return model_path() if model == CANVAS else Path(model).expanduser()


def device_of(name: str) -> str:
    """A torch device by name; "auto" is cuda where there is one, else cpu.

    Raises:
        ConfigError: torch knows no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return str(torch.device(name))
    except RuntimeError as error:
        raise ConfigError(f"no device is called '{name}'", fix="auto, cpu, cuda, cuda:1, mps") from error


def dtype_of(name: str) -> torch.dtype:
    """A torch dtype by name; ConfigError when it is none that models come in."""
    if name not in DTYPES:
        raise ConfigError(f"no dtype is called '{name}'", fix=near(name, DTYPES))
    return DTYPES[name]


def parse_settings(texts: tuple[tuple[str, ...], ...], found: Mistakes) -> dict[str, Any]:
    """``(("steps=20", "lr=1e-4"), ...)`` to a mapping; values are read as YAML."""
    values: dict[str, Any] = {}
    for text in (text for group in texts for text in group):
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            found.say(f"--set {text}: write KEY=VALUE, such as steps=200")
            continue
        try:
            values[key.strip()] = (
                reading.parse_yaml(value, f"--set {key}", error=ConfigError) if value.strip() else value
            )
        except ConfigError as error:
            if isinstance(error.__cause__, yaml.YAMLError):  # no YAML at all: a text
                values[key.strip()] = value
            else:
                found.errors.append(error)
    return values


def _merged(options: Erase, found: Mistakes) -> dict[str, Any]:
    """The file's values with the command line's laid over them; only well-typed ones, the rest is reported."""
    file = {} if options.config is None else read_options(options.config, _wrong, found)
    line = {key: getattr(options, key) for key in KEYS if key != "settings"}
    line = {key: list(v) if isinstance(v, tuple) else v for key, v in line.items() if v is not None}
    line |= {"out": str(line["out"])} if "out" in line else {}
    for values, where in ((file, f"{options.config}: "), (line, "")):
        both = [key for key in ONE_CONCEPT if key in values]
        if "concepts" in values and both:
            found.say(f"{where}'concepts' already says everything about the concepts; take out {', '.join(both)}")
    if "concepts" in line:
        file = {key: value for key, value in file.items() if key not in ONE_CONCEPT}
    elif "target" in line:
        # Another target has other names, prompts and so on; what is named beside it stays.
        file = {key: value for key, value in file.items() if key not in (*ONE_CONCEPT, "concepts")}
    elif "concepts" in file and any(key in line for key in ONE_CONCEPT):
        found.say(f"{options.config}: lists 'concepts', so say what to erase there, or with --target as well")
    settings = file.get("settings", {}) | parse_settings(options.settings, found)
    return {**file, **line, "settings": settings}


def read_options(path: Path, wrong: Callable[[object, object], str], found: Mistakes) -> dict[str, Any]:
    """Options from a YAML file; what ``wrong`` says about an entry is reported, and the entry left out."""
    read = found.catch(lambda: [reading.read_yaml(path, error=ConfigError)])
    content = read[0] if read is not None else None
    if content is None:
        return {}
    if not isinstance(content, dict):
        found.say(f"the configuration '{path}' must be a mapping of options, found {type(content).__name__}")
        return {}
    values = {}
    for key, value in content.items():
        if problem := wrong(key, value):
            found.say(f"{path}: {problem}")
        elif value is not None:
            values[key] = value
    return values


def _wrong(key: object, value: object) -> str:
    """What is wrong with one entry of a configuration file, or ""."""
    if key not in KEYS:
        return f"unknown key '{key}' ({near(str(key), KEYS)})"
    if value is None:
        return ""
    if key in TEXTS and not isinstance(value, str):
        return f"{key} must be text, found {value!r} (put it in quotes)"
    if key in NUMBERS and (not isinstance(value, int) or isinstance(value, bool)):
        return f"{key} must be a whole number, found {value!r}"
    if key in LISTS and not isinstance(value, list):
        return f"{key} must be a list of texts, found {value!r}"
    if key == "settings" and not (isinstance(value, dict) and all(isinstance(k, str) for k in value)):
        return f"settings must be a mapping such as {{steps: 200}}, found {value!r}"
    if key == "concepts" and not isinstance(value, str | list):
        return f"concepts must be a file's name or a list of concepts, found {value!r}"
    return ""


def _concepts(values: Mapping[str, Any], found: Mistakes) -> ConceptSet | None:
    for key, least in NUMBERS.items():
        if values.get(key, least) < least:
            found.say(f"{key} must be at least {least}, found {values[key]}")
    given = values.get("concepts")
    if given is None and not any(key in values for key in ONE_CONCEPT):
        found.say("nothing to erase was named: add --target and --anchor, or --concepts FILE")
        return None
    if isinstance(given, str):
        read = found.catch(lambda: ConceptSet.load(given))
        if read is None:
            return None
        records: list[Any] = [{key: value for key, value in one.items() if value} for one in read.to_dicts()]
    else:
        records = given or [{key: values[key] for key in ONE_CONCEPT if key in values}]
    if values["model"] == CANVAS:
        completed = found.catch(lambda: canvas.complete(records))
        if completed is None:
            return None
        records = completed

    def checked() -> ConceptSet:
        made = ConceptSet.from_dicts(records)
        made.pairs()
        return made

    return found.catch(checked)


def _lines(error: UnteachError) -> list[str]:
    """The mistakes that an error lists, each with what it is about; or its message."""
    head, *rest = str(error).splitlines()
    about = re.sub(r" has \d+ mistakes:$", "", head)
    if about == head or not rest:
        return [str(error)]
    return [f"{about}: " + re.sub(r"^ *\d+\. ", "", line) for line in rest]


def _difference(key: str, old: object, new: object) -> str:
    """What differs, in one line."""
    if isinstance(old, dict) and isinstance(new, dict):
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return ", ".join(f"{name} {old.get(name)!r} there, {new.get(name)!r} asked for" for name in changed[:5])
    if key == "concepts" and isinstance(old, list) and isinstance(new, list):
        names = [[c.get("target") if isinstance(c, dict) else c for c in each] for each in (old, new)]
        if names[0] != names[1]:
            return f"concepts {names[0]} there, {names[1]} asked for"
        return "the concepts' prompts, names or anchors"
    return f"{key} {old!r} there, {new!r} asked for"


def is_canvas(model: str) -> bool:
    """Whether this is the bundled model, for whose pictures there are judges."""
    return model == CANVAS or folder_of(model).resolve() == model_path().resolve()
