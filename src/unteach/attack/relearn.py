"""Relearning: fine-tune a model on a concept, with a freeze mask honoured or ignored, and watch what comes back.

The curve has the denoising loss of every probe set (the concept's held-out images, innocent ones, everything else) at
fixed noise and timesteps, so two curves differ by the weights alone. The same code measures innocent adaptation.
The attacker who ignores the mask is the unprotected one: open weights are not protected (freezeasguard.md §6.1).
"""

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from unteach.core import seeds, state
from unteach.core.events import SILENT, Events
from unteach.core.loop import Step
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.examples import Examples, disjoint
from unteach.diffusion.families import Pipeline
from unteach.diffusion.finetune import Batches, Finetune, finetune
from unteach.diffusion.lowrank import LowRank, finetune_lowrank, has_form
from unteach.diffusion.model import Model
from unteach.errors import ConfigError, ModelError, NumericsError
from unteach.records.attack import Curve, Mode


@torch.no_grad()
def probe_losses(
    model: Model, examples: Examples, *, seed: int, draws: int = 4, params: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Denoising loss of each example, (N,), float64: mean over ``draws`` fixed draws of noise and timestep.

    Draws depend on seed, draw and row alone. In each draw the timesteps are spread evenly over the examples, in an
    order that is drawn too.
    """
    total = torch.zeros(len(examples), dtype=torch.float64)
    for draw in range(draws):
        step = Step(draw, draws, seed)
        order = seeds.permutation(len(examples), seed, "probe order", draw)
        t = model.schedule.spread(step, range(len(examples)), len(examples))[order]
        for rows in torch.split(torch.arange(len(examples)), 64):
            x = examples.latents[rows].to(model.device, model.dtype)
            noise = step.randn("probe noise", x.shape[1:], rows.tolist()).to(x)
            now = t[rows].to(model.device)
            out = model.predict(model.noise(x, noise, now), now, examples.conditioning.index(rows), params)
            each = (out.float() - model.target(x, noise, now).float()).square().flatten(1).mean(1)
            total[rows] += each.double().cpu() / draws
    return total


def relearn(
    model: Model | Pipeline,
    data: Examples,
    *,
    frozen: Collection[str] = (),
    mode: Mode = "full",
    honoured: bool = True,
    steps: int,
    learning_rate: float,
    rank: int = 4,
    seed: int = 0,
    evaluate_at: Sequence[int] = (),
    probes: Mapping[str, Examples],
    mask_data: Sequence[Examples] = (),
    batch_size: int = 16,
    draws: int = 4,
    probe_seed: int = 0,
    events: Events = SILENT,
    label: str = "attack",
) -> Curve:
    """Attack a model and return the curve; its weights are bit for bit as before on return, whatever happens.

    Args:
        model: what is attacked: a model, or a diffusers pipeline.
        data: what is fine-tuned on.
        frozen: names of the tensors that the mask freezes.
        mode: "full" fine-tuning with AdamW of all that is not frozen, or "lora": factors on all linear and convolution
            weights of modules that own no frozen tensor (as :func:`unteach.guard.enforce.enforce` asks).
        honoured: False trains what is frozen too.
        steps: optimizer steps; the rate is constant, so a longer attack contains the shorter ones.
        learning_rate: of AdamW.
        rank: of the factors.
        seed: of the attack: its data order, noise, timesteps, factors.
        evaluate_at: steps at which to measure; 0 and ``steps`` always are.
        probes: sets to measure, none of them sharing an image with ``data`` or ``mask_data``.
        mask_data: what the mask was learned from, which must not share an image with ``data`` either.
        batch_size: of the attack.
        draws: noise draws a probe image.
        probe_seed: of the probes' noise; keep it, so that curves are paired.
        events: told of each step that begins, from 1.
        label: what the events call this attack.

    Raises:
        ConfigError: no probe, wrong settings.
        DataError: sets that overlap.
        ModelError: a frozen name that the denoiser has not.
    """
    begin = time.monotonic()
    model = Model.of(model, edit=True)
    wrong = [at for at in evaluate_at if not 0 <= at <= steps]
    if wrong or not probes or mode not in ("full", "lora"):
        raise ConfigError(
            "an attack needs a mode (full, lora), probes, and points between 0 and its steps",
            found=f"mode {mode}, {len(probes)} probes, points {list(evaluate_at)} of {steps} steps",
        )
    check_disjoint(data, probes, mask_data)
    free = trainable(model, frozen if honoured else (), mode)
    config = Finetune(steps=steps, batch_size=batch_size, learning_rate=learning_rate, train=_patterns(model, free))
    lowrank = LowRank(free, rank, seed) if mode == "lora" and free else None
    points = sorted({0, steps, *evaluate_at})
    done: list[int] = []
    losses: dict[str, list[float]] = {name: [] for name in probes}

    def measure(step: int) -> None:
        params = None if lowrank is None else {n: v.detach() for n, v in lowrank.merged().items()}
        found = {
            name: float(probe_losses(model, probe, seed=probe_seed, draws=draws, params=params).mean())
            for name, probe in probes.items()
        }
        if not all(torch.isfinite(torch.tensor(list(found.values())))):
            raise NumericsError(f"a probe's loss is not finite after {step} steps", found=found)
        for name, value in found.items():
            losses[name].append(value)
        done.append(step)

    def watched(step: Step, items: range) -> tuple[Tensor, Conditioning]:
        if step.index in points:  # a step begins with its data: the weights are those after ``index`` steps
            measure(step.index)
        events.step(label, step.index + 1, steps)  # the one that begins
        return data.batches(step, items)

    diverged = False
    try:
        if free:
            _train(model, watched, config, lowrank, free, seed, lambda: measure(steps))
        else:
            measure(0)
            for point in points[1:]:
                done.append(point)
                for values in losses.values():
                    values.append(values[0])
    except NumericsError:
        diverged = True
    trained = free if lowrank is None else lowrank.factors
    return Curve(
        mode=mode,
        honoured=honoured,
        frozen=state.fingerprint(sorted(frozen)),
        frozen_tensors=len(set(frozen)),
        trained_tensors=len(free),
        trained_parameters=sum(value.numel() for value in trained.values()),
        steps=steps,
        learning_rate=learning_rate,
        batch_size=batch_size,
        rank=rank if mode == "lora" else 0,
        seed=seed,
        data=(data.name, data.digest()),
        probes={name: probe.digest() for name, probe in probes.items()},
        at=tuple(done),
        losses={name: tuple(values) for name, values in losses.items()},
        diverged=diverged,
        seconds=time.monotonic() - begin,
    )


def _train(
    model: Model,
    batches: Batches,
    config: Finetune,
    lowrank: LowRank | None,
    free: Mapping[str, Tensor],
    seed: int,
    last: Callable[[], None],
) -> None:
    """Train, measure once more with ``last``, and put the weights back."""
    if lowrank is not None:
        finetune_lowrank(model, batches, config, lowrank, seed=seed)
        last()
        return
    before = {name: value.detach().clone() for name, value in free.items()}
    try:
        finetune(model, batches, config, seed=seed)
        last()
    finally:
        with torch.no_grad():
            for name, value in free.items():
                value.copy_(before[name])
        model.weights_changed()


def trainable(model: Model, frozen: Collection[str], mode: Mode = "full") -> dict[str, torch.nn.Parameter]:
    """What an attacker who keeps the mask may train: all that is not frozen; in "lora", the weights to adapt.

    Raises:
        ModelError: a frozen name that the denoiser has not.
    """
    params = dict(model.denoiser.named_parameters())
    if unknown := sorted(set(frozen) - set(params)):
        raise ModelError(
            f"{len(unknown)} frozen names are not in the denoiser", found=unknown[0], fix="use the model's own names"
        )
    held = set(frozen)
    if mode == "full":
        return {name: value for name, value in params.items() if name not in held}
    owners = {name.rpartition(".")[0] for name in held}
    return {n: v for n, v in params.items() if has_form(n, v) and n.rpartition(".")[0] not in owners}


def _patterns(model: Model, free: Mapping[str, Tensor]) -> tuple[str, ...]:
    """One pattern for exactly these parameters; the default when it is all of them."""
    total = sum(1 for _ in model.denoiser.named_parameters())
    return (".*",) if len(free) in (0, total) else ("|".join(re.escape(name) for name in free),)


def check_disjoint(data: Examples, probes: Mapping[str, Examples], mask_data: Sequence[Examples] = ()) -> None:
    """Refuse an attack whose data, probes and mask-learning data share an image.

    Raises:
        DataError: two of them overlap. Probes may overlap each other, and so may the mask's sets.
    """
    for probe in probes.values():
        disjoint(data, probe)
    for learned in mask_data:
        for other in (data, *probes.values()):
            disjoint(learned, other)
