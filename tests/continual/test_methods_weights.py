"""Methods that hold on to old weights: every step's gradient is that of the formula, with weights taken literally."""

import math
from collections.abc import Callable

import pytest
import torch
from tests.continual import lab
from tests.continual.lab import Look, distance, flat, identity, slope, watch
from tests.oracle import continual as oracle
from tests.oracle import fisher as importances
from torch import Tensor
from torch.func import functional_call

from unteach.continual.learner import Learner
from unteach.continual.methods import make
from unteach.continual.methods.vcl import NaturalGradient
from unteach.core import seeds
from unteach.core.curvature import Diagonal, Kronecker
from unteach.errors import ConfigError

Anchors = list[tuple[list[Tensor], list[Tensor]]]
"""(θ_k, importances) of each task that has ended."""


def penalised(look: Look, anchors: Anchors, strength: float) -> Tensor:
    """CE + strength × Σ_k ½ Σ F_k (θ - θ_k)²."""
    loss = oracle.cross_entropy(look.net, *look.batch)
    for anchor, importance in anchors:
        loss = loss + strength * oracle.quadratic(look.learner.params, anchor, importance)
    return loss


def fisher(learner: Learner, kind: str = "exact") -> list[Tensor]:
    params = dict(zip(learner.names, learner.params, strict=True))
    return list(importances.fisher(learner.model, [learner.data[learner.task]], kind, params).values())


def test_l2_sp_is_the_distance_to_the_last_weights() -> None:
    anchors: Anchors = []

    def end(learner: Learner) -> None:
        anchors[:] = [(lab.weights(learner), [torch.ones_like(p) for p in learner.params])]

    identity(make("l2-sp", strength=0.8), lambda look: penalised(look, anchors, 0.8), end)


# ---- Fisher information ----


@pytest.mark.parametrize("kind", ["exact", "empirical", "official"])
def test_ewc_is_one_quadratic_a_task_around_its_own_weights(kind: str) -> None:
    anchors: Anchors = []

    def end(learner: Learner) -> None:
        anchors.append((lab.weights(learner), fisher(learner, kind)))

    learner = identity(make("ewc", strength=20.0, fisher=kind), lambda look: penalised(look, anchors, 20.0), end)
    assert len(anchors) == 3  # so the third task was held by two quadratics, around different weights
    collapsed = learner.objective.terms[1].anchor
    assert distance(flat(collapsed, learner.params), flat(anchors[-1][0], learner.params)) > 1e-3


def test_one_ewc_anchor_has_the_weight_lambda_half() -> None:
    value: dict[str, float] = {}
    first: list[list[Tensor]] = []

    def end(learner: Learner) -> None:
        first.append(lab.weights(learner))
        first.append(fisher(learner))

    def after(look: Look) -> None:
        if look.learner.task == 1 and not value:
            parts = zip(look.learner.params, *first[:2], strict=True)
            value["wanted"] = sum(float((3.0 / 2 * f * (p - a) ** 2).sum().detach()) for p, a, f in parts)
            view = look.host.view
            view.moved()
            term = look.learner.objective.terms[1]
            value["got"] = term.weight * float(term.value(view).detach())

    watch(make("ewc", strength=3.0), None, end, after)
    assert value["wanted"] > 0 and math.isclose(value["got"], value["wanted"], rel_tol=1e-9)


@pytest.mark.parametrize(("decay", "kind"), [(1.0, "exact"), (0.4, "exact"), (1.0, "official")])
def test_online_ewc_moves_the_anchor_and_decays_the_information(decay: float, kind: str) -> None:
    anchors: Anchors = []

    def end(learner: Learner) -> None:
        new = fisher(learner, kind)
        if anchors:
            new = [decay * old + f for old, f in zip(anchors[0][1], new, strict=True)]
        anchors[:] = [(lab.weights(learner), new)]

    method = make("online-ewc", strength=20.0, decay=decay, fisher=kind)
    identity(method, lambda look: penalised(look, anchors, 20.0), end)


