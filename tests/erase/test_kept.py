"""Prompts to keep that nobody wrote: from the model's own words, never the concepts', recorded, and off on request."""

import dataclasses

import pytest
import torch
from tests import toys
from tests.erase.common import CONCEPT, quick, same
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unteach.core import state
from unteach.diffusion import load
from unteach.erase import Concept, ConceptSet, Job, erase, kept, methods
from unteach.erase.method import make

SET = ConceptSet.of(dataclasses.replace(CONCEPT, names=("blue",)))
OFFICIAL = ("uce-official", "uce-plain", "ablate-paper", "doco-paper", "doco-official-2024-11", "doco-official-2024-10")


def test_words_are_the_tokenizers_own_without_the_concepts_names(sd):
    found = kept.words(sd, SET)
    assert {"dog", "noto", "picture", "house"} <= set(found)
    assert not {"twemoji", "openmoji", "blue", "a", "in"} & set(found)
    assert not {"emoji", "moji", "enmoji", "lue"} & set(found)  # ends of names


def test_prompts_are_a_function_of_the_seed_and_name_nothing_that_goes(sd):
    first = kept.prompts(sd, SET, 40, 3)
    assert len(first) == len(set(first)) == 40 and first == kept.prompts(sd, SET, 40, 3)
    assert kept.prompts(sd, SET, 10, 3) == first[:10]
    assert first != kept.prompts(sd, SET, 40, 4)
    assert all(1 <= len(prompt.split()) <= 5 for prompt in first)
    assert not {"twemoji", "openmoji", "blue"} & {word for prompt in first for word in prompt.split()}
    assert first[0] not in kept.prompts(sd, SET, 40, 3, avoid=first[:1])
    assert kept.prompts(sd, SET, 0, 3) == []


@pytest.mark.parametrize("mark", ["▁", "Ġ"])
def test_other_tokenizers_mark_words_at_their_beginning(sd, mark):
    words = [f"{mark}{word}" for word in ("dog", "house", "river", "bomb", "balloon", "an")]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *words, "tail"])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement=mark)
    sd.pipe.tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", pad_token="<unk>")
    sd.pipe.tokenizer.model_max_length = 8
    assert kept.words(sd, ConceptSet.of(Concept(target="bomb", anchor="balloon"))) == ["dog", "house", "river"]


def test_without_whole_words_captions_stand_in(sd, tmp_path):
    letters = toys.tokenizer(tmp_path)
    vocabulary = {t: i for t, i in letters.get_vocab().items() if len(t.removesuffix("</w>")) == 1 or t.startswith("<")}
    made = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    sd.pipe.tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<|endoftext|>", pad_token="<|endoftext|>", model_max_length=77
    )
    assert kept.words(sd, SET) == []
    dogs = ConceptSet.of(Concept(target="cat", anchor="dog"))
    found = kept.prompts(sd, dogs, 240, 0)
    assert len(found) > 20 and set(found) <= set(kept.CAPTIONS)
    assert not any("cat" in prompt.split() for prompt in found)


def test_contexts_put_words_around_the_name_alone(sd):
    found = kept.contexts(sd, SET, SET[0], 30, 3)
    assert len(found) == len(set(found)) == 30 and found == kept.contexts(sd, SET, SET[0], 30, 3)
    assert found != kept.contexts(sd, SET, SET[0], 30, 4) and kept.contexts(sd, SET, SET[0], 0, 3) == []
    for pair in found:
        assert pair.target.split().count("twemoji") == 1 and "openmoji" not in pair.target and "blue" not in pair.target
        assert pair.anchor == pair.target.replace("twemoji", "openmoji")
    job = Job(model=sd, concepts=SET, seed=3)
    assert job.pairs(30) == [*SET.pairs(), *found] and job.pairs(0) == SET.pairs()


def test_all_methods_keep_them_after_the_users_own(sd):
    job = Job(model=sd, concepts=ConceptSet.of(CONCEPT), seed=5)
    own, words = list(CONCEPT.retain), job.kept(7)
    assert len(words) == 7 and not set(own) & set(words)
    for name in methods:
        assert quick(name, kept_words=7).retained(job) == [*own, *words]
        assert quick(name, kept_words=0).retained(job) == own
        assert methods[name]().kept_words == 240


