"""A grid of attacks, the unprotected model beside each; one file a cell, so a stopped sweep goes on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from unteach.attack.base import Attack
from unteach.attack.probes import Probes, check_disjoint
from unteach.core import state
from unteach.core.convert import Checked, Wrong, convert
from unteach.core.events import SILENT, Events
from unteach.diffusion.examples import Examples
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, ConfigError
from unteach.records import attack as records
from unteach.records.attack import UNPROTECTED, Curve, recovery

__all__ = ["Cell", "sweep"]


def sweep(
    model: Model,
    data: Examples,
    probes: Probes,
    attacks: Sequence[Attack],
    *,
    masks: Mapping[str, Collection[str]],
    out: Path,
    honoured: Sequence[bool] = (True,),
    mask_data: Sequence[Examples] = (),
    domain: str | None = None,
    events: Events = SILENT,
) -> list[records.Attack]:
    """Run every attack without a mask and with each, and return one record a cell.

    Equal cells (the same frozen names, say) run once. A cell is written when it is done; the same call reads what is
    there and does the rest.

    Args:
        model, data, mask_data: as in :meth:`unteach.attack.base.Attack.run`.
        probes: what is measured.
        attacks: each with its own settings; a long one contains the shorter ones as its ``eval_steps``.
        masks: name to the tensors that it freezes; "unprotected" is taken.
        out: folder of the cells.
        honoured: (True, False) also runs the attacker who ignores each mask.
        domain: name of what is fine-tuned on, for the records; the data's when None.
        events: told the steps of each cell, and when it is done.

    Returns:
        Attack by attack, the unprotected model's first.

    Raises:
        ConfigError, DataError, ModelError: as in :meth:`unteach.attack.base.Attack.run`, before anything runs where
            possible.
        CheckpointError: a cell's file is damaged or of something else.
    """
    if UNPROTECTED in masks or not attacks or not honoured:
        raise ConfigError(
            f"a sweep needs attacks, and no mask called '{UNPROTECTED}'",
            found=f"{len(attacks)} attacks, masks {', '.join(masks) or 'none'}",
        )
    check_disjoint(data, probes.sets, mask_data)
    arms = [(UNPROTECTED, tuple[str, ...](), True)]
    arms += [(name, tuple(sorted(frozen)), keep) for name, frozen in masks.items() for keep in honoured]
    common = {"model": model.digest(fresh=True), "data": data.digest(), **probes.identity()}
    found: list[records.Attack] = []
    name = domain or data.name
    for attack in attacks:
        plain: Curve | None = None
        for mask, frozen, keep in arms:
            cell = common | attack.identity() | {"frozen": list(frozen), "honoured": keep}
            stored = Cell.load(out, cell)
            if stored is None:
                curve = attack.run(
                    model,
                    data,
                    probes,
                    frozen=frozen,
                    honoured=keep,
                    mask_data=mask_data,
                    events=events,
                    label=f"{data.name}, attack {len(found) + 1}",
                )
                stored = Cell(cell, curve)
                stored.save(out)
            curve = stored.curve
            plain = plain or curve
            shares = {probe: tuple(recovery(curve, plain, probe, at) for at in curve.at) for probe in probes.sets}
            found.append(records.Attack(domain=name, mask=mask, recovery=shares, **vars(curve)))
            events.close()
            events.message(f"  {name}: {len(found)} of {len(attacks) * len(arms)}")
    return found


@dataclass(frozen=True)
class Cell(Checked):
    """A cell's file.

    Attributes:
        cell: what was asked for, as plain data; its digest is the file's name.
        curve: what came out.
    """

    cell: dict[str, Any]
    curve: Curve

    @staticmethod
    def path(out: Path, cell: Mapping[str, Any]) -> Path:
        """Where it is kept."""
        return out / f"{state.fingerprint(cell)[:24]}.json"

    def save(self, out: Path) -> None:
        """Write it, whole or not at all."""
        state.write_json(self.path(out, self.cell), self)

    @classmethod
    def load(cls, out: Path, cell: Mapping[str, Any]) -> Self | None:
        """What was kept of this cell; None before it is done.

        Raises:
            CheckpointError: the file is damaged, or of another cell.
        """
        path = cls.path(out, cell)
        if not path.exists():
            return None
        try:
            found = convert(state.read_json(path), cls)
        except Wrong as error:
            raise CheckpointError(f"{path} is damaged", found=error, fix="delete it and run again") from error
        if found.cell != cell:
            raise CheckpointError(f"{path} is not the cell that its name says", fix="delete it and run again")
        return found