# ---- paths and sensitivities ----


@pytest.mark.parametrize("name", ["si", "rwalk"])
def test_path_integrals_follow_the_task_loss_along_every_update(name: str) -> None:
    anchors: Anchors = []
    paths: list[oracle.Path] = []
    before: list[list[Tensor]] = []
    uphill: list[bool] = []

    def loss(look: Look) -> Tensor:
        params = look.learner.params
        if not paths:
            paths.append(oracle.Path(params))
        before[:] = [lab.weights(look.learner), slope(oracle.cross_entropy(look.net, *look.batch), params)]
        return penalised(look, anchors, 2 * 5.0)

    def after(look: Look) -> None:
        paths[0].moved(before[1], before[0], lab.weights(look.learner), 0.8, 0.02)

    def end(learner: Learner) -> None:
        params = learner.params
        uphill.append(any(bool((w < 0).any()) for w in paths[0].omega))
        new = paths[0].si(params, 0.03) if name == "si" else paths[0].rwalk(params)
        if name == "si" and anchors:
            new = [a + b for a, b in zip(anchors[0][1], new, strict=True)]
        anchors[:] = [(lab.weights(learner), new)]
        found = learner.objective.terms[1].importance
        assert distance(flat(found, params), flat(new, params)) < 1e-6

    settings = {"xi": 0.03} if name == "si" else {"decay": 0.8, "epsilon": 0.02}
    # Momentum, so that a step is not a multiple of its gradient, and a penalty that pulls some weights uphill.
    both = {"momentum": 0.9, "learning_rate": 0.3, "epochs": 2}
    identity(make(name, strength=5.0, **settings), loss, end, after=after, **both)
    assert name == "rwalk" or any(uphill)


def test_mas_sums_the_sensitivity_of_the_outputs() -> None:
    anchors: Anchors = []

    def end(learner: Learner) -> None:
        params = dict(zip(learner.names, learner.params, strict=True))
        new = list(importances.mas(learner.model, [learner.data[learner.task]], params).values())
        if anchors:
            new = [a + b for a, b in zip(anchors[0][1], new, strict=True)]
        anchors[:] = [(lab.weights(learner), new)]

    identity(make("mas", strength=0.3), lambda look: penalised(look, anchors, 2 * 0.3), end)


# ---- Laplace ----


def test_laplace_adds_precisions_to_the_prior() -> None:
    state: Anchors = []

    def loss(look: Look) -> Tensor:
        params = look.learner.params
        if not state:
            state.append(([torch.zeros_like(p) for p in params], [torch.full_like(p, 0.5) for p in params]))
        # The log-posterior per sample: N = 14 samples a task.
        return penalised(look, state, 1.5 / lab.EACH)

    def end(learner: Learner) -> None:
        total = [old + lab.EACH * f for old, f in zip(state[0][1], fisher(learner), strict=True)]
        state[:] = [(lab.weights(learner), total)]

    identity(make("laplace", strength=1.5, prior=0.5), loss, end)


