"""``unteach attack``: fine-tune on domains without and with the freeze mask, and write what came back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from unteach.commands.console import events, say, wrote
from unteach.commands.verb import RESUMES, Machine, Mistakes
from unteach.errors import ConfigError

if TYPE_CHECKING:
    from unteach.attack import base as attacking
    from unteach.attack.protocol import Shield
    from unteach.commands.base import Base
    from unteach.diffusion.model import Model
    from unteach.records import attack as record

__all__ = ["Attack"]

DECISIVE = ("attack", "base", "mask", "steps", "rank", "batch_size", "draws", "seed")
GROWS = ("illegal", "innocent", "rates", "modes", "seeds", "ignore")
"""What the same folder may be asked more of."""
DOMAINS = "NAME|FOLDER ..."


@dataclass(frozen=True, kw_only=True)
class Attack(Machine):
    """Attack a model by fine-tuning it, with and without its freeze mask, and see what comes back.

    The unprotected model goes through the same beside it. The same command run again goes on where it stopped. No
    picture that a mask was learned from is attacked with or measured on. `unteach list attacks` shows the attacks.
    """

    stopped: ClassVar[str] = RESUMES
    attack: Annotated[Positional[str], arg(metavar="relearn")]
    """Which attack."""
    guard: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(default: no mask)")] = None
    """The --out folder of `unteach guard learn`: brings mask, model and erasure."""
    manifest: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Instead of --guard: only its manifest.json."""
    model: Annotated[
        str | None, arg(metavar="canvas|FOLDER", help_behavior_hint="(default: the mask's, the erasure's, or canvas)")
    ] = None
    """What to attack: the bundled model, or a local diffusers folder."""
    erased: Annotated[str | None, arg(metavar="DIR|FILE", help_behavior_hint="(default: the mask's, or none)")] = None
    """Result of `unteach erase`, which is applied to the model first."""
    illegal: Annotated[tuple[str, ...], arg(metavar=DOMAINS, help_behavior_hint="")] = ()
    """What the attacker wants back: domains, or folders of pictures with metadata.jsonl."""
    innocent: Annotated[tuple[str, ...], arg(metavar=DOMAINS, help_behavior_hint="")] = ()
    """What others fine-tune on, by the same code."""
    steps: Annotated[tuple[int, ...], arg(metavar="N ...")] = (10, 20, 40)
    """Points at which is measured; the largest is the length."""
    rates: Annotated[tuple[float, ...], arg(metavar="X ...")] = (3e-4,)
    """Learning rates."""
    modes: Annotated[tuple[Literal["full", "lora"], ...], arg(metavar="full|lora ...")] = ("full",)
    """relearn: full fine-tuning, or low-rank factors."""
    rank: Annotated[int, arg(metavar="N")] = 4
    """relearn: LoRA rank."""
    ignore: bool = False
    """Also the attacker who does not keep to the mask."""
    seeds: Annotated[tuple[int, ...], arg(metavar="N ...")] = (0,)
    """Seeds of the attacks."""
    batch_size: Annotated[int, arg(metavar="N")] = 16
    """Pictures a step."""
    draws: Annotated[int, arg(metavar="N")] = 2
    """Draws of noise for each picture that is measured on."""
    out: Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="(required)")] = None
    """Folder of relearning.json and of the cells."""

    def run(self, command: str) -> int:
        """Attack what is left to attack, and say what came back."""
        from unteach.attack.protocol import Attacked
        from unteach.core.run import Run
        from unteach.guard.policy import check_model
        from unteach.records.attack import Relearning

        base, shield = self.resolve()
        if self.out is None:
            raise ConfigError("no folder for the result was given", fix="add --out DIR")
        model, erased = base.load()
        if shield is not None:
            check_model(model, shield.policy, "the mask")
        targets = erased.get("targets", [])
        sets = Attacked.read(model, self.illegal, self.innocent, shield, bundled=base.canvas, erased=targets)
        stages = ("cells", Relearning.FILE)
        run = Run(self.out, self.config(model, shield), keys=DECISIVE, grows=GROWS, stages=stages)
        if run.known:
            say(f"{self.out} holds this attack: going on")
        attacks, honoured = self.attacks(), (True, False) if self.ignore else (True,)
        each, last = len(attacks) * (1 + len(sets.masks) * len(honoured)), max(self.steps)
        say(f"attacking {base.name}: {len(sets.domains)} domains, {each} attacks each, of {last} steps")
        if shield is not None:
            policy = shield.policy
            say(f"the mask '{policy.name}' freezes {len(policy.frozen)} of {len(policy.tensors)} tensors")
            if shield.lost:
                lost = ", ".join(shield.lost)
                say(f"not checked for pictures that the mask was learned from: {lost} (give --guard)")
        records: list[record.Attack] = []
        with run.working():
            cells = self.out / "cells"
            done = sets.sweep(model, attacks, out=cells, honoured=honoured, draws=self.draws, events=events())
            for domain, role, found in done:
                records += found
                for line in _table(domain, role, found):
                    say(line)
            path = sets.record(model, records, name=base.name, command=command).save(self.out)
        wrote([path])
        return 0

    def attacks(self) -> list[attacking.Attack]:
        """One attack a mode, rate and seed; an attack without one of these settings goes once through them.

        Raises:
            ConfigError: no such attack, or wrong settings.
        """
        from unteach.attack import attacks

        given = {"steps": max(self.steps), "eval_steps": tuple(sorted(self.steps)), "batch_size": self.batch_size}
        grid = [
            {**given, "mode": mode, "learning_rate": rate, "seed": seed, "rank": self.rank}
            for mode in self.modes
            for rate in self.rates
            for seed in self.seeds
        ]
        known = {field.name for field in fields(attacks[self.attack])}
        made = [attacks.make(self.attack, **{k: v for k, v in each.items() if k in known}) for each in grid]
        return list(dict.fromkeys(made))

    def config(self, model: Model, shield: Shield | None) -> dict[str, Any]:
        """What decides the result, as plain data; the model and the mask by their digests."""
        from unteach.core import state

        listed = {key: list(getattr(self, key)) for key in ("illegal", "innocent", "modes", "seeds", "rates")}
        return {
            **({} if self.attack == "relearn" else {"attack": self.attack}),  # release 0.1 knew no other
            **listed,
            "steps": sorted(self.steps),
            "ignore": [False, True] if self.ignore else [False],
            **{key: getattr(self, key) for key in ("rank", "batch_size", "draws")},
            "base": model.digest(fresh=True),
            "mask": None if shield is None else state.fingerprint(sorted(shield.policy.frozen)),
            "seed": 0 if shield is None else shield.policy.seed,
        }

    def resolve(self) -> tuple[Base, Shield | None]:
        """Check everything that can be checked without loading the model.

        Raises:
            UnteachError: the one mistake, or a ConfigError that lists all of them.
        """
        from unteach.attack import attacks
        from unteach.commands.base import Base, check_domains

        found = Mistakes()
        found.catch(lambda: attacks[self.attack])
        known, shield = self._shield(found)
        model = self.model or known.get("model") or _published(self.manifest)
        base = Base.checked(model, self.erased or known.get("erased"), self.device or "auto", self.threads, found)
        if not self.illegal:
            found.say("nothing to relearn was named: add --illegal NAME or FOLDER (see: unteach list domains)")
        check_domains([*self.illegal, *self.innocent], base, found)
        for key in ("steps", "rates", "modes", "seeds"):
            values = getattr(self, key)
            if not values or len(set(values)) < len(values):
                found.say(f"{key} must be different values, at least one, found {list(values)}")
        for key, least in (("steps", 1), ("seeds", 0)):
            if any(value < least for value in getattr(self, key)):
                found.say(f"{key} must be at least {least}, found {list(getattr(self, key))}")
        if not all(rate > 0 and math.isfinite(rate) for rate in self.rates):
            found.say(f"rates must be above 0, found {list(self.rates)}")
        found.least({"rank": self.rank, "batch-size": self.batch_size, "draws": self.draws}, 1)
        if self.out is None:
            found.say("no folder for the result was given: add --out DIR")
        found.stop()
        return base, shield

    def _shield(self, found: Mistakes) -> tuple[Mapping[str, Any], Shield | None]:
        """The configuration of the mask's run, as far as it is known, and the mask."""
        from unteach.attack.protocol import Shield
        from unteach.commands.guard import mask_config
        from unteach.guard.manifest import FreezeManifest
        from unteach.records.mask import Mask

        folder, file = self.guard, self.manifest
        if folder is not None and file is not None:
            found.say("give --guard or --manifest, not both")
        elif folder is not None:
            config = found.catch(lambda: mask_config(folder)) or {}
            named = [config.get(key) or () for key in ("illegal", "innocent")]
            return config, found.catch(lambda: Shield.learned(Mask.load(folder).manifest, *named)) if config else None
        elif file is not None:
            return {}, found.catch(lambda: Shield.published(FreezeManifest.load(file)))
        elif self.ignore:
            found.say("--ignore is about a mask: add --guard DIR or --manifest FILE")
        return {}, None


