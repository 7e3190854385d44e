"""The denoising-loss trainer: what moves, what stays, resuming, errors."""

from pathlib import Path

import pytest
import torch
from tests import toys
from torch import Tensor

from unteach.core.loop import Step
from unteach.core.seeds import generator
from unteach.diffusion.conditioning import Conditioning
from unteach.diffusion.finetune import Average, Batches, Finetune, finetune
from unteach.diffusion.model import Model, load
from unteach.errors import CheckpointError, ConfigError, ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.build("sd_v", tmp_path_factory.mktemp("finetune") / "toy")


def data(model: Model) -> Batches:
    latents = torch.randn(6, *model.latent_shape, generator=generator(0, "latents"))
    texts = model.encode(["a dog", "a cat", "a car", "a bus", "a key", ""])

    def batches(s: Step, items: range) -> tuple[Tensor, Conditioning]:
        rows = s.randint("rows", len(latents), items)
        return latents[rows], texts.index(rows)

    return batches


def weights(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.denoiser.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_rate_of_zero_changes_nothing(folder: Path) -> None:
    model = load(folder)
    before = weights(model)
    finetune(model, data(model), Finetune(steps=2, batch_size=2, learning_rate=0.0))
    assert same(before, weights(model))
    assert not any(p.requires_grad for p in model.denoiser.parameters())


def test_the_loss_falls_on_what_is_learned(folder: Path) -> None:
    model = load(folder)
    done = finetune(model, data(model), Finetune(steps=60, batch_size=6, learning_rate=3e-3, schedule="cosine"))
    losses = [record["loss"] for record in done.history.records]
    assert losses[-1] < 0.9 * losses[0]


def test_only_selected_tensors_move(folder: Path) -> None:
    model = load(folder)
    before = weights(model)
    finetune(model, data(model), Finetune(steps=2, batch_size=2, learning_rate=1e-2, train=(r".*attn2\.to_k\.weight",)))
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved and all(name.endswith("attn2.to_k.weight") for name in moved)
    assert moved == {name for name in before if name.endswith("attn2.to_k.weight")}
    with pytest.raises(ModelError):
        finetune(model, data(model), Finetune(steps=1, train=("no such tensor",)))


def test_interrupted_equals_unbroken(folder: Path, tmp_path: Path) -> None:
    config = Finetune(steps=6, batch_size=2, learning_rate=1e-3, average=0.9, warm_up=2, schedule="cosine")
    whole = load(folder)
    one = finetune(whole, data(whole), config, out=tmp_path / "whole", save_every=2)

    class Stop(Exception):
        pass

    broken = load(folder)
    feed = data(broken)

    def failing(s: Step, items: range) -> tuple[Tensor, Conditioning]:
        if s.index == 3:
            raise Stop
        return feed(s, items)

    with pytest.raises(Stop):
        finetune(broken, failing, config, out=tmp_path / "broken", save_every=2)
    again = load(folder)
    two = finetune(again, data(again), config, out=tmp_path / "broken", save_every=2)
    assert two.history.resumed_from == 2
    assert same(weights(whole), weights(again))
    assert one.average is not None and two.average is not None and same(one.average, two.average)
    with pytest.raises(CheckpointError, match="other data"):
        finetune(again, data(again), config, out=tmp_path / "broken", data_id="other data")


def test_average_starts_fast_and_lags() -> None:
    value = torch.nn.Parameter(torch.zeros(1))
    average = Average({"w": value}, 0.999)
    with torch.no_grad():
        value.fill_(1.0)
    average.update({"w": value})
    assert average.values["w"].item() == pytest.approx(1 - 2 / 11)


def test_timesteps_are_stratified(model: Model) -> None:
    for index in range(5):
        t = model.schedule.spread(Step(index, 5, 0), range(8), 8)
        assert sorted(int(v) // 125 for v in t.sort().values - t.min()) == list(range(8))


def test_all_mistakes_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)steps.*batch_size.*average"):
        Finetune(steps=-1, batch_size=0, average=1.0)
