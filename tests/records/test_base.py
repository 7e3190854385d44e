"""Records: what is written comes back, what is wrong is refused with all mistakes at once."""

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unteach.core import convert
from unteach.core.convert import Checked, Wrong
from unteach.errors import CheckpointError, DataError
from unteach.records.base import Record


@dataclass(frozen=True)
class Leaf(Checked):
    kind: Literal["oak", "elm"]
    size: float
    seen: bool = False


@dataclass(frozen=True)
class Branch(Checked):
    leaves: tuple[Leaf, ...] = ()
    counts: tuple[int, str] = (1, "x")
    rows: dict[str, tuple[tuple[float | None, ...], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.leaves) > 2:
            raise DataError("too many leaves", found=len(self.leaves))
        object.__setattr__(self, "leaves", self.leaves[::-1])


@dataclass(frozen=True, kw_only=True)
class Tree(Record):
    FORMAT, VERSION, FILE = "unteach-tree", 2, "tree.json"

    name: str
    branches: tuple[Branch, ...] = ()
    best: Leaf | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def modern(cls, fields: dict[str, Any], version: int) -> dict[str, Any]:
        assert version == 1
        return {"name": fields.get("title")}


def content(**more: Any) -> dict[str, Any]:
    return {"format": "unteach-tree", "version": 2, "name": "a", **more}


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    tree = Tree(
        name="ä\u2028\n",
        branches=(Branch((Leaf("oak", 1.5, True), Leaf("elm", 2))), Branch(rows={"a": ((1e-300, None), ())})),
        best=Leaf("elm", 0.1 + 0.2),
        more={"list": [1, {"none": None}], "big": 2**63},
    )
    path = tree.save(tmp_path / "deep" / "folder")
    assert path == tmp_path / "deep" / "folder" / "tree.json"
    again = Tree.load(path)
    # Whatever __post_init__ does is done once at reading, as at making.
    turned = dataclasses.replace(tree, branches=tuple(dataclasses.replace(b) for b in tree.branches))
    assert again == Tree.load(path.parent) == turned
    assert again.more["list"] == [1, {"none": None}] and isinstance(again.branches[0].leaves[1].size, float)
    assert list(json.loads(path.read_text()))[:2] == ["best", "branches"]
    assert tree.save(tmp_path / "other.json") == tmp_path / "other.json"


@given(st.floats(allow_nan=False, allow_infinity=False), st.text(), st.integers(-(2**63), 2**63 - 1))
def test_numbers_and_texts_come_back_exactly(number: float, text: str, whole: int) -> None:
    tree = Tree(name=text, best=Leaf("oak", number), more={"a": whole, "b": number, text: text})
    assert Tree.from_json(json.loads(json.dumps(tree.to_json()))) == tree


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "is not a file of the format unteach-tree; found: list; to do: check the path"),
        ({}, "is not a file of the format unteach-tree; found: format None"),
        (content(format="unteach-mask"), "found: format 'unteach-mask'"),
        (content(version=None), "the version must be a whole number above 0; found: None"),
        (content(version=True), "the version must be a whole number above 0"),
        (content(version=0), "the version must be a whole number above 0"),
        (
            content(version=3, later=1),
            "by a newer version of Unteach; found: version 3.*reads up to 2.*upgrade",
        ),
        ({"format": "unteach-tree", "version": 2}, "missing key 'name'"),
        (content(name=3), "name must be text, found 3"),
        (content(branches="ab"), "branches must be a list, found 'ab'"),
        (content(branches=[3]), r"branches\[0\] must be a table, found 3"),
        (content(more=[]), r"more must be a table, found \[\]"),
        (content(best={"kind": "fir", "size": 1}), "best.kind must be one of 'oak', 'elm', found 'fir'"),
        (content(best={"kind": "oak", "size": "1"}), "best.size must be a finite number, found '1'"),
        (content(best={"kind": "oak", "size": float("nan")}), "best.size must be a finite number, found nan"),
        (content(best={"kind": "oak", "size": True}), "best.size must be a finite number, found True"),
        (content(best={"kind": "oak", "size": 1, "seen": 1}), "best.seen must be true or false, found 1"),
        (content(branches=[{"counts": [1.0, "x"]}]), r"branches\[0\].counts\[0\] must be a whole number, found 1.0"),
        (content(branches=[{"counts": [1]}]), r"branches\[0\].counts\[1\]"),
        (content(branches=[{"counts": [1, "x", 2]}]), r"branches\[0\].counts is wrong"),
        (content(branches=[{"rows": {"a": [[None, "x"]]}}]), r"branches\[0\].rows.a\[0\]\[1\] must be a finite number"),
        (content(branches=[{}, {"leaves": [{"kind": "oak", "size": 1}] * 3}]), r"branches\[1\]: too many leaves.*3"),
    ],
)
def test_what_is_wrong_is_refused(data: object, words: str) -> None:
    with pytest.raises(CheckpointError, match=f"(?s)^tree.json.*{words}"):
        Tree.from_json(data, where="tree.json")


