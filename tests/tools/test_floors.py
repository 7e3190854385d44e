"""`make test-floors` tests what pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def test_the_floors_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]]
    for extra in ("sign", "lora", "dev"):
        lines += project["optional-dependencies"][extra]
    asked = {}
    for line in (Requirement(line) for line in lines if not line.startswith(("unteach", "types-"))):
        (bound,) = line.specifier
        assert bound.operator == ">=", line
        asked[line.name.lower().replace("-", "_")] = Version(bound.version)
    text = (ROOT / "constraints-floors.txt").read_text(encoding="utf-8")
    pins = {name.lower().replace("-", "_"): Version(pin) for name, pin in re.findall(r"^([\w-]+)==(\S+)$", text, re.M)}
    # torch's floor is what users may have; no CPU build of it is offered to test with.
    assert pins.pop("torch") >= asked.pop("torch")
    tools = {"import_linter", "mypy", "ruff"}
    assert pins == {name: version for name, version in asked.items() if name not in tools}
