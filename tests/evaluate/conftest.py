import pytest
import torch
from tests import toys
from tests.evaluate.worlds import NearestMean

from unteach.diffusion import Model, load
from unteach.diffusion.delta import WeightDelta


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(toys.build("sd_v", tmp_path_factory.mktemp("toys") / "sd_v"))


@pytest.fixture(scope="session")
def judge(model: Model) -> NearestMean:
    return NearestMean.learn(model)


@pytest.fixture(scope="session")
def delta(model: Model) -> WeightDelta:
    """A strong random change of the cross-attention values."""
    generator = torch.Generator().manual_seed(0)
    before = {n: p.detach() for n, p in model.denoiser.named_parameters() if "attn2.to_v" in n}
    after = {n: p + 3 * torch.randn(p.shape, generator=generator) for n, p in before.items()}
    meta = {
        "method": "uce",
        "config": {"method": "uce", "steps": 12},
        "base": model.digest(fresh=True),
        "family": model.family,
    }
    return WeightDelta.between(before, after, meta)