def test_kronecker_laplace_is_the_dense_kronecker_product() -> None:
    damping, prior, strength = 0.02, 0.5, 1.5
    sums: dict[int, list[Tensor]] = {}
    anchor: list[Tensor] = []

    def loss(look: Look) -> Tensor:
        value = oracle.cross_entropy(look.net, *look.batch)
        if not anchor:
            return value
        params = look.learner.params
        total = prior * 0.5 * sum(((p - a) ** 2).sum() for p, a in zip(params, anchor, strict=True))
        for place, (a, g) in sums.items():
            weight, bias = (params[i] - anchor[i] for i in (place, place + 1))
            total = total + oracle.dense(weight, bias, torch.kron(g, a))
        return value + strength * total / lab.EACH

    def end(learner: Learner) -> None:
        net, x = learner.model.layers, learner.data[learner.task][0].double()
        for place, layer, inputs in ((0, net[0], x), (2, net[2], net[:2](x))):
            eye = (
                torch.eye(inputs.shape[1] + 1, dtype=torch.float64),
                torch.eye(layer.out_features, dtype=torch.float64),
            )
            factors = zip(oracle.layer_factors(net, x, layer, inputs), eye, strict=True)
            new = [math.sqrt(lab.EACH) * (factor + damping * one) for factor, one in factors]
            sums[place] = [old + f for old, f in zip(sums[place], new, strict=True)] if place in sums else new
        anchor[:] = lab.weights(learner)

    method = make("kronecker-laplace", strength=strength, prior=prior, damping=damping, factor="exact")
    identity(method, loss, end)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 2, 2)])
@pytest.mark.parametrize("bias", [False, True])
def test_the_trace_is_the_dense_quadratic(shape: tuple[int, ...], bias: bool) -> None:
    draw = seeds.generator(0, "tests kronecker")
    inputs = math.prod(shape[1:]) + bias
    a, g = (torch.randn(n, n, generator=draw, dtype=torch.float64) for n in (inputs, 3))
    a, g = a @ a.T, g @ g.T
    weight, b = (torch.randn(s, generator=draw, dtype=torch.float64) for s in (shape, (3,)))
    wide = torch.cat([weight.flatten(1), b[:, None]], 1) if bias else weight.flatten(1)
    dense = wide.flatten() @ torch.kron(g, a) @ wide.flatten()
    psi, theta = Kronecker([(a, g), *([None] if bias else [])]), [weight, *([b] if bias else [])]
    assert torch.allclose(psi.quadratic(theta), dense, rtol=1e-10)


# ---- Gaussians over weights ----


def drawn(look: Look) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """Cross-entropy of the batch as a function of means and standard deviations, with this step's noise."""
    model, index = look.net, look.host.index
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.integer(0, "network", index))
        noise = [torch.randn_like(m) for m in model.mean]

    def loss(mean: list[Tensor], std: list[Tensor]) -> Tensor:
        weights = {key: m + s * e for key, m, s, e in zip(model.keys, mean, std, noise, strict=True)}
        return oracle.cross_entropy(lambda x: functional_call(model.network, weights, (x,)), *look.batch)

    return loss


class Prior:
    """q_old: N(0, 0.7²) at first, then the last task's posterior."""

    mean: list[Tensor] | None = None
    log_std: list[Tensor] | None = None

    def of(self, look: Look) -> tuple[list[Tensor], list[Tensor]]:
        if self.mean is None or self.log_std is None:
            zeros = [torch.zeros_like(m) for m in look.net.mean]
            return zeros, [torch.full_like(m, math.log(0.7)) for m in zeros]
        return self.mean, self.log_std

    def end(self, learner: Learner) -> None:
        self.mean = [p.detach().clone() for p in learner.model.mean]
        self.log_std = [p.detach().clone() for p in learner.model.log_std]


def test_vcl_is_the_expected_loss_and_the_kl_from_the_last_posterior() -> None:
    prior = Prior()

    def loss(look: Look) -> Tensor:
        mean, log_std = list(look.net.mean), list(look.net.log_std)
        expected = drawn(look)(mean, [s.exp() for s in log_std])
        return expected + 0.8 * oracle.gaussian_kl(mean, log_std, *prior.of(look)) / lab.EACH

    def plain(look: Look) -> Tensor:
        return drawn(look)(list(look.net.mean), [s.exp() for s in look.net.log_std])

    learner = identity(
        make("vcl", beta=0.8, prior_std=0.7, initial_std=0.2), loss, prior.end, plain=plain, epochs=2, learning_rate=0.3
    )
    settled = zip(learner.network.parameters(), learner.model.mean, strict=True)
    assert all(torch.equal(p, m) for p, m in settled)