def _published(manifest: Path | None) -> str | None:
    """The published pipeline that a manifest lies in, None when it lies elsewhere."""
    folder = None if manifest is None else manifest.resolve().parent.parent
    return str(folder) if folder is not None and (folder / "model_index.json").is_file() else None


def _table(domain: str, role: str, records: Sequence[record.Attack]) -> Iterator[str]:
    """Losses of the domain's own probe at each step, what was recovered, and what became of everything else."""
    from unteach.core.text import aligned
    from unteach.diffusion.domains import REST
    from unteach.records.attack import UNPROTECTED

    longest = max((record.at for record in records), key=len)
    head = ("model", *(f"loss at {at}" if at == 0 else str(at) for at in longest), "recovered", REST)
    rows = []
    for r in records:
        arm = r.mask if r.mask == UNPROTECTED else f"{r.mask}, {r.arm}"
        losses, shares, others = r.losses[domain], r.recovery[domain], r.losses.get(REST, ())
        cells = [f"{x:.4f}" for x in losses] + ["diverged"] * (len(longest) - len(losses))
        share = "–" if r.diverged or not shares or shares[-1] is None else f"{shares[-1]:.0%}"
        rest = f"{others[0]:.4f} → {others[-1]:.4f}" if others else "–"
        what = f"{arm} ({r.mode}, rate {r.learning_rate:g}, seed {r.seed})"
        rows.append((what, *cells, share, rest))
    yield f"{domain} ({role}): loss on held-out pictures, lower is more relearned"
    yield aligned([head, *rows])
