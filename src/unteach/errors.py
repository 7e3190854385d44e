"""Errors. Every message says what was wrong, what was found and what to do."""

from collections.abc import Sequence


class UnteachError(Exception):
    """Base of every error that Unteach raises on purpose.

    Args:
        problem: what was wrong, in one sentence.
        found: what was found instead (shown after "found:").
        fix: what the reader can do (shown after "to do:").
    """

    def __init__(self, problem: str, *, found: object = None, fix: str | None = None) -> None:
        self.problem, self.found, self.fix = problem, found, fix
        parts = [problem]
        if found is not None:
            parts.append(f"found: {found}")
        if fix is not None:
            parts.append(f"to do: {fix}")
        super().__init__("; ".join(parts))


class ConfigError(UnteachError):
    """A setting or an argument is unknown, out of range or contradicts another."""

    @classmethod
    def many(cls, problems: Sequence[str], *, where: str = "the configuration") -> "ConfigError":
        """One error that lists every mistake at once, so that one edit can mend them all."""
        if len(problems) == 1:
            return cls(f"{where}: {problems[0]}")
        listing = "\n".join(f"  {i}. {problem}" for i, problem in enumerate(problems, 1))
        return cls(f"{where} has {len(problems)} mistakes:\n{listing}")


class DataError(UnteachError):
    """Images, captions or concepts are missing, damaged or do not fit together."""


class ModelError(UnteachError):
    """A model folder is missing, of an unknown family, or cannot be edited in the way asked for."""


class CheckpointError(UnteachError):
    """A file of weights or of state is missing, damaged, foreign or could not be written."""


class NumericsError(UnteachError):
    """A loss or a weight stopped being a finite number."""


class MissingExtraError(UnteachError):
    """An optional dependency is not installed; the message names its install line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the optional package '{package}', which is not installed",
            fix=f"pip install 'unteach[{extra}]'",
        )