def test_enough_prompts_of_the_users_own_are_the_training_data(sd):
    """The bundled model's concepts bring more prompts than pictures are drawn: nothing changes for them."""
    pictures = {"retain_images": len(CONCEPT.retain), "images": 2, "contexts": 0}
    on, off = (erase(sd, CONCEPT, quick("doco", kept_words=n, **pictures), check=False) for n in (6, 0))
    assert same(on, off)


def test_none_of_the_users_own(sd):
    bare = Job(model=sd, concepts=ConceptSet.of(dataclasses.replace(CONCEPT, retain=())), seed=5)
    assert quick("uce", kept_words=0).retained(bare) == []  # the closed form of the paper keeps what it is told
    anchors = ["an openmoji dog", "openmoji cat"]
    assert quick("doco", kept_words=3).retained(bare) == [*anchors, *bare.kept(3)]


@pytest.mark.parametrize("name", methods.names())
def test_count_and_digest_are_recorded(sd, name):
    meta = erase(sd, CONCEPT, quick(name, kept_words=7, contexts=3), seed=5, check=False).meta
    job = Job(model=sd, concepts=ConceptSet.of(CONCEPT), seed=5)
    assert meta["kept"] == {"prompts": 7, "digest": state.fingerprint({"prompts": job.kept(7)})}
    around = [pair.target for pair in job.contexts(job.concepts[0], 3)]
    assert meta["contexts"] == {"prompts": 3, "digest": state.fingerprint({"prompts": around})}
    meta = erase(sd, CONCEPT, quick(name, kept_words=0, contexts=0), seed=5, check=False).meta
    assert "kept" not in meta and "contexts" not in meta


def test_the_papers_presets_have_none_and_a_rate_of_their_own():
    for name in OFFICIAL:
        method = make(name)
        assert method.kept_words == 0 and method.contexts == 0
        assert methods.presets[name][0] == "uce" or (method.learning_rate is not None and method.look_every == 0)


@pytest.mark.parametrize("name", methods.names())
def test_a_model_of_other_units_is_erased_alike(name, folder):
    """Text states ÷ 10 and the matrices that read them × 10: the same function, so the same relative change."""
    plain, scaled = load(folder("sd")), load(folder("sd"))
    with torch.no_grad():
        norm = next(m for n, m in scaled.pipe.text_encoder.named_modules() if n.endswith("final_layer_norm"))
        norm.weight.div_(10)
        norm.bias.div_(10)
        for key in scaled.cross_attention_kv():
            scaled.denoiser.get_parameter(key).mul_(10)
    settings = {"kept_words": 7} | ({} if name == "uce" else {"learning_rate": None, "clip": 0.0, "weight_decay": 0.0})
    a, b = (erase(model, CONCEPT, quick(name, **settings), seed=5, check=False) for model in (plain, scaled))
    for key, change in a.tensors.items():
        assert float(change.norm()) > 0
        # Adam turns the rounding of a gradient near zero into a whole step: a few numbers may differ.
        assert float((b.tensors[key] / 10 - change).norm()) < 0.1 * float(change.norm())


def test_kept_words_hold_what_nobody_named(sd):
    """The closed form: states of prompts that are not among them move less with than without."""
    moved = {}
    for count in (0, 60):
        delta = erase(sd, dataclasses.replace(CONCEPT, retain=()), quick("uce", kept_words=count), check=False)
        hidden = sd.encode(["red house", "a photo of a car", "mono apple icon"]).hidden.flatten(0, 1)
        key, change = next(iter(delta.tensors.items()))
        moved[count] = float((hidden @ change.T).norm() / (hidden @ sd.denoiser.get_parameter(key).T).norm())
    assert moved[60] < 0.5 * moved[0]
    on, off = (erase(sd, CONCEPT, quick("uce", kept_words=n), check=False) for n in (6, 0))
    assert not same(on, off)


def test_u2_too_few_prompts_are_told() -> None:
    assert kept.few(1, 258, 240) == [] and len(kept.few(2, 20, 39)) == 2
    (pairs,) = kept.few(1, 2, 240)
    assert "only 2 prompt pairs" in pairs and "'contexts'" in pairs
    (keep,) = kept.few(1, 100, 0)
    assert "only 0 prompts to keep" in keep and "'kept_words'" in keep
