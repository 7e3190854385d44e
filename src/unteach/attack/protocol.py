"""The protocol of attacks: what is fine-tuned on, what is measured on, and that no mask was learned from either.

Every domain's pictures are halved by the mask's seed (:mod:`unteach.diffusion.domains`): an attack has the half that
the mask did not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unteach.attack.base import Attack
from unteach.attack.probes import Probes
from unteach.attack.sweep import sweep
from unteach.core import state
from unteach.core.events import SILENT, Events
from unteach.diffusion import domains
from unteach.diffusion.domains import Domain, Domains
from unteach.diffusion.examples import Examples
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError
from unteach.records import attack as records
from unteach.records import environment
from unteach.records.mask import Policy

__all__ = ["Attacked", "Shield"]


@dataclass(frozen=True, kw_only=True)
class Shield:
    """A mask that is attacked, and the domains that it was learned from.

    Attributes:
        policy: what it freezes, and what it was made from.
        illegal, innocent: its domains as they can be read again.
        lost: names of domains that cannot.
    """

    policy: Policy
    illegal: tuple[str, ...]
    innocent: tuple[str, ...]
    lost: tuple[str, ...] = ()

    @classmethod
    def learned(cls, policy: Policy, illegal: Sequence[str], innocent: Sequence[str]) -> "Shield":
        """A mask with the domains (names, folders) that its configuration names.

        Raises:
            CheckpointError: these are not the mask's.
        """
        given = tuple(illegal), tuple(innocent)
        if [tuple(map(domains.shown, names)) for names in given] != [policy.illegal, policy.innocent]:
            raise CheckpointError(
                "this configuration and this mask do not belong together",
                found=f"domains {', '.join((*illegal, *innocent))}",
                fix="give the folder that 'guard learn' wrote, as it was written",
            )
        return cls(policy=policy, illegal=given[0], innocent=given[1])

    @classmethod
    def published(cls, policy: Policy) -> "Shield":
        """A mask of which only the manifest is known: folders of pictures are no more than names in it."""
        bundled = domains.available()
        names = policy.illegal, policy.innocent
        known = [tuple(name for name in each if name in bundled) for each in names]
        lost = tuple(name for each in names for name in each if name not in bundled)
        return cls(policy=policy, illegal=known[0], innocent=known[1], lost=lost)

    def data(self, model: Model, read: Domains) -> list[Examples]:
        """The sets that the mask was made from, built again; refused when they are not the same.

        Raises:
            CheckpointError: the pictures changed since.
        """
        if not read.every:
            return []
        sets = read.learned(model)
        if not self.lost and read.illegal and read.innocent:
            again, known = domains.digests(sets), self.policy.provenance.data
            if changed := [name for name in again if again[name] != known.get(name)]:
                raise CheckpointError(
                    "the pictures that the mask was learned from cannot be told any more: they changed since, or "
                    "version 0.1 of Unteach learned the mask on another kind of processor",
                    found=f"other digests of {', '.join(changed)}",
                    fix="put them back, or learn the mask again",
                )
        return [part for parts in sets.values() for part in parts]


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """Everything that is fine-tuned on and measured; :meth:`read` makes it.

    Attributes:
        domains: what is fine-tuned on, and whether it is illegal, innocent, or innocent and not used for the mask.
        data: domain to what is fine-tuned on.
        probes: name to held-out pictures.
        mask_data: what the mask was learned from, as far as it is known.
        shield: the mask, None without one.
    """

    domains: tuple[tuple[Domain, records.Role], ...]
    data: dict[str, Examples]
    probes: dict[str, Examples]
    mask_data: list[Examples]
    shield: Shield | None = None

    @classmethod
    def read(
        cls,
        model: Model,
        illegal: Sequence[str],
        innocent: Sequence[str] = (),
        shield: Shield | None = None,
        *,
        bundled: bool = False,
        erased: Sequence[str] = (),
    ) -> "Attacked":
        """Read, compare and encode.

        Args:
            model: what will be attacked.
            illegal, innocent: names of domains, or folders.
            shield: the mask.
            bundled: whether it is the bundled model, whose own concepts are then measured too.
            erased: concepts that were erased from it, which are not.

        Raises:
            ConfigError, DataError: domains that cannot be used, share pictures, or have pictures that the mask was
                learned from; all are listed.
            CheckpointError: the mask's pictures changed since.
        """
        seed = 0 if shield is None else shield.policy.seed
        read = Domains.read(illegal, innocent, model, seed)
        own = Domains((), ()) if shield is None else Domains.read(shield.illegal, shield.innocent, model, seed)
        domains.apart(
            [(d.name, d.side("attack")) for d in read.every],
            [(f"{d.name} (the mask's)", d.side("mask")) for d in own.every],
            "an attack must not use pictures that the mask was learned from",
        )
        seen = {name for d in own.every for name in d.ids}
        roles: list[records.Role] = ["illegal"] * len(read.illegal)
        roles += ["innocent" if shield is None or seen & set(d.ids) else "unseen" for d in read.innocent]
        probes = {d.name: d.examples(model, "probe") for d in read.every}
        if bundled:
            probes[domains.REST] = domains.rest(model, erased)
        return cls(
            domains=tuple(zip(read.every, roles, strict=True)),
            data={d.name: d.examples(model, "attack") for d in read.every},
            probes=probes,
            mask_data=[] if shield is None else shield.data(model, own),
            shield=shield,
        )

    @property
    def masks(self) -> dict[str, tuple[str, ...]]:
        """Name of the mask → what it freezes; empty without one."""
        return {} if self.shield is None else {self.shield.policy.name: self.shield.policy.frozen}

    def sweep(
        self,
        model: Model,
        attacks: Sequence[Attack],
        *,
        out: Path,
        honoured: Sequence[bool] = (True,),
        draws: int = 4,
        events: Events = SILENT,
    ) -> Iterator[tuple[str, records.Role, list[records.Attack]]]:
        """Every attack on every domain, as :func:`unteach.attack.sweep.sweep` runs them: (domain, role, records)."""
        for domain, role in self.domains:
            yield (
                domain.name,
                role,
                sweep(
                    model,
                    self.data[domain.name],
                    Probes(self.probes, draws),
                    attacks,
                    masks=self.masks,
                    out=out,
                    honoured=honoured,
                    mask_data=self.mask_data,
                    domain=domain.name,
                    events=events,
                ),
            )

    def record(
        self, model: Model, found: Sequence[records.Attack], *, name: str = "", command: str = ""
    ) -> records.Relearning:
        """All of it as relearning.json has it; ``name`` is the model's, for a reader."""
        of = None
        if self.shield is not None:
            policy = self.shield.policy
            digest = state.fingerprint(sorted(policy.frozen))
            of = records.AttackedMask(
                name=policy.name, digest=digest, tensors=len(policy.frozen), of=len(policy.tensors)
            )  # fmt: skip
        return records.Relearning(
            model=records.ModelName(name=name, digest=model.digest(fresh=True)),
            mask=of,
            domains=tuple(
                records.Domain(name=d.name, role=role, images=len(self.data[d.name])) for d, role in self.domains
            ),
            probes=tuple(self.probes),
            records=tuple(found),
            environment=vars(environment.collect()),
            command=command,
        )
