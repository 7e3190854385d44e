"""The training data: drawn by the original model, resumable, never of the target."""

import pytest
import torch
from tests.erase.common import CONCEPT

from unteach.core import seeds, state
from unteach.diffusion import iterate, sample
from unteach.erase import Concept, ConceptSet, Job
from unteach.erase.anchors import draw
from unteach.errors import CheckpointError

HOW = {"num_inference_steps": 2, "guidance_scale": 3.0, "batch_size": 2}


def job(model, concepts=CONCEPT, **fields):
    return Job(model=model, concepts=ConceptSet.of(concepts), seed=1, **fields)


def test_prompts_are_taken_in_turn_and_the_target_is_never_drawn(sd, tmp_path):
    data = draw(job(sd, out=tmp_path), images=3, retain_images=4, **HOW)
    assert [pair.anchor for pair in data.pairs] == ["an openmoji dog", "openmoji cat", "an openmoji dog"]
    assert [pair.target for pair in data.pairs] == ["a twemoji dog", "twemoji cat", "a twemoji dog"]
    assert data.retain == ["a noto dog", "a red car", "a mono cat", "a noto dog"]
    assert data.latents.shape == (3, *sd.latent_shape) and data.retain_latents.shape == (4, *sd.latent_shape)
    asked = [pair.anchor for pair in data.pairs] + data.retain
    assert not any("twemoji" in prompt for prompt in asked)
    numbers = [seeds.integer(1, "anchor image", i) for i in range(3)]
    numbers += [seeds.integer(1, "retain image", i) for i in range(4)]
    want = sample(sd, asked, numbers, num_inference_steps=2, guidance_scale=3.0, output="latent", batch_size=2)
    torch.testing.assert_close(torch.cat([data.latents, data.retain_latents]), want, rtol=1e-4, atol=1e-4)
    assert not torch.equal(data.latents[0], data.latents[2])  # one prompt, two seeds


def test_without_retain_prompts_the_anchors_are_kept(sd):
    data = draw(job(sd, Concept(target="bomb", anchor="apple", prompts=("a {}",))), images=1, retain_images=2, **HOW)
    assert data.retain == ["an apple", "an apple"]


def test_several_concepts_take_turns(sd):
    both = [{"target": "bomb", "anchor": "apple", "prompts": ["a {}"]}, CONCEPT]
    data = draw(job(sd, both), images=4, retain_images=1, **HOW)
    assert [pair.target for pair in data.pairs] == ["a bomb", "a twemoji dog", "a bomb", "twemoji cat"]


def test_an_interrupted_drawing_goes_on(sd, tmp_path):
    whole = draw(job(sd), images=3, retain_images=3, **HOW)
    prompts = [pair.anchor for pair in whole.pairs] + whole.retain
    numbers = [seeds.integer(1, f"{half} image", i) for half in ("anchor", "retain") for i in range(3)]
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output": "latent", "batch_size": 2}
    drawing = iterate(sd, prompts, numbers, out=tmp_path / "anchors.part", **settings)
    next(drawing), next(drawing)
    drawing.close()
    parts = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "anchors.part").glob("rows-*")}
    assert len(parts) in (1, 2)
    # A marker in a finished part shows that it is used and not drawn again.
    file = tmp_path / "anchors.part" / min(parts)
    tensors, meta = state.load(file)
    state.save(file, {**tensors, "images": tensors["images"] + 100}, meta)
    data = draw(job(sd, out=tmp_path), images=3, retain_images=3, **HOW)
    assert torch.equal(data.latents[:2], whole.latents[:2] + 100)
    assert torch.equal(data.latents[2:], whole.latents[2:]) and torch.equal(data.retain_latents, whole.retain_latents)
    assert not (tmp_path / "anchors.part").exists()
    again = draw(job(sd, out=tmp_path), images=3, retain_images=3, **HOW)
    assert torch.equal(again.latents, data.latents)


def test_data_of_another_run_or_damaged_data_is_refused(sd, tmp_path):
    draw(job(sd, out=tmp_path), images=1, retain_images=1, **HOW)
    with pytest.raises(CheckpointError, match=r"holds another run.*pairs.*retain"):
        draw(job(sd, Concept(target="bomb", anchor="apple"), out=tmp_path), images=1, retain_images=1, **HOW)
    path = tmp_path / "anchors.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="damaged"):
        draw(job(sd, out=tmp_path), images=1, retain_images=1, **HOW)
