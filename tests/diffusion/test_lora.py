import sys
from pathlib import Path

import pytest
import torch
from tests.toys import change, weights

from unteach.core import seeds
from unteach.diffusion import Model, WeightDelta, load, lora, sample
from unteach.errors import CheckpointError, ConfigError, MissingExtraError

CONV = "down_blocks.0.resnets.0.conv1.weight"


def all_kinds(model: Model) -> list[str]:
    """Attention (linear), convolutions of 3×3 and 1×1, time embedding, a bias and a norm."""
    return [
        *model.cross_attention_kv()[:3],
        "conv_in.weight",
        CONV,
        "up_blocks.0.resnets.0.conv_shortcut.weight",
        "time_embedding.linear_1.weight",
        "conv_in.bias",
        "conv_norm_out.weight",
    ]


@pytest.mark.parametrize("rank", [1, 4, 999])
def test_lora_is_the_delta_within_the_reported_error(model: Model, rank: int, tmp_path: Path) -> None:
    before, delta = weights(model), change(model, all_kinds(model), size=0.2)
    report = delta.to_lora(rank, tmp_path)
    assert report.path == tmp_path / "pytorch_lora_weights.safetensors"
    pipe = load(str(model.path)).pipe
    lora.attach(pipe, tmp_path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    found = {name: parameter.detach() for name, parameter in pipe.unet.named_parameters()}
    lost = 0.0
    for row in report.rows:
        wanted = delta.tensors[row.name]
        residual = (before[row.name] + wanted - found[row.name]).norm()
        lost += float(residual) ** 2
        assert float(residual / wanted.norm()) == pytest.approx(row.error, abs=2e-6)
    assert (lost**0.5) / delta.norm() == pytest.approx(report.error, rel=1e-4)
    assert all(torch.equal(found[name], before[name]) for name in before if name not in delta.tensors)
    assert [row.name for row in report.left_out] == ["conv_in.bias", "conv_norm_out.weight"]
    assert report.left_out_share == pytest.approx(
        sum(float(delta.tensors[row.name].norm()) ** 2 for row in report.left_out) / delta.norm() ** 2
    )
    if rank == 999:
        assert report.error == pytest.approx(report.left_out_share**0.5)
        assert report.rank == 16  # the attention's matrices are 16×16 or 16×32, the others are narrower
    else:
        assert report.rank == rank and report.error > report.left_out_share**0.5


def test_a_full_rank_lora_draws_the_same_pictures(model: Model, tmp_path: Path) -> None:
    delta = change(model, size=0.3)
    report = delta.to_lora(64, tmp_path)
    assert report.error < 1e-6 and not report.left_out
    plain = sample(model, ["a dog"], [0], num_inference_steps=2)
    with delta.apply(model):
        expected = sample(model, ["a dog"], [0], num_inference_steps=2)
    other = load(str(model.path))
    lora.attach(other.pipe, tmp_path)
    found = sample(other, ["a dog"], [0], num_inference_steps=2)
    assert (found - expected).abs().max() < 1e-4 < (found - plain).abs().max()


def test_the_factors_are_the_best_of_their_rank() -> None:
    for shape in ((7, 20), (20, 7), (9, 9)):
        matrix = seeds.randn(shape, 0, "matrix", 0, [0])[0]
        singular = torch.linalg.svdvals(matrix.double())
        for rank in (1, 3, 50):
            b, a = lora.factors(matrix, rank)
            kept = min(rank, *shape)
            assert b.shape == (shape[0], kept) and a.shape == (kept, shape[1])
            residual = (matrix.double() - b @ a).norm()
            assert float(residual) == pytest.approx(float(singular[kept:].norm()), abs=1e-6)
    b, a = lora.factors(torch.zeros(3, 4), 2)
    assert not (b @ a).any()


def test_the_report_is_a_table(sd: Model, tmp_path: Path) -> None:
    text = str(change(sd, all_kinds(sd)).to_lora(2, tmp_path))
    lines = text.splitlines()
    assert len(lines) == 1 + len(all_kinds(sd)) + 1
    assert "left out (no LoRA form)" in text and "8×8×3×3" in text
    assert lines[-1].startswith("rank 2, total relative error ") and "2 tensors left out" in lines[-1]


def test_lora_is_checked(sd: Model, tmp_path: Path) -> None:
    delta = change(sd)
    with pytest.raises(ConfigError, match="rank is at least 1; found: 0"):
        delta.to_lora(0, tmp_path)
    with pytest.raises(ConfigError, match="nothing in this delta can be written as a LoRA; found: 1 tensors"):
        change(sd, ["conv_in.bias"]).to_lora(4, tmp_path)
    with pytest.raises(CheckpointError, match=r"found: family None; .*one of sd, sd3, sdxl"):
        WeightDelta(delta.tensors, {}).to_lora(4, tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_loading_a_lora_needs_peft(sd: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # how an import of a missing package behaves
    assert change(sd).to_lora(2, tmp_path).path.exists()
    with pytest.raises(MissingExtraError, match=r"'peft'.*pip install 'unteach\[lora\]'"):
        lora.attach(sd.pipe, tmp_path)
