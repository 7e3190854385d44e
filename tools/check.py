"""All checks of the project, one after another: every one runs, a table at the end says how each went.

python tools/check.py                     everything (this is `make test`)
python tools/check.py --only ruff,mypy    some of it
python tools/check.py --list              their names

Only the standard library is used here; the tools that are called come with the `dev` extra.
"""

import argparse
import ast
import fnmatch
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_LINES = 400
MOST_METHOD_LINES = 250
MOST_BYTES = 4 * 2**20
MOST_LISTED_BYTES = 12 * 2**20
LARGE_FILES = "tools/large-files.txt"
NOT_OURS = {".git", ".venv", "build", "dist", "runs", "__pycache__"}

# What must never be committed. The patterns do not match their own source text.
SECRETS: Mapping[str, re.Pattern[bytes]] = {
    "a private key": re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    "an AWS key": re.compile(rb"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "a GitHub token": re.compile(rb"(?<![A-Za-z0-9])(?:gh[opsur]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"),
    "a Hugging Face token": re.compile(rb"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,}"),
    "an API key": re.compile(rb"(?<![A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20,}"),
    "a Slack token": re.compile(rb"(?<![A-Za-z0-9])xox[abpr]-[A-Za-z0-9-]{10,}"),
    "a password in a URL": re.compile(rb"[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>{}]{1,64}:[^\s/:@'\"<>{}]{1,64}@[\w.-]"),
    "a path of one machine": re.compile(rb"(?<![\w.~$}-])/(?:(?:root|work)(?![\w-])|(?:home|Users|tmp)/\w)"),
    "a registry host": re.compile(
        rb"(?i)\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs\.org|deb\.debian\.org|download\.pytorch\.org)\b"
        rb"|(?:index[-_]url|find[-_]links|trusted[-_]host)[\s=:'\"]+[\w:~-]*[/.]"
        rb"|://(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d"
    ),
}

# Circles that are still open; none may come in, and this list must shrink to nothing.
OPEN_CIRCLES: Sequence[frozenset[str]] = []

# What is not to be written: what is. Keys in quotes may stay, because files on disk have them.
WORDS: Mapping[str, str] = {
    r"(?<![\"'])(?i:optimi[s](?:e|ation|ing))\w*": "an optimizer, to optimize",
}
GLOSSARY = "docs/glossary.md"


def project_files(root: Path) -> list[str]:
    """The files that belong to the project, as paths from ``root``: what git tracks or would offer to add.

    Without a ``.git`` (an unpacked source archive) it is every file outside environments, caches and outputs.
    """
    if (root / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(command, cwd=root, check=True, capture_output=True).stdout
        names: Iterable[str] = {os.fsdecode(name) for name in listing.split(b"\0") if name}
    else:
        names = (path.relative_to(root).as_posix() for path in root.rglob("*"))
        names = (name for name in names if not any(_not_ours(part) for part in name.split("/")))
    return sorted(name for name in names if (root / name).is_file())


def _not_ours(part: str) -> bool:
    return part in NOT_OURS or part.endswith(("_cache", ".egg-info"))


def registers_method(source: str) -> bool:
    """Whether a module registers an erasing method: has a call ``methods.add("name")``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add":
            owner = node.func.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if name == "methods":
                return True
    return False


def check_lengths(root: Path, files: Sequence[str]) -> list[str]:
    """Rooms of the house that grew too large: source files over 400 lines, method files over 250."""
    problems = []
    for name in files:
        if not (name.startswith("src/") and name.endswith(".py")):
            continue
        source = (root / name).read_text(encoding="utf-8")
        method = name.startswith("src/unteach/erase/") and registers_method(source)
        lines, most = len(source.splitlines()), MOST_METHOD_LINES if method else MOST_LINES
        if lines > most:
            kind = "a method's file" if method else "a source file"
            problems.append(f"{name}: {lines} lines; {kind} has at most {most}")
    return problems


def imports(root: Path, files: Sequence[str]) -> dict[str, set[str]]:
    """Module of ``src`` to those of ``src`` that it imports anywhere: for types alone and in functions, too."""
    modules = {}
    for name in files:
        if name.startswith("src/") and name.endswith(".py"):
            dotted = name.removeprefix("src/").removesuffix(".py").replace("/", ".")
            modules[dotted.removesuffix(".__init__")] = root / name
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= inside & modules.keys() or {node.module}
        graph[module] = named & modules.keys() - {module}
    return graph


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Sets of modules of which each imports every other, at last."""
    reached = {}
    for start in graph:
        seen: set[str] = set()
        pending = [start]
        while pending:
            new = graph[pending.pop()] - seen
            seen |= new
            pending += new
        reached[start] = seen
    found: list[set[str]] = []
    for module, seen in reached.items():
        if module in seen and not any(module in circle for circle in found):
            found.append({other for other in seen if module in reached[other]})
    return found


def check_circles(root: Path, files: Sequence[str]) -> list[str]:
    """Modules of ``src`` that import each other in a circle, but for those of :data:`OPEN_CIRCLES`."""
    found = circles(imports(root, files))
    problems = [
        f"modules import each other in a circle: {', '.join(sorted(circle))}"
        for circle in found
        if not any(circle <= known for known in OPEN_CIRCLES)
    ]
    if root == ROOT:
        left = [known for known in OPEN_CIRCLES if not any(circle <= known for circle in found)]
        problems += [f"this circle is gone, take it out of OPEN_CIRCLES: {', '.join(sorted(known))}" for known in left]
    return problems


def check_words(root: Path, files: Sequence[str]) -> list[str]:
    """One name for one thing, in code and docs: see :data:`WORDS` and the last column of the glossary."""
    problems = []
    glossary = (root / GLOSSARY).read_text(encoding="utf-8") if (root / GLOSSARY).exists() else ""
    rows = [row.strip("| ").split("|") for row in glossary.splitlines() if row.startswith("| ") and row.count("|") == 4]
    avoided = {bad.strip(): row[0].strip() for row in rows[1:] if len(row) == 3 for bad in row[2].split(",")}
    banned = {rf"(?i)\b{re.escape(bad)}s?\b": good for bad, good in avoided.items() if bad}
    for name in files:
        if not name.endswith((".py", ".md", ".j2", ".yaml")) or name.startswith("tests/regression/"):
            continue
        for number, line in enumerate((root / name).read_text(encoding="utf-8").splitlines(), 1):
            ours = name != GLOSSARY and name.startswith(("src/", "docs/", "README"))
            for pattern, word in {**WORDS, **(banned if ours else {})}.items():
                problems += [f"{name}:{number}: '{m[0]}' is called {word} here" for m in re.finditer(pattern, line)]
    return problems


def check_secrets(root: Path, files: Sequence[str]) -> list[str]:
    """Keys, tokens, passwords, paths of one machine and registry hosts. What was found is not printed."""
    problems = []
    for name in files:
        data = (root / name).read_bytes()
        for kind, pattern in SECRETS.items():
            for match in pattern.finditer(data):
                line = data.count(b"\n", 0, match.start()) + 1
                problems.append(f"{name}:{line}: looks like {kind}")
    return problems


def large_file_patterns(root: Path) -> list[str]:
    """The patterns in tools/large-files.txt: one a line, ``#`` starts a comment."""
    path = root / LARGE_FILES
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def check_sizes(root: Path, files: Sequence[str]) -> list[str]:
    """Files over 4 MiB that are not listed, and listed ones over 12 MiB."""
    allowed = large_file_patterns(root)
    problems = []
    for name in files:
        size = (root / name).stat().st_size
        listed = any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed)
        most = MOST_LISTED_BYTES if listed else MOST_BYTES
        if size > most:
            hint = "" if listed else f"; if it must be in the repository, list it in {LARGE_FILES}"
            problems.append(f"{name}: {size / 2**20:.1f} MiB; at most {most / 2**20:.0f} MiB{hint}")
    return problems


Check = Callable[[Path], bool]
# One thread a test (tests/conftest.py), so a process a core; a file stays in one process, whose fixtures it shares.
PROCESSES = str(min(4, os.cpu_count() or 1))


def command(*arguments: str) -> Check:
    """A check that is a Python program: passes when it exits with 0. Its output is shown as it comes."""

    def run(root: Path) -> bool:
        paths = [str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        return subprocess.run([sys.executable, *arguments], cwd=root, env=environment).returncode == 0

    return run


def listing(find: Callable[[Path, Sequence[str]], list[str]]) -> Check:
    """A check of our own: passes when ``find(root, files)`` lists no problem."""

    def run(root: Path) -> bool:
        files = project_files(root)
        problems = find(root, files)
        print("\n".join(problems) or f"{len(files)} files: nothing found")
        return not problems

    return run


CHECKS: Mapping[str, Check] = {
    "ruff": command("-m", "ruff", "check", "--output-format=concise", "."),
    "format": command("-m", "ruff", "format", "--check", "--output-format=concise", "."),
    "mypy": command("-m", "mypy"),
    "imports": command("-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-logo"),
    "circles": listing(check_circles),
    "words": listing(check_words),
    "lengths": listing(check_lengths),
    "secrets": listing(check_secrets),
    "sizes": listing(check_sizes),
    "tests": command("-m", "pytest", "-n", PROCESSES, "--dist", "loadfile"),
}


def run_all(checks: Mapping[str, Check], root: Path) -> int:
    """Run every check, also after one failed; print a table; return how many failed."""
    rows = []
    for name, check in checks.items():
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        try:
            passed = check(root)
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
            passed = False
        rows.append((name, passed, time.perf_counter() - start))
        sys.stdout.flush()
    print("\n== summary")
    for name, passed, seconds in rows:
        print(f"{name:10}{'ok' if passed else 'FAILED':8}{seconds:7.1f} s")
    failed = [name for name, passed, _ in rows if not passed]
    print(f"failed: {', '.join(failed)}" if failed else "all good", flush=True)
    return len(failed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run the checks of the project.")
    parser.add_argument("--only", metavar="NAMES", help="some of them, with commas between: " + ",".join(CHECKS))
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    parser.add_argument("--list", action="store_true", help="print the names of the checks")
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(CHECKS))
        return 0
    names = list(CHECKS) if options.only is None else [n.strip() for n in options.only.split(",") if n.strip()]
    unknown = [name for name in names if name not in CHECKS]
    if unknown or not names:
        parser.error(f"no such check: {', '.join(unknown) or '(none named)'}; known: {', '.join(CHECKS)}")
    return 1 if run_all({name: CHECKS[name] for name in names}, options.root.resolve()) else 0


if __name__ == "__main__":
    sys.exit(main())
