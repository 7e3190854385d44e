"""Low-rank fine-tuning beside the model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.guard import sets
from tests.toys import weights

from unteach.diffusion import Model, load
from unteach.diffusion.finetune import Finetune
from unteach.diffusion.lowrank import LowRank, finetune_lowrank, has_form
from unteach.errors import ConfigError

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight"


@pytest.fixture
def toy_v(toy: Callable[[str], Path]) -> Model:
    return load(toy("sd_v"))


def chosen(model: Model, names: list[str]) -> dict[str, torch.Tensor]:
    params = dict(model.denoiser.named_parameters())
    return {name: params[name] for name in names}


def test_factors_start_at_nothing_and_stay_in_their_rank(sd: Model) -> None:
    before = weights(sd)
    data = sets.examples(sd, "data", ("dog",), 4)
    lowrank = LowRank(chosen(sd, [QUERY, "conv_in.weight", "conv_out.weight"]), 3, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in lowrank.merged().items())
    history = finetune_lowrank(sd, data.batches, Finetune(steps=40, batch_size=4, learning_rate=1e-2), lowrank)
    losses = [record["loss"] for record in history.records]
    assert losses[-1] < losses[0]
    for name, value in lowrank.merged().items():
        change = (value.detach() - before[name]).flatten(1)
        assert int(torch.linalg.matrix_rank(change, atol=1e-5)) == 3, name
    assert all(torch.equal(value, before[name]) for name, value in weights(sd).items())
    assert not any(p.requires_grad or p.grad is not None for p in sd.denoiser.parameters())


def test_gradients_are_those_of_the_factors(sd: Model) -> None:
    lowrank = LowRank(chosen(sd, [QUERY]), 2, seed=1)
    merged = lowrank.merged()[QUERY]
    g = torch.randn(merged.shape, generator=torch.Generator().manual_seed(0))
    (merged * g).sum().backward()
    a, b = lowrank.factors[f"{QUERY}/A"], lowrank.factors[f"{QUERY}/B"]
    assert a.grad is not None and b.grad is not None
    assert torch.allclose(b.grad, g @ a.T, atol=1e-6) and not a.grad.any()


def test_interrupted_equals_unbroken(toy_v: Model, tmp_path: Path) -> None:
    data = sets.examples(toy_v, "data", ("dog",), 4)
    config = Finetune(steps=4, batch_size=2, learning_rate=1e-2)
    whole = LowRank(chosen(toy_v, [QUERY]), 2, seed=0)
    finetune_lowrank(toy_v, data.batches, config, whole)
    part = LowRank(chosen(toy_v, [QUERY]), 2, seed=0)

    class Stop(Exception):
        pass

    def failing(step, items):  # type: ignore[no-untyped-def]
        if step.index == 3:
            raise Stop
        return data.batches(step, items)

    with pytest.raises(Stop):
        finetune_lowrank(toy_v, failing, config, part, out=tmp_path, save_every=2)
    again = LowRank(chosen(toy_v, [QUERY]), 2, seed=0)
    assert finetune_lowrank(toy_v, data.batches, config, again, out=tmp_path, save_every=2).resumed_from == 2
    assert all(torch.equal(whole.factors[name], again.factors[name]) for name in whole.factors)


def test_what_has_factors(sd: Model) -> None:
    params = weights(sd)
    assert has_form(QUERY, params[QUERY]) and has_form("conv_in.weight", params["conv_in.weight"])
    assert not has_form("conv_in.bias", params["conv_in.bias"])
    wide = LowRank(chosen(sd, ["conv_in.weight"]), 999, seed=0)
    assert wide.factors["conv_in.weight/A"].shape == (8, 36)
    for names, rank in ((["conv_in.bias"], 1), ([], 1), ([QUERY], 0)):
        with pytest.raises(ConfigError, match="rank of at least 1"):
            LowRank(chosen(sd, names), rank, seed=0)
