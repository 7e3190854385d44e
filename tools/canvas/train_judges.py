"""Train the judges of EmojiCanvas: ``python -m tools.canvas.train_judges``.

It takes minutes on one core and goes on when run again. Half of a batch is strongly augmented; on top the
pictures are softened, grained, tinted and slightly bent, because a diffusion model's drawings are. Negatives
come on top, answered with "none of these".
"""

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tools.canvas.negatives import Labelled, bend
from torch import Generator, Tensor, nn

from tools.canvas import negatives
from unteach.canvas import judges, model_path
from unteach.canvas.nets import CLASSES, ConvNet, Logits, networks
from unteach.core import seeds
from unteach.core.events import SILENT, Bars, Events
from unteach.core.loop import Loop, Step
from unteach.core.registry import Registry
from unteach.data.emoji import SIZE, Canvas, grid

log = logging.getLogger(__name__)

Spoil = Callable[[Tensor, Generator], Tensor]
softeners: Registry[Spoil] = Registry("judge's augmentation")
"""Network name to how its training pictures are spoiled without losing their answer."""

losses: Registry[Callable[[Logits, Tensor, Tensor], Tensor]] = Registry("judge's loss")
"""Network name to its loss of (logits, objects, styles)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one judge is trained.

    Args:
        network: a name of :data:`unteach.canvas.nets.networks`.
        steps: optimizer steps.
        batch: views a step.
        negatives: pictures without an answer a step, on top: a quarter each of halves, blends and bent ones,
            and a quarter of the other kinds in turn.
        strong: share of the views that are strongly augmented.
        lr: peak learning rate (AdamW, warm-up, cosine to zero).
        weight_decay: AdamW's.
        seed: root of all draws.
    """

    network: str
    steps: int
    batch: int = 96
    negatives: int = 36
    strong: float = 0.5
    lr: float = 3e-3
    weight_decay: float = 5e-3
    seed: int = 0


RECIPES: dict[str, Recipe] = {
    "cnn": Recipe(network="cnn", steps=680, seed=1),
    "patch": Recipe(network="patch", steps=1200, batch=128, negatives=48, strong=0.6, weight_decay=2e-2, seed=2),
}
"""The bundled judges' recipes."""

DOUBT: dict[str, tuple[float, float]] = {"cnn": (-0.3, -1.0), "patch": (-0.5, -1.2)}
"""Added to the logits of "none" (object, style) after training, which has too many negatives. Picked from a sweep over
negatives and drawings of the bundled model, which the judges as trained (0, 0) refuse too readily, so that "none" for
the object stays at 90 % or more on negatives but halves. Its card gives the figures of both settings."""


@torch.no_grad()
def doubt(net: nn.Module, objects: float, styles: float) -> None:
    """Add to the logits of "none", for good; a network whose "none" is fixed loses as much from all its classes."""
    for i, amount in enumerate((objects, styles)):
        if isinstance(net, ConvNet):
            net.get_parameter(f"where.{i}.bias")[-1] += amount
        else:
            net.get_parameter(f"heads.{i}.bias").sub_(amount)


@losses.add("cnn")
def _cross_entropy(logits: Logits, objects: Tensor, styles: Tensor) -> Tensor:
    """Cross-entropy with a little label smoothing."""
    pairs = zip(logits, (objects, styles), strict=True)
    return torch.stack([F.cross_entropy(x, y, label_smoothing=0.02) for x, y in pairs]).sum()


@losses.add("patch")
def _binary_cross_entropy(logits: Logits, objects: Tensor, styles: Tensor) -> Tensor:
    """Binary cross-entropy, summed over the classes; styles, the harder question, count twice."""
    parts = []
    for x, y in zip(logits, (objects, styles), strict=True):
        truth = F.one_hot(y, x.shape[1])[:, :-1].float()
        parts.append(F.binary_cross_entropy_with_logits(x[:, :-1], truth, reduction="sum") / len(x))
    return parts[0] + 2 * parts[1]


def _chance(images: Tensor, share: float, generator: Generator) -> Tensor:
    """Which pictures something happens to, (B, 1, 1, 1) bool."""
    return torch.rand(len(images), 1, 1, 1, generator=generator) < share


