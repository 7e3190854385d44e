"""Bytes are counted exactly, times side by side."""

import copy

import peft
import pytest
import torch
from benchmarks.guard_savings import Cost, Savings, count, measure
from tests.guard.eight_bit import EightBitAdamW
from torch import Tensor, nn

from unteach.errors import ConfigError

WIDTH, BATCH = 32, 4


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1)
        )


def loss(model: nn.Module, step: int = 0) -> Tensor:
    x = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(step))
    return model(x).sum()


def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


SIZE = 2 * (WIDTH * WIDTH + WIDTH) + WIDTH + 1
MIDDLE = WIDTH * WIDTH + WIDTH
ACT = BATCH * WIDTH * 4


def test_bytes_are_those_of_the_arithmetic() -> None:
    """fp32 weights; gradients of what trains; AdamW's two moments and one fp32 step count a tensor."""
    result = measure(network(), ["2.weight", "2.bias"], loss, adamw, steps=0, warm_up=1)
    full, guarded = result.arms["full"], result.arms["guarded"]
    assert full == Cost(trained=SIZE, weights=4 * SIZE, gradients=4 * SIZE, state=8 * SIZE + 6 * 4, activations=3 * ACT)
    rest = SIZE - MIDDLE
    # Kept for the backward pass: the input and both outputs of tanh, which tanh's own gradient needs anyway.
    assert guarded == Cost(
        trained=rest, weights=4 * SIZE, gradients=4 * rest, state=8 * rest + 4 * 4, activations=3 * ACT
    )
    assert guarded.static == 4 * SIZE + 12 * rest + 16 and guarded.peak == guarded.static + 3 * ACT
    assert result.memory_ratio("guarded") == guarded.static / (16 * SIZE + 24)
    assert result.share.frozen_parameters == MIDDLE and result.share.of_tensors == 2 / 6
    # The input of a frozen first layer is not kept.
    first = measure(network(), ["0.weight", "0.bias"], loss, adamw, steps=0, warm_up=1).arms["guarded"]
    assert first.activations == 2 * ACT
    everything = measure(network(), [], loss, adamw, steps=0, warm_up=1)
    assert everything.arms["guarded"] == everything.arms["full"] == full


def test_bytes_of_other_optimizers_types_and_tied_weights() -> None:
    model = network()
    model[2].weight = model[0].weight
    model.register_buffer("table", torch.zeros(10, dtype=torch.int64))
    tied = SIZE - WIDTH * WIDTH
    cost = count(model, torch.optim.SGD(model.parameters(), lr=0.1), loss)
    assert (cost.trained, cost.weights, cost.gradients, cost.state) == (tied, 4 * tied + 80, 4 * tied, 0)
    cost = count(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss)
    assert cost.state == 4 * tied
    half = network().to(torch.bfloat16)
    cost = count(
        half, adamw(list(half.parameters())), lambda m: m(torch.ones(BATCH, WIDTH, dtype=torch.bfloat16)).sum()
    )
    assert (cost.weights, cost.gradients, cost.state) == (2 * SIZE, 2 * SIZE, 4 * SIZE + 24)
    assert cost.activations == 3 * ACT // 2
    quantised = network()
    blocks = 2 * (WIDTH * WIDTH // 32 + 1) + 2  # of 32 codes and one scale, two moments
    cost = count(quantised, EightBitAdamW(quantised.parameters()), loss)
    assert cost.state == 2 * blocks * (32 + 4)


def lora(model: nn.Module) -> nn.Module:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0", "2"]))


@pytest.mark.filterwarnings("ignore:.*bfloat16")
def test_arms_are_interleaved_and_the_model_is_not_touched() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    model[0].bias.requires_grad_(False)
    calls: list[tuple[int, int]] = []

    def watched(m: nn.Module, step: int) -> Tensor:
        calls.append((id(m), step))
        return loss(m, step)

    result = measure(model, ["2.weight"], watched, adamw, steps=3, warm_up=2, others={"lora": lora})
    assert [step for _, step in calls] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3 + [4] * 3
    rounds = [[m for m, s in calls if s == step] for step in range(5)]
    assert all(set(r) == set(rounds[0]) and len(set(r)) == 3 for r in rounds)
    assert rounds[0] != rounds[1] and rounds[0] == rounds[3]  # the order turns
    assert list(result.arms) == ["full", "guarded", "lora"]
    rank = 2 * 2 * (WIDTH + WIDTH)
    cost = result.arms["lora"]
    assert (cost.trained, cost.gradients, cost.state) == (rank, 4 * rank, 8 * rank + 4 * 4)
    assert cost.weights == 4 * (SIZE + rank)
    assert all(len(arm.seconds) == 3 and min(arm.seconds) > 0 for arm in result.arms.values())
    assert result.time_ratio("full") == (1, 1, 1)
    middle, low, high = result.time_ratio("lora")
    assert 0 < low <= middle <= high
    plain = result.to_dict()
    assert plain["arms"]["guarded"]["static"] == result.arms["guarded"].static
    assert plain["frozen_share"]["parameters"] == WIDTH * WIDTH / SIZE
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0].bias.requires_grad and all(p.grad is None for p in model.parameters())


def test_ratios_are_taken_within_a_round() -> None:
    base = {"trained": 1, "weights": 1, "gradients": 1, "state": 2, "activations": 0}
    arms = {"full": Cost(**base, seconds=(1.0, 10.0, 2.0)), "guarded": Cost(**base, seconds=(0.5, 9.0, 1.6))}
    share = measure(network(), [], loss, adamw, steps=0).share
    assert Savings(share, arms).time_ratio("guarded") == (0.8, 0.5, 0.9)
    with pytest.raises(ConfigError, match="no step was timed"):
        Savings(share, {"full": Cost(**base)}).time_ratio("full")
    for wrong in ({"warm_up": 0}, {"steps": -1}):
        with pytest.raises(ConfigError, match="at least"):
            measure(network(), [], loss, adamw, **wrong)
    with pytest.raises(ConfigError, match="taken"):
        measure(network(), [], loss, adamw, others={"full": lora})


def test_a_frozen_large_layer_saves_time() -> None:
    """The weight gradient is a third of a step's products; the layer is large enough for the clock to see it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 64), *(nn.Linear(64, 768) if i == 0 else nn.Linear(768, 768) for i in range(3))
        )

    def wide(m: nn.Module, step: int) -> Tensor:
        return m(torch.ones(256, 64)).sum()

    names = [name for name, _ in model.named_parameters() if not name.startswith("0.")]
    result = measure(model, names, wide, adamw, steps=9, warm_up=2)
    assert result.time_ratio("guarded")[0] < 0.95
    assert result.memory_ratio("guarded") < 0.3
