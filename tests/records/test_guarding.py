import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.records import guarded

from unteach.core import state
from unteach.errors import CheckpointError
from unteach.records.attack import Attack, Curve, Relearning, Setting, check_same, recovery
from unteach.records.mask import Mask

FULL = Setting("fxemoji", "full", 1e-3)


def read_mask(folder: Path, data: object) -> Mask:
    state.write_json(folder / "mask.json", data)
    return Mask.load(folder)


def read(folder: Path, data: object) -> Relearning:
    state.write_json(folder / "relearning.json", data)
    return Relearning.load(folder)


def test_a_mask_is_what_its_file_says(tmp_path: Path) -> None:
    data = guarded.mask(seconds=7, rho=0.25)
    mask = read_mask(tmp_path, data)
    assert mask == Mask.load(tmp_path / "mask.json")
    assert mask.frozen == tuple(guarded.frozen(data)) and len(mask.frozen) == 2
    assert [t.size for t in mask.tensors[:2]] == [4 * 4 * 9, 4]
    assert (mask.name, mask.budget.measure, mask.budget.rho, mask.seconds) == ("freezeasguard", "tensors", 0.25, 7.0)
    assert (mask.manifest.model, mask.log[-1].step, mask.manifest.illegal) == (guarded.DIGEST, 59, ("fxemoji",))
    plain = read_mask(tmp_path, guarded.mask(rho=None, scored=False, log=[], method={"name": "mid-up"}))
    assert plain.name == "mid-up" and plain.log == () and {t.score for t in plain.tensors} == {None}


def test_a_mask_of_release_01_is_written_as_one_of_today(tmp_path: Path) -> None:
    mask = read_mask(tmp_path, guarded.mask())
    assert Mask.load(mask.save(tmp_path / "mask.json")) == mask
    assert json.loads((tmp_path / "mask.json").read_text())["version"] == 2


def test_attacks_are_what_their_file_says(tmp_path: Path) -> None:
    data = guarded.attacks(guarded.mask(), seeds=(1, 0))
    found = read(tmp_path, data)
    assert found == Relearning.load(tmp_path / "relearning.json")
    assert found.arms == ["unprotected", "kept", "ignored"] and found.mask is not None and found.mask.of == 8
    assert found.settings[:3] == [Setting("fxemoji", "full", 3e-4), FULL, Setting("fxemoji", "lora", 3e-4)]
    assert [d.role for d in found.domains] == ["illegal", "innocent", "unseen"]
    assert list(found.runs(FULL, "kept")) == [0, 1] and found.steps(FULL) == [0, 10, 20, 40]
    own = [r for r in data["records"] if (r["domain"], r["mode"], r["learning_rate"]) == FULL]
    kept = [r for r in own if r["mask"] != "unprotected" and r["honoured"]]
    mean, share = found.loss(FULL, "kept", 20), found.recovery(FULL, "kept", 20)
    assert mean is not None and mean.mean == pytest.approx(sum(r["losses"]["fxemoji"][2] for r in kept) / 2)
    assert share is not None and share.mean == pytest.approx(sum(r["recovery"]["fxemoji"][2] for r in kept) / 2)
    assert share.n == 2 and share.low is not None and found.recovery(FULL, "kept", 0) is None
    others = found.loss(FULL, "kept", 20, ["emojione-v1", "instruments"])
    assert others is not None and others.mean > 0.2 > mean.mean


def test_records_of_the_attack_are_read(tmp_path: Path) -> None:
    """The sweep's own records are the format."""
    shared: dict[str, Any] = {
        "mode": "full", "trained_tensors": 8, "trained_parameters": 90, "steps": 10, "learning_rate": 0.1,
        "batch_size": 4, "rank": 0, "seed": 3, "data": ("fxemoji", "a"), "probes": {"fxemoji": "b"}, "at": (0, 10),
        "diverged": False, "seconds": 1.0,
    }  # fmt: skip
    plain = Curve(honoured=True, frozen="", frozen_tensors=0, losses={"fxemoji": (1.0, 0.5)}, **shared)
    kept = Curve(honoured=True, frozen="", frozen_tensors=2, losses={"fxemoji": (1.0, 0.8)}, **shared)
    records = [
        Attack(
            domain="fxemoji",
            mask=name,
            recovery={"fxemoji": tuple(recovery(c, plain, "fxemoji", at) for at in c.at)},
            **vars(c),
        )
        for name, c in (("unprotected", plain), ("m", kept))
    ]
    data = guarded.attacks(None, domains=(("fxemoji", "illegal"),))
    data |= {"mask": {"name": "m", "digest": "", "tensors": 2, "of": 8}}
    data["records"] = list(map(asdict, records))
    reach = read(tmp_path, data).reach("fxemoji", "full", "kept")
    assert reach is not None and reach.share.mean == pytest.approx(0.4) and reach.share.low is None