def _grain(images: Tensor, share: float, most: float, generator: Generator) -> Tensor:
    """Normal noise of up to ``most`` on a share of the pictures."""
    amount = most * torch.rand(len(images), 1, 1, 1, generator=generator) * _chance(images, share, generator)
    return images + amount * torch.randn(images.shape, generator=generator)


def soften(images: Tensor, amount: Tensor | float) -> Tensor:
    """Mix in a 3 x 3 mean: 1 is the mean itself, 0 nothing."""
    return images + amount * (F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1) - images)


@softeners.add("cnn")
def _spoil_cnn(images: Tensor, generator: Generator) -> Tensor:
    """Bend, soften, tint, grain: each on a part of the pictures."""
    count = len(images)
    bent = bend(images, 0.05 * torch.rand(count, 1, 1, 1, generator=generator), generator)
    images = torch.where(_chance(images, 0.4, generator), bent, images)
    images = soften(images, torch.rand(count, 1, 1, 1, generator=generator) * _chance(images, 0.5, generator))
    tint = 0.06 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    gain = 1 + 0.16 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    tinted = (images - 0.5) * gain + 0.5 + tint
    images = torch.where(_chance(images, 0.5, generator), tinted, images)
    return _grain(images, 0.5, 0.06, generator)


@softeners.add("patch")
def _spoil_patch(images: Tensor, generator: Generator) -> Tensor:
    """Through fewer pixels and back (all of a batch alike), a gamma curve, coarse grain."""
    size = int(torch.randint(18, SIZE + 8, (1,), generator=generator))
    if size < SIZE:
        small = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        through = F.interpolate(small, size=SIZE, mode="bicubic", align_corners=False)
        images = torch.where(_chance(images, 0.7, generator), through, images).clamp(0, 1)
    gamma = torch.exp(0.3 * (torch.rand(len(images), 3, 1, 1, generator=generator) - 0.5))
    images = torch.where(_chance(images, 0.4, generator), images.clamp(1e-4, 1) ** gamma, images)
    blotches = negatives.cloud(len(images), 16, generator) * 0.05
    images = torch.where(_chance(images, 0.3, generator), images + blotches, images)
    return _grain(images, 0.5, 0.08, generator)


def views(canvas: Canvas, count: int, generator: Generator, *, strong: bool = False) -> Labelled:
    """Views of ``count`` random pairs."""
    objects, styles = (torch.randint(n, (count,), generator=generator) for n in CLASSES)
    return Labelled(canvas.views(objects, styles, generator, strong=strong), objects, styles)


def batch(canvas: Canvas, recipe: Recipe, step: int) -> Labelled:
    """The pictures of one step: weak views, strong views, negatives."""
    generator = seeds.generator(recipe.seed, "judge", recipe.network, step)
    strong = round(recipe.batch * recipe.strong)
    weak = views(canvas, recipe.batch - strong, generator)
    hard = views(canvas, strong, generator, strong=True)
    spoil = softeners[recipe.network]
    easy = [kind for kind in negatives.TRAINED if kind not in negatives.HARD]
    waste = [
        negatives.make(kind, views(canvas, recipe.negatives // 4, generator, strong=step % 2 == 0), generator)
        for kind in (*negatives.HARD, easy[step % len(easy)])
    ]
    seen = spoil(torch.cat([weak.images, hard.images]), generator)
    spoiled = _grain(torch.cat([w.images for w in waste]), 0.3, 0.06, generator)
    images = torch.cat([seen, spoiled]).clamp(0, 1)
    parts = zip(weak, hard, *waste, strict=True)
    _, objects, styles = (torch.cat(part) for part in parts)
    return Labelled(images, objects, styles)


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    save_every: int = 100,
    events: Events = SILENT,
) -> judges.Judge:
    """Train one judge.

    Args:
        recipe: how.
        out: folder for the checkpoint; the same call goes on from it.
        save_every: steps between checkpoints.
        events: told of each step; an exception from it stops the run.

    Returns:
        the judge, not yet measured.
    """
    canvas = grid()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(recipe.seed, "judge weights", recipe.network))
        net = networks[recipe.network]()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    params = dict(net.named_parameters())

    def step(s: Step) -> dict[str, Tensor]:
        rate = recipe.lr * min(1.0, (s.index + 1) / 60) * 0.5 * (1 + math.cos(math.pi * s.index / s.total))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, objects, styles = batch(canvas, recipe, s.index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.integer(recipe.seed, "judge dropout", s.index))
            logits = net.train()(images)
        loss = losses[recipe.network](logits, objects, styles)
        optimizer.zero_grad()
        torch.autograd.backward([loss])
        optimizer.step()
        return {"loss": loss.detach()}

    loop = Loop(
        steps=recipe.steps, seed=recipe.seed, params=params,
        state={"optimizer": optimizer, "net": _Buffers(net)}, config=asdict(recipe), out=out,
        save_every=save_every, log_every=50, events=events, label=recipe.network,
    )  # fmt: skip
    loop.run(step)
    return judges.Judge(recipe.network, net)


