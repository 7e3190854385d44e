"""The checks that have logic of their own must catch what they are for, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools import check

# The samples are put together here, so that this file is clean itself.
SECRETS = {
    "a private key": "-----BEGIN RSA PRIVATE" + " KEY-----",
    "an AWS key": "key = AKIA" + "ABCDEFGHIJKLMNOP",
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a Hugging Face token": "hf_" + "aBcDeFgHiJ" * 4,
    "an API key": "sk-" + "proj-abc123" * 3,
    "a Slack token": "xoxb" + "-123456789012-abc",
    "a password in a URL": "https://me:" + "hunter2@example.org/x",
    "a path of one machine": 'open("/ro' + 'ot/data.txt")',
    "a registry host": "see https://py" + "pi.org/simple",
}
MORE_MACHINE_PATHS = [
    "/wo" + "rk/main",
    "/ho" + "me/ann/x",
    "cd /ro" + "ot",
    "/Us" + "ers/ann",
    "/t" + "mp/x.png",
]
MORE_HOSTS = [
    "pip install --index" + "-url https://mirror.example/simple",
    "PIP_INDEX" + "_URL=/srv/wheels",
    "http://10" + ".1.2.3/x",
]
HARMLESS = [
    "tests/root/file and ./work/x and root/ and my/work",
    "the /rooted tree, /workspace, /homework, {root}/work and $HOME/work",
    "https://arxiv.org/abs/2405.15304 and http://localhost:8000/",
    "mail@example.org, user:name, a:b@c, task-force-one-two-three-four-five",
    "risk-averse-and-very-long-hyphenated-words sk-short hf_short hf_hub_download",
    "AKIA123 and a -----BEGIN CERTIFICATE-----",
    "the index url is given by the user; find_links = links",
]


def write(root: Path, name: str, content: str | bytes) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


@pytest.mark.parametrize("kind", SECRETS)
def test_secret_is_found_with_its_line_and_not_shown(tmp_path: Path, kind: str) -> None:
    name = write(tmp_path, "notes.md", f"one\ntwo\n{SECRETS[kind]}\n")
    assert check.check_secrets(tmp_path, [name]) == [f"notes.md:3: looks like {kind}"]


def test_every_kind_of_secret_has_a_sample() -> None:
    assert set(SECRETS) == set(check.SECRETS)


@pytest.mark.parametrize("text", MORE_MACHINE_PATHS)
def test_machine_paths_are_found(tmp_path: Path, text: str) -> None:
    problems = check.check_secrets(tmp_path, [write(tmp_path, "a.py", text)])
    assert problems == ["a.py:1: looks like a path of one machine"]


@pytest.mark.parametrize("text", MORE_HOSTS)
def test_hosts_are_found(tmp_path: Path, text: str) -> None:
    assert "a.cfg:1: looks like a registry host" in check.check_secrets(tmp_path, [write(tmp_path, "a.cfg", text)])


@pytest.mark.parametrize("text", HARMLESS)
def test_harmless_text_is_not_found(tmp_path: Path, text: str) -> None:
    assert check.check_secrets(tmp_path, [write(tmp_path, "a.txt", text)]) == []


def test_secret_inside_a_binary_file_is_found(tmp_path: Path) -> None:
    data = b"\x00\xff\x00" * 1000 + SECRETS["a Hugging Face token"].encode() + b"\x00"
    assert len(check.check_secrets(tmp_path, [write(tmp_path, "w.safetensors", data)])) == 1


def test_every_secret_of_a_file_is_reported(tmp_path: Path) -> None:
    name = write(tmp_path, "all.txt", "\n".join(SECRETS.values()))
    assert len(check.check_secrets(tmp_path, [name])) == len(SECRETS)


METHOD = 'from unteach.erase.base import methods\n\n\n@methods.add("toy")\nclass Toy:\n    pass\n'


def lines(source: str, count: int) -> str:
    return source + "#\n" * (count - len(source.splitlines()))


@pytest.mark.parametrize(
    ("name", "source", "count", "most"),
    [
        ("src/unteach/core/a.py", "", 400, None),
        ("src/unteach/core/a.py", "", 401, 400),
        ("src/unteach/erase/toy.py", METHOD, 250, None),
        ("src/unteach/erase/toy.py", METHOD, 251, 250),
        ("src/unteach/erase/base.py", "", 400, None),
        ("src/unteach/erase/base.py", "", 401, 400),
        ("src/unteach/core/toy.py", METHOD, 300, None),
        ("tests/test_long.py", METHOD, 900, None),
        ("src/unteach/report/page.html", "", 900, None),
    ],
)
def test_lengths(tmp_path: Path, name: str, source: str, count: int, most: int | None) -> None:
    problems = check.check_lengths(tmp_path, [write(tmp_path, name, lines(source, count))])
    assert len(problems) == (most is not None)
    if most is not None:
        assert problems[0].startswith(f"{name}: {count} lines") and problems[0].endswith(f"at most {most}")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (METHOD, True),
        ('import unteach.erase as e\n\ne.methods.add("toy")(object)\n', True),
        ("from unteach.erase.base import methods\n\nprint(methods.names())\n", False),
        ('seen = set()\nseen.add("methods")\n', False),
        ('"""Write @methods.add("toy") above the class."""\n', False),
    ],
)
def test_registers_method(source: str, expected: bool) -> None:
    assert check.registers_method(source) is expected


def test_sizes(tmp_path: Path) -> None:
    write(tmp_path, check.LARGE_FILES, "# comment\n\nmodel/*.safetensors  # the weights\n")
    mebi = 2**20
    files = [
        write(tmp_path, "small.bin", bytes(4 * mebi)),
        write(tmp_path, "big.bin", bytes(4 * mebi + 1)),
        write(tmp_path, "model/unet/w.safetensors", bytes(12 * mebi)),
        write(tmp_path, "model/vast.safetensors", bytes(12 * mebi + 1)),
        write(tmp_path, "model/other.bin", bytes(5 * mebi)),
    ]
    problems = check.check_sizes(tmp_path, files)
    assert [problem.split(":")[0] for problem in problems] == [
        "big.bin",
        "model/vast.safetensors",
        "model/other.bin",
    ]
    assert check.LARGE_FILES in problems[0] and check.LARGE_FILES not in problems[1]


def test_sizes_without_a_list(tmp_path: Path) -> None:
    assert check.check_sizes(tmp_path, [write(tmp_path, "a.bin", bytes(5 * 2**20))]) != []


def test_project_files_follow_git(tmp_path: Path) -> None:
    for name in ["kept.py", "gone.py", "new.py", "runs/out.png", "sub/ünï cödé.txt"]:
        write(tmp_path, name, "x")
    write(tmp_path, ".gitignore", "/runs/\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "kept.py", "gone.py"], cwd=tmp_path, check=True)
    (tmp_path / "gone.py").unlink()
    assert check.project_files(tmp_path) == [".gitignore", "kept.py", "new.py", "sub/ünï cödé.txt"]


def test_project_files_without_git(tmp_path: Path) -> None:
    for name in ["a.py", ".ci/run", ".venv/x.py", "src/p/__pycache__/x.pyc", ".ruff_cache/0/1", "runs/a.png"]:
        write(tmp_path, name, "x")
    assert check.project_files(tmp_path) == [".ci/run", "a.py"]


def broken(root: Path) -> bool:
    raise OSError("the disk is gone")


def test_all_checks_run_and_the_table_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checks = {"first": lambda root: False, "second": broken, "third": lambda root: True}
    assert check.run_all(checks, tmp_path) == 2
    head, table = capsys.readouterr().out.split("== summary\n")
    assert "== third" in head and "OSError: the disk is gone" in head
    assert [row.split()[:2] for row in table.splitlines()[:3]] == [
        ["first", "FAILED"],
        ["second", "FAILED"],
        ["third", "ok"],
    ]
    assert table.endswith("failed: first, second\n")


def test_exit_codes_of_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, "src/unteach/a.py", "x = 1\n")
    script = [sys.executable, check.__file__, "--root", str(tmp_path), "--only", "lengths,secrets,sizes"]
    clean = subprocess.run(script, capture_output=True, text=True)
    assert clean.returncode == 0 and clean.stdout.endswith("all good\n")
    write(tmp_path, "src/unteach/a.py", "x = 1\n" * 401)
    dirty = subprocess.run(script, capture_output=True, text=True)
    assert dirty.returncode == 1 and dirty.stdout.endswith("failed: lengths\n")


def test_commands_see_the_source_folder_and_their_exit_code_counts(tmp_path: Path) -> None:
    write(tmp_path, "src/only_here.py", "")
    assert check.command("-c", "import only_here")(tmp_path)
    assert not check.command("-c", "raise SystemExit(3)")(tmp_path)


@pytest.mark.parametrize("only", ["ruf", "ruff,nothing", " , "])
def test_unknown_names_are_refused(only: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        check.main(["--only", only])
    assert raised.value.code == 2
    assert "known: ruff, format, mypy" in capsys.readouterr().err


def test_list_names_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(check.CHECKS)


def source(root: Path, **modules: str) -> list[str]:
    return [write(root, f"src/house/{name}.py", text) for name, text in modules.items()]


@pytest.mark.parametrize(
    "back",
    [
        "import house.a",
        "from house import a",
        "from house.a import x",
        "def f():\n    from house.a import x",
        "if TYPE_CHECKING:\n    from house.a import x",
    ],
)
def test_a_circle_is_found_however_it_is_closed(tmp_path: Path, back: str) -> None:
    files = source(tmp_path, __init__="", a="from house.b import y\nx = 1", b="from house import c", c=back)
    (problem,) = check.check_circles(tmp_path, files)
    assert problem == "modules import each other in a circle: house.a, house.b, house.c"


def test_what_is_no_circle(tmp_path: Path) -> None:
    files = source(
        tmp_path, __init__="from house.a import x", a="from house.b import y", b="import os, torch", c="import house.a"
    )
    assert check.check_circles(tmp_path, files) == []


def test_a_known_circle_passes_but_not_a_wider_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = source(tmp_path, a="import house.b", b="import house.a")
    monkeypatch.setattr(check, "OPEN_CIRCLES", [frozenset({"house.a", "house.b"})])
    assert check.check_circles(tmp_path, files) == []
    assert len(check.check_circles(tmp_path, [*files, *source(tmp_path, b="import house.c", c="import house.a")])) == 1


def test_one_word_for_one_thing(tmp_path: Path) -> None:
    # Put together, so that this file is clean itself.
    bad = "the opti" + "miser steps"
    assert check.check_words(tmp_path, [write(tmp_path, "a.md", f"one\n{bad}\n")])[0].startswith("a.md:2: 'optimi")
    key = 'state = {"opti' + 'miser": optimizer}'
    assert check.check_words(tmp_path, [write(tmp_path, "b.py", key), write(tmp_path, "c.txt", bad)]) == []
