"""Whose pictures an attack has: roles of domains, and nothing that a mask was learned from."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.guard import sets
from tests.test_guard_cli import pictures

from unteach.attack import Relearn
from unteach.attack.protocol import Attacked, Shield
from unteach.diffusion.domains import Domains, digests
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, DataError
from unteach.guard.data import GuardData
from unteach.guard.policy import mask_of
from unteach.records.attack import UNPROTECTED, Relearning


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pictures")
    rows = {"bad": range(8), "good": range(8, 16), "other": range(16, 24)}
    return {name: str(pictures(folder / name, each)) for name, each in rows.items()}


@pytest.fixture(scope="module")
def shield(tiny: Model, given: dict[str, str]) -> Shield:
    read = Domains.read([given["bad"]], [given["good"]], tiny, 3)
    names = [name for name, _ in tiny.denoiser.named_parameters()]
    made = mask_of(
        tiny, names[::2], name="half", method={}, seed=3, illegal=["bad"], innocent=["good"],
        digests=digests(read.learned(tiny)),
    )  # fmt: skip
    return Shield.learned(made.manifest, [given["bad"]], [given["good"]])


def test_the_digests_are_those_of_the_guards_data(tiny: Model, given: dict[str, str]) -> None:
    learned = Domains.read([given["bad"]], [given["good"]], tiny, 3).learned(tiny)
    assert list(learned) == ["illegal user", "illegal publisher", "innocent user", "innocent publisher"]
    assert GuardData(*learned.values()).digests() == digests(learned)


def test_a_mask_and_its_domains_are_attacked(
    tiny: Model, given: dict[str, str], shield: Shield, tmp_path: Path
) -> None:
    read = Attacked.read(tiny, [given["bad"]], [given["good"], given["other"]], shield)
    assert [(domain.name, role) for domain, role in read.domains] == [
        ("bad", "illegal"), ("good", "innocent"), ("other", "unseen")
    ]  # fmt: skip
    mine = {name for part in read.mask_data for name in part.ids}
    assert len(mine) == 8 and not mine & {name for part in read.data.values() for name in part.ids}
    quick = [Relearn(steps=1, batch_size=2)]
    told = list(read.sweep(tiny, quick, out=tmp_path / "cells", honoured=(True, False), draws=1))
    assert [(name, role) for name, role, _ in told] == [(d.name, role) for d, role in read.domains]
    made = read.record(tiny, [record for *_, found in told for record in found], name="tiny")
    assert Relearning.load(made.save(tmp_path)) == made and made.probes == ("bad", "good", "other")
    assert [r.mask for r in made.records[:3]] == [UNPROTECTED, "half", "half"] and made.mask is not None
    assert (made.mask.tensors, made.mask.of) == (61, 122)


def test_without_a_mask_everything_else_is_innocent(tiny: Model, given: dict[str, str]) -> None:
    read = Attacked.read(tiny, [given["bad"]], [given["other"]])
    assert [role for _, role in read.domains] == ["illegal", "innocent"] and not read.masks and not read.mask_data


def test_what_a_mask_was_learned_from_is_no_test(
    tiny: Model, given: dict[str, str], shield: Shield, tmp_path: Path
) -> None:
    mixed = pictures(tmp_path / "mixed", range(4, 12))  # the pictures of both, dealt anew
    with pytest.raises(DataError, match="pictures that the mask was learned from"):
        Attacked.read(tiny, [str(mixed)], [], shield)
    with pytest.raises(DataError, match="what is illegal must not be among what is innocent"):
        Attacked.read(tiny, [given["bad"]], [str(mixed)], shield)
    few = [str(pictures(tmp_path / name, range(3))) for name in ("a", "b")]
    with pytest.raises(DataError, match=r"2 mistakes(.|\n)*'.*a' needs at least four(.|\n)*'.*b' needs at least four"):
        Attacked.read(tiny, few, [], shield)
    changed = replace(shield, illegal=(str(pictures(tmp_path / "bad", range(1, 9), "digits")),))
    with pytest.raises(CheckpointError, match=r"they changed since.*illegal user, illegal publisher"):
        Attacked.read(tiny, [given["other"]], [], changed)


def test_of_a_manifest_alone_folders_are_names(given: dict[str, str], shield: Shield) -> None:
    published = Shield.published(shield.policy)
    assert published.lost == ("bad", "good") and published.illegal == published.innocent == ()
    with pytest.raises(CheckpointError, match="do not belong together"):
        Shield.learned(shield.policy, [given["other"]], [given["good"]])
