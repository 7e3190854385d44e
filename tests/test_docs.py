"""What the docs show runs, and what they link to is there."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from tests import toys

from unteach import cli
from unteach.diffusion import families, load, sample
from unteach.diffusion.loading import quiet
from unteach.erase import Concept, ConceptSet, erase, methods

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_method_of_the_guide_works(tmp_path: Path) -> None:
    (source,) = blocks(ROOT / "docs" / "adding-a-method.md", "python")
    # A module of its own, because dataclasses look their annotations up there.
    file = tmp_path / "to_nothing.py"
    file.write_text(source, encoding="utf-8")
    import importlib.util

    spec = importlib.util.spec_from_file_location("to_nothing", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["to_nothing"] = module
    spec.loader.exec_module(module)
    try:
        model = load(toys.build("sd", tmp_path / "toy"))
        concept = Concept(target="dog", anchor="cat", prompts=("a {}",), retain=("a car",))
        small = {
            "steps": 2,
            "batch_size": 2,
            "images": 2,
            "retain_images": 2,
            "num_inference_steps": 2,
            "learning_rate": 1e-3,
        }
        delta = erase(model, concept, "to-nothing", **small)
        assert any(bool(torch.any(value != 0)) for value in delta.tensors.values())
    finally:
        del methods._items["to-nothing"]
        del sys.modules["to_nothing"]


def test_the_family_of_the_guide_works(tmp_path: Path) -> None:
    (source,) = blocks(ROOT / "docs" / "adding-a-family.md", "python")
    try:
        exec(source, {"__name__": "pixart"})
        with quiet():
            toys.pixart().save_pretrained(tmp_path / "toy")
        model = load(tmp_path / "toy")
        assert model.family == "pixart" and model.latent_shape == (4, 8, 8)
        drawn = sample(model, ["a dog", "a cat"], [1, 1], num_inference_steps=2)
        assert not torch.equal(drawn[0], drawn[1])
        for method, more in (("uce", {}), ("ablate", {"steps": 2, "images": 2, "retain_images": 2, "contexts": 0})):
            delta = erase(model, Concept(target="dog", anchor="cat", retain=("a car",)), method, kept_words=4, **more)
            assert all(bool(torch.any(value != 0)) for value in delta.tensors.values()) and delta.tensors
    finally:
        families._items.pop("pixart", None)


def test_the_command_of_the_guide_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (source,) = blocks(ROOT / "docs" / "adding-a-verb.md", "python")
    module = types.ModuleType("unteach.commands.count")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.VERBS, "count", "Count")  # type: ignore[arg-type]
    exec(source, module.__dict__)
    out = tmp_path / "run"
    line = ["count", "--texts", "a b", "b", "--out", str(out)]
    assert cli.main(line) == 0 and json.loads((out / "counts.json").read_text()) == {"a": 1, "b": 2}
    assert "2 different words" in capsys.readouterr().out
    (tmp_path / "count.yaml").write_text(f"texts: [a b, b]\nout: {out}\n")
    assert cli.main(["count", "--config", str(tmp_path / "count.yaml")]) == 0
    assert cli.main(["count", "--texts", "other", "--out", str(out)]) == 2
    assert "holds another run" in capsys.readouterr().err
    assert cli.main(["count"]) == 2 and "has 2 mistakes" in capsys.readouterr().err


def test_the_readme_example_runs(tmp_path: Path) -> None:
    source, learning = blocks(ROOT / "README.md", "python")
    # The same lines with the method that takes a second, in a folder of the test.
    assert '"doco-canvas"' in source and '"runs/' in source
    names: dict[str, object] = {}
    exec(source.replace('"doco-canvas"', '"uce"').replace('"runs/', f'"{tmp_path}/'), names)
    images = names["images"]
    assert isinstance(images, torch.Tensor) and images.shape == (2, 3, 32, 32)
    exec(learning, names)
    assert len(names["outcome"].rows) == 5  # type: ignore[attr-defined]


def test_concepts_of_the_guide_are_read(tmp_path: Path) -> None:
    (text,) = blocks(ROOT / "docs" / "erase.md", "yaml")
    file = tmp_path / "concepts.yaml"
    file.write_text(text, encoding="utf-8")
    assert [concept.target for concept in ConceptSet.from_yaml(file)] == ["twemoji", "bomb"]


def test_every_method_has_a_page_and_every_preset_is_named() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in methods:
        assert (ROOT / "docs" / f"{name}.md").exists()
    for name in methods.presets:
        assert f"`{name}`" in text, name
