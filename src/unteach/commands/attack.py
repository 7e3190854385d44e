"""``unteach attack relearn``: fine-tune on domains without and with the freeze mask, and write what came back."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unteach.attack.sweep import sweep
from unteach.commands.base import Base, check_domains
from unteach.commands.console import events, say, wrote
from unteach.commands.guard import mask_config
from unteach.commands.options_guard import Attack
from unteach.commands.verb import Mistakes
from unteach.core import places, state
from unteach.core.run import same
from unteach.core.text import aligned
from unteach.diffusion import domains
from unteach.diffusion.domains import Domain
from unteach.diffusion.examples import Examples
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, ConfigError
from unteach.guard.data import GuardData
from unteach.guard.manifest import FreezeManifest
from unteach.guard.policy import check_model
from unteach.records import environment
from unteach.records.attack import UNPROTECTED, AttackedMask, ModelName, Relearning, Role
from unteach.records.attack import Attack as Attacked
from unteach.records.attack import Domain as AttackedDomain
from unteach.records.mask import Mask, Policy

__all__ = ["run"]

DECISIVE = ("base", "mask", "steps", "rank", "batch_size", "draws", "seed")
GROWS = ("illegal", "innocent", "rates", "modes", "seeds", "ignore")
"""What the same folder may be asked more of."""


@dataclass(frozen=True, kw_only=True)
class _Guard:
    """A mask that is attacked.

    Attributes:
        policy: what it freezes, and what it was made from.
        illegal, innocent: its domains, as they can be read again; of a manifest alone only bundled ones.
        lost: names of domains that cannot be read again.
    """

    policy: Policy
    illegal: tuple[str, ...]
    innocent: tuple[str, ...]
    lost: tuple[str, ...] = ()

    @classmethod
    def from_folder(cls, folder: Path, config: dict[str, Any]) -> "_Guard":
        """From the folder of ``guard learn``; its config knows where the pictures are."""
        policy = Mask.load(folder).manifest
        given = [tuple(map(str, config.get(key) or ())) for key in ("illegal", "innocent")]
        shown = [tuple(map(domains.shown, names)) for names in given]
        if shown != [policy.illegal, policy.innocent]:
            raise CheckpointError(f"{folder} holds a configuration and a mask that do not belong together")
        return cls(policy=policy, illegal=given[0], innocent=given[1])

    @classmethod
    def from_manifest(cls, path: Path) -> "_Guard":
        """From a manifest, whose folders of pictures are known by name only."""
        policy, bundled = FreezeManifest.load(path), domains.available()
        names = policy.illegal, policy.innocent
        known = [tuple(name for name in each if name in bundled) for each in names]
        lost = tuple(name for each in names for name in each if name not in bundled)
        return cls(policy=policy, illegal=known[0], innocent=known[1], lost=lost)


@dataclass(frozen=True, kw_only=True)
class _Sets:
    """Everything that is fine-tuned on and measured."""

    attacked: list[tuple[Domain, Role]]
    data: dict[str, Examples]
    probes: dict[str, Examples]
    learned: list[Examples]


def run(options: Attack, command: str) -> int:
    """Attack what is left to attack, and say what came back."""
    base, mask = _resolve(options)
    out = options.out
    if out is None:
        raise ConfigError("no folder for the result was given", fix="add --out DIR")
    model, erased = base.load()
    if mask is not None:
        check_model(model, mask.policy, "the mask")
    sets = _read(options, base, model, mask, erased.get("targets", []))
    config = _config(options, model, mask)
    if (out / "config.json").exists():
        same(out, state.read_table(out / "config.json"), config, keys=DECISIVE, grows=GROWS)
        say(f"{out} holds this attack: going on")
    masks = {} if mask is None else {mask.policy.name: mask.policy.frozen}
    cells = len(options.modes) * len(options.rates) * len(options.seeds) * (1 + len(masks) * (1 + options.ignore))
    say(f"attacking {base.name}: {len(sets.attacked)} domains, {cells} attacks each, of {max(options.steps)} steps")
    if mask is not None:
        say(f"the mask '{mask.policy.name}' freezes {len(mask.policy.frozen)} of {len(mask.policy.tensors)} tensors")
        if mask.lost:
            say(f"not checked for pictures that the mask was learned from: {', '.join(mask.lost)} (give --guard)")
    with places.alone(out):
        state.write_json(out / "config.json", config)
        records = _attack(options, out, model, masks, sets)
        path = _result(base, model, mask, sets, records, command).save(out)
    wrote([path])
    return 0


def _attack(
    options: Attack, out: Path, model: Model, masks: Mapping[str, Sequence[str]], sets: _Sets
) -> list[Attacked]:
    """Every cell that is left, told domain by domain."""
    records: list[Attacked] = []
    told = events()
    for domain, role in sets.attacked:
        found = sweep(
            model,
            sets.data[domain.name],
            sets.probes,
            masks=masks,
            out=out / "cells",
            steps=options.steps,
            learning_rates=options.rates,
            modes=options.modes,
            honoured=(True, False) if options.ignore else (True,),
            seeds=options.seeds,
            rank=options.rank,
            batch_size=options.batch_size,
            draws=options.draws,
            mask_data=sets.learned,
            domain=domain.name,
            events=told,
        )
        records += found
        for line in _table(domain.name, role, found):
            say(line)
    return records


def _resolve(options: Attack) -> tuple[Base, _Guard | None]:
    """Check everything that can be checked without loading the model."""
    found, config, mask = Mistakes(), None, None
    if options.guard is not None and options.manifest is not None:
        found.say("give --guard or --manifest, not both")
    elif options.guard is not None:
        folder = options.guard
        config = found.catch(lambda: mask_config(folder))
        mask = None if config is None else found.catch(lambda: _Guard.from_folder(folder, config))
    elif options.manifest is not None:
        path = options.manifest
        mask = found.catch(lambda: _Guard.from_manifest(path))
    elif options.ignore:
        found.say("--ignore is about a mask: add --guard DIR or --manifest FILE")
    known = config or {}
    base = Base.checked(
        options.model or known.get("model") or _published(options.manifest),
        options.erased or known.get("erased"),
        options.device,
        options.threads,
        found,
    )
    if not options.illegal:
        found.say("nothing to relearn was named: add --illegal NAME or FOLDER (see: unteach list domains)")
    check_domains([*options.illegal, *options.innocent], base, found)
    lists: dict[str, Sequence[float | str]] = {
        "steps": options.steps, "rates": options.rates, "modes": options.modes, "seeds": options.seeds
    }  # fmt: skip
    for key, values in lists.items():
        if not values or len(set(values)) < len(values):
            found.say(f"{key} must be different values, at least one, found {list(values)}")
    for key, least in (("steps", 1), ("seeds", 0)):
        if any(value < least for value in getattr(options, key)):
            found.say(f"{key} must be at least {least}, found {list(getattr(options, key))}")
    if not all(rate > 0 and math.isfinite(rate) for rate in options.rates):
        found.say(f"rates must be above 0, found {list(options.rates)}")
    for key in ("rank", "batch_size", "draws"):
        if getattr(options, key) < 1:
            found.say(f"{key.replace('_', '-')} must be at least 1, found {getattr(options, key)}")
    if options.out is None:
        found.say("no folder for the result was given: add --out DIR")
    found.stop()
    return base, mask


def _published(manifest: Path | None) -> str | None:
    """The published pipeline that a manifest lies in, None when it lies elsewhere."""
    folder = None if manifest is None else manifest.resolve().parent.parent
    return str(folder) if folder is not None and (folder / "model_index.json").is_file() else None


def _config(options: Attack, model: Model, mask: _Guard | None) -> dict[str, Any]:
    """What decides the result, as plain data; the model and the mask by their digests."""
    lists: dict[str, Any] = {key: list(getattr(options, key)) for key in ("illegal", "innocent", "modes", "seeds")}
    return {
        **lists,
        "rates": list(options.rates),
        "steps": sorted(options.steps),
        "ignore": [False, True] if options.ignore else [False],
        "rank": options.rank,
        "batch_size": options.batch_size,
        "draws": options.draws,
        "base": model.digest(fresh=True),
        "mask": None if mask is None else state.fingerprint(sorted(mask.policy.frozen)),
        "seed": 0 if mask is None else mask.policy.seed,
    }


def _read(options: Attack, base: Base, model: Model, mask: _Guard | None, erased: Sequence[str]) -> _Sets:
    """Read, compare and encode: nothing that the mask was learned from may be attacked with or measured on."""
    found, seed = Mistakes(), 0 if mask is None else mask.policy.seed
    names = [*options.illegal, *options.innocent]
    read = [found.catch(lambda g=g: Domain.read(g, model, seed)) for g in names]  # type: ignore[misc]
    mine = [] if mask is None else [*mask.illegal, *mask.innocent]
    learned = [found.catch(lambda g=g: Domain.read(g, model, seed)) for g in mine]  # type: ignore[misc]
    found.stop()
    attacked, sources = [d for d in read if d is not None], [d for d in learned if d is not None]
    bad, good = attacked[: len(options.illegal)], attacked[len(options.illegal) :]
    found.catch(
        lambda: domains.apart(
            [(d.name, set(d.ids)) for d in bad],
            [(d.name, set(d.ids)) for d in good],
            "what is illegal must not be among what is innocent",
        )
    )
    found.catch(
        lambda: domains.apart(
            [(d.name, d.side("attack")) for d in attacked],
            [(f"{d.name} (the mask's)", d.side("mask")) for d in sources],
            "an attack must not use pictures that the mask was learned from",
        )
    )
    found.stop()
    seen = {name for d in sources for name in d.ids}
    roles: list[Role] = ["illegal"] * len(bad)
    roles += ["innocent" if mask is None or seen & set(d.ids) else "unseen" for d in good]
    data = {d.name: d.examples(model, "attack") for d in attacked}
    probes = {d.name: d.examples(model, "probe") for d in attacked}
    if base.canvas:
        probes[domains.REST] = domains.rest(model, erased)
    return _Sets(
        attacked=list(zip(attacked, roles, strict=True)),
        data=data,
        probes=probes,
        learned=[] if mask is None else _mask_data(mask, model, sources),
    )


def _mask_data(mask: _Guard, model: Model, sources: Sequence[Domain]) -> list[Examples]:
    """The sets that the mask was made from, built again; refused when they are not the same.

    Raises:
        CheckpointError: the pictures changed since.
    """
    if not sources:
        return []
    count = len(mask.illegal)
    user, publisher = ([d.examples(model, role) for d in sources] for role in domains.SIDES["mask"])
    if not mask.lost and count and len(sources) > count:
        again = GuardData(user[:count], publisher[:count], user[count:], publisher[count:]).digests()
        if again != mask.policy.provenance.data:
            changed = [name for name in again if again[name] != mask.policy.provenance.data.get(name)]
            raise CheckpointError(
                "the pictures that the mask was learned from cannot be told any more: they changed since, or "
                "version 0.1 of Unteach learned the mask on another kind of processor",
                found=f"other digests of {', '.join(changed)}",
                fix="put them back, or learn the mask again",
            )
    return [*user, *publisher]


def _result(
    base: Base, model: Model, mask: _Guard | None, sets: _Sets, records: Sequence[Attacked], command: str
) -> Relearning:
    of = None
    if mask is not None:
        frozen = mask.policy.frozen
        digest = state.fingerprint(sorted(frozen))
        of = AttackedMask(name=mask.policy.name, digest=digest, tensors=len(frozen), of=len(mask.policy.tensors))
    return Relearning(
        model=ModelName(name=base.name, digest=model.digest(fresh=True)),
        mask=of,
        domains=tuple(
            AttackedDomain(name=d.name, role=role, images=len(sets.data[d.name])) for d, role in sets.attacked
        ),
        probes=tuple(sets.probes),
        records=tuple(records),
        environment=vars(environment.collect()),
        command=command,
    )


def _table(domain: str, role: str, records: Sequence[Attacked]) -> Iterator[str]:
    """Losses of the domain's own probe at each step, what was recovered, and what became of everything else."""
    longest = max((record.at for record in records), key=len)
    head = ("model", *(f"loss at {at}" if at == 0 else str(at) for at in longest), "recovered", domains.REST)
    rows = []
    for r in records:
        arm = r.mask if r.mask == UNPROTECTED else f"{r.mask}, {r.arm}"
        losses, shares, others = r.losses[domain], r.recovery[domain], r.losses.get(domains.REST, ())
        cells = [f"{x:.4f}" for x in losses] + ["diverged"] * (len(longest) - len(losses))
        share = "–" if r.diverged or not shares or shares[-1] is None else f"{shares[-1]:.0%}"
        rest = f"{others[0]:.4f} → {others[-1]:.4f}" if others else "–"
        what = f"{arm} ({r.mode}, rate {r.learning_rate:g}, seed {r.seed})"
        rows.append((what, *cells, share, rest))
    yield f"{domain} ({role}): loss on held-out pictures, lower is more relearned"
    yield aligned([head, *rows])
