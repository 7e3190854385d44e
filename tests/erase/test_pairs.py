"""F1: prompts are pairs only where the model reads two different prompts, and a name that it cuts off is an error."""

import pytest
import torch
from tests import toys
from tests.erase.common import CONCEPT, quick

from unteach.diffusion import load
from unteach.diffusion.tokens import ends_of, last_tokens, limit, name_ends, read
from unteach.erase import Concept, ConceptSet, erase, methods
from unteach.erase.pairs import readable
from unteach.erase.uce import UCE
from unteach.errors import DataError

FILLER = "a red house " * 7  # 21 of the toy's 24 tokens, of which two are marks
CUT = f"{FILLER}in the style of openmoji"  # the name is cut off
SHORT = "a picture of a dog in the style of openmoji"


def concept(**more):
    return Concept(**{"target": "twemoji", "anchor": "openmoji", "kind": "style", **more})


@pytest.mark.parametrize("prompt", ["", "a dog", CUT, "A Dog,  in the STYLE of zebra!"])
def test_ids_are_those_that_the_encoders_read(model, prompt):
    seen = []
    for encoder in model.conventions.tokenizers.values():
        module = getattr(model.pipe, encoder)
        module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(tuple((args or (kwargs["input_ids"],))[0][0].tolist())),
            with_kwargs=True,
        )
    model.forget_prompts()
    model.encode([prompt])
    assert read(model, prompt) == tuple(seen)
    assert {len(ids) for ids in seen} == {limit(model)} == {toys.LENGTH}


def test_f1_a_long_caption_is_no_pair(model):
    found = readable(model, ConceptSet.of(concept(captions=(CUT, SHORT))))
    assert found.concepts[0].captions == (SHORT,) and found.captions == 1
    assert found.left_out == ("'twemoji': of 2 captions left out: 1 with the same prompt twice, as the model reads it",)
    pair = concept(captions=(CUT,)).pairs()[0]
    assert torch.equal(model.encode([pair.anchor]).hidden, model.encode([pair.target]).hidden)


@pytest.mark.parametrize("name", methods)
def test_f1_no_method_runs_when_no_pair_is_left(sd, name, tmp_path):
    before = toys.weights(sd)
    for lost in ({"captions": (CUT,)}, {"prompts": (CUT.replace("openmoji", "{}"),)}):
        with pytest.raises(DataError, match=r"no prompt pair of 'twemoji' is left.*1 with the same.*24 tokens"):
            erase(sd, concept(**lost), quick(name), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(before[key], value) for key, value in toys.weights(sd).items())


@pytest.mark.parametrize("name", methods)
def test_f1_what_is_left_out_does_not_change_the_result(sd, name):
    ways = ((CUT, SHORT), (SHORT,))
    deltas = [erase(sd, concept(captions=way), quick(name), seed=1) for way in ways]
    assert deltas[0].meta["concepts"] == deltas[1].meta["concepts"] and deltas[0].meta["concepts"][0]["captions"] == [
        SHORT
    ]
    assert all(torch.equal(deltas[0].tensors[key], value) for key, value in deltas[1].tensors.items())


def test_f1_a_name_of_which_a_piece_is_read_is_left_out(sd):
    # "openmoji" is one token; of "zebra zebra" only the beginning is read, so the prompts differ.
    half = concept(target="zebra zebra", prompts=("a red house " * 6 + "a {}", "a {} dog"))
    pair = half.pairs()[0]
    assert read(sd, pair.anchor) != read(sd, pair.target)
    found = readable(sd, ConceptSet.of(half))
    assert found.concepts[0].prompts == ("a {} dog",) and found.captions == 0
    assert "1 with a name cut off after the 24 tokens that the model reads" in found.left_out[0]
    with pytest.raises(DataError, match=r"does not read the whole of 'zebra zebra' in 'a red.*it reads 24 tokens"):
        UCE().states(sd, pair.target, "zebra zebra")


def test_f1_default_templates_that_are_left_out_do_not_come_back(sd):
    long = concept(target=" ".join(["twemoji"] * 18), anchor=" ".join(["openmoji"] * 18))
    found = readable(sd, ConceptSet.of(long))
    assert 0 < len(found.concepts[0].prompts) < len(long.templates())
    assert set(found.concepts[0].prompts) < set(long.templates())


def test_nothing_is_left_out_of_what_is_read(model):
    concepts = ConceptSet.of([CONCEPT, concept(target="bomb", anchor="dog", prompts=("two {}s in a house",))])
    found = readable(model, concepts)
    assert found.concepts is concepts and found.left_out == ()


def test_f1_a_prompt_to_keep_that_reads_as_one_to_erase_is_left_out(sd):
    asked = concept(prompts=("a {} dog",), retain=("A  Twemoji dog", "a cat"))
    found = readable(sd, ConceptSet.of(asked))
    assert found.concepts[0].retain == ("a cat",)
    assert "1 of 2 prompts to keep left out: a prompt to erase, as the model reads it" in found.left_out[0]
    with pytest.raises(DataError, match="all prompts to keep are prompts to erase"):
        readable(sd, ConceptSet.of(concept(prompts=("a {} dog",), retain=("A  Twemoji dog",))))


def test_f1_positions_come_from_the_ids_that_are_read(sd):
    assert name_ends(sd, "a twemoji dog", "twemoji") == (2,)
    assert name_ends(sd, f"a twemoji dog {CUT} twemoji", "twemoji") == (2,)  # the last mention that is read
    assert name_ends(sd, "two twemojis", "twemoji") == last_tokens(sd, "two twemojis")
    assert name_ends(sd, CUT, "openmoji") is None
    assert ends_of(sd, "a twemoji dog", len("a twe")) is None
    assert last_tokens(sd, CUT) == (limit(sd) - 2,)
    with pytest.raises(DataError, match="are the same prompt to the model"):
        UCE().edits(sd, concept(target="Twemoji!", anchor="twemoji !", prompts=("a {}",)))


def test_words_of_a_textual_inversion_are_read_as_their_vectors(folder):
    model = load(folder("sd"))
    model.pipe.tokenizer.add_tokens(["<new>", "<new>_1"])
    model.pipe.text_encoder.resize_token_embeddings(len(model.pipe.tokenizer), mean_resizing=False)
    seen = []
    model.pipe.text_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple((args or (kwargs["input_ids"],))[0][0].tolist())), with_kwargs=True
    )
    model.encode(["a <new> dog"])
    assert read(model, "a <new> dog") == (seen[0],)
    assert name_ends(model, "a <new> dog", "dog") == (4,)
