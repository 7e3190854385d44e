"""Did it work, and what did it hurt? The check that ends every erasure (U2), on real toy pipelines."""

import dataclasses
import json
import logging

import pytest
import torch
from tests import toys
from tests.erase.common import CONCEPT, quick, same, weights

from unteach.canvas import concepts as canvas
from unteach.canvas import model_path
from unteach.diffusion import Model, WeightDelta, load
from unteach.diffusion.tokens import read
from unteach.erase import Check, Concept, ConceptSet, erase
from unteach.erase.check import effect, familiar, natural_spread, nearest, vocabulary

SET = ConceptSet.of(CONCEPT)


def embedding(model: Model) -> torch.nn.Embedding:
    found = model.pipe.text_encoder.get_input_embeddings()
    assert isinstance(found, torch.nn.Embedding)
    return found


def say_alike(model: Model, target: str, anchor: str) -> None:
    """From now on the model reads ``target`` as if it were ``anchor``; each is one token to the toys."""
    table, tokens = embedding(model).weight, model.pipe.tokenizer
    with torch.no_grad():
        table[tokens(target).input_ids[1]] = table[tokens(anchor).input_ids[1]]
    model.forget_prompts()


def test_a_delta_of_zero_gives_zeros_and_nothing_happened(model: Model) -> None:
    check, before = Check.of(model, SET, 1), weights(model)
    none = toys.change(model, size=0.0)
    for found in (check.measure(), check.measure(none)):
        (one,) = found.concepts
        assert (one.towards, one.left, one.moved, found.rest) == (0.0, 1.0, 0.0, 0.0)
        assert one.prompts == 32 and found.prompts == 48 and one.apart > 0.01
        assert found.verdict == "nothing happened" and not found.good
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_the_exact_substitution_of_the_anchor_gives_one(sd: Model) -> None:
    check = Check.of(sd, SET, 1)
    say_alike(sd, "twemoji", "openmoji")
    found = check.measure()
    (one,) = found.concepts
    assert one.towards == pytest.approx(1, abs=1e-4) and one.left == pytest.approx(0, abs=1e-6)
    assert found.rest == 0.0 and found.verdict == "erased, the rest kept" and found.good


def test_another_name_than_the_anchor_is_gone_but_not_the_anchor(sd: Model) -> None:
    check = Check.of(sd, SET, 1)
    table = embedding(sd).weight
    with torch.no_grad():  # to the toy this word is now like nothing it knows
        table[sd.pipe.tokenizer("twemoji").input_ids[1]] = -3 * table[sd.pipe.tokenizer("apple").input_ids[1]]
    sd.forget_prompts()
    found = check.measure()
    assert found.verdict == "gone, but not the anchor, the rest kept" and found.rest == 0.0


def test_random_damage_hurts_the_rest(model: Model) -> None:
    found = Check.of(model, SET, 1).measure(toys.change(model, size=1.0))
    assert not found.kept and found.rest > 0.7 and found.concepts[0].outcome == "gone"
    assert found.verdict == "gone, but not the anchor, the rest hurt"


def test_outputs_that_are_not_finite_are_numbers_that_a_record_can_hold(sd: Model) -> None:
    check = Check.of(sd, SET, 1)
    with torch.no_grad():
        next(sd.denoiser.parameters()).fill_(torch.inf)
    found = check.measure()
    assert found.verdict == "gone, but not the anchor, the rest hurt"
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_names_that_the_model_does_not_tell_apart_are_undecided(sd: Model) -> None:
    say_alike(sd, "twemoji", "openmoji")
    found = Check.of(sd, SET, 1).measure(toys.change(sd, size=0.01))
    assert found.concepts[0].apart == 0.0 and found.verdict.startswith("undecided") and not found.good
    # Not even the tokens differ: there is no prompt to ask.
    long = Concept(target="dog " * 40 + "cat", anchor="dog " * 40 + "apple", prompts=("{}",), retain=("a car",))
    found = Check.of(sd, ConceptSet.of(long), 1).measure()
    assert found.concepts[0].prompts == 0 and found.verdict.startswith("undecided")


