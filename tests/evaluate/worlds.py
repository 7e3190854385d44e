"""A small world whose words the toy pipelines know, and a real, slow judge for it."""

import torch
from torch import Tensor

from unteach.data.vocabulary import fix_articles
from unteach.diffusion import Model, sample
from unteach.evaluate import World

NAMES = (("dog", "puppy"), ("cat",), ("apple", "pippin"))
STYLES = ("twemoji", "noto", "mono")


def caption(template: str, name: str, style: str) -> str:
    return fix_articles(template.format(o=name, s=style))


WORLD = World(
    objects=NAMES,
    styles=STYLES,
    train_templates=("a {s} {o}", "a {o} in {s} style"),
    held_out_templates=("the {s} picture of a {o}",),
    caption=caption,
)


class NearestMean:
    """Names a picture after the (object, style) pair of the nearest mean picture; "none" when all are far."""

    def __init__(self, means: Tensor, far: float) -> None:
        self.means, self.far = means, far

    @classmethod
    def learn(cls, model: Model, count: int = 2, steps: int = 2, far: float = 1e9) -> "NearestMean":
        """From pictures that the model itself draws."""
        pairs = [(o, s) for o in range(len(NAMES)) for s in range(len(STYLES))]
        prompts = [caption("a {s} {o}", NAMES[o][0], STYLES[s]) for o, s in pairs for _ in range(count)]
        seeds = list(range(len(prompts)))
        images = sample(model, prompts, seeds, num_inference_steps=steps)
        return cls(images.unflatten(0, (len(pairs), count)).mean(1).flatten(1), far)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        gaps = torch.cdist(images.flatten(1), self.means)
        nearest, where = gaps.min(1)
        none = nearest > self.far
        objects = torch.where(none, len(NAMES), where // len(STYLES))
        return objects, torch.where(none, len(STYLES), where % len(STYLES))
