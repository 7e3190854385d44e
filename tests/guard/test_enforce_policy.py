"""``enforce`` holds the manifest's own weights, and notices what trains beside the model (U3)."""

import logging
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from tests.guard.test_enforce import HELD, assert_held, copied, train
from tests.guard.test_enforce import unet as unet  # the fixture
from torch import nn

from unteach.errors import ConfigError, ModelError
from unteach.guard.enforce import enforce
from unteach.guard.manifest import FreezeManifest


def optimizer(*modules: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for module in modules for p in module.parameters()], lr=1e-2)


def test_a_manifest_of_other_weights_is_refused(unet: UNet2DConditionModel, tmp_path: Path) -> None:
    manifest = FreezeManifest.from_model(unet, HELD)
    path = manifest.save(tmp_path / "manifest.json")
    with torch.no_grad():
        unet.get_parameter(HELD[2]).view(-1)[0] += 1e-3
    before, opt = copied(unet), optimizer(unet)
    for policy in (manifest, path, str(path)):
        with pytest.raises(
            ModelError, match=r"the manifest is of other weights: 1 of 6 .* are not those here"
        ) as error:
            enforce(unet, opt, frozen=policy)
        assert HELD[2] in str(error.value)
    # Refused as a whole: everything trains as before.
    assert all(p.requires_grad for p in unet.parameters()) and len(opt.param_groups[0]["params"]) == len(before)
    train(unet, opt)
    assert not any(torch.equal(p, before[name]) for name, p in unet.named_parameters())


def test_the_way_out_is_to_pass_names(unet: UNet2DConditionModel) -> None:
    manifest = FreezeManifest.from_model(unet, HELD)
    with torch.no_grad():
        unet.get_parameter(HELD[2]).add_(1)
    before, opt = copied(unet), optimizer(unet)
    with enforce(unet, opt, frozen=manifest.frozen):
        train(unet, opt)
    assert_held(unet, before)


def test_a_training_that_kept_to_the_manifest_is_resumed(unet: UNet2DConditionModel) -> None:
    manifest = FreezeManifest.from_model(unet, HELD)
    for _ in range(2):  # the second session begins with other free tensors, and the same frozen ones
        before, opt = copied(unet), optimizer(unet)
        with enforce(unet, opt, frozen=manifest):
            train(unet, opt)
        assert_held(unet, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_manifests_weights_in_16_bits_are_its_weights(unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
    manifest = FreezeManifest.from_model(unet, HELD)
    nn.Module.to(unet, dtype)
    enforce(unet, frozen=manifest).release()
    nn.Module.to(unet, torch.float32)  # rounded and widened again
    enforce(unet, frozen=manifest).release()
    other = torch.bfloat16 if dtype == torch.float16 else torch.float16
    nn.Module.to(unet, other)
    with pytest.raises(ModelError, match="of other weights"):
        enforce(unet, frozen=manifest)


def test_a_text_encoder_that_trains_beside_it_is_refused_or_told(
    unet: UNet2DConditionModel, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = nn.Linear(4, 3)
    before, opt = copied(unet), optimizer(unet, encoder)
    with pytest.raises(ModelError, match="trains something beside the model, such as a text encoder") as error:
        enforce(unet, opt, frozen=HELD)
    assert "2 tensors with 15 parameters" in str(error.value)
    assert all(p.requires_grad for p in unet.parameters()) and len(opt.param_groups[0]["params"]) == len(before) + 2
    with caplog.at_level(logging.WARNING), enforce(unet, opt, frozen=HELD, others="warn"):
        train(unet, opt)
    assert "2 tensors with 15 parameters" in caplog.text
    assert_held(unet, before)
    with pytest.raises(ConfigError, match="'others' is"):
        enforce(unet, opt, frozen=HELD, others="allow")  # type: ignore[arg-type]
    enforce(unet, opt, frozen=[])  # an empty mask changes and checks nothing


def test_a_text_encoder_that_is_added_later_is_noticed_at_the_next_step(unet: UNet2DConditionModel) -> None:
    opt = optimizer(unet)
    guard = enforce(unet, opt, frozen=HELD)
    train(unet, opt, 1)
    opt.add_param_group({"params": list(nn.Linear(4, 3).parameters())})
    with pytest.raises(ModelError, match="trains something beside the model"):
        train(unet, opt, 1)
    guard.release()
    train(unet, opt, 1)
