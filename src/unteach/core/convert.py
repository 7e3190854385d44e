"""Plain data to typed values: one strict converter (pydantic's) and one set of words, all mistakes at once.

Strict means exact types, except that a whole number is a number; no unknown keys; finite numbers. Pydantic is imported
when the first value is converted.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import is_dataclass
from typing import Any, ClassVar, TypeVar, cast

from unteach.errors import UnteachError, shorten

__all__ = ["Checked", "Wrong", "convert", "schema"]

T = TypeVar("T")
STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
_WORDS = {
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a table",
    "dataclass_type": "a table",
}


class Wrong(ValueError):
    """Data that does not fit its type.

    Attributes:
        mistakes: one a sentence, with its place: "tables[0].rows must be a list, found 'dog'".
    """

    def __init__(self, mistakes: Sequence[str]) -> None:
        self.mistakes = list(mistakes)
        super().__init__("; ".join(self.mistakes))


class Checked:
    """Base of a dataclass that refuses wrong content in ``__post_init__`` with one of our errors.

    Where it is part of other data, :func:`convert` counts such a refusal as one of all mistakes and says its place.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        made = handler(source)
        if not made.get("post_init"):
            return made
        made["post_init"] = False

        def check(value: Any) -> Any:
            try:
                value.__post_init__()
            except UnteachError as error:
                raise PydanticCustomError("unteach", "{said}", {"said": str(error)}) from error
            return value

        return core_schema.no_info_after_validator_function(check, made)


def convert(data: object, kind: type[T]) -> T:
    """A value of a type (a dataclass, a union with None, tuples, tables, a Literal, plain values) from plain data.

    Args:
        data: what JSON or YAML gives; a tuple counts as a list.
        kind: the type; a dataclass inherits :class:`Checked`, those inside it need not.

    Raises:
        Wrong: with every mistake.
    """
    from pydantic import ValidationError

    try:
        # As JSON, where pydantic is strict about values and still reads tuples and dataclasses.
        text = json.dumps(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise Wrong([f"must be plain data, found {shorten(repr(data), 80)}"]) from error
    try:
        value: T = _adapter(cast(Any, kind)).validate_json(text)
    except ValidationError as error:
        raise Wrong([_said(each) for each in error.errors(include_url=False)]) from error
    return value


def schema(kind: Any) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a type."""
    made: dict[str, Any] = _adapter(kind).json_schema()
    return made


@functools.cache
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    own = is_dataclass(kind)  # pydantic takes its configuration from the class alone
    return TypeAdapter[Any](kind, config=None if own else cast(ConfigDict, STRICT))


def _said(error: Any) -> str:
    """A mistake in words."""
    kind, path = error["type"], list(error["loc"])
    if kind in ("unexpected_keyword_argument", "missing") and path and isinstance(path[-1], str):
        what = f"{'missing' if kind == 'missing' else 'unknown'} key {shorten(repr(path.pop()), 80)}"
        place = _place(path)
        return f"{place}: {what}" if place else what
    place = _place(path)
    if kind == "unteach":
        return f"{place}: {error['ctx']['said']}" if place else str(error["ctx"]["said"])
    if kind == "literal_error":
        words = "must be one of " + error["ctx"]["expected"].replace(" or ", ", ")
    else:
        words = f"must be {_WORDS[kind]}" if kind in _WORDS else f"is wrong ({error['msg']})"
    return f"{place} {words}, found {shorten(repr(error['input']), 80)}".lstrip()


def _place(path: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{shorten(part, 80)}" for part in path).removeprefix(".")
