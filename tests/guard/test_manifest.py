"""The manifest names what is frozen, round-trips, and refuses what is not one."""

import json

import pytest
import torch

from unteach.errors import DataError
from unteach.guard.enforce import enforce, load_frozen
from unteach.guard.manifest import CASTS, FreezeManifest, casts


def net() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))


def manifest(frozen=("0.weight",)) -> FreezeManifest:
    params = dict(net().named_parameters())
    scores = {name: k / 10 for k, name in enumerate(params)}
    return FreezeManifest.from_tensors(params, frozen, policy="test", scores=scores, provenance={"seed": 1})


def test_it_round_trips_and_counts(tmp_path) -> None:
    made = manifest()
    again = FreezeManifest.load(made.save(tmp_path / "manifest.json"))
    assert again == made and again.digest() == made.digest()
    assert made.frozen == ("0.weight",)
    assert made.budget == {"frozen_tensors": 1, "tensors": 4, "frozen_parameters": 12, "parameters": 26}
    assert made.tensors["0.bias"].hashes == {} and made.tensors["1.weight"].score == 0.2


def test_hashes_tell_one_bit_and_know_casts() -> None:
    value = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    flipped = value.clone()
    flipped.view(torch.int32)[1, 2] ^= 1
    assert casts(value).keys() == CASTS.keys() == casts(flipped).keys()
    assert casts(value)["float32"] != casts(flipped)["float32"]
    assert casts(value)["float16"] == casts(value.half())["float16"]
    assert casts(value)["bfloat16"] == casts(value.bfloat16())["bfloat16"]


def test_the_digest_changes_with_the_choice_and_with_the_weights() -> None:
    other = {name: p + 1 for name, p in net().named_parameters()}
    moved = FreezeManifest.from_tensors(other, ["0.weight"], policy="test")
    assert len({manifest().digest(), manifest(("0.bias",)).digest(), moved.digest()}) == 3
    assert moved.model != manifest().model


def test_enforce_reads_it(tmp_path) -> None:
    path = manifest(("1.weight", "1.bias")).save(tmp_path / "manifest.json")
    assert set(load_frozen(path)) == {"1.weight", "1.bias"}
    model = net()
    enforce(model, frozen=path)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["1.weight", "1.bias"]


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda d: d.update(format="other"), "not a freeze manifest"),
        (lambda d: d.update(version=2), "another version"),
        (lambda d: d.update(extra=1), "mistake"),
        (lambda d: d["tensors"]["0.bias"].update(frozen=True), "budget"),
        (lambda d: d["tensors"]["0.bias"].update(shape="x"), "mistake"),
    ],
)
def test_edited_files_are_refused(tmp_path, edit, what) -> None:
    path = manifest().save(tmp_path / "manifest.json")
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match=what):
        FreezeManifest.load(path)


def test_unknown_names_and_missing_files_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="only tensors that the model has"):
        manifest(("2.weight",))
    with pytest.raises(DataError):
        FreezeManifest.load(tmp_path / "none.json")