def losses(data: dict[str, Any], arm: str, rate: float, seed: int, values: list[float]) -> None:
    """Set the own probe's losses of one attack on fxemoji in full."""
    for r in data["records"]:
        which = "unprotected" if r["mask"] == "unprotected" else "kept" if r["honoured"] else "ignored"
        if (r["domain"], r["mode"], which, r["learning_rate"], r["seed"]) == ("fxemoji", "full", arm, rate, seed):
            r["losses"]["fxemoji"] = values


def test_reach_is_the_best_of_each_attacker(tmp_path: Path) -> None:
    data = guarded.attacks(guarded.mask(), seeds=(0, 1), at=(0, 5, 10), ignore=False)
    for seed in (0, 1):
        losses(data, "unprotected", 3e-4, seed, [1.0, 0.9, 0.8])
        losses(data, "unprotected", 1e-3, seed, [1.0, 0.5 - 0.1 * seed, 0.9])  # best here, at step 5: falls 0.5, 0.6
        losses(data, "kept", 3e-4, seed, [1.0, 0.9, 0.7])  # best here, at step 10: falls 0.3, 0.3
        losses(data, "kept", 1e-3, seed, [1.0, 0.8, 0.75])
    reach = read(tmp_path, data).reach("fxemoji", "full", "kept")
    assert reach is not None
    assert (reach.rate, reach.step, reach.against) == (3e-4, 10, (1e-3, 5))
    assert reach.share.mean == pytest.approx((0.3 / 0.5 + 0.3 / 0.6) / 2) and reach.share.n == 2


def test_an_attack_that_diverged_for_one_seed_still_counts_for_the_others(tmp_path: Path) -> None:
    """Leaving the setting out would let the mask look stronger than it is: an attacker tries another seed."""
    of = guarded.mask()
    whole = read(tmp_path / "a", guarded.attacks(of, noise=0)).reach("fxemoji", "full", "kept")
    found = read(tmp_path / "b", guarded.attacks(of, noise=0, diverged=[("fxemoji", "full", 1e-3, 2, "kept")]))
    reach = found.reach("fxemoji", "full", "kept")
    assert whole is not None and reach is not None and (reach.rate, reach.step) == (1e-3, 40)
    assert reach.share.mean == pytest.approx(whole.share.mean) == pytest.approx(0.6)
    assert (whole.share.n, reach.share.n) == (3, 2)
    assert found.loss(FULL, "kept", 40) is None and found.loss(FULL, "kept", 10) is not None
    share = found.recovery(FULL, "kept", 40)
    assert share is not None and share.n == 2


def test_without_learning_or_a_probe_there_is_nothing_to_compare(tmp_path: Path) -> None:
    idle = read(tmp_path, guarded.attacks(guarded.mask(), learned=False))
    assert idle.reach("fxemoji", "full", "kept") is None and idle.recovery(FULL, "kept", 40) is None
    assert read(tmp_path, guarded.attacks(None)).reach("fxemoji", "full", "kept") is None
    data = guarded.attacks(guarded.mask())
    data["probes"] = ["instruments"]
    for r in data["records"]:
        r["losses"] = {"instruments": r["losses"]["instruments"]}
    blind = read(tmp_path, data)
    assert blind.reach("fxemoji", "full", "kept") is None and blind.loss(FULL, "kept", 10) is None
    assert blind.reach("instruments", "full", "kept") is not None


MASKS: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("format unteach-mask; found: format 'other'", lambda d: d.update(format="other")),
    ("format unteach-mask; found: format None; to do: check", lambda d: d.pop("format")),
    ("unknown key 'later'", lambda d: d.update(later=1)),
    ("newer version.*version 3", lambda d: d.update(version=3)),
    ("version must be a whole number above 0; found: True", lambda d: d.update(version=True)),
    ("missing key 'budget'", lambda d: d.pop("budget")),
    ("missing key 'frozen'", lambda d: d["tensors"][1].pop("frozen")),
    ("must be true or false", lambda d: d["tensors"][0].update(frozen=1)),
    ("must be a list", lambda d: d["tensors"][0].update(shape="44")),
    ("must be text", lambda d: d["tensors"][0].update(name=3)),
    ("lists no tensor", lambda d: d.update(tensors=[])),
    ("a tensor is listed twice", lambda d: d["tensors"].append(d["tensors"][1])),
    ("'conv_in.bias' has a bad name or shape", lambda d: d["tensors"][1].update(shape=[-1])),
    ("score must be a finite number", lambda d: d["tensors"][1].update(score=float("nan"))),
    ("jaccard must be a finite number", lambda d: d["log"][3].update(jaccard=float("inf"))),
]


