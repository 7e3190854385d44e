"""The lines that the docs add to training scripts do what they say, in scripts that really run."""

import json
import re
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from tests import processes, toys
from torch import Tensor

from unteach.errors import ModelError
from unteach.guard.enforce import enforce

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "guard-training-scripts.md"
SCRIPTS = {"full": HERE / "script_full.py", "lora": HERE / "script_lora.py"}
BLOCK = "mid_block.attentions.0.transformer_blocks.0"
HELD = [f"{BLOCK}.attn2.to_k.weight", f"{BLOCK}.attn1.to_out.0.bias", "conv_in.weight", "conv_norm_out.bias"]


def run(script: Path, arguments: list[str]) -> None:
    """The script as ``python script.py ...`` runs it, in a process that has imported the libraries already."""
    sys.argv = [str(script), *arguments]
    warnings.simplefilter("ignore")
    runpy.run_path(str(script), run_name="__main__")


class Lab:
    """Runs scripts on one toy, each into a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.toy = toys.build("sd", folder / "toy")
        self.start = load_file(self.toy / "unet" / "diffusion_pytorch_model.safetensors")

    def __call__(self, script: Path, *more: str, frozen: list[str] | None = None) -> Path:
        self.count += 1
        out = self.folder / f"out{self.count}"
        out.mkdir()
        arguments = ["--pretrained_model_name_or_path", str(self.toy), "--output_dir", str(out), *more]
        if frozen is not None:
            manifest = self.folder / f"names{self.count}.json"
            manifest.write_text(json.dumps(frozen), encoding="utf-8")
            arguments += ["--freeze_manifest", str(manifest)]
        done = processes.run(run, script, arguments, timeout=180)
        (out / "log").write_text(done.stderr, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return out


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("scripts"))


def unet(out: Path, part: str = "unet") -> dict[str, Tensor]:
    return load_file(out / part / "diffusion_pytorch_model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if torch.equal(a[name], b[name])}


def plain(script: Path, folder: Path) -> Path:
    """The script without its guard."""
    lines = script.read_text(encoding="utf-8").splitlines(keepends=True)
    file = folder / f"plain_{script.name}"
    file.write_text("".join(line for line in lines if not line.rstrip().endswith("# guard")), encoding="utf-8")
    assert "unteach" not in file.read_text(encoding="utf-8") and "guard." not in "".join(
        line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("from tests")
    )
    return file


def added(name: str) -> list[str]:
    heading = {"full": "## Full fine-tuning", "lora": "## LoRA"}[name]
    section = PAGE.read_text(encoding="utf-8").split(heading)[1].split("\n## ")[0]
    (diff,) = re.findall(r"```diff\n(.*?)```", section, re.DOTALL)
    lines = diff.splitlines()
    assert all(line.startswith(("+", "@@ ")) for line in lines)
    return [line[1:] for line in lines if line.startswith("+")]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_docs_show_the_lines_of_the_script_and_no_more_than_ten(name: str) -> None:
    script = SCRIPTS[name].read_text(encoding="utf-8").splitlines()
    marked = [line.removesuffix("  # guard") for line in script if line.endswith("  # guard")]
    assert added(name) == marked and 1 <= len(marked) <= 10
    count = {"full": "four", "lora": "five"}[name]
    assert f": {count} lines" in PAGE.read_text(encoding="utf-8") and len(marked) == {"four": 4, "five": 5}[count]


def test_full_fine_tuning_keeps_the_frozen_tensors_and_trains_the_rest(lab: Lab) -> None:
    out = lab(SCRIPTS["full"], "--use_ema", "--gradient_checkpointing", frozen=HELD)
    assert equal(unet(out), lab.start) == set(HELD)  # what is saved is the average
    for part in ("unet", "unet_ema"):
        for step in (2, 4):
            assert equal(unet(out / f"checkpoint-{step}", part), lab.start) >= set(HELD)
    assert equal(unet(out / "checkpoint-4"), lab.start) == set(HELD)
    assert len(equal(unet(out), unet(out / "checkpoint-4"))) < len(lab.start)
    state = torch.load(out / "checkpoint-4" / "optimizer.bin", weights_only=True)
    assert len(state["state"]) == len(lab.start) - len(HELD)
    # Interrupted after two steps and resumed, frozen tensors are still what they were.
    resumed = lab(SCRIPTS["full"], "--resume_from_checkpoint", str(out / "checkpoint-2"), "--use_ema", frozen=HELD)
    assert equal(unet(resumed / "checkpoint-4"), lab.start) == set(HELD)


def test_full_fine_tuning_with_nothing_frozen_is_the_plain_script(lab: Lab) -> None:
    guarded = lab(SCRIPTS["full"], frozen=[])
    vanilla = lab(plain(SCRIPTS["full"], lab.folder))
    assert equal(unet(guarded), unet(vanilla)) == set(lab.start)
    assert equal(unet(vanilla), lab.start) == set()


def test_lora_leaves_frozen_modules_out(lab: Lab) -> None:
    out = lab(SCRIPTS["lora"], frozen=HELD)
    vanilla = lab(plain(SCRIPTS["lora"], lab.folder))
    ours, theirs = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (out, vanilla))
    missing = theirs.keys() - ours.keys()
    assert ours.keys() < theirs.keys()
    assert {key.split(".lora")[0] for key in missing} == {f"unet.{BLOCK}.attn2.to_k", f"unet.{BLOCK}.attn1.to_out.0"}
    assert all(bool(value.any()) for value in ours.values())  # B starts at zero
    nothing = lab(SCRIPTS["lora"], frozen=[])
    same = load_file(nothing / "pytorch_lora_weights.safetensors")
    assert equal(same, theirs) == set(theirs)


def test_the_peft_example_runs(lab: Lab, tmp_path: Path) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(HELD), encoding="utf-8")
    source = source.replace('"manifest.json"', repr(str(manifest)))
    base = UNet2DConditionModel.from_pretrained(lab.toy, subfolder="unet")
    seen: dict[str, Any] = {}

    def train(model: Any, optimizer: torch.optim.Optimizer) -> None:
        seen["before"] = {n: p.detach().clone() for n, p in model.named_parameters()}
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(1, 4, 8, 8), 3, torch.ones(1, 5, 16)).sample.square().mean().backward()
            optimizer.step()

    names: dict[str, Any] = {"model": base, "train": train}
    exec(source, names)
    moved = [n for n, p in names["model"].named_parameters() if not torch.equal(p, seen["before"][n])]
    assert moved and all("lora_" in name for name in moved)
    fresh = UNet2DConditionModel.from_pretrained(lab.toy, subfolder="unet")
    with pytest.raises(ModelError, match="adapters are on frozen modules"):
        enforce(peft.get_peft_model(fresh, peft.LoraConfig(r=1, target_modules=["to_k"])), frozen=HELD)


def test_a_script_that_breaks_the_mask_fails_before_it_saves(lab: Lab) -> None:
    """The control: the same script with one more line that moves a frozen tensor."""
    script = lab.folder / "broken.py"
    text = SCRIPTS["full"].read_text(encoding="utf-8")
    line = "        guard.verify(unet)  # guard\n"
    assert line in text
    script.write_text(text.replace(line, f"        unet.conv_in.weight.data += 1e-3\n{line}"), encoding="utf-8")
    with pytest.raises(AssertionError):
        lab(script, "--max_train_steps", "1", frozen=HELD)
    out = lab.folder / f"out{lab.count}"
    assert re.search(r"1 of 4 frozen tensors .* conv_in\.weight", (out / "log").read_text(encoding="utf-8"))
    assert not (out / "unet").exists()
