import copy

import pytest
import torch
from tests.continual.hosts import Run, end_task, network, train
from tests.oracle import refresh as oracle
from torch import Tensor

from unteach.continual.plugins import plugins
from unteach.continual.plugins.controls import Plain, ReducedRate, Reweight, controls
from unteach.continual.plugins.refresh import Refresh
from unteach.continual.plugins.sharpness import ASAM, SAM, GradientNorm, WeightNoise
from unteach.errors import ConfigError

OFF = [SAM(rho=0.0), ASAM(rho=0.0), GradientNorm(alpha=0.0), WeightNoise(sigma=0.0), Refresh(gamma=0.0)]
ON = [SAM(), ASAM(), GradientNorm(), WeightNoise()]


def flat(gradients: list[Tensor]) -> Tensor:
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


class Partly(Run):
    """The loss does not reach the first tensor."""

    def gradient(self, loss: str = "host", *, frozen_stats: bool = False) -> list[Tensor | None]:
        return [None, *super().gradient(loss, frozen_stats=frozen_stats)[1:]]


def test_the_plain_step_is_the_hosts() -> None:
    run, by_hand = Run(network(norm=True)), Run(network(norm=True))
    train(plugins.make("none"), run, 5)
    for by_hand.index in range(5):
        by_hand.update(by_hand.gradient())
    assert torch.equal(run.weights(), by_hand.weights())


@pytest.mark.parametrize("plugin", OFF, ids=lambda plugin: plugin.name)
def test_off_is_the_host_bit_for_bit(plugin) -> None:
    run, host = (Run(network(torch.float32, norm=True), task=1) for _ in range(2))
    train(plugin, run, 5)
    train(Plain(), host, 5)
    assert torch.equal(run.weights(), host.weights())
    assert run.calls == host.calls
    ours, theirs = run.model.state_dict(), host.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("plugin", ON, ids=lambda plugin: plugin.name)
def test_on_it_is_not(plugin) -> None:
    run, host = Run(task=1), Run(task=1)
    train(plugin, run, 3)
    train(Plain(), host, 3)
    assert (run.weights() - host.weights()).abs().max() > 1e-4


@pytest.mark.parametrize("plugin", ON, ids=lambda plugin: plugin.name)
def test_statistics_of_batch_norm_move_once_and_weights_are_put_back(plugin) -> None:
    class Still(Run):
        def update(self, gradients: list[Tensor | None]) -> None:
            pass

    run = Still(network(torch.float32, norm=True))
    before = run.weights()
    train(plugin, run, 3)
    assert int(run.model[1].num_batches_tracked) == 3
    assert torch.equal(run.weights(), before)


@pytest.mark.parametrize("plugin", ON, ids=lambda plugin: plugin.name)
def test_a_tensor_without_a_gradient_stays(plugin) -> None:
    run = Partly()
    before = run.params[0].detach().clone()
    train(plugin, run, 3)
    assert torch.equal(run.params[0], before)
    assert torch.all(torch.isfinite(run.weights()))