@pytest.mark.parametrize(("message", "change"), MASKS)
def test_a_wrong_mask_is_refused(message: str, change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    data = copy.deepcopy(guarded.mask())
    change(data)
    (tmp_path / "mask.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message) as caught:
        Mask.load(tmp_path)
    assert "mask.json" in str(caught.value)


ATTACKS: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("format unteach-relearning; found: format 'unteach-mask'", lambda d: d.update(format="unteach-mask")),
    ("version must be a whole number above 0; found: 0", lambda d: d.update(version=0)),
    ("missing key 'mask'", lambda d: d.pop("mask")),
    ("mode", lambda d: d["records"][0].update(mode="half")),
    ("role", lambda d: d["domains"][0].update(role="evil")),
    ("3 values at 4 steps", lambda d: d["records"][0]["losses"]["fxemoji"].pop()),
    ("recovery of 'fxemoji': 3 values", lambda d: d["records"][0]["recovery"]["fxemoji"].pop()),
    ("steps must rise from 0", lambda d: d["records"][0].update(at=[0, 20, 10, 40])),
    ("steps must rise from 0", lambda d: d["records"][0].update(at=[1, 10, 20, 40])),
    ("must be a finite number", lambda d: d["records"][0]["losses"].update(fxemoji=[0.1, 0.1, float("nan"), 0.1])),
    ("domain 'fxemoji' is there 2 times", lambda d: d["domains"].append(d["domains"][0])),
    ("no such domain", lambda d: d["domains"].pop(0)),
    ("no mask called 'freezeasguard'", lambda d: d["mask"].update(name="mid-up")),
    ("its probes differ", lambda d: d["probes"].append("else")),
    ("twice", lambda d: d["records"].append(d["records"][0])),
    ("no unprotected twin", lambda d: d["records"].pop(0)),
]


@pytest.mark.parametrize(("message", "change"), ATTACKS)
def test_wrong_attacks_are_refused(message: str, change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    data = copy.deepcopy(guarded.attacks(guarded.mask()))
    change(data)
    (tmp_path / "relearning.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=message):
        Relearning.load(tmp_path)


def test_what_is_no_whole_file_is_refused(tmp_path: Path) -> None:
    whole = json.dumps(guarded.mask())
    path = tmp_path / "mask.json"
    for text in ("", "[]", "null", '"unteach-mask"', whole[: len(whole) // 2], whole + "}"):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"mask\.json"):
            Mask.load(path)
    path.write_bytes(b"\xff\xfe\x00" + whole.encode())
    with pytest.raises(CheckpointError, match="not a text in UTF-8"):
        Mask.load(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        Relearning.load(tmp_path)


def test_attacks_belong_to_their_mask(tmp_path: Path) -> None:
    mask = read_mask(tmp_path, guarded.mask())
    check_same(mask, read(tmp_path, guarded.attacks(guarded.mask())))
    check_same(mask, read(tmp_path, guarded.attacks(None)))
    unknown = guarded.attacks(guarded.mask(), model={"name": "canvas"})
    check_same(mask, read(tmp_path, unknown))
    for message, other in (
        ("model eeee", guarded.attacks(guarded.mask(), model={"name": "canvas", "digest": "e" * 64})),
        ("4 of 8 tensors frozen, the mask: 2", guarded.attacks(guarded.mask(rho=0.5))),
        ("other tensors frozen", guarded.attacks(guarded.mask(tensors=_turned(guarded.mask()["tensors"])))),
    ):
        with pytest.raises(CheckpointError, match=f"another mask.*{message}"):
            check_same(mask, read(tmp_path, other))


def _turned(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As many frozen, but the others."""
    frozen = [t["frozen"] for t in tensors]
    return [{**t, "frozen": f} for t, f in zip(tensors, [*frozen[1:], frozen[0]], strict=True)]
