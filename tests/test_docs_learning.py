"""What the pages on continual learning show runs, and their numbers are those of the configs."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.continual import tiny

from unteach.commands.learn import Learn
from unteach.continual.methods import methods
from unteach.continual.plugins import plugins
from unteach.continual.streams import SCENARIOS, Stream, streams

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAPERS = sorted((ROOT / "benchmarks" / "configs").glob("paper-*.yaml"))


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text(page), re.DOTALL)


@contextmanager
def guide(page: str, name: str, registry: Any, folder: Path) -> Iterator[str]:
    """The guide's class, in a module of its own, because dataclasses look their annotations up there."""
    (source,) = blocks(page, "python")
    module_name = name.replace("-", "_")
    file = folder / f"{module_name}.py"
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
        yield name
    finally:
        del sys.modules[module_name]
        registry._items.pop(name, None)


@pytest.fixture
def own_method(tmp_path: Path) -> Iterator[str]:
    assert len(blocks("adding-a-learner.md", "python")[0].splitlines()) <= 20
    with guide("adding-a-learner.md", "lwf-memory", methods, tmp_path) as name:
        yield name


def test_the_plug_in_of_the_guide_works(tmp_path: Path) -> None:
    """It changes the step, on a method and on a combination; at strength 0 it is the host, bit for bit."""
    with guide("adding-a-plugin.md", "lean", plugins, tmp_path) as name:
        for method in ("er", "si + cpr"):
            host = tiny.run(method)
            off, on = tiny.run(method, plugins.make(name, share=0.0)), tiny.run(method, name)
            tiny.assert_weights(off.model, host.model)
            assert tiny.differs(on, host) and on.passes > off.passes == host.passes


def test_the_method_of_the_guide_learns(own_method: str) -> None:
    """It resumes from nothing, takes a plug-in, adds up with another method, and is plain training at strength 0."""
    assert tiny.differs(tiny.run(own_method), tiny.run("fine-tune"))
    tiny.assert_same(tiny.run(own_method, "refresh"), tiny.run(own_method, "refresh"))
    assert len(tiny.run(f"{own_method} + online-ewc").rows) == 2
    off = tiny.method(own_method, alpha=0.0)
    tiny.assert_weights(tiny.run(off).model, tiny.plain(tiny.stream(), tiny.training()))


def test_the_method_of_the_guide_resumes(own_method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny.run(own_method, training=tiny.training(epochs=2, momentum=0.9))
    tiny.assert_same(whole, tiny.resumed(own_method, None, tmp_path / "out", monkeypatch, before=10, every=4))


def test_the_examples_of_the_start_page_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in blocks("continual.md", "python"):
        exec(source, {})
    assert re.fullmatch(r"\[(\d\.\d+, ){4}\d\.\d+\]\n", capsys.readouterr().out)
    (source,) = blocks("continual.md", "yaml")
    file = tmp_path / "my.yaml"
    file.write_text(source, encoding="utf-8")
    assert len(Learn(config=file).plan().jobs) == 4 * 3 * 3


def test_the_streams_page_names_every_stream_and_scenario() -> None:
    page = text("scenarios.md")
    assert all(f"| `{name}` |" in page for name in [*streams, *SCENARIOS])
    (source,) = blocks("scenarios.md", "python")
    names: dict[str, object] = {}
    exec(source, names)
    stream = names["stream"]
    assert isinstance(stream, Stream) and len(tiny.run("er", on=stream).rows) == 2


def test_the_streams_page_is_right_about_those_that_ship() -> None:
    page, counts = text("scenarios.md"), {}
    for name in ("digits", "emoji-class", "emoji-domain"):
        made = streams[name]()
        counts[name] = [sum(len(task.y) for task in made.tasks), sum(len(task.test_y) for task in made.tasks)]
        (line,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert " × ".join(map(str, made.shape)) in line
    assert counts["digits"] == [1438, 359] and "1438 to learn from, 359" in page
    assert counts["emoji-class"] == [1680, 240] and "1680 pictures to learn from, 240" in page
    assert counts["emoji-domain"] == [8 * 188, 8 * 63] and "188 names to learn and 63" in page


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_the_papers_numbers_are_those_of_the_configs(path: Path) -> None:
    _, page = text("paper-settings.md").split(f"`{path.name}`\n", 1)
    lines = page.split("\n#")[0].splitlines()
    found = dict[str, list[str]]()
    for line in path.read_text(encoding="utf-8").splitlines():
        if shown := re.fullmatch(r"  - (.*?)  # (\S+) / (\S+)", line):
            arm = yaml.safe_load(shown[1])
            label = arm if isinstance(arm, str) else arm.get("label", arm["method"])
            found[label] = ["–" if number == "-" else number for number in shown.groups()[1:]]
    wanted = {job.label for job in Learn(config=path).plan().jobs if job.plugin is None}
    assert set(found) == {label for label in wanted if not label.endswith("of refresh")} and len(found) > 12
    for label, numbers in found.items():
        (row,) = [line for line in lines if line.startswith(f"| {label} |")]
        assert [cell.strip() for cell in row.strip("|").split("|")[2:]] == numbers, label


def test_the_pages_that_lead_here_name_them() -> None:
    for page in ("README.md", "tour.md"):
        assert "(continual.md)" in text(page)
    for name in plugins:
        assert f"`{name}`" in text("refresh.md"), name