def test_vcl_of_equal_covariances_is_a_quadratic() -> None:
    checked: list[float] = []

    def after(look: Look) -> None:
        term, model = look.learner.objective.terms[1], look.net
        if term.mean is None or checked:
            return
        kept = [s.detach().clone() for s in model.log_std]
        with torch.no_grad():
            for s, old in zip(model.log_std, term.log_std, strict=True):
                s.copy_(old)
        got = float(term.value(look.host.view).detach()) * lab.EACH
        with torch.no_grad():
            for s, own in zip(model.log_std, kept, strict=True):
                s.copy_(own)
        delta = [(m - a).detach() for m, a in zip(model.mean, term.mean, strict=True)]
        wanted = 0.5 * float(Diagonal([(-2 * s).exp() for s in term.log_std]).quadratic(delta))
        assert wanted > 1e-4 and math.isclose(got, wanted, rel_tol=1e-6)
        checked.append(got)

    watch(make("vcl", initial_std=0.2), None, None, after, learning_rate=0.3)
    assert checked


def test_nvcl_takes_the_natural_gradient() -> None:
    prior, wanted, moved = Prior(), [], []

    def step(look: Look) -> None:
        old, data = prior.of(look), drawn(look)

        def loss(mean: list[Tensor], variance: list[Tensor]) -> Tensor:
            kl = oracle.gaussian_kl(mean, [0.5 * v.log() for v in variance], *old)
            return data(mean, [v.sqrt() for v in variance]) + kl / lab.EACH

        wanted[:] = oracle.natural_step(loss, look.net.mean, [(2 * s).exp() for s in look.net.log_std], 0.01, lab.EACH)
        moved[:] = [[p.detach().clone() for p in look.net.mean]]

    def after(look: Look) -> None:
        means, variances = wanted
        for got, mean, before in zip(look.net.mean, means, moved[0], strict=True):
            assert torch.allclose(got, mean, rtol=1e-6, atol=1e-9) and not torch.allclose(got, before, atol=1e-7)
        for got, variance in zip(look.net.log_std, variances, strict=True):
            assert torch.allclose((2 * got).exp(), variance, rtol=1e-6)

    watch(make("nvcl", rate=0.01, prior_std=0.7, initial_std=0.2), step, prior.end, after)


def test_the_natural_gradient_keeps_precisions_within_a_factor_of_two() -> None:
    mean, log_std = (torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    mean.grad, log_std.grad = torch.ones_like(mean), torch.tensor([1e4, -1e4], dtype=torch.float64)
    NaturalGradient([mean, log_std], 0.1, lambda: 10).step()
    assert torch.allclose((-2 * log_std).exp(), torch.tensor([2.0, 0.5], dtype=torch.float64))
    assert torch.allclose(mean, -torch.tensor([0.5, 2.0], dtype=torch.float64))


def test_a_variational_method_takes_a_coreset_and_nothing_that_needs_boundaries() -> None:
    def loss(look: Look) -> Tensor:
        return look.learner.objective.terms[0].value(look.host.view)

    used: list[bool] = []

    def step(look: Look) -> None:
        params, view = look.learner.params, look.host.view
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.integer(0, "network", look.host.index))
            view.moved()
            total, coreset = loss(look), look.memory()
            if coreset is not None:
                out = look.net(coreset[0])  # the same draws as the step's second pass
                total = total + 0.5 * torch.nn.functional.cross_entropy(out, coreset[1])
        total = total + look.learner.objective.terms[1].value(view)
        assert distance(flat(look.gradients, params), flat(slope(total, params), params)) < 1e-6
        used.append(coreset is not None)

    watch(make("vcl + er", alpha=0.5, buffer_size=10), step)
    assert used == [False, True, True, True, True, True]
    with pytest.raises(ConfigError, match="cannot be combined"):
        make("vcl + online-ewc")
