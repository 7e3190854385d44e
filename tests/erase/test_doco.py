"""DoCo: the discriminator, the two players' step against the formulas (doco §6), warm-up, leak."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from tests.erase.common import CONCEPT, plain, start
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from unteach.core import seeds
from unteach.core.events import Steps
from unteach.core.loop import Step
from unteach.core.masks import select
from unteach.diffusion.families import StableDiffusion
from unteach.erase import erase
from unteach.erase.doco import Discriminator, Game
from unteach.erase.train import first_token_detached, training


def test_it_trains_32_tensors_of_stable_diffusion_1():
    """§6.1: 19,169,280 parameters, 2.23 % of the U-Net; on the meta device nothing is allocated."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    chosen = select(unet, [StableDiffusion.cross_attention_kv])
    assert len(chosen) == 32 and sum(p.numel() for p in chosen.values()) == 19_169_280
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964


def test_the_discriminator_is_the_papers_at_its_size():
    """§6.2."""
    d = Discriminator((4, 64, 64))
    assert sum(p.numel() for p in d.parameters()) == 2_767_553
    assert d(torch.randn(2, 4, 64, 64)).shape == (2, 1, 3, 3)
    convs = [m for m in d if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0], c.padding[0]) for c in convs] == [
        (64, 4, 2, 1),
        (128, 4, 2, 1),
        (256, 4, 2, 1),
        (512, 4, 2, 1),
        (1, 4, 1, 1),
    ]
    assert all(c.bias is not None for c in convs)
    assert [type(m) for m in d if not isinstance(m, nn.Conv2d)] == [nn.LeakyReLU] + [
        nn.BatchNorm2d,
        nn.LeakyReLU,
    ] * 3
    assert {m.negative_slope for m in d if isinstance(m, nn.LeakyReLU)} == {0.2}


@pytest.mark.parametrize(
    ("shape", "strides", "logits"),
    [
        ((24, 8, 8), [2, 1, 1], 3),
        ((4, 8, 8), [2, 1, 1], 3),
        ((4, 4, 4), [2, 1, 1], 1),
        ((4, 16, 16), [2, 2, 1], 3),
        ((16, 32, 32), [2, 2, 2, 1], 3),
        ((4, 32, 64), [2, 2, 2, 1], 3),
        ((4, 128, 128), [2, 2, 2, 2, 1], 7),
    ],
)
def test_it_fits_other_latents(shape, strides, logits):
    d = Discriminator(shape, width=8)
    assert [m.stride[0] for m in d if isinstance(m, nn.Conv2d)] == strides
    out = d(torch.randn(2, *shape))
    assert out.shape[:3] == (2, 1, logits)
    grads = torch.autograd.grad(out.square().mean(), list(d.parameters()))
    assert all(bool(torch.isfinite(g).all()) for g in grads)


