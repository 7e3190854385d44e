import math

import pytest
import torch

from unteach.errors import DataError
from unteach.evaluate.metrics.drift import PSNR_CAP, agreement, drift, per_image
from unteach.records.stats import bootstrap_mean, wilson


def test_by_hand() -> None:
    before = torch.zeros(2, 3, 2, 2)
    after = before.clone()
    after[0] += 0.1  # MSE 0.01: 20 dB
    after[1, 0] += 0.3  # a third of the pixels: MAE 0.1, MSE 0.03
    mae, psnr = per_image(before, after)
    assert mae.tolist() == pytest.approx([0.1, 0.1])
    assert psnr.tolist() == pytest.approx([20.0, -10 * math.log10(0.03)], rel=1e-6)
    found = drift(before, after)
    assert found.mae == bootstrap_mean(mae.numpy()) and found.psnr == bootstrap_mean(psnr.numpy())
    assert found == drift(before, after) and found.mae.n == 2


def test_equal_pictures_have_the_cap() -> None:
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = drift(images, images)
    assert found.mae.value == 0 and found.psnr.value == pytest.approx(PSNR_CAP)
    nearly = drift(images, images + 1e-7)
    assert nearly.psnr.value <= PSNR_CAP + 1e-9


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 4), (0, 3, 4, 4)])
def test_unequal_batches_are_refused(shape: tuple[int, ...]) -> None:
    other = torch.zeros(2, 3, 4, 4) if shape[0] else torch.zeros(shape)
    with pytest.raises(DataError, match="equal, non-empty batches"):
        drift(other, torch.zeros(shape))


def test_agreement_needs_both() -> None:
    # same object and style; another style; another object; wrong but unchanged
    found = agreement([0, 1, 2, 9], [0, 0, 0, 9], [0, 1, 0, 9], [0, 1, 0, 9])
    assert found == wilson(2, 4)
