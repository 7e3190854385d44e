"""The command that trains the bundled model, from nothing to a pipeline folder, with a step or two a stage."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.canvas import build
from unteach.canvas import model_path
from unteach.diffusion.model import load
from unteach.diffusion.sample import sample

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_one_command_builds_a_pipeline_and_goes_on(tmp_path: Path) -> None:
    steps = [f"--{stage}-steps=2" for stage in ("text-encoder", "decoder", "denoiser", "polish")]
    command = [sys.executable, "-m", "tools.canvas.build", "--out", str(tmp_path), "--views", "1", *steps]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-2000:]
    model, bundled = load(tmp_path / "packed"), load(model_path())
    assert (model.family, model.prediction, model.latent_shape) == ("sd", "v_prediction", bundled.latent_shape)
    shapes = {name: value.shape for name, value in bundled.denoiser.named_parameters()}
    assert shapes == {name: value.shape for name, value in model.denoiser.named_parameters()}
    assert bool(torch.isfinite(sample(model, ["a twemoji dog"], [0], num_inference_steps=2)).all())
    # What is finished is kept: the training state of every stage is as the first run left it.
    digest = model.digest()
    stamps = {file: file.read_bytes() for file in tmp_path.glob("*/state.safetensors")}
    assert len(stamps) == 4
    build.main([*command[3:], "--stage", "polish"])
    assert all(file.read_bytes() == content for file, content in stamps.items())
    assert load(tmp_path / "packed").digest() == digest