class _Buffers:
    """A module's buffers (running statistics) as a state for the loop."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def state_dict(self) -> dict[str, Tensor]:
        """The persistent buffers."""
        names = {name for name, _ in self.net.named_parameters()}
        return {name: t for name, t in self.net.state_dict().items() if name not in names}

    def load_state_dict(self, state_dict: dict[str, Tensor], /) -> None:
        """Take buffers over."""
        self.net.load_state_dict(state_dict, strict=False)


CONDITIONS: tuple[str, ...] = ("weak views", "strong views", "soft views", *negatives.TRAINED, *negatives.UNSEEN)
"""What :func:`measure` shows the judges."""


def measure(
    judge: judges.Judge, conditions: Sequence[str] = CONDITIONS, *, per_pair: int = 2, seed: int = 1000
) -> dict[str, dict[str, float]]:
    """How often a judge is right, on fresh views of all pairs and on negatives.

    Args:
        judge: the judge.
        conditions: which of :data:`CONDITIONS`.
        per_pair: pictures of every pair in each condition.
        seed: root of the draws; each condition has its own.

    Returns:
        condition to shares: "object" and "style" right (for negatives "style" counts only the pictures where no style
        is left), and "n" pictures.
    """
    canvas = grid()
    objects, styles = (t.repeat(per_pair) for t in canvas.pairs())
    out = {}
    for name in conditions:
        generator = seeds.generator(seed, "measure", name)
        strong = name == "strong views"
        seen = Labelled(canvas.views(objects, styles, generator, strong=strong), objects, styles)
        if name == "soft views":
            noise = torch.randn(seen.images.shape, generator=generator)
            seen = seen._replace(images=(soften(seen.images, 0.7) + 0.03 * noise).clamp(0, 1))
        elif name in negatives.kinds:
            seen = negatives.make(name, seen, generator)
        said = judge(seen.images)
        where = torch.ones_like(objects, dtype=torch.bool) if "views" in name else seen.styles == negatives.NO_STYLE
        right = [(a == b).float() for a, b in zip(said, (seen.objects, seen.styles), strict=True)]
        out[name] = {
            "object": float(right[0].mean()),
            "style": float(right[1][where].mean()),
            "n": len(objects),
        }
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tools.canvas.train_judges", description=__doc__)
    parser.add_argument("--judge", choices=sorted(RECIPES), action="append", help="which (default: all)")
    parser.add_argument("--out", type=Path, default=Path("judges"), help="folder for checkpoints (default: judges)")
    parser.add_argument("--into", type=Path, default=model_path() / "judges", help="folder for finished judges")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.judge or list(RECIPES):
        recipe = RECIPES[name]
        judge = train(recipe, out=args.out / name, events=Bars())
        doubt(judge.net, *DOUBT[name])
        path = judges.save(args.into / f"{name}.safetensors", name, judge.net, recipe=asdict(recipe), doubt=DOUBT[name])
        table = measure(judges.load(path))
        judges.save(path, name, judge.net, recipe=asdict(recipe), doubt=DOUBT[name], measured=table)
        for condition, row in table.items():
            right = f"object {row['object']:.4f}  style {row['style']:.4f}  n {row['n']:.0f}"
            print(f"{name:6} {condition:13} {right}")
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
