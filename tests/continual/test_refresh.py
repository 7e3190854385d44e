import math

import pytest
import torch
from tests.continual.hosts import Caught, Run, curvature, data, end_task, network, primed, train
from tests.oracle import refresh as oracle
from torch import Tensor

from unteach.continual.plugins import plugins
from unteach.continual.plugins.controls import Plain
from unteach.continual.plugins.refresh import Refresh
from unteach.continual.plugins.sharpness import SAM
from unteach.core import ascent
from unteach.core.seeds import generator
from unteach.errors import ConfigError, ModelError

PRESETS = ["refresh", "refresh-paper", "refresh-paper-quiet", "refresh-official-code"]


class Still(Caught):
    """A loss without slope: only noise moves."""

    def gradient(self, loss: str = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
        return [torch.zeros_like(param) for param in self.params]


# ---- turned off equals vanilla ----


@pytest.mark.parametrize("preset", PRESETS)
def test_gamma_zero_is_the_host_bit_for_bit(preset: str) -> None:
    ends = []
    for plugin in (plugins.make(preset, gamma=0.0), Plain()):
        run = Run(network(torch.float32, norm=True))
        running, _ = train(plugin, run, 4)
        end_task(running, run)
        train(running, run, 4)
        ends.append((run.weights(), {n: b.clone() for n, b in run.model.named_buffers()}, run.calls))
    assert torch.equal(ends[0][0], ends[1][0])
    assert all(torch.equal(ends[0][1][name], ends[1][1][name]) for name in ends[1][1])
    assert ends[0][2] == ends[1][2] == [("host", False)] * 8


@pytest.mark.parametrize("preset", PRESETS)
def test_with_gamma_it_is_not_the_host(preset: str) -> None:
    ends = []
    for plugin in (plugins.make(preset), Plain()):
        run = Run()
        train(plugin, run, 4)
        ends.append(run.weights())
    assert not torch.equal(*ends)


# ---- what the step is ----


def test_one_step_by_hand() -> None:
    settings = Refresh(gamma=0.03, damping=0.2, loss="host")
    run = Caught(task=1)
    f = curvature(run)
    start, slope = run.weights(), torch.autograd.grad(run.loss(), run.params)
    primed(settings, run, f).step(run)
    moved = torch.cat([(0.03 * g / (f[n] + 0.2)).reshape(-1) for n, g in zip(run.names, slope, strict=True)])
    torch.testing.assert_close(run.reached, start + moved, rtol=0, atol=1e-15)
    for got, want in zip(run.caught, torch.autograd.grad(run.loss(), run.params), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)  # relearns where it has climbed to
    assert run.calls == [("host", True), ("host", False)]  # the climb leaves batch norm's statistics alone


def test_it_relearns_with_a_penalty_on_the_slope() -> None:
    """§2.4: the relearn gradient is that of L + (γ/2) gᵀPg up to O(γ²)."""
    errors = []
    for gamma in (1e-1, 1e-2, 1e-3):
        run = Caught(task=1)
        f = curvature(run)
        p = [1 / (f[name] + 1.0) for name in run.names]
        expected = oracle.penalty_gradient(run.params, run.loss, p, gamma)
        plain = torch.autograd.grad(run.loss(), run.params)
        primed(Refresh(gamma=gamma, damping=1.0, loss="host"), run, f).step(run)
        errors.append(float(ascent.norm([a - b for a, b in zip(run.caught, expected, strict=True)])))
        difference = float(ascent.norm([a - b for a, b in zip(run.caught, plain, strict=True)]))
        assert errors[-1] < difference / 5  # and the penalty is what the difference is
    assert 70 < errors[0] / errors[1] < 140
    assert 70 < errors[1] / errors[2] < 140


def test_to_first_order_it_lowers_the_weight_of_the_new_data() -> None:
    """§2.4: climbing the current loss, P = I, is the host with that loss × (1 − γ/η), up to O(ηγ)."""
    errors = []
    for gamma in (1e-3, 1e-4):
        run = Run(task=1, lr=0.003)
        current, memory = run.losses()
        goal = torch.autograd.grad((1 - gamma / run.lr) * current + memory, run.params)
        expected = run.weights() - run.lr * torch.cat([g.reshape(-1) for g in goal])
        start = run.weights()
        train(Refresh(gamma=gamma, loss="current"), run, 1)
        errors.append(float((run.weights() - expected).norm()) / float((run.weights() - start).norm()))
    assert errors[0] < 1e-2 and 8 < errors[0] / errors[1] < 12


@pytest.mark.parametrize("normalise", ["none", "global", "per-tensor"])
@pytest.mark.parametrize("form", ["damped", "official"])
def test_j_steps_are_j_single_climbs(normalise: str, form: str) -> None:
    settings = {"gamma": 0.02, "damping": 0.5, "loss": "current", "normalise": normalise, "inverse_form": form}
    together, apart = Caught(task=1), Caught(task=1)
    f = curvature(together)
    primed(Refresh(steps=3, **settings), together, f).step(together)
    one = primed(Refresh(**settings), apart, f)
    for _ in range(3):
        one.step(apart)
    assert torch.equal(together.reached, apart.reached)
    assert together.calls == [("current", True)] * 3 + [("host", False)]


@pytest.mark.parametrize("loss", ["host", "current", "memory"])
def test_the_loss_that_is_unlearned(loss: str) -> None:
    run = Caught(task=1)
    start, slope = run.weights(), torch.autograd.grad(run.loss(loss), run.params)
    Refresh(gamma=0.01, loss=loss).start(run).step(run)
    torch.testing.assert_close(run.reached - start, 0.01 * torch.cat([g.reshape(-1) for g in slope]))


def test_without_a_memory_there_is_no_memory_to_unlearn() -> None:
    run, host = Run(task=0), Run(task=0)
    _, records = train(Refresh(loss="memory"), run, 3)
    train(Plain(), host, 3)
    assert torch.equal(run.weights(), host.weights()) and records == [{}, {}, {}]


def test_gamma_in_units_of_the_learning_rate() -> None:
    runs = [Run(lr=0.06), Run(lr=0.06)]
    train(Refresh(gamma=0.5, gamma_unit="lr"), runs[0], 3)
    train(Refresh(gamma=0.03), runs[1], 3)
    assert torch.equal(runs[0].weights(), runs[1].weights())


def test_every_n_th_step() -> None:
    run, host = Run(), Run()
    _, records = train(Refresh(every=3), run, 7)
    assert [bool(record) for record in records] == [True, False, False, True, False, False, True]
    assert [loss for loss, _ in run.calls].count("current") == 3
    train(Plain(), host, 7)
    assert not torch.equal(run.weights(), host.weights())


def test_skip_1d_leaves_biases_and_norms_alone() -> None:
    run = Caught(network(norm=True))
    start = [param.detach().clone() for param in run.params]
    train(Refresh(skip_1d=True, temperature=0.1), run, 1)
    for param, old in zip(run.params, start, strict=True):
        assert torch.equal(param, old) == (param.ndim == 1)
    flat = torch.nn.BatchNorm1d(4)
    with pytest.raises(ModelError, match="nothing to move"):
        Refresh(skip_1d=True).start(Run(flat))


def test_a_parameter_that_the_loss_does_not_reach() -> None:
    class Partly(Caught):
        def gradient(self, loss: str = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
            return [None, *super().gradient(loss, frozen_stats=frozen_stats)[1:]]

    for normalise in ("none", "global", "per-tensor"):
        run = Partly()
        before = run.params[0].detach().clone()
        _, (record,) = train(Refresh(normalise=normalise), run, 1)
        assert torch.equal(run.params[0], before)
        assert all(math.isfinite(float(value)) for value in record.values())


def test_batch_norm_statistics_move_once_a_step() -> None:
    run, host = Caught(network(norm=True)), Caught(network(norm=True))
    train(Refresh(steps=2), run, 1)
    train(Plain(), host, 1)
    assert int(run.model[1].num_batches_tracked) == int(host.model[1].num_batches_tracked) == 1


# ---- noise ----


def displacements(settings: Refresh, f: dict[str, Tensor], draws: int) -> Tensor:
    run = Still()
    running = primed(settings, run, f)
    start = [param.detach().clone() for param in run.params]
    rows = []
    for run.index in range(draws):
        running.step(run)
        rows.append(run.reached)
        with torch.no_grad():
            torch._foreach_copy_(run.params, start)
    return torch.stack(rows) - torch.cat([param.reshape(-1) for param in start])


def test_the_noise_has_covariance_2_gamma_t_p() -> None:
    settings = Refresh(gamma=0.03, temperature=0.7, damping=0.1, loss="host")
    f = curvature(Run())
    p = 1 / (torch.cat([f[name].reshape(-1) for name in Run().names]) + 0.1)
    rows = displacements(settings, f, 4000)
    white = rows / (2 * 0.03 * 0.7 * p).sqrt()
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(len(p)).double(), rtol=0, atol=0.1)
    assert white.mean(0).abs().max() < 0.06


def test_the_noise_has_covariance_2_gamma_t_p_with_kronecker_factors() -> None:
    settings = Refresh(gamma=0.03, temperature=0.7, damping=0.1, loss="host", preconditioner="kronecker")
    sizes = {"0": (5, 5), "2": (6, 3)}
    factors, blocks, draw = {}, [], generator(0, "tests factors")
    for layer, (n_in, n_out) in sizes.items():
        a, g = (torch.randn(n, 2 * n, generator=draw, dtype=torch.float64) for n in (n_in, n_out))
        a, g = a @ a.T / (2 * n_in), g @ g.T / (2 * n_out)
        factors |= {f"A:{layer}": a, f"G:{layer}": g}
        # Rows of the joint weight are [w_i, b_i]; here all weights come before the biases.
        order = [i * n_in + j for i in range(n_out) for j in range(n_in - 1)]
        order += [i * n_in + n_in - 1 for i in range(n_out)]
        blocks.append(oracle.dense_kronecker(a, g, 0.1)[order][:, order])
    root = torch.linalg.cholesky(2 * 0.03 * 0.7 * torch.block_diag(*blocks))
    rows = displacements(settings, factors, 4000)
    white = torch.linalg.solve_triangular(root, rows.T, upper=False)
    torch.testing.assert_close(white @ white.T / len(rows), torch.eye(len(root)).double(), rtol=0, atol=0.1)


def test_noise_differs_between_steps_seeds_and_climbs_and_repeats() -> None:
    settings = Refresh(gamma=0.03, temperature=1.0)
    one, again = displacements(settings, {}, 3), displacements(settings, {}, 3)
    assert torch.equal(one, again)
    assert not torch.equal(one[0], one[1])
    twice = displacements(Refresh(gamma=0.03, temperature=1.0, steps=2), {}, 1)[0]
    assert not torch.allclose(twice, 2 * one[0]) and not torch.allclose(twice, one[0])
    run = Still(seed=1)
    start = run.weights()
    settings.start(run).step(run)
    assert not torch.allclose(run.reached - start, one[0])


def test_noise_alone() -> None:
    run, start = Caught(task=1), Caught(task=1).weights()
    train(Refresh(temperature=0.5, drift=False), run, 1)
    torch.testing.assert_close(run.reached - start, displacements(Refresh(temperature=0.5), {}, 1)[0])
    assert run.calls == [("host", False)]


# ---- neighbours and the released code ----


def test_restored_and_normalised_it_is_sam() -> None:
    by_hand = Run(network(norm=True), task=1)
    for _ in range(6):
        kept = {name: buffer.clone() for name, buffer in by_hand.model.named_buffers()}
        gradient = oracle.sam_gradient(by_hand.params, by_hand.loss, 0.05)
        for name, buffer in by_hand.model.named_buffers():
            buffer.copy_(kept[name])
        by_hand.update(gradient)
        by_hand.index += 1
    refresh, sam = Run(network(norm=True), task=1), Run(network(norm=True), task=1)
    settings = Refresh(gamma=0.05, preconditioner="none", normalise="global", restore=True, loss="host")
    train(settings, refresh, 6)
    train(SAM(rho=0.05), sam, 6)
    torch.testing.assert_close(refresh.weights(), sam.weights(), rtol=0, atol=1e-12)
    torch.testing.assert_close(refresh.weights(), by_hand.weights(), rtol=0, atol=1e-12)
    not_restored = Run(network(norm=True), task=1)
    train(Refresh(gamma=0.05, preconditioner="none", normalise="global", loss="host"), not_restored, 6)
    assert (not_restored.weights() - sam.weights()).abs().max() > 1e-3


@pytest.mark.parametrize("strength", [{}, {"gamma": 1e-2, "damping": 1e3, "noise": 0.1, "tau": 0.5}])
def test_the_released_code(strength: dict[str, float]) -> None:
    """Twenty steps over two tasks against the literal twin, as released and with everything made to matter."""
    settings = plugins.make("refresh-official-code", **strength)
    assert isinstance(settings, Refresh)
    run, twin = Run(network(norm=True)), Run(network(norm=True))
    running = settings.start(run)
    f = [torch.zeros_like(param) for param in twin.params]
    for _ in range(2):
        train(running, run, 10)
        end_task(running, run)
        for _ in range(10):
            kept = {name: buffer.clone() for name, buffer in twin.model.named_buffers()}
            count = sum(param.numel() for param in twin.params)
            flat = torch.randn(count, generator=twin.generator("refresh"), dtype=torch.float64)
            white = [
                w.view_as(p) for w, p in zip(flat.split([p.numel() for p in twin.params]), twin.params, strict=True)
            ]
            x, y = data(16, 1000 + twin.index)
            oracle.official_unlearn(twin.model, x, y, f, white, settings.gamma, settings.damping, settings.noise)
            for name, buffer in twin.model.named_buffers():
                buffer.copy_(kept[name])
            twin.update(twin.gradient())
            twin.index += 1
        new = oracle.official_fisher(twin.model, ((b.x, b.y) for b in twin.batches("fisher")))
        f = [settings.tau * old + part for old, part in zip(f, new, strict=True)]
        twin.task += 1
    torch.testing.assert_close(run.weights(), twin.weights(), rtol=0, atol=1e-9)
    host = Run(network(norm=True))
    plain, _ = train(Plain(), host, 10)
    end_task(plain, host)
    train(plain, host, 10)
    assert (run.weights() - host.weights()).abs().max() > 1e-6


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"damping": 0.0}, "damping must be above 0"),
        ({"temperature": 1.0, "noise": 0.1}, "two scales for the same noise"),
        ({"temperature": 1.0, "normalise": "global"}, "γ is a radius"),
        ({"drift": False}, "nothing is left to do"),
        ({"gamma": -1.0}, "gamma must be at least 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"tau": 1.5}, "tau must be at most 1"),
        ({"preconditioner": "fisher"}, "preconditioner must be one of 'none'"),
        ({"fisher_samples": 0}, "fisher_samples must be at least 1"),
        ({"gama": 1.0}, "did you mean 'gamma'"),
    ],
)
def test_contradictions(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plugins.make("refresh", **settings)


def test_several_contradictions_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        plugins.make("refresh", damping=0.0, temperature=1.0, noise=0.1, normalise="global")
    assert str(caught.value).count("\n") == 3


def test_the_presets_numbers() -> None:
    """refresh §4.2 and §4.6; each has one source, so they are written here once more."""
    assert plugins.make("refresh") == Refresh(gamma=0.01, damping=1.0, loss="current", steps=1, temperature=0.0)
    paper = Refresh(gamma=0.03, damping=1e-3, loss="host", steps=1, temperature=1.0, preconditioner="exact")
    assert plugins.make("refresh-paper") == paper
    quiet = Refresh(gamma=0.03, damping=1.0, loss="host", preconditioner="exact")
    assert plugins.make("refresh-paper-quiet") == quiet
    assert plugins.make("refresh-official-code") == Refresh(
        gamma=1e-5,
        normalise="per-tensor",
        preconditioner="official",
        inverse_form="official",
        damping=1e-3,
        noise=1e-3,
        tau=1e-5,
        loss="current",
        fisher_samples=None,
        fisher_augment=True,
    )


def test_settings_round_trip() -> None:
    for preset in PRESETS:
        plugin = plugins.make(preset)
        record = plugin.to_dict()
        assert plugins.make(record.pop("plug-in"), **record) == plugin
