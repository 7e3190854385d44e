"""A grid of relearning attacks, the unprotected model beside each; one file a cell, so a stopped sweep goes on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.attack.relearn import check_disjoint, relearn
from unteach.core import state
from unteach.core.convert import Checked, Wrong, convert
from unteach.core.events import SILENT, Events
from unteach.diffusion.examples import Examples
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, ConfigError
from unteach.records.attack import UNPROTECTED, Attack, Curve, Mode, recovery


def sweep(
    model: Model,
    data: Examples,
    probes: Mapping[str, Examples],
    *,
    masks: Mapping[str, Collection[str]],
    out: Path,
    steps: Sequence[int],
    learning_rates: Sequence[float],
    modes: Sequence[Mode] = ("full", "lora"),
    honoured: Sequence[bool] = (True,),
    seeds: Sequence[int] = (0,),
    rank: int = 4,
    batch_size: int = 16,
    draws: int = 4,
    probe_seed: int = 0,
    mask_data: Sequence[Examples] = (),
    domain: str | None = None,
    events: Events = SILENT,
) -> list[Attack]:
    """Attack with every mode × rate × seed, without a mask and with each, and return one record a cell.

    The rate is constant, so one run of ``max(steps)`` holds the attacks of all shorter ``steps``: they are its points.
    Equal cells (the same frozen names, say) run once. A cell is written when it is done; the same call reads what is
    there and does the rest.

    Args:
        model, data, probes, mask_data, rank, batch_size, draws, probe_seed: as in :func:`relearn`.
        masks: name to the tensors that it freezes; "unprotected" is taken.
        out: folder of the cells.
        steps: attack lengths.
        learning_rates: of AdamW.
        modes: "full", "lora".
        honoured: (True, False) also runs the attacker who ignores each mask.
        seeds: of the attacks.
        domain: name of what is fine-tuned on, for the records; the data's when None.
        events: told the steps of each cell, and when it is done.

    Returns:
        The unprotected model's first in each mode × rate × seed.

    Raises:
        ConfigError, DataError, ModelError: as in :func:`relearn`, before anything runs where possible.
        CheckpointError: a cell's file is damaged or of something else.
    """
    if UNPROTECTED in masks or not (steps and learning_rates and modes and honoured and seeds):
        raise ConfigError(
            f"a sweep needs steps, rates, modes and seeds, and no mask called '{UNPROTECTED}'",
            found=f"{len(steps)} steps, {len(learning_rates)} rates, {len(modes)} modes, {len(seeds)} seeds",
        )
    check_disjoint(data, probes, mask_data)
    places = [(mode, rate, seed) for mode in modes for rate in learning_rates for seed in seeds]
    arms = [(name, tuple(sorted(frozen)), keep) for name, frozen in masks.items() for keep in honoured]
    common = {
        "model": model.digest(fresh=True),
        "data": data.digest(),
        "probes": {name: probe.digest() for name, probe in probes.items()},
        "points": sorted({0, *steps}),
        "batch_size": batch_size,
        "draws": draws,
        "probe_seed": probe_seed,
    }
    records: list[Attack] = []
    for mode, rate, seed in places:
        plain: Curve | None = None
        for name, frozen, keep in [(UNPROTECTED, (), True), *arms]:
            cell = common | {
                "mode": mode,
                "rate": rate,
                "seed": seed,
                "rank": rank if mode == "lora" else 0,
                "frozen": list(frozen),
                "honoured": keep,
            }
            curve = _stored(out, cell)
            if curve is None:
                curve = relearn(
                    model,
                    data,
                    frozen=frozen,
                    mode=mode,
                    honoured=keep,
                    steps=max(steps),
                    learning_rate=rate,
                    rank=rank,
                    seed=seed,
                    evaluate_at=steps,
                    probes=probes,
                    mask_data=mask_data,
                    batch_size=batch_size,
                    draws=draws,
                    probe_seed=probe_seed,
                    events=events,
                    label=f"{data.name}, attack {len(records) + 1}",
                )
                state.write_json(_path(out, cell), _Cell(cell, curve))
            plain = plain or curve
            shares = {probe: tuple(recovery(curve, plain, probe, at) for at in curve.at) for probe in probes}
            records.append(Attack(domain=domain or data.name, mask=name, recovery=shares, **vars(curve)))
            events.close()
            events.message(f"  {domain or data.name}: {len(records)} of {len(places) * (1 + len(arms))}")
    return records


@dataclass(frozen=True)
class _Cell(Checked):
    """A cell's file: what was asked for, and what came out."""

    cell: dict[str, Any]
    curve: Curve


def _path(out: Path, cell: Mapping[str, Any]) -> Path:
    return out / f"{state.fingerprint(cell)[:24]}.json"


def _stored(out: Path, cell: Mapping[str, Any]) -> Curve | None:
    path = _path(out, cell)
    if not path.exists():
        return None
    try:
        found = convert(state.read_json(path), _Cell)
    except Wrong as error:
        raise CheckpointError(f"{path} is damaged", found=error, fix="delete it and run again") from error
    if found.cell != cell:
        raise CheckpointError(f"{path} is not the cell that its name says", fix="delete it and run again")
    return found.curve
