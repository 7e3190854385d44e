"""The bundled pipeline: loads, is small, follows prompts."""

import torch

from unteach.canvas import model_path
from unteach.canvas.judges import judges
from unteach.data.vocabulary import HELD_OUT_TEMPLATES, OBJECTS, STYLES, TRAIN_TEMPLATES, caption
from unteach.diffusion.model import load
from unteach.diffusion.sample import sample


def test_it_is_small_and_loads_in_fp32() -> None:
    size = sum(file.stat().st_size for file in model_path().rglob("*") if file.is_file())
    assert size <= 25 * 2**20
    model = load(model_path())
    assert (model.family, model.prediction, model.latent_shape) == ("sd", "v_prediction", (24, 8, 8))
    assert model.dtype == torch.float32


def test_it_follows_prompts_by_every_judge() -> None:
    # 48 pictures: every style six times, objects spread, half of the templates held out.
    rows = [((11 * k + 3) % len(OBJECTS), k % len(STYLES)) for k in range(48)]
    templates = [*TRAIN_TEMPLATES, *HELD_OUT_TEMPLATES]
    prompts = [caption(templates[k % 11], OBJECTS[o].name, STYLES[s]) for k, (o, s) in enumerate(rows)]
    images = sample(load(model_path()), prompts, list(range(48)), num_inference_steps=12)
    asked = torch.tensor(rows)
    for judge in judges().values():
        objects, styles = judge(images)
        assert (objects == asked[:, 0]).float().mean() >= 0.9
        assert (styles == asked[:, 1]).float().mean() >= 0.88
