"""The common part of the trained methods: student and teacher, batches, rates, clipping, masters."""

import math

import pytest
import torch
from tests.erase.common import CONCEPT, plain, start, weights

from unteach.core.loop import Step
from unteach.diffusion import load
from unteach.diffusion.conditioning import Conditioning
from unteach.erase import erase
from unteach.erase.ablate import Ablate
from unteach.erase.doco import DoCo
from unteach.erase.train import first_token_detached, rate, training


def step(index=0, **fields):
    return Step(index, 10, seed=3, **fields)


def test_training_puts_everything_back_even_after_an_error(model):
    before = weights(model)
    first = next(iter(model.denoiser.parameters()))
    first.requires_grad_(True)
    model.denoiser.train()
    with pytest.raises(KeyError), training(model, Ablate().selected(model)) as student:
        assert [n for n, p in model.denoiser.named_parameters() if p.requires_grad] == model.cross_attention_kv()
        assert not model.denoiser.training
        for param in student.live.values():
            param.data.add_(1)
        raise KeyError
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    assert first.requires_grad and model.denoiser.training
    assert sum(p.requires_grad for p in model.denoiser.parameters()) == 1


def test_the_teacher_is_the_original_model_while_the_student_moves(model):
    method = plain("ablate")
    with training(model, method.selected(model)) as student:
        run = start(method, model, student)
        batch = run.batch(step(), "unlearn")
        target, _ = run.prompts(batch)
        said = run.teacher(batch, target)
        assert torch.equal(run.output(batch, target), said) and not said.requires_grad
        for param in student.live.values():
            param.data.add_(0.5)
        assert torch.equal(run.teacher(batch, target), said)
        assert not torch.allclose(run.output(batch, target), said)


@pytest.mark.parametrize("start_at", [0, 1])
def test_nothing_reaches_keys_and_values_through_the_first_token(model, start_at):
    method = plain("ablate")
    with training(model, method.selected(model)) as student:
        run = start(method, model, student)
        batch = run.batch(step(), "unlearn")
        cond, _ = run.prompts(batch)
        cond = Conditioning(**{**cond.tensors(), "hidden": cond.hidden[:, start_at : start_at + 1]})
        free = run.output(batch, cond)
        grads = student.grads(free.square().mean())
        assert all(bool((g != 0).any()) for n, g in zip(student.live, grads, strict=True) if "to_v" in n)
        with first_token_detached(model):
            held = run.output(batch, cond)
            assert torch.equal(held, free)  # the values are the same
            # The position is counted inside the prompt given, so a lone later token is a first token as well.
            assert all(bool((g == 0).all()) for g in student.grads(held.square().mean()))
        both = run.output(batch, cond).square().mean()
        assert all(torch.equal(a, b) for a, b in zip(student.grads(both), grads, strict=True))


def test_later_tokens_still_learn(sd):
    method = plain("ablate")
    with training(sd, method.selected(sd)) as student, first_token_detached(sd):
        run = start(method, sd, student)
        batch = run.batch(step(), "unlearn")
        grads = student.grads(run.output(batch, run.prompts(batch)[0]).square().mean())
        assert all(bool((g != 0).any()) for g in grads)


def test_a_batch_depends_on_seed_step_and_item_alone(sd):
    method = plain("ablate", batch_size=4, images=5)
    with training(sd, method.selected(sd)) as student:
        run = start(method, sd, student)
        whole = run.batch(step(2), "unlearn")
        halves = [run.batch(step(2, rank=rank, world=2), "unlearn") for rank in (0, 1)]
        for field in ("x0", "eps", "t", "x_t"):
            assert torch.equal(torch.cat([getattr(h, field) for h in halves]), getattr(whole, field))
        assert halves[0].rows + halves[1].rows == whole.rows
        assert torch.equal(whole.x_t, sd.noise(whole.x0, whole.eps, whole.t))
        assert torch.equal(whole.x0, run.data.latents[whole.rows])
        assert not torch.equal(run.batch(step(3), "unlearn").eps, whole.eps)
        assert not torch.equal(run.batch(step(2), "retain").eps, whole.eps)