def test_its_weights_are_pytorchs_default_drawn_from_the_seed():
    torch.manual_seed(11)
    want = nn.Conv2d(4, 8, 4, 2, padding=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    made = Discriminator((4, 8, 8), 8, seed=11)
    assert torch.equal(made[0].weight, want.weight) and torch.equal(made[0].bias, want.bias)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    assert not torch.equal(Discriminator((4, 8, 8), 8, seed=12)[0].weight, want.weight)


def test_the_warm_up_leaves_the_student_alone(sd):
    """§6.3: the denoiser changes in exactly steps − warm_up steps."""
    params = plain("doco").selected(sd)
    last = [p.detach().clone() for p in params.values()]
    changed = []

    def look(done):
        now = [p.detach().clone() for p in params.values()]
        changed.append(any(not torch.equal(a, b) for a, b in zip(now, last, strict=True)))
        last[:] = now

    method = plain("doco", steps=6, warm_up=4)
    erase(sd, CONCEPT, method, events=Steps(look, "doco"))
    assert changed == [False] * 4 + [True] * 2 and method.updates() == 2


def game_of(method, model, student):
    run = start(method, model, student)
    d = Discriminator(model.latent_shape, method.d_width, seeds.integer(run.seed, "discriminator"))
    return run, Game(method, run, d)


@pytest.mark.parametrize("leak", [False, True])
def test_the_discriminators_gradient_with_and_without_the_leak(sd, leak):
    """§6.6: clean is ∇L_D; as in the official code it is ∇(L_D + L_u)."""
    method = plain("doco", leak=leak, warm_up=0)
    used: list[torch.Tensor] = []
    with training(sd, method.selected(sd)) as student:
        run, game = game_of(method, sd, student)
        game.optimizer.register_step_pre_hook(
            lambda opt, args, kwargs: used.extend(p.grad.clone() for g in opt.param_groups for p in g["params"])
        )
        step = Step(0, 4, 3)
        move = game.play(run.batch(step, "unlearn"), learning=True)
        u_s, u_a, params = move.u_s.detach(), move.u_a, list(game.d.parameters())
        ones, zeros = torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)
        l_d = bce(game.d(u_a), zeros) + bce(game.d(u_s), ones)
        l_u = bce(game.d(u_s), zeros)
        want = torch.autograd.grad(l_d + l_u if leak else l_d, params)
        game.step(step)
    for got, expected in zip(used, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    clean = torch.autograd.grad(bce(game.d(u_s), zeros), params)
    assert any(bool((g != 0).any()) for g in clean)  # the leaked part is not nothing


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({}, "orthogonal"),
        ({"projection": 0.5}, "orthogonal"),
        ({"formula": "official_cosine"}, "cosine"),
        ({"scope": "global"}, "orthogonal"),
        ({"projection": 0.0}, "none"),
        ({"retain_weight": 0.3, "pair_weight": 2.0}, "orthogonal"),
        ({"space": "eps", "clip": 0.0, "retain_target": "teacher"}, "orthogonal"),
    ],
)
@pytest.mark.parametrize("kind", ["sd", "sd_v"], indirect=True)
def test_one_step_is_the_papers(kind, model, settings, formula):
    """§1.4 and §2 by hand: one *joint* forward of both halves (§6.8), losses, clipping, projection, AdamW."""
    method = plain("doco", warm_up=0, steps=1, **settings)
    with training(model, method.selected(model)) as student, first_token_detached(model):
        run, game = game_of(method, model, student)
        # A student that has moved, so that the teacher's answers differ and both gradients are at work.
        for i, param in enumerate(student.live.values()):
            noise = torch.randn(param.shape, generator=torch.Generator().manual_seed(i))
            param.data.add_(0.05 * noise)
        step, names = Step(0, 1, 3), list(student.live)
        moved = {n: p.detach().clone() for n, p in student.live.items()}
        a, r = run.batch(step, "unlearn"), run.batch(step, "retain")
        pairs = [run.data.pairs[row] for row in a.rows]
        texts = [p.target for p in pairs] + [run.data.retain[row] for row in r.rows]
        x_t, t = torch.cat([a.x_t, r.x_t]), torch.cat([a.t, r.t])
        joint = model.predict(x_t, t, model.encode(texts))
        e_s, e_r = joint[:2], joint[2:]
        with torch.no_grad():
            e_a = model.predict(a.x_t, a.t, model.encode([p.anchor for p in pairs]), params=student.before)
            kept = model.predict(r.x_t, r.t, model.encode(texts[2:]), params=student.before)
        bar = model.schedule.signal[a.t].float().view(-1, 1, 1, 1).square()
        s, q = (1 - bar).sqrt(), bar.sqrt()
        if method.space == "eps":
            u = (lambda e: e) if model.prediction == "epsilon" else (lambda e: s * a.x_t + q * e)
        elif model.prediction == "epsilon":
            u = lambda e: (a.x_t - s * e) / q  # noqa: E731
        else:
            u = lambda e: q * a.x_t - s * e  # noqa: E731
        l_u = -torch.log(1 - torch.sigmoid(game.d(u(e_s)))).mean()
        l_u = l_u + method.pair_weight * (e_s - e_a).square().mean()
        truth = r.eps if model.prediction == "epsilon" else model.target(r.x0, r.eps, r.t)
        l_r = (e_r - (kept if method.retain_target == "teacher" else truth)).square().mean()
        live = list(student.live.values())
        g_u = list(torch.autograd.grad(l_u, live, retain_graph=True))
        g_r = list(torch.autograd.grad(l_r, live))
        if method.clip:
            for grads in (g_u, g_r):
                norm = torch.cat([g.flatten() for g in grads]).norm()
                grads[:] = [g * min(1.0, method.clip / float(norm)) for g in grads]
        if method.scope == "global":
            sizes = [g.numel() for g in g_u]
            edited = by_hand(*(torch.cat([g.flatten() for g in x]) for x in (g_u, g_r)), method.projection, formula)
            g = [part.view_as(like) for part, like in zip(edited.split(sizes), g_u, strict=True)]
        else:
            g = [by_hand(x, y, method.projection, formula) for x, y in zip(g_u, g_r, strict=True)]
        g = [x + method.retain_weight * y for x, y in zip(g, g_r, strict=True)]
        log = game.step(step)
        for name, grad in zip(names, g, strict=True):
            # AdamW's first step is nearly the gradient's sign, so compare what it was given: its moment.
            used = run.optimizer.state[student.params[name]]["exp_avg"] / 0.1
            torch.testing.assert_close(used, grad, rtol=2e-3, atol=3e-5)
            want = moved[name] * (1 - method.learning_rate * method.weight_decay) - method.learning_rate * used / (
                used.abs() + 1e-8
            )
            torch.testing.assert_close(student.params[name].detach(), want, rtol=1e-4, atol=1e-5)
    assert ("retain_loss" in log) == (method.projection > 0 or method.retain_weight > 0)
    adversarial = float(l_u.detach()) - method.pair_weight * float((e_s.detach() - e_a).square().mean())
    assert float(log["unlearn_loss"]) == pytest.approx(adversarial, rel=1e-3)
    assert 0 <= float(log["discriminator_accuracy"]) <= 1


