"""The command line with hostile files and impatient users: M6, L3, L4, L8, L11, L13 and L15 of the trials.

What needs a model is in `test_kills.py` and `test_mutations.py`.
"""

import io
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from unteach.cli import main, parse
from unteach.commands import console, guard
from unteach.commands.console import typed
from unteach.core import places
from unteach.core.run import seconds_spent
from unteach.errors import CheckpointError, ConfigError
from unteach.guard import signing

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
BAD = {
    "aliases": (BOMB, "is refused: write the value out"),
    "deep": ("[" * 3000, "nested too deeply"),
    "twice": ("seed: 1\nseed: 2\n", "stands twice"),
    "bytes": (b"\xff\xfe\x00", "UTF-8"),
}
READERS = {
    "erase --concepts": ["erase", "--method", "uce", "--out", "out", "--concepts"],
    "erase --config": ["erase", "--out", "out", "--config"],
    "learn --config": ["learn", "--out", "out", "--config"],
    "guard learn --config": ["guard", "learn", "--out", "out", "--config"],
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", BAD)
def test_m6_l4_every_reader_of_yaml_says_what_is_wrong_at_once(
    reader: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, said = BAD[case]
    Path("c.yaml").write_bytes(data if isinstance(data, bytes) else data.encode())
    begin = time.monotonic()
    assert main([*READERS[reader], "c.yaml"]) == 2
    message = capsys.readouterr().err
    assert time.monotonic() - begin < 20 and said in message and len(message) < 2500
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("value", "said"), [("9" * 5000, "digits"), ("[" * 3000, "deep"), ("'\\ud800'", ""), ('"\\ud800"', "half a char")]
)
def test_l4_settings_of_the_command_line(value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["erase", "--target", "twemoji", "--anchor", "openmoji", "--method", "uce", "--dry-run"]
    assert main([*line, "--set", f"lam={value}"]) == 2
    message = capsys.readouterr().err
    assert said in message and len(message) < 2500


def test_l3_a_folder_in_which_another_process_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["learn", "--stream", "digits", "--methods", "er", "--network", "mlp", "--epochs", "1"]
    with places.alone(tmp_path / "out"):
        assert main([*line, "--out", str(tmp_path / "out")]) == 2
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [places.LOCK]
    assert f"another process (pid {os.getpid()}) works in this folder" in capsys.readouterr().err


def test_l8_text_from_files_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text('"\\e[2J\\e]0;title\\a": 1\n', encoding="utf-8")
    assert main(["learn", "--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "\\x1b[2J\\x1b]0;title\\x07" in said and "\x1b" not in said
    console.say("policy \x1b[31mred")
    assert capsys.readouterr().out == "policy \\x1b[31mred\n"


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"seconds": "1"}', '{"seconds": NaN}', '{"seconds": -1}', "["])
def test_l13_a_damaged_cost_is_as_good_as_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "cost.json").write_text(content * 2000 if content == "[" else content)
    assert seconds_spent(tmp_path) is None
    (tmp_path / "cost.json").write_text('{"seconds": 2.5}')
    assert seconds_spent(tmp_path) == 2.5


def test_l15_only_what_goes_on_says_so() -> None:
    resuming = [
        "erase", "evaluate", "learn", "demo", "attack relearn", "guard learn",
    ]  # fmt: skip
    ending = ["list", "guard keygen --out x", "guard verify a b --manifest c", "guard show x", "guard apply a --out b"]
    for line in resuming:
        assert "the same command goes on" in parse(line.split()).stopped, line
    for line in [*ending, "report x"]:
        assert parse(line.split()).stopped == "stopped; nothing was kept", line
    assert "chooses the mask anew" in parse(["guard", "learn"]).stopped


def test_l11_a_pass_phrase_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["guard", "keygen", "--out", str(keys), "--pass-phrase"]) == 2
    assert "put it into UNTEACH_PASS_PHRASE" in capsys.readouterr().err and not keys.exists()
    monkeypatch.setenv("UNTEACH_PASS_PHRASE", "open sesame")
    assert main(["guard", "keygen", "--out", str(keys), "--pass-phrase"]) == 0
    assert signing.is_encrypted(keys / guard.PRIVATE)
    signing.load_private(keys / guard.PRIVATE, password=b"open sesame")
    guard._key(keys / guard.PRIVATE)
    monkeypatch.setenv("UNTEACH_PASS_PHRASE", "open barley")
    with pytest.raises(CheckpointError, match="cannot be read as a private key"):
        guard._key(keys / guard.PRIVATE)
    monkeypatch.setenv("UNTEACH_PASS_PHRASE", "")
    with pytest.raises(ConfigError, match="is empty"):
        guard._key(keys / guard.PRIVATE)


# The command in published records (the row after L8).


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["erase", "--target", "a cat", "--out", "runs/x"], "unteach erase --target 'a cat' --out runs/x"),
        (["HOME/models/sd", "HOME"], "unteach ~/models/sd '~'"),
        (["HOME/my models/sd"], "unteach ~/'my models/sd'"),
        (["CWD/runs/x", "CWD"], "unteach runs/x ."),
        (["/data/alice/sd15", "../../bob/sd"], "unteach '…/sd15' '…/sd'"),
        (["--out=HOME/x", "root=/data/alice/c.npz", "lr=1e-4"], "unteach --out=~/x root='…/c.npz' lr=1e-4"),
        (["--prompts", "a {} by HOME"], "unteach --prompts 'a {} by ~'"),
        (["../x/here/a"], "unteach ~/x/here/a"),
        ([""], "unteach ''"),
        (["bad \udcff"], "unteach 'bad ?'"),
    ],
)
def test_the_recorded_command_names_nobodys_folders(
    given: Sequence[str], kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "alice"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    filled = [text.replace("HOME", str(home)).replace("CWD", str(home / "work")) for text in given]
    assert typed(filled) == kept


def test_records_keep_the_command_without_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "grid.yaml").write_text(
        "stream: digits\nnetwork: mlp\nnetwork_options: {hidden: [4]}\ntraining: {epochs: 1}\nmethods: [fine-tune]\n"
    )
    assert main(["learn", "--config", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out/runs/fine-tune/0/run.json").read_text())
    assert record["command"] == "unteach learn --config ~/grid.yaml --out ~/out"
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".html")]
    assert len(texts) == 3 and not any(str(tmp_path) in text for text in texts)
