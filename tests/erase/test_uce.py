"""UCE's closed form against a dense least-squares solution, and which text states it edits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.erase.common import CONCEPT

from unteach.erase import Concept, erase
from unteach.erase.uce import UCE, last_tokens, solve
from unteach.errors import ModelError


def objective(new, old, c_e, v_e, c_p, lam, s_e, s_p):
    """What UCE minimises, for one matrix (erasure §6)."""
    return (
        s_e * (c_e @ new.T - v_e).square().sum()
        + s_p * (c_p @ new.T - c_p @ old.T).square().sum()
        + lam * (new - old).square().sum()
    )


@given(
    st.integers(1, 6),
    st.integers(0, 5),
    st.integers(2, 7),
    st.floats(1e-3, 10),
    st.floats(0.1, 3),
    st.floats(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_it_is_the_dense_least_squares_solution(n, p, width, lam, s_e, s_p):
    draw = torch.Generator().manual_seed(n * 1000 + p * 100 + width)
    c_e, c_g, c_p, old = (torch.randn(k, width, generator=draw, dtype=torch.float64) for k in (n, n, p, 3))
    new = old + old @ solve(c_e, c_g, c_p, lam=lam, s_e=s_e, s_p=s_p)
    v_e = c_g @ old.T
    eye = torch.eye(width, dtype=torch.float64)
    rows = torch.cat([s_e**0.5 * c_e, s_p**0.5 * c_p, lam**0.5 * eye])
    wanted = torch.cat([s_e**0.5 * v_e, s_p**0.5 * c_p @ old.T, lam**0.5 * old.T])
    torch.testing.assert_close(new, torch.linalg.lstsq(rows, wanted).solution.T, rtol=1e-7, atol=1e-9)
    point = new.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(objective(point, old, c_e, v_e, c_p, lam, s_e, s_p), point)
    assert float(slope.abs().max()) < 1e-8 * (1 + float(rows.square().sum()) * float(old.abs().max()))


def test_a_small_lambda_meets_the_wish_exactly():
    draw = torch.Generator().manual_seed(0)
    c_e, c_g, c_p, old = (torch.randn(k, 16, generator=draw, dtype=torch.float64) for k in (3, 3, 5, 4))
    new = old + old @ solve(c_e, c_g, c_p, lam=1e-9, s_e=1.0, s_p=1.0)
    torch.testing.assert_close(c_e @ new.T, c_g @ old.T, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(c_p @ new.T, c_p @ old.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tokens", ["last", "all_following"])
def test_every_matrix_of_a_model_is_the_minimiser(model, tokens):
    method = UCE(tokens=tokens, lam=0.2, retain_scale=0.7, kept_words=0, contexts=0, balance=False)
    delta = erase(model, CONCEPT, method)
    c_e, c_g = (torch.cat(side) for side in zip(*method.edits(model, CONCEPT), strict=True))
    c_p = torch.cat([method.states(model, prompt, prompt) for prompt in CONCEPT.retain])
    for name, change in delta.tensors.items():
        old = model.denoiser.get_parameter(name).detach().double()
        new = (old + change.double()).requires_grad_(True)
        loss = objective(new, old, c_e, c_g @ old.T, c_p, 0.2, 1.0, 0.7)
        (slope,) = torch.autograd.grad(loss, new)
        (start,) = torch.autograd.grad(
            objective(old.requires_grad_(True), old.detach(), c_e, (c_g @ old.T).detach(), c_p, 0.2, 1.0, 0.7),
            old,
        )
        assert float(slope.norm()) < 1e-5 * float(start.norm())


def test_the_target_gets_the_anchors_values(model):
    concept = Concept(target="twemoji", anchor="openmoji", retain=("dog", "car"))
    method = UCE(lam=1e-6, tokens="last", templates=False, kept_words=0, contexts=0, balance=False)
    name = model.cross_attention_kv()[0]
    with torch.no_grad(), erase(model, concept, method).apply(model):
        new = model.denoiser.get_parameter(name).double()
        target = method.states(model, "twemoji", "twemoji") @ new.T
        kept = method.states(model, "dog", "dog") @ new.T
    old = model.denoiser.get_parameter(name).detach().double()
    torch.testing.assert_close(target, method.states(model, "openmoji", "openmoji") @ old.T, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kept, method.states(model, "dog", "dog") @ old.T, rtol=1e-3, atol=1e-3)


def test_which_token_is_the_last(model):
    read = model.pipe.tokenizer
    ids = read("a twemoji dog").input_ids
    assert read.convert_ids_to_tokens(ids)[1:-1] == ["a</w>", "twemoji</w>", "dog</w>"]
    assert [last_tokens(model, text) for text in ("", "a", "a twemoji", "a twemoji dog")] == [(0,), (1,), (2,), (3,)]
    assert last_tokens(model, "dog " * 100) == (read.model_max_length - 2,)


def test_states_of_a_name_inside_its_prompt(model):
    hidden = model.encode(["a twemoji dog"]).hidden[0].double()
    last, following = UCE(tokens="last"), UCE(tokens="all_following")
    assert torch.equal(last.states(model, "a twemoji dog", "twemoji"), hidden[2:3])
    assert torch.equal(following.states(model, "a twemoji dog", "twemoji"), hidden[2:])
    assert torch.equal(last.states(model, "a twemoji dog", "a twemoji dog"), hidden[3:4])
    assert torch.equal(last.states(model, "", ""), model.encode([""]).hidden[0, :1].double())


def test_edits_are_aligned_at_the_name(model):
    length = len(model.encode(["dog"]).hidden[0])
    concept = Concept(target="red dog", anchor="cat", prompts=("a {} in the house",))
    bare, inside = UCE().edits(model, concept)
    # "red dog" ends at position 2, "cat" at 1; in the prompt at 3 and 2: a longer beginning leaves fewer.
    assert [len(side) for side in (*bare, *inside)] == [length - 2, length - 2, length - 3, length - 3]
    target, anchor = (model.encode([f"a {name} in the house"]).hidden[0].double() for name in ("red dog", "cat"))
    assert torch.equal(inside[0], target[3:]) and torch.equal(inside[1], anchor[2:-1])
    assert len(UCE(templates=False).edits(model, concept)) == 1
    (guided,) = UCE(templates=False, tokens="last", guide="").edits(model, concept)
    assert torch.equal(guided[1], model.encode([""]).hidden[0, :1].double())


def test_a_name_in_several_pieces_ends_at_its_last_piece(sd):
    # Not in the vocabulary as one token.
    pieces = len(sd.pipe.tokenizer("zebra").input_ids) - 2
    assert pieces > 1
    assert last_tokens(sd, "a zebra") == (1 + pieces,)
    hidden = sd.encode(["a zebra dog"]).hidden[0].double()
    assert torch.equal(UCE(tokens="last").states(sd, "a zebra dog", "zebra"), hidden[1 + pieces : 2 + pieces])


def test_more_retaining_moves_the_kept_states_less(sd):
    moved = []
    for scale in (0.0, 1.0, 100.0):
        method = UCE(retain_scale=scale, kept_words=0, contexts=0)
        change = next(iter(erase(sd, CONCEPT, method).tensors.values())).double()
        kept = torch.cat([method.states(sd, prompt, prompt) for prompt in CONCEPT.retain])
        moved.append(float((kept @ change.T).norm()))
    assert moved[0] > moved[1] > moved[2]


def test_balance_only_weighs(sd):
    """The sum of the docstring, with the weights and the λ that ``balance`` says."""
    method = UCE(kept_words=0, contexts=0, lam=0.3)
    c_e, c_g = (torch.cat(side) for side in zip(*method.edits(sd, CONCEPT), strict=True))
    c_p = torch.cat([sd.encode([prompt]).hidden[0, 1:].double() for prompt in CONCEPT.retain])
    # The bare name and two prompts; three prompts to keep.
    edit = solve(c_e, c_g, c_p, lam=0.3 * float(c_e.square().mean()), s_e=64 / 3, s_p=240 / 3)
    for name, change in erase(sd, CONCEPT, method, check=False).tensors.items():
        old = sd.denoiser.get_parameter(name).detach().double()
        torch.testing.assert_close(change.double(), old @ edit, rtol=1e-5, atol=1e-6)


def test_other_tensors_are_refused(sd):
    with pytest.raises(ModelError, match=r"UCE can only edit keys and values.*attn1"):
        erase(sd, CONCEPT, UCE(train=(r".*attn1\.to_k\.weight",)))
