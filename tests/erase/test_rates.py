"""Rates that fit the tensors, and training that ends when the concept is erased."""

import math

import pytest
import torch
from tests.erase.common import CONCEPT, plain, quick, same, start
from torch import nn

from unteach.core.events import Steps
from unteach.erase import Check, ConceptSet, erase, make
from unteach.erase.train import fitted, training


def matrices(scale=1.0):
    """Keys and values as diffusers starts them at the size of Stable Diffusion 1.4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {str(n): nn.Linear(768, n, bias=False).weight.detach() * scale for n in (320, 640, 1280)}


def test_at_stable_diffusions_size_they_are_the_published_ones():
    """Concept Ablation: 1.6e-5, DoCo: 4.8e-5 (rate × batch of the authors' scripts); here from the tensors alone."""
    for rate in fitted(matrices(), make("doco").pace).values():
        assert 1.6e-5 < rate < 4.8e-5


def test_tensors_ten_times_larger_get_ten_times_the_rate():
    small, large = fitted(matrices(), 0.05), fitted(matrices(10.0), 0.05)
    assert all(math.isclose(large[name], 10 * small[name], rel_tol=1e-5) for name in small)


def test_one_update_moves_an_output_by_about_the_pace():
    """The reasoning of the docstring: every number moves by the rate, in the direction that adds up."""
    weight = matrices()["640"]
    rate = fitted({"w": weight}, 0.05)["w"]
    inputs = torch.randn(768, generator=torch.Generator().manual_seed(1))
    moved = (rate * inputs.sign() @ inputs).abs() / (weight @ inputs).square().mean().sqrt()
    assert 0.03 < float(moved) < 0.06


def test_vectors_and_zeros_get_the_median_of_the_rest():
    found = fitted({**matrices(), "bias": torch.ones(320), "zero": torch.zeros(8, 8)}, 0.05)
    assert found["bias"] == found["zero"] == sorted(found[n] for n in ("320", "640", "1280"))[1]
    assert 0 < fitted({"bias": torch.ones(5)}, 0.05)["bias"] < 0.05
    assert fitted({"zero": torch.zeros(3)}, 0.05)["zero"] > 0


@pytest.mark.parametrize("lr", [None, 2e-3])
def test_the_first_update_moves_by_the_rate(sd, lr):
    method = plain("ablate", learning_rate=lr, steps=1, weight_decay=0.0)
    with training(sd, method.selected(sd)) as student:
        rates = fitted(student.before, method.pace)
    for name, change in erase(sd, CONCEPT, method, check=False).tensors.items():
        assert math.isclose(float(change.abs().max()), rates[name] if lr is None else lr, rel_tol=0.01)


def test_a_rate_given_is_one_group_as_before(sd):
    method = plain("ablate", learning_rate=3e-3)
    with training(sd, method.selected(sd)) as student:
        (group,) = start(method, sd, student).optimizer.param_groups
        assert group["lr"] == 3e-3
        assert [g["lr"] for g in method.groups(student)] == [3e-3]
        assert len(plain("ablate", learning_rate=None).groups(student)) == len(student.params)


STOPS = {"steps": 60, "batch_size": 4, "images": 16, "retain_images": 8, "learning_rate": None}


def test_training_ends_when_the_concept_is_erased_and_resumes_to_the_bit(sd, tmp_path):
    blind = erase(sd, CONCEPT, quick("ablate", **STOPS), seed=5)
    assert blind.meta["steps_taken"] == 60
    # A model of random weights goes only a part of the way, which depends on its draw: end at half of that.
    reached = Check.of(sd, ConceptSet.of(CONCEPT), 1).measure(blind).concepts[0].towards
    assert reached > 0.01
    stops = STOPS | {"look_every": 10, "erased_at": reached / 2}
    whole = erase(sd, CONCEPT, quick("ablate", **stops), seed=5)
    taken = whole.meta["steps_taken"]
    assert 0 < taken < 60 and taken % 10 == 0

    class Stop(Exception):
        pass

    def stop(done):
        if done == taken - 2:
            raise Stop

    with pytest.raises(Stop):
        erase(sd, CONCEPT, quick("ablate", **stops), seed=5, out=tmp_path, save_every=3, events=Steps(stop, "ablate"))
    again = erase(sd, CONCEPT, quick("ablate", **stops), seed=5, out=tmp_path, save_every=3)
    assert same(again, whole) and again.meta == whole.meta
    # Without looking, the training went on from the same weights.
    assert not same(blind, whole)