def test_the_numbers_are_what_they_say() -> None:
    t, a = torch.zeros(3, 4, 2, 2), torch.ones(3, 4, 2, 2)
    half = effect(CONCEPT, t, a, 0.5 * a, spread=2.0)
    assert (half.towards, half.left, half.moved, half.apart) == (0.5, 0.25, 0.25, 0.5)
    aside = torch.ones(3, 4, 2, 2) * torch.tensor([1.0, -1.0])  # at right angles to the way
    off = effect(CONCEPT, t, a, aside, spread=2.0)
    assert (off.towards, off.left, off.moved) == (0.0, 2.0, 1.0)
    # Two prompts a noise, a distance of 2 apart in every number, and noises that differ by 100.
    outputs = torch.tensor([0.0, 100.0, 2.0, 102.0]).view(4, 1)
    assert natural_spread(outputs, 2) == 4.0
    slow = [
        (outputs[i] - outputs[j]).square().mean() for i in range(4) for j in range(4) if i != j and (i - j) % 2 == 0
    ]
    assert natural_spread(outputs, 2) == pytest.approx(float(torch.stack(slow).mean()))
    # To the next output of another prompt from the same noise: 0 to 2, 2 to 0 and 5 to 2; 100 and 103.
    assert nearest(torch.tensor([0.0, 100.0, 2.0, 103.0, 5.0]).view(5, 1), 2).tolist() == [4.0, 9.0, 4.0, 9.0, 9.0]


def test_the_check_asks_about_words_that_the_model_tells_apart(sd: Model) -> None:
    words = vocabulary(sd, SET, 1)
    known, unknown = words[:10], words[10:]
    assert len(unknown) > len(known)
    for word in unknown[1:]:
        say_alike(sd, word, unknown[0])
    found = familiar(sd, words)
    assert set(found) <= set(known) and len(found) >= 8
    assert found == [word for word in words if word in found]


def test_no_prompt_of_the_check_was_trained_on_or_kept(model: Model) -> None:
    first = Check.of(model, SET, 1)
    # A concept that trains on, and keeps, just what the check would have asked.
    busy = dataclasses.replace(
        CONCEPT,
        prompts=tuple(prompt.replace("twemoji", "{}") for prompt in first.targets[0][:8]),
        retain=first.rest[:8],
    )
    check = Check.of(model, ConceptSet.of(busy), 1, avoid=first.rest[8:16])
    known = [p for pair in busy.pairs() for p in (pair.target, pair.anchor)] + list(first.rest[:16])
    asked = [*check.targets[0], *check.anchors[0], *check.rest]
    assert {read(model, p) for p in known}.isdisjoint(read(model, p) for p in asked)
    assert len(check.targets[0]) == 32 and len(check.rest) == 48
    assert not any(name in prompt for prompt in check.rest for name in ("twemoji", "openmoji"))
    # A function of the seed, which another one changes.
    assert Check.of(model, SET, 1).targets == first.targets != Check.of(model, SET, 2).targets
    words = vocabulary(model, SET, 1)
    assert {"dog", "car", "noto"} <= set(words) and not {"twemoji", "openmoji", "moji"} & set(words)


def test_erase_returns_what_it_found_and_warns(sd: Model, tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="unteach"):
        delta = erase(sd, CONCEPT, quick("ablate", learning_rate=1e-7), out=tmp_path)
    assert delta.check is not None and delta.check.verdict == "nothing happened"
    assert "the erasure was checked: nothing happened; twemoji → openmoji: nothing happened (0 %" in caplog.text
    path = tmp_path / "delta.safetensors"
    whole, loaded = path.read_bytes(), WeightDelta.load(path)
    assert loaded.check == delta.check
    # The finished one is read back, and not written anew.
    assert erase(sd, CONCEPT, quick("ablate", learning_rate=1e-7), out=tmp_path).check == delta.check
    assert path.read_bytes() == whole
    # One that was made without a check (or by an older version) gets one, and ends with the same bits.
    bare = {key: value for key, value in loaded.meta.items() if key not in ("check", "prompts")}
    dataclasses.replace(loaded, meta=bare).save(path)
    again = erase(sd, CONCEPT, quick("ablate", learning_rate=1e-7), out=tmp_path)
    assert again.check == delta.check and path.read_bytes() == whole
    unchecked = erase(sd, CONCEPT, quick("ablate", learning_rate=1e-7), check=False)
    assert unchecked.check is None and same(unchecked, delta)
    # What was found of the whole is not said of a part.
    assert delta.scaled(0.5).check is None and delta.scaled(1.0).check == delta.check


def test_the_bundled_model_is_told_erased_from_nothing_and_from_damage() -> None:
    model = load(model_path())
    concept = canvas.concept("apple")
    good = erase(model, concept, "uce", seed=3)
    assert good.check is not None and good.check.verdict == "erased, the rest kept"
    check = Check.of(model, ConceptSet.of(concept), 4)
    assert check.measure(good.scaled(0.05)).verdict == "nothing happened"
    careless = dataclasses.replace(concept, retain=())
    hurt = erase(model, careless, "uce-plain", check=False)
    assert check.measure(hurt).verdict.endswith("the rest hurt")