def test_data_is_used_in_whole_passes(sd):
    method = plain("ablate", batch_size=2, images=6)
    with training(sd, method.selected(sd)) as student:
        run = start(method, sd, student)
        rows = [row for index in range(6) for row in run.batch(step(index), "unlearn").rows]
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6)) and rows[:6] != rows[6:]


@pytest.mark.parametrize(
    ("low", "high", "want"), [(0.0, 1.0, (0, 999)), (0.9, 1.0, (900, 999)), (0.5, 0.5001, (500, 500))]
)
def test_timesteps_stay_in_their_range(sd, low, high, want):
    method = plain("ablate", batch_size=64, t_min=low, t_max=high)
    with training(sd, method.selected(sd)) as student:
        run = start(method, sd, student)
        t = torch.cat([run.batch(step(index), "unlearn").t for index in range(4)])
    assert want[0] <= int(t.min()) and int(t.max()) <= want[1]
    assert len(set(t.tolist())) > (want[1] - want[0]) / 10
    if want == (0, 999):
        assert int(t.min()) < 20 and int(t.max()) > 980


def test_rates():
    assert [rate(Ablate(steps=4), i) for i in range(4)] == [1.0] * 4
    warm = Ablate(steps=10, lr_warmup_steps=4)
    assert [rate(warm, i) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    cosine = DoCo(steps=12, warm_up=2, lr_warmup_steps=2, lr_schedule="cosine")
    assert [rate(cosine, i) for i in (0, 1, 2, 6)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert rate(cosine, 9) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


@pytest.mark.parametrize("clip", [0.0, 1.0, 100.0])
def test_clipping_is_by_the_global_norm(sd, clip):
    method = plain("ablate", clip=clip)
    with training(sd, method.selected(sd)) as student:
        run = start(method, sd, student)
        grads = [torch.full((3, 4), 2.0), torch.full((2,), -3.0)]
        norm = math.sqrt(12 * 4 + 2 * 9)
        clipped = run.clipped(grads)
        want = 1.0 if clip == 0 else min(1.0, clip / norm)
        for a, b in zip(clipped, grads, strict=True):
            torch.testing.assert_close(a, b * want, rtol=1e-5, atol=0)
        assert torch.equal(grads[0], torch.full((3, 4), 2.0))  # not in place


def test_the_retain_target_is_the_noise_or_the_teacher(model):
    for target in ("noise", "teacher"):
        method = plain("ablate", retain_target=target)
        with training(model, method.selected(model)) as student:
            run = start(method, model, student)
            batch = run.batch(step(), "retain")
            cond = model.encode([run.data.retain[row] for row in batch.rows])
            said = run.output(batch, cond)
            if target == "teacher":
                assert float(run.retain_loss(step()).detach()) == 0.0
            else:
                rate_a, rate_s = model.schedule.rates(batch.t, batch.x0)
                v = rate_a * batch.eps - rate_s * batch.x0
                wanted = batch.eps if model.prediction == "epsilon" else v
                torch.testing.assert_close(run.retain_loss(step()), (said - wanted).square().mean())


def test_half_precision_moves_float32_masters(folder):
    # Updates of 1e-4 are far below bfloat16's spacing at these weights; they must add up nevertheless.
    model = load(folder("sd"), dtype=torch.bfloat16)
    delta = erase(model, CONCEPT, plain("ablate", learning_rate=1e-4, steps=6, weight_decay=0.0))
    moved = torch.cat([t.flatten() for t in delta.tensors.values()])
    assert 1e-4 < float(moved.abs().max()) < 7e-4
    big = torch.cat([p.detach().flatten().float() for p in plain("ablate").selected(model).values()]).abs() > 0.2
    assert float((moved[big] != 0).float().mean()) > 0.9
    method = plain("ablate")
    with training(model, method.selected(model)) as student:
        name = next(iter(student.live))
        student.params[name].data.add_(1.0)
        assert not torch.equal(student.live[name], student.params[name].to(torch.bfloat16))
        student.refresh()
        assert torch.equal(student.live[name], student.params[name].to(torch.bfloat16))
