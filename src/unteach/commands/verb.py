"""What every command is: a frozen dataclass. Its fields are the options and the keys of its YAML file.

A new command is one file beside this one, and one line in :data:`unteach.cli.VERBS`. Importing it loads neither torch
nor diffusers: what is heavy is imported where it is used.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

from tyro.conf import UseAppendAction, arg

from unteach.core import convert, reading
from unteach.core.registry import near
from unteach.errors import ConfigError, UnteachError

__all__ = ["RESUMES", "Configured", "Machine", "Mistakes", "Settings", "Verb"]

T = TypeVar("T")
RESUMES = "stopped; the same command goes on where it was"
Settings = Annotated[
    tuple[tuple[str, ...], ...],
    UseAppendAction,
    arg(name="set", metavar="KEY=VALUE ...", help_behavior_hint="(repeatable)"),
]
"""Type of the option ``--set``; the key of a file is ``settings``, a mapping."""


@dataclass(frozen=True, kw_only=True)
class Verb(ABC):
    """What all commands share."""

    stopped: ClassVar[str] = "stopped; nothing was kept"
    """What is said when it was interrupted."""
    debug: bool = False
    """Show where in the code an error came from (also: UNTEACH_DEBUG=1)."""

    @abstractmethod
    def run(self, command: str) -> int:
        """Do it; ``command`` is the line that was typed, for the records. Returns the exit code."""


@dataclass(frozen=True, kw_only=True)
class Machine(Verb):
    """Where it is computed."""

    device: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: auto)")] = None
    """auto, cpu, cuda, cuda:1, mps."""
    threads: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 1 on the bundled model, else torch's choice)")
    ] = None
    """Processor threads."""


@dataclass(frozen=True, kw_only=True)
class Configured(Verb):
    """A command whose options may come from a file; an option that is None was not given."""

    FILE: ClassVar[Mapping[str, Any]] = {"settings": dict[str, Any]}
    """Keys of the file whose types differ from the option's."""
    NOT_IN_FILE: ClassVar[tuple[str, ...]] = ("debug", "config", "dry_run")
    config: Annotated[Path | None, arg(metavar="FILE.yaml", help_behavior_hint="")] = None
    """Any of these options from a file (keys as here, settings as a mapping); the command line wins."""

    def line(self) -> dict[str, Any]:
        """The options that were given on the command line."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in self.NOT_IN_FILE}
        return {key: value for key, value in given.items() if value is not None and key != "settings"}

    def file(self, found: "Mistakes") -> dict[str, Any]:
        """The options in the file; what is wrong with an entry is added to ``found``, and the entry left out."""
        if self.config is None:
            return {}
        return self.checked(found.catch(lambda: [reading.read_yaml(self.config or Path(), error=ConfigError)]), found)

    def checked(self, read: list[Any] | None, found: "Mistakes") -> dict[str, Any]:
        """The well-typed entries of what was read."""
        content = None if read is None else read[0]
        if content is None:
            return {}
        if not isinstance(content, dict):
            found.say(f"the configuration '{self.config}' must be a mapping of options, found {type(content).__name__}")
            return {}
        hints = {key: kind for key, kind in get_type_hints(type(self)).items() if key not in self.NOT_IN_FILE}
        types = {**{f.name: hints[f.name] for f in fields(self) if f.name in hints}, **self.FILE}
        values = {}
        for key, value in content.items():
            if key not in types:
                found.say(f"{self.config}: unknown key '{key}' ({near(str(key), types)})")
                continue
            try:
                values[key] = convert.convert(value, types[key])
            except convert.Wrong as wrong:
                found.say(f"{self.config}: {key} {' or '.join(wrong.mistakes)}")
        return {key: value for key, value in values.items() if value is not None}

    def merged_settings(self, file: Mapping[str, Any], found: "Mistakes") -> dict[str, Any]:
        """The file's settings with those of ``--set`` laid over them; values are read as YAML."""
        values: dict[str, Any] = dict(file.get("settings", {}))
        for text in (text for group in getattr(self, "settings", ()) for text in group):
            key, equals, value = text.partition("=")
            if not equals or not key.strip():
                found.say(f"--set {text}: write KEY=VALUE, such as steps=200")
                continue
            try:
                read = reading.parse_yaml(value, f"--set {key}", error=ConfigError) if value.strip() else value
            except ConfigError as error:
                if "YAMLError" not in {kind.__name__ for kind in type(error.__cause__).__mro__}:
                    found.errors.append(error)
                    continue
                read = value  # no YAML at all: a text
            values[key.strip()] = read
        return values


class Mistakes:
    """Collects errors, so that all are reported at once."""

    def __init__(self) -> None:
        self.errors: list[UnteachError] = []

    def say(self, problem: str) -> None:
        """Add a mistake in words."""
        self.errors.append(ConfigError(problem))

    def least(self, values: Mapping[str, float | None], least: int) -> None:
        """Each of these options, where it was given, must be at least so much."""
        for name, value in values.items():
            if value is not None and value < least:
                self.say(f"{name} must be at least {least}, found {value}")

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


def _lines(error: UnteachError) -> list[str]:
    """The mistakes that an error lists, each with what it is about; or its message."""
    head, *rest = str(error).splitlines()
    about = re.sub(r" has \d+ mistakes:$", "", head)
    if about == head or not rest:
        return [str(error)]
    return [f"{about}: " + re.sub(r"^ *\d+\. ", "", line) for line in rest]