def test_sam_and_asam_by_hand() -> None:
    run = Run(task=1)
    torch.testing.assert_close(
        flat(SAM(rho=0.3).gradient(run)), flat(oracle.sam_gradient(run.params, run.loss, 0.3)), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(
        flat(ASAM(rho=0.3, eta=0.02).gradient(run)),
        flat(oracle.asam_gradient(run.params, run.loss, 0.3, 0.02)),
        rtol=0,
        atol=1e-12,
    )


def test_the_gradient_norm_penalty() -> None:
    run = Run(task=1)
    here = flat(list(torch.autograd.grad(run.loss(), run.params)))
    there = flat(oracle.sam_gradient(run.params, run.loss, 0.3))
    got = flat(GradientNorm(alpha=0.7, radius=0.3).gradient(run))
    torch.testing.assert_close(got, 0.3 * here + 0.7 * there, rtol=0, atol=1e-12)
    # a = 1 is SAM.
    torch.testing.assert_close(flat(GradientNorm(alpha=1.0, radius=0.3).gradient(run)), there, rtol=0, atol=1e-12)


def test_the_penalty_is_on_the_norm() -> None:
    """(1 − a) g + a g(θ + r g/‖g‖) = ∇(L + a r ‖g‖) + O(r²)."""
    errors = []
    for radius in (1e-1, 1e-2):
        run = Run(task=1)
        slope = torch.autograd.grad(run.loss(), run.params, create_graph=True)
        length = torch.cat([g.reshape(-1) for g in slope]).norm()
        goal = flat(list(torch.autograd.grad(run.loss() + 0.5 * radius * length, run.params)))
        errors.append(float((flat(GradientNorm(alpha=0.5, radius=radius).gradient(run)) - goal).norm()))
    assert 50 < errors[0] / errors[1] < 200


def test_weight_noise_by_hand() -> None:
    run = Run(task=1, seed=3)
    moved = copy.deepcopy(run)
    white = torch.randn(len(run.weights()), generator=run.generator("weight-noise"), dtype=torch.float64)
    torch.nn.utils.vector_to_parameters(moved.weights() + 0.2 * white, moved.model.parameters())
    expected = torch.autograd.grad(moved.loss(), list(moved.model.parameters()))
    got = flat(WeightNoise(sigma=0.2).gradient(run))
    torch.testing.assert_close(got, flat(list(expected)), rtol=0, atol=1e-12)
    run.index += 1
    moved.index += 1
    other = torch.randn(len(run.weights()), generator=run.generator("weight-noise"), dtype=torch.float64)
    assert not torch.equal(white, other)


def test_the_controls_that_are_numbers() -> None:
    for plugin in (Reweight(ratio=0.25), ReducedRate(ratio=0.25)):
        run, host = Run(), Run()
        train(plugin, run, 3)
        train(Plain(), host, 3)
        assert torch.equal(run.weights(), host.weights())  # the engine brings the factors in
    assert Reweight(ratio=0.25).data_weight(0.1) == 0.75 and Reweight(ratio=0.25).lr_factor() == 1
    assert ReducedRate(ratio=0.25).lr_factor() == 0.75 and ReducedRate(ratio=0.25).data_weight(0.1) == 1
    assert Reweight().data_weight(0.1) == pytest.approx(2 / 3)
    assert Refresh().data_weight(0.1) == Refresh().lr_factor() == 1


def test_the_arms_of_a_comparison() -> None:
    arms = controls(Refresh(gamma=0.01, steps=2, damping=0.3), 0.04)
    assert list(arms) == ["host", "refresh", "reweight", "reduced-rate", "restored", "identity"]
    assert arms["reweight"].data_weight(0.04) == 0.5 and arms["reduced-rate"].lr_factor() == 0.5
    restored, identity = arms["restored"], arms["identity"]
    assert isinstance(restored, Refresh) and restored.restore and restored.damping == 0.3
    assert isinstance(identity, Refresh) and identity.preconditioner == "none" and identity.gamma == 0.01
    noisy = controls(Refresh(gamma=0.01, temperature=0.1), 0.04)
    assert noisy["quiet"] == Refresh(gamma=0.01)
    assert noisy["noise-only"] == Refresh(gamma=0.01, temperature=0.1, drift=False)
    for refresh, lr in ((Refresh(gamma=0.1), 0.04), (Refresh(gamma=0.0), 0.04), (Refresh(normalise="global"), 0.04)):
        with pytest.raises(ConfigError, match="no re-weighting matches"):
            controls(refresh, lr)
    with pytest.raises(ConfigError, match="no re-weighting matches"):
        controls(Refresh(), 0.0)


@pytest.mark.parametrize("name", [*plugins, *plugins.presets])
def test_every_plugin(name: str) -> None:
    """Round trip, determinism, finite records of one shape, a state that fits itself."""
    plugin = plugins.make(name)
    record = plugin.to_dict()
    assert plugins.make(record.pop("plug-in"), **record) == plugin
    assert 0 < plugin.data_weight(0.1) <= 1 and 0 < plugin.lr_factor() <= 1
    ends = []
    for _ in range(2):
        run = Run(task=1)
        running, records = train(plugin, run, 3)
        end_task(running, run)
        running.load_state_dict(running.state_dict())
        assert all(value.shape == () and bool(torch.isfinite(value)) for row in records for value in row.values())
        assert all(isinstance(message, str) and message for message in running.warnings())
        ends.append(run.weights())
    assert torch.equal(*ends) and torch.all(torch.isfinite(ends[0]))


def test_wrong_settings_and_names() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sam'"):
        plugins.make("samm")
    with pytest.raises(ConfigError, match="rho must be at least 0"):
        plugins.make("sam", rho=-1)
    with pytest.raises(ConfigError, match="alpha must be at most 1"):
        plugins.make("gradient-norm", alpha=2)
    with pytest.raises(ConfigError, match="ratio must be at most 1"):
        plugins.make("reweight", ratio=1.5)
