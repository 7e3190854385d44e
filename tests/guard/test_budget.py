"""What tensors cost, which go together, and the exact projection."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.guard import sets

from unteach.diffusion import Model
from unteach.errors import ConfigError
from unteach.guard.budget import costs, groups, projected


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return sets.tiny(tmp_path_factory.mktemp("tiny"))


def test_costs_in_tensors_and_parameters(tiny: Model) -> None:
    params = dict(tiny.denoiser.named_parameters())
    assert costs(tiny, "tensors") == dict.fromkeys(params, 1)
    assert costs(tiny, "parameters") == {name: value.numel() for name, value in params.items()}


def test_flops_count_the_places_at_which_a_layer_is_applied(tiny: Model) -> None:
    params, found = dict(tiny.denoiser.named_parameters()), costs(tiny, "flops")
    places = {  # 8 x 8 latents; 24 tokens of text; one time embedding
        "conv_in.weight": 64,
        "conv_in.bias": 64,
        "time_embedding.linear_1.weight": 1,
        "down_blocks.0.resnets.0.conv1.weight": 64,
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": 64,
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight": 64,
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": 24,
    }
    assert {name: found[name] for name in places} == {n: params[n].numel() * p for n, p in places.items()}
    assert found.keys() == params.keys() and min(found.values()) > 0
    assert not any(module._forward_hooks for module in tiny.denoiser.modules())


def test_flops_are_of_the_models_own_latent_shape(tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 4 of the review: the shape was the U-Net's one side, or 8 x 8 of 4 channels where there is no U-Net."""
    square = costs(tiny, "flops")
    monkeypatch.setattr(tiny, "latent_shape", (4, 4, 16))
    wide = costs(tiny, "flops")
    assert wide == square  # 64 places both
    monkeypatch.setattr(tiny, "latent_shape", (4, 4, 8))
    half = costs(tiny, "flops")
    assert half["conv_in.weight"] * 2 == square["conv_in.weight"]
    assert half["time_embedding.linear_1.weight"] == square["time_embedding.linear_1.weight"]


@pytest.mark.parametrize("granularity", ["tensor", "module", "block"])
def test_groups_are_a_partition_in_order(tiny: Model, granularity: str) -> None:
    names = [name for name, _ in tiny.denoiser.named_parameters()]
    found = groups(names, granularity)  # type: ignore[arg-type]
    assert sorted(name for group in found for name in group) == sorted(names)
    if granularity == "tensor":
        assert found == [[name] for name in names]
    if granularity == "module":
        assert ["conv_in.weight", "conv_in.bias"] in found
        assert all(len({name.rpartition(".")[0] for name in group}) == 1 for group in found)
    if granularity == "block":
        keys = [group[0] for group in found]
        assert len(keys) == 10  # conv_in, time_embedding, (1 + 1) down, (2 + 2) up, conv_norm_out, conv_out
        (one,) = (group for group in found if group[0].startswith("down_blocks.0.attentions.0"))
        assert one == [name for name in names if name.startswith("down_blocks.0.attentions.0.")]


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=20),
    st.floats(0.01, 0.99),
    st.floats(0.05, 1.0),
    st.integers(0, 1000),
)
def test_projection_is_exact_and_keeps_the_order(
    values: list[float], rho: float, temperature: float, seed: int
) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    weight = torch.rand(len(x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    weight = weight / weight.sum()
    found = projected(x, weight, rho, temperature)
    assert float((weight * torch.sigmoid(found / temperature)).sum()) == pytest.approx(rho, abs=1e-9)
    shift = found - x
    assert torch.allclose(shift, shift[:1].expand_as(shift), atol=1e-9)
    again = projected(found, weight, rho, temperature)
    assert torch.allclose(again, found, atol=1e-7)


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_the_ends_of_the_projection_stay_finite(rho: float) -> None:
    x = torch.tensor([-3.0, 0.0, 4.0])
    weight = torch.full((3,), 1 / 3)
    for _ in range(5):
        x = projected(x, weight, rho, 0.2)
    assert math.isclose(float(torch.sigmoid(x / 0.2).mean()), rho, abs_tol=1e-9) and bool(torch.isfinite(x).all())
    with pytest.raises(ConfigError, match="share"):
        projected(x, weight, 1.5, 0.2)