def by_hand(g_u, g_r, strength, formula):
    """§2, the definition."""
    dot = float((g_u * g_r).sum())
    if formula == "none" or dot >= 0:
        return g_u
    unit = g_r / g_r.norm()
    if formula == "orthogonal":
        return g_u - strength * (g_u * unit).sum() * unit
    return g_u - strength * dot / (g_u.norm() * g_r.norm()) * unit


def test_some_of_these_steps_had_a_conflict(sd):
    """Otherwise the test above would not have seen the projection."""
    method = plain("doco", warm_up=0, steps=8)
    shares = []
    with training(sd, method.selected(sd)) as student:
        _, game = game_of(method, sd, student)
        shares = [float(game.step(Step(i, 8, 3))["conflict_share"]) for i in range(4)]
        assert all(0 <= share <= 1 for share in shares) and max(shares) > 0


def test_the_discriminator_sees_the_student_as_it_was_before_its_update(sd):
    """§1.4.5: in the step of an update D's loss is that of the same step without one."""
    losses = []
    for warm_up in (0, 1):
        method = plain("doco", warm_up=warm_up, steps=2, learning_rate=0.5)
        with training(sd, method.selected(sd)) as student:
            _, game = game_of(method, sd, student)
            losses.append(float(game.step(Step(0, 2, 3))["discriminator_loss"]))
    assert losses[0] == losses[1]


def test_the_discriminator_learns_what_it_is_told(sd):
    method = plain("doco", steps=40, warm_up=39, batch_size=8, d_learning_rate=1e-2, images=8, space="eps")
    with training(sd, method.selected(sd)) as student:
        _, game = game_of(method, sd, student)
        for param in student.live.values():
            param.data.mul_(-3)  # a student that is easy to tell from its teacher
        accuracy = [float(game.step(Step(i, 40, 3))["discriminator_accuracy"]) for i in range(12)]
    assert sum(accuracy[:3]) / 3 < 0.7 < 0.8 < sum(accuracy[-3:]) / 3


def test_the_log_tells_the_story(sd, tmp_path):
    import json

    erase(sd, CONCEPT, plain("doco", steps=20, warm_up=10), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20]
    assert set(lines[0]) == {"step", "discriminator_loss", "discriminator_accuracy"}
    assert set(lines[1]) - set(lines[0]) == {
        "unlearn_loss",
        "pointwise_loss",
        "retain_loss",
        "conflict_share",
        "conflict_cosine",
    }
