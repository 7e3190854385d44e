"""A record: a versioned JSON file as a frozen dataclass, with one reader and one set of messages."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

from unteach.core import convert, reading, state
from unteach.errors import CheckpointError, UnteachError

__all__ = ["Record", "check_heading"]


class Record(convert.Checked):
    """Base of every artefact on disk: a frozen dataclass; its fields are the content, its class says the format.

    The file is a table with "format", "version" and the fields. What is in a field is a plain value, a tuple, a table
    with texts as keys, or a dataclass of such; a part that refuses wrong content inherits
    :class:`unteach.core.convert.Checked`.

    Attributes:
        FORMAT: name of the format, "unteach-" and a noun.
        VERSION: raised when a field changes meaning or goes away; earlier versions are read (:meth:`modern`).
        FILE: name of the file in a folder of its own; "" when the path must name a file.
        ERROR: the kind of error for a file that cannot be used.
        LIMIT: bytes of a file that is read.
        UNWRITTEN: fields that are not part of the file.
    """

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int] = 1
    FILE: ClassVar[str] = ""
    ERROR: ClassVar[type[UnteachError]] = CheckpointError
    LIMIT: ClassVar[int] = reading.JSON_LIMIT
    UNWRITTEN: ClassVar[tuple[str, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data: "format", "version" and the fields."""
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        heading = {"format": self.FORMAT, "version": self.VERSION}
        return heading | {name: value for name, value in values.items() if name not in self.UNWRITTEN}

    @classmethod
    def from_json(cls, data: object, *, where: str = "the record") -> Self:
        """From plain data.

        Args:
            data: what :meth:`to_json` of this or an earlier version gave.
            where: what messages call it.

        Raises:
            UnteachError: of the kind :attr:`ERROR`: foreign, newer, unknown or missing keys, wrong types, content that
                contradicts itself; all mistakes at once.
        """
        version = check_heading(data, cls.FORMAT, cls.VERSION, where, cls.ERROR)
        assert isinstance(data, dict)  # else it has no version
        fields = {key: value for key, value in data.items() if key not in ("format", "version")}
        try:
            if wrong := [f"unknown key '{name}'" for name in cls.UNWRITTEN if name in fields]:
                raise convert.Wrong(wrong)
            return convert.convert(fields if version == cls.VERSION else cls.modern(fields, version), cls)
        except convert.Wrong as error:
            raise cls.ERROR.many(error.mistakes, where=where) from error

    @classmethod
    def headed(cls, data: object, *own: str) -> object:
        """A file of release 0.1 with "schema" instead of "format" and "version", and the keys ``own``, as of today."""
        if not isinstance(data, dict) or "format" in data or not {"schema", *own} <= data.keys():
            return data
        return {"format": cls.FORMAT, "version": data["schema"], **{k: v for k, v in data.items() if k != "schema"}}

    @classmethod
    def modern(cls, fields: dict[str, Any], version: int) -> dict[str, Any]:
        """The fields of an earlier version as those of this one; may raise :class:`unteach.core.convert.Wrong`."""
        raise NotImplementedError  # a format with a second version says how the first is read

    def save(self, path: Path | str) -> Path:
        """Write it as readable JSON, atomically; a path without a suffix is a folder that gets a :attr:`FILE`.

        Returns:
            The path of the file.

        Raises:
            CheckpointError: the file cannot be written; what stood there before is untouched.
        """
        path = Path(path)
        return state.write_json(path / self.FILE if self.FILE and not path.suffix else path, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what :meth:`save` wrote, from the file or from its folder.

        Raises:
            UnteachError: of the kind :attr:`ERROR`: missing, not JSON, or as in :meth:`from_json`.
        """
        path = Path(path)
        path = path / cls.FILE if cls.FILE and path.is_dir() else path
        return cls.from_json(reading.read_json(path, limit=cls.LIMIT, error=cls.ERROR), where=str(path))

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON schema of the file (draft 2020-12)."""
        made = convert.schema(cls)
        heading = {"format": {"const": cls.FORMAT}, "version": {"const": cls.VERSION}}
        return {
            **made,
            "properties": heading | {k: v for k, v in made["properties"].items() if k not in cls.UNWRITTEN},
            "required": [*heading, *made.get("required", [])],
        }


def check_heading(
    data: object, form: str, version: int, where: str, error: type[UnteachError] = CheckpointError
) -> int:
    """The version of data that calls itself of a format, for records and for the metadata of weights.

    Args:
        data: a table with "format" and "version"; anything else is refused.
        form: the format, "unteach-" and a noun.
        version: the highest that can be read.
        where: what messages call the data.
        error: kind of error.

    Raises:
        UnteachError: of the kind ``error``: foreign, or newer.
    """
    if not isinstance(data, dict) or data.get("format") != form:
        found = f"format {data.get('format')!r:.80}" if isinstance(data, dict) else type(data).__name__
        raise error(f"{where} is not a file of the format {form}", found=found, fix="check the path")
    own = data.get("version")
    if type(own) is not int or own < 1:
        raise error(f"{where}: the version must be a whole number above 0", found=f"{own!r:.80}")
    if own > version:
        raise error(
            f"{where} was written by a newer version of Unteach",
            found=f"version {own} of its format; this one reads up to {version}",
            fix="upgrade: pip install --upgrade unteach",
        )
    return own
