"""``mask.json``: what is written is read back, what is wrong is refused, and the manifest says the same."""

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
from unteach.errors import CheckpointError, ConfigError, ModelError
from unteach.guard.config import make
from unteach.guard.learn import Learned, learn
from unteach.guard.record import MaskData, MaskRecord

MORE: dict[str, Any] = {"seconds": 1.5, "environment": {"torch": "x"}, "command": "unteach guard learn"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def learned(tiny: Model) -> Learned:
    config = make(steps=4, relearn_steps=3, batch_size=4, user_rates=[1e-3, 3e-3], budget="parameters", scale="raw")
    return learn(tiny, sets.guard_data(tiny, 2), config, seed=7)


def record_of(tiny: Model, learned: Learned) -> MaskRecord:
    data = MaskData(("bombs",), ("dogs", "houses"), learned.data, 7)
    return MaskRecord.from_learned(tiny, learned, name="freezeasguard", data=data, model_name="toy", **MORE)


def test_a_learned_mask_comes_back_from_its_file(tiny: Model, learned: Learned, tmp_path: Path) -> None:
    record = record_of(tiny, learned)
    again = MaskRecord.load(record.save(tmp_path / "mask.json"))
    assert again == record and again.frozen == learned.frozen and again.name == "freezeasguard"
    back = again.learned()
    assert vars(back) == vars(learned)  # scores, sizes, settings, log: every bit
    content = json.loads((tmp_path / "mask.json").read_text())
    assert content["format"] == "unteach-mask" and content["version"] == 1
    assert content["model"] == {"name": "toy", "digest": tiny.digest(fresh=True)} and content["component"] == "unet"
    assert [t["name"] for t in content["tensors"]] == [name for name, _ in tiny.denoiser.named_parameters()]
    assert [t["name"] for t in content["tensors"] if t["frozen"]] == list(learned.frozen)
    assert content["budget"] == {"measure": "parameters", "rho": 0.3} and content["method"]["budget"] == "parameters"
    assert content["data"]["innocent"] == ["dogs", "houses"] and content["seed"] == 7 and content["steps"] == 4
    assert [row["step"] for row in content["log"]] == [1, 3]


def test_the_manifest_says_the_same(tiny: Model, learned: Learned) -> None:
    record = record_of(tiny, learned)
    manifest = record.manifest(tiny, policy="p", erased={"method": "uce", "targets": ["x"]})
    assert manifest.frozen == record.frozen and manifest.model == tiny.digest(fresh=True) and manifest.policy == "p"
    assert {t.name: t.score for t in manifest.tensors} == learned.scores
    assert (manifest.budget.measure, manifest.budget.rho) == ("parameters", 0.3)
    share = sum(learned.sizes[name] for name in learned.frozen) / sum(learned.sizes.values())
    assert manifest.budget.share_of_parameters == pytest.approx(share) and share <= 0.3
    made = manifest.provenance
    assert made.method["user_rates"] == [1e-3, 3e-3] and made.method["erased"]["targets"] == ["x"]
    assert made.method["illegal"] == ["bombs"] and made.seeds == (7,) and made.data == learned.data
    assert set(manifest.components) == {"vae", "text_encoder"}
    assert record.manifest(tiny).policy.startswith("freeze-")


def test_a_mask_without_scores_is_no_learned_one(tiny: Model, tmp_path: Path) -> None:
    names = [name for name, _ in tiny.denoiser.named_parameters()]
    data = MaskData(("a",), ("b",), {}, 0)
    record = MaskRecord.of(tiny, set(names[:5]), name="random", method={"rho": 0.1}, rho=0.1, seed=0, data=data, **MORE)
    again = MaskRecord.load(record.save(tmp_path / "mask.json"))
    assert again == record and again.frozen == tuple(names[:5]) and again.log == ()
    assert all(tensor.score is None for tensor in again.tensors) and again.manifest(tiny).budget.frozen_tensors == 5
    with pytest.raises(ConfigError, match="not learned; found: method 'random'"):
        again.learned()
    with pytest.raises(ModelError, match="not in the denoiser; found: no such"):
        MaskRecord.of(tiny, {"no such"}, name="x", method={}, seed=0, data=data, **MORE)


def test_another_model_is_refused(tiny: Model, learned: Learned, tmp_path: Path) -> None:
    record = record_of(tiny, learned)
    weight = next(tiny.denoiser.parameters())
    before = weight.detach().clone()
    with torch.no_grad():
        weight.view(-1)[0] += 1e-3
    try:
        with pytest.raises(ModelError, match="other weights"):
            record.check(tiny)
        with pytest.raises(ModelError, match="other weights"):
            record.manifest(tiny)
    finally:
        with torch.no_grad():
            weight.copy_(before)
        tiny.weights_changed()
    record.check(tiny)
    with pytest.raises(ModelError, match="another model"):
        replace(record, tensors=record.tensors[1:]).check(tiny)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format="unteach-freeze-manifest"), "is not a mask"),
        (lambda c: c.pop("format"), "is not a mask"),
        (lambda c: c.update(version=2), "another version"),
        (lambda c: c.update(colour="red"), "unknown key"),
        (lambda c: c.pop("tensors"), "missing key 'tensors'"),
        (lambda c: c["tensors"][0].pop("frozen"), "missing key 'frozen'"),
        (lambda c: c["tensors"][0].update(frozen="false"), "must be bool"),
        (lambda c: c["tensors"][0].update(score="1"), "must be float"),
        (lambda c: c["tensors"][0].update(score=1e400), "must be float|not JSON"),
        (lambda c: c["tensors"][0].update(shape=[-1]), "bad name or shape"),
        (lambda c: c["tensors"].append(c["tensors"][0]), "listed twice"),
        (lambda c: c.update(tensors=[]), "or none is"),
        (lambda c: c["model"].update(digest="abc"), "64 hex digits"),
        (lambda c: c["budget"].update(rho=1.5), "rho is a share"),
        (lambda c: c["budget"].update(measure="colours"), "budget"),
        (lambda c: c["method"].pop("name"), "no name"),
        (lambda c: c.update(seed=-1), "not negative"),
        (lambda c: c["data"].update(illegal="fxemoji"), "must be a list"),
        (lambda c: c["log"][0].update(step=1.5), "must be int"),
    ],
)
def test_wrong_files_are_refused(
    change: Callable[[dict[str, Any]], object], words: str, tiny: Model, learned: Learned, tmp_path: Path
) -> None:
    path = record_of(tiny, learned).save(tmp_path / "mask.json")
    content = state.read_json(path)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=words) as caught:
        MaskRecord.load(path)
    assert str(path) in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.json"
    for text in ("", "[]", "{", '{"format": NaN}'):
        path.write_text(text)
        with pytest.raises(CheckpointError):
            MaskRecord.load(path)
    with pytest.raises(CheckpointError):
        MaskRecord.load(tmp_path / "none.json")