def test_all_mistakes_at_once() -> None:
    data = content(colour=1, branches=[{"leafs": []}, {"leaves": [{"kind": "oak", "size": 1}] * 3}], best={"size": "x"})
    del data["name"]
    with pytest.raises(CheckpointError) as caught:
        Tree.from_json(data, where="tree.json")
    said = str(caught.value)
    assert "tree.json has 6 mistakes" in said
    for part in ("unknown key 'colour'", "missing key 'name'", "branches[0]: unknown key 'leafs'", "too many leaves",
                 "best: missing key 'kind'", "best.size must be a finite number, found 'x'"):  # fmt: skip
        assert part in said, part


def test_an_earlier_version_is_read() -> None:
    old = {"format": "unteach-tree", "version": 1}
    with pytest.raises(CheckpointError, match="name must be text, found None"):
        Tree.from_json(old)
    assert Tree.from_json({**old, "title": "a"}) == Tree(name="a")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*none\.json; found: No such file.*check the path"):
        Tree.load(tmp_path / "none.json")
    path = tmp_path / "tree.json"
    for text in (b"", b"{", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 5000):
        path.write_bytes(text)
        with pytest.raises(CheckpointError, match=r"tree\.json"):
            Tree.load(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        Tree.load(path)


def test_the_kind_of_error_and_the_limit_are_the_records_own(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Small(Tree):
        ERROR, LIMIT = DataError, 10

    with pytest.raises(DataError, match="too long to be read; found: more than 10 bytes"):
        Small.load(Small(name="a").save(tmp_path))
    with pytest.raises(DataError, match="missing key 'name'"):
        Small.from_json({"format": "unteach-tree", "version": 2})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = Tree(name="a").save(tmp_path / "tree.json")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        Tree(name="a", more={"not JSON": object()}).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["tree.json"]


def test_the_schema_is_of_the_file() -> None:
    schema = Tree.schema()
    assert schema["properties"]["format"] == {"const": "unteach-tree"} and schema["additionalProperties"] is False
    assert schema["properties"]["version"] == {"const": 2} and schema["required"] == ["format", "version", "name"]
    assert schema["$defs"]["Leaf"]["properties"]["kind"]["enum"] == ["oak", "elm"]
    assert json.loads(json.dumps(schema)) == schema


def test_plain_types_are_converted_too() -> None:
    assert convert.convert([1, 2.5], tuple[float, ...]) == (1.0, 2.5)
    assert convert.convert({"kind": "oak", "size": 1}, Leaf) == Leaf("oak", 1.0)
    assert convert.convert(None, int | None) is None
    with pytest.raises(Wrong, match=r"^must be a whole number, found True$"):
        convert.convert(True, int)
    with pytest.raises(Wrong, match=r"must be plain data, found <object"):
        convert.convert(object(), int)
    with pytest.raises(Wrong) as caught:
        convert.convert({"kind": 1, "sice": 2}, Leaf)
    assert len(caught.value.mistakes) == 3


def test_the_converter_is_loaded_when_it_is_needed() -> None:
    code = "import sys, unteach.records.base; print([m for m in ('pydantic', 'diffusers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
