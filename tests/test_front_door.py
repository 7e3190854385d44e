"""``import unteach`` is light and has the public names; a pipeline in memory works where a folder does."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests import toys

import unteach
from unteach import cli


def test_importing_it_loads_nothing_heavy() -> None:
    script = "import sys, unteach; print([m for m in ('torch', 'diffusers', 'tyro', 'pydantic') if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_no_command_loads_anything_heavy_before_it_runs() -> None:
    modules = ", ".join(f"unteach.commands.{verb}" for verb in cli.VERBS)
    heavy = "[m for m in ('torch', 'diffusers', 'pydantic', 'jinja2') if m in sys.modules]"
    script = f"import sys, {modules}; print({heavy})"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_every_public_name_is_there_and_no_other() -> None:
    for name in unteach.__all__:
        assert getattr(unteach, name) is not None and name in dir(unteach)
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        unteach.forget  # noqa: B018


def test_a_pipeline_in_memory_works_where_a_folder_does(tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(toys.build("sd", tmp_path / "toy"))
    concept = unteach.Concept(target="dog", anchor="cat", prompts=("a photo of a {}",))
    few = {"kept_words": 8, "contexts": 0, "check": False}
    delta = unteach.erase(pipe, concept, "uce", **few)
    assert isinstance(delta, unteach.WeightDelta) and delta.norm() > 0
    of_folder = unteach.erase(unteach.load(tmp_path / "toy"), concept, "uce", **few)
    assert all(torch.equal(value, of_folder.tensors[name]) for name, value in delta.tensors.items())
    before, after = unteach.sample(pipe, ["a dog"], [1], num_inference_steps=2), []
    with delta.apply(pipe):
        after = unteach.sample(pipe, ["a dog"], [1], num_inference_steps=2)
    assert not torch.equal(before, after)
    assert torch.equal(before, unteach.sample(pipe, ["a dog"], [1], num_inference_steps=2))
