"""YAML and JSON from anybody: plain data, or one of our errors, soon (M6, L4 of the security trials)."""

import json
import time
from pathlib import Path

import pytest
import yaml

from unteach.core import reading, state
from unteach.errors import CheckpointError, ConfigError, DataError

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
"""406 bytes that stand for 9 to the power of 12 texts."""
BAD_YAML = {
    "aliases (M6)": (BOMB, "the alias '*a0' is refused"),
    "merged aliases": ("a: &a {b: 1}\nc: {<<: *a}", "the alias"),
    "deep lists": ("[" * 3000, "nested too deeply"),
    "deep lists that end": ("[" * 100 + "]" * 100, "nested too deeply"),
    "a key twice": ("steps: 1\nlr: 2\nsteps: 3", "the key 'steps' stands twice"),
    "a key twice, inside": ("a: [{b: 1, b: 1}]", "stands twice"),
    "5,000 digits": ("seed: " + "9" * 5000, "digits"),
    "30 digits": ("seed: " + "9" * 30, "a whole number of 100 bits"),
    "half a character": ('title: "\\ud800"', "half a character"),
    "a set": ("!!set {a}", "set"),
    "an object": ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
    "bytes": ("!!binary aGk=", "bytes"),
    "a table as a key": ("? {a: 1}\n: 2", "unhashable"),
    "a list as a key": ("? [a]\n: 2", "key"),
    "an impossible date": ("!!timestamp 2026-99-99", "YAML"),
    "two documents": ("a: 1\n---\nb: 2", "expected a single document"),
    "no YAML": ("a: [", "not valid YAML"),
    "a zero byte": ("a: \0", "not valid YAML"),
}
BAD_JSON = {
    "deep": "[" * 100_000,
    "deep and whole": "[" * 500 + "]" * 500,
    "5,000 digits": '{"a": ' + "9" * 5000 + "}",
    "30 digits": '{"a": ' + "9" * 30 + "}",
    "half a character": '{"a": "\\ud800"}',
    "half a character in a key": '{"\\udfff": 1}',
    "a key twice": '{"a": 1, "a": 2}',
    "cut off": '{"a": 1',
    "nothing": "",
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_m6_bad_yaml_is_refused_in_a_moment_and_in_few_words(case: str, tmp_path: Path) -> None:
    text, said = BAD_YAML[case]
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"c\.yaml is not valid YAML") as caught:
        reading.read_yaml(path, error=ConfigError)
    assert time.monotonic() - begin < 2 and len(str(caught.value)) < 1000 and said in str(caught.value)


def test_good_yaml_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = "a: 1\nb: [x, 2.5, null, true]\nc: {d: -3, 4: e}\nlr: 2e-5\nbig: 0x10\n'é': \"\\u00e9\"\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # a byte-order mark, as editors of Windows write it
    assert reading.read_yaml(path) == yaml.safe_load(text)
    assert reading.parse_yaml("title: 2026-01-31", "x") == {"title": "2026-01-31"}
    assert reading.parse_yaml("", "x") is None


def test_what_is_dumped_is_read_also_when_a_list_stands_in_it_twice() -> None:
    same = ["a", "b"]
    assert reading.parse_yaml(reading.to_yaml({"x": same, "y": same}), "x") == {"x": same, "y": same}


@pytest.mark.parametrize(("data", "said"), [(b"\xff\xfea", "UTF-8"), (b"a: " + b"x" * (2 << 20), "too long")])
def test_bytes_that_are_no_text_or_too_many(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(data)
    with pytest.raises(DataError, match=said):
        reading.read_yaml(tmp_path / "c.yaml", error=DataError)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none", Path("/dev/zero"), tmp_path / "zero\0byte"):
        with pytest.raises(CheckpointError, match=r"cannot read|not a regular file"):
            reading.read_yaml(path)
        with pytest.raises(CheckpointError, match=r"cannot read|not a regular file"):
            state.read_json(path)


@pytest.mark.parametrize("case", BAD_JSON)
def test_l4_bad_json_is_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(BAD_JSON[case], encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"record\.json is damaged: not JSON") as caught:
        state.read_json(path)
    assert len(str(caught.value)) < 1000


def test_good_json_is_read_as_before(tmp_path: Path) -> None:
    record = {"a": [1, -2.5, None, True, {"é": "\n"}], "largest": 2**64 - 1, "deep": json.loads("[" * 60 + "]" * 60)}
    (tmp_path / "r.json").write_text(json.dumps(record), encoding="utf-8-sig")
    assert state.read_json(tmp_path / "r.json") == record
    assert state.read_table(tmp_path / "r.json") == record
    for other in ("[1]", "3", "null", '"text"'):
        (tmp_path / "r.json").write_text(other)
        with pytest.raises(CheckpointError, match="not a table"):
            state.read_table(tmp_path / "r.json")
