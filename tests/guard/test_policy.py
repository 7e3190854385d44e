"""The mask of a model: what is written is read back, what is wrong is refused, and the manifest says the same."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.guard import sets

from unteach.core import state
from unteach.diffusion.model import Model
from unteach.errors import CheckpointError, ModelError, NumericsError
from unteach.guard.data import GuardData
from unteach.guard.manifest import FreezeManifest
from unteach.guard.methods import Job, Selection
from unteach.guard.methods.controls import Random
from unteach.guard.methods.freezeasguard import FreezeAsGuard
from unteach.guard.methods.learner import learn
from unteach.guard.policy import check_model, mask_by, mask_of
from unteach.records.mask import Mask

DIGESTS = {"illegal user": "a", "innocent user": "b"}
MORE: dict[str, Any] = {"seconds": 1.5, "environment": {"torch": "x"}, "command": "unteach guard learn"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


GUARD = FreezeAsGuard(steps=4, relearn_steps=3, batch_size=4, user_rates=[1e-3, 3e-3], budget="parameters", scale="raw")


@pytest.fixture(scope="module")
def data(tiny: Model) -> GuardData:
    return sets.guard_data(tiny, 2)


@pytest.fixture(scope="module")
def learned(tiny: Model, data: GuardData) -> Selection:
    return learn(tiny, data, GUARD, seed=7)


def mask_for(tiny: Model, learned: Selection, **more: Any) -> Mask:
    domains = {"illegal": ["bombs"], "innocent": ["dogs", "houses"], "digests": DIGESTS, "model_name": "toy"}
    return mask_of(tiny, learned, GUARD, seed=7, **domains, **MORE, **more)


def sizes(model: Model) -> dict[str, int]:
    return {name: value.numel() for name, value in model.denoiser.named_parameters()}


def test_a_learned_mask_comes_back_from_its_file(tiny: Model, learned: Selection, tmp_path: Path) -> None:
    mask = mask_for(tiny, learned)
    again = Mask.load(mask.save(tmp_path))
    assert again == mask and again.frozen == learned.frozen and again.name == "freezeasguard"
    assert {t.name: t.score for t in again.tensors} == learned.scores  # every bit
    assert {t.name: t.size for t in again.tensors} == sizes(tiny)
    assert again.method == {"name": "freezeasguard", **GUARD.to_dict()}
    assert [{"step": s.step, "mean": s.mean, "jaccard": s.jaccard, "largest": s.largest} for s in again.log] == [
        {key: row[key] for key in ("step", "mean", "jaccard", "largest")} for row in learned.log
    ]
    content = json.loads((tmp_path / "mask.json").read_text())
    assert content["format"] == "unteach-mask" and content["version"] == 2 and content["model_name"] == "toy"
    manifest = content["manifest"]
    assert manifest["model"] == tiny.digest(fresh=True) and manifest["component"] == "unet"
    assert [t["name"] for t in manifest["tensors"]] == [name for name, _ in tiny.denoiser.named_parameters()]
    assert [t["name"] for t in manifest["tensors"] if t["frozen"]] == list(learned.frozen)
    assert manifest["budget"]["measure"] == "parameters" and manifest["budget"]["rho"] == 0.3
    assert manifest["provenance"]["method"]["innocent"] == ["dogs", "houses"]
    assert manifest["provenance"]["seeds"] == [7] and content["steps"] == 4
    assert [row["step"] for row in content["log"]] == [1, 3]


def test_the_manifest_says_the_same(tiny: Model, learned: Selection) -> None:
    mask = mask_for(tiny, learned, policy="p", erased={"method": "uce", "targets": ["x"]})
    manifest = FreezeManifest.of(mask.manifest)
    assert manifest.frozen == mask.frozen and manifest.model == tiny.digest(fresh=True) and manifest.policy == "p"
    # All of manifest.json but its heading is a part of mask.json.
    assert mask.to_json()["manifest"].items() <= manifest.to_json().items()
    assert manifest.to_json().keys() - mask.to_json()["manifest"].keys() == {"format", "version"}
    assert {t.name: t.score for t in manifest.tensors} == learned.scores
    assert (manifest.budget.measure, manifest.budget.rho) == ("parameters", 0.3)
    share = sum(sizes(tiny)[name] for name in learned.frozen) / sum(sizes(tiny).values())
    assert manifest.budget.share_of_parameters == pytest.approx(share) and share <= 0.3
    made = manifest.provenance
    assert made.method["user_rates"] == [1e-3, 3e-3] and made.method["erased"]["targets"] == ["x"]
    assert made.method["illegal"] == ["bombs"] and made.seeds == (7,) and made.data == DIGESTS
    assert set(manifest.components) == {"vae", "text_encoder"}
    assert mask_for(tiny, learned).manifest.policy.startswith("freeze-")


def test_a_mask_without_scores(tiny: Model, tmp_path: Path) -> None:
    names = [name for name, _ in tiny.denoiser.named_parameters()]
    mask = mask_of(tiny, Selection(set(names[:5]), rho=0.1), Random(rho=0.1), **MORE)
    again = Mask.load(mask.save(tmp_path / "mask.json"))
    assert again == mask and again.frozen == tuple(names[:5]) and again.log == ()
    assert all(tensor.score is None for tensor in again.tensors) and again.budget.frozen_tensors == 5
    with pytest.raises(ModelError, match="not in the denoiser; found: no such"):
        mask_of(tiny, Selection({"no such"}), Random(), **MORE)


def test_a_guard_gives_its_mask_by_one_call(tiny: Model, learned: Selection, data: GuardData, tmp_path: Path) -> None:
    mask = mask_by(GUARD, tiny, data, Job(7, tmp_path / "work"), name="mine", illegal=["bombs"], command="x")
    assert mask.frozen == learned.frozen and mask.name == "mine" and mask.method["guard"] == "freezeasguard"
    assert mask.manifest.provenance.data == data.digests() and mask.seconds > 0 and mask.environment["torch"]
    assert {t.name: t.score for t in mask.tensors} == learned.scores and mask.steps == 4 and mask.command == "x"
    with pytest.raises(NumericsError):
        mask_by(replace(GUARD, relearn_rate=1e9), tiny, data, Job(7, tmp_path / "wild"))
    assert (tmp_path / "work").exists() and not (tmp_path / "wild").exists()


def test_a_mask_of_release_01_is_read_but_has_no_hashes(tiny: Model, learned: Selection, tmp_path: Path) -> None:
    mask = mask_for(tiny, learned)
    made = mask.manifest
    old = {
        "format": "unteach-mask", "version": 1, "method": mask.method, "seed": 7, "component": "unet",
        "model": {"name": "toy", "digest": made.model},
        "tensors": [{"name": t.name, "shape": t.shape, "frozen": t.frozen, "score": t.score} for t in mask.tensors],
        "budget": {"measure": "parameters", "rho": 0.3}, "steps": 4, "log": [vars(row) for row in mask.log],
        "data": {"illegal": ["bombs"], "innocent": ["dogs", "houses"], "digests": DIGESTS, "seed": 7}, **MORE,
    }  # fmt: skip
    again = Mask.load(state.write_json(tmp_path / "mask.json", old))
    without = {"policy": "", "family": "", "created": "", "components": {}}
    bare = replace(
        made, tensors=tuple(replace(t, hashes={}) for t in made.tensors),
        provenance=replace(made.provenance, versions={}), **without,
    )  # fmt: skip
    assert again == replace(mask, manifest=bare)
    assert Mask.load(again.save(tmp_path / "new.json")) == again
    with pytest.raises(CheckpointError, match="must have hashes"):
        FreezeManifest.of(again.manifest)


def test_another_model_is_refused(tiny: Model, learned: Selection) -> None:
    policy = mask_for(tiny, learned).manifest
    weight = next(tiny.denoiser.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    try:
        with pytest.raises(ModelError, match="other weights"):
            check_model(tiny, policy, "the mask")
    finally:
        with torch.no_grad():
            weight.copy_(before)
        tiny.weights_changed()
    check_model(tiny, policy, "the mask")
    less = policy.tensors[1:]
    budget = type(policy.budget).of(less, policy.budget.measure, policy.budget.rho)
    with pytest.raises(ModelError, match="another model"):
        check_model(tiny, replace(policy, tensors=less, budget=budget), "the mask")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format="unteach-freeze-manifest"), "not a file of the format unteach-mask"),
        (lambda c: c.pop("format"), "not a file of the format unteach-mask"),
        (lambda c: c.update(version=3), "newer version"),
        (lambda c: c.update(colour="red"), "unknown key"),
        (lambda c: c["manifest"].pop("tensors"), "manifest: missing key 'tensors'"),
        (lambda c: c["manifest"]["tensors"][0].pop("frozen"), "missing key 'frozen'"),
        (lambda c: c["manifest"]["tensors"][0].update(frozen="false"), "must be true or false"),
        (lambda c: c["manifest"]["tensors"][0].update(score="1"), "must be a finite number"),
        (lambda c: c["manifest"]["tensors"][0].update(score=1e400), "must be a finite number"),
        (lambda c: c["manifest"]["tensors"][0].update(shape=[-1]), "bad name or shape"),
        (lambda c: c["manifest"]["tensors"].append(c["manifest"]["tensors"][0]), "listed twice"),
        (lambda c: c["manifest"].update(tensors=[]), "lists no tensor"),
        (lambda c: c["manifest"].update(model="abc"), "64 hex digits"),
        (lambda c: c["manifest"]["budget"].update(rho=1.5), "rho is a share"),
        (lambda c: c["manifest"]["budget"].update(measure="colours"), "budget"),
        (lambda c: c["manifest"]["provenance"]["method"].pop("name"), "no name"),
        (lambda c: c["manifest"]["provenance"].update(seeds=[-1]), "not negative"),
        (lambda c: c["manifest"]["provenance"].update(seeds="7"), "must be a list"),
        (lambda c: c["log"][0].update(step=1.5), "must be a whole number"),
    ],
)
def test_wrong_files_are_refused(
    change: Callable[[dict[str, Any]], object], words: str, tiny: Model, learned: Selection, tmp_path: Path
) -> None:
    path = mask_for(tiny, learned).save(tmp_path / "mask.json")
    content = state.read_json(path)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=words) as caught:
        Mask.load(path)
    assert str(path) in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.json"
    for text in ("", "[]", "{", '{"format": NaN}'):
        path.write_text(text)
        with pytest.raises(CheckpointError):
            Mask.load(path)
    with pytest.raises(CheckpointError):
        Mask.load(tmp_path / "none.json")
