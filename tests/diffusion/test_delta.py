import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.toys import change, record, weights

from unteach.core import state
from unteach.diffusion import Model, WeightDelta, load, merge, sample
from unteach.errors import CheckpointError, ConfigError, ModelError, NumericsError

Toy = Callable[[str], Path]


def assert_same(model: Model, expected: dict[str, torch.Tensor]) -> None:
    found = weights(model)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert _bits(found[name]).equal(_bits(tensor)), name


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_applied_is_base_plus_delta_and_undone_is_the_base(model: Model, dtype: torch.dtype) -> None:
    model = load(str(model.path), dtype=dtype)
    before, delta = weights(model), change(model)
    handle = delta.apply(model)
    expected = {
        name: (tensor.float() + delta.tensors[name]).to(dtype) if name in delta.tensors else tensor
        for name, tensor in before.items()
    }
    assert_same(model, expected)
    assert handle.active and not handle.skipped
    handle.undo()
    assert_same(model, before)
    assert not handle.active
    handle.undo()
    assert_same(model, before)


def test_a_context_restores_whatever_happened_in_it(sd: Model) -> None:
    before, delta = weights(sd), change(sd)
    digest = sd.digest()
    with pytest.raises(RuntimeError, match="boom"), delta.apply(sd):
        assert sd.digest() != digest
        dict(sd.denoiser.named_parameters())[sd.cross_attention_kv()[0]].data.zero_()
        raise RuntimeError("boom")
    assert_same(sd, before)
    assert sd.digest() == digest


def test_nothing_changes_bits_when_there_is_nothing_to_add(sd: Model) -> None:
    name = sd.cross_attention_kv()[0]
    with torch.no_grad():
        dict(sd.denoiser.named_parameters())[name].view(-1)[:2] = torch.tensor([-0.0, 0.0])
    before = weights(sd)
    zero = WeightDelta.between(before, before, record(sd))
    assert zero.size == sum(tensor.numel() for tensor in before.values()) and zero.norm() == 0
    with zero.apply(sd):
        assert_same(sd, before)
    with change(sd).apply(sd, scale=0.0):
        assert_same(sd, before)


def test_the_delta_moves_the_pictures_and_the_scale_counts(model: Model) -> None:
    def draw() -> torch.Tensor:
        return sample(model, ["a dog"], [0], num_inference_steps=2)

    delta, plain = change(model, size=0.3), draw()
    with delta.apply(model):
        full = draw()
    with delta.apply(model, scale=0.5):
        half = draw()
    assert (full - plain).abs().max() > 1e-3 and not torch.equal(half, full)
    with delta.scaled(0.5).apply(model):
        assert torch.equal(draw(), half)
    assert torch.equal(draw(), plain)


def test_deltas_are_undone_in_reverse_order_only(sd: Model) -> None:
    before, first = weights(sd), change(sd, seed=1)
    one = first.apply(sd)
    second = change(sd, seed=2)
    two = second.apply(sd)
    with pytest.raises(ConfigError, match="changed after the delta was applied"):
        one.undo()
    two.undo()
    one.undo()
    assert_same(sd, before)
    handle = first.apply(sd)
    next(iter(sd.denoiser.parameters())).data.add_(1)  # not one of the delta's tensors
    dict(sd.denoiser.named_parameters())[sd.cross_attention_kv()[0]].data.add_(1)
    with pytest.raises(ConfigError, match="changed after"):
        handle.undo()
    handle.undo(force=True)
    assert weights(sd)[sd.cross_attention_kv()[0]].equal(before[sd.cross_attention_kv()[0]])


def test_a_denoiser_alone_will_do(sd: Model) -> None:
    before, delta = weights(sd), change(sd)
    with delta.apply(sd.denoiser):
        assert not weights(sd)[sd.cross_attention_kv()[0]].equal(before[sd.cross_attention_kv()[0]])
    assert_same(sd, before)
    with delta.apply(sd), pytest.raises(ModelError, match="learned on other weights"):
        delta.apply(sd.denoiser)


def test_what_does_not_fit_is_refused_and_changes_nothing(sd: Model, toy: Toy) -> None:
    before, delta = weights(sd), change(sd)
    name = sd.cross_attention_kv()[-1]

    def refused(wrong: WeightDelta, message: str, to: Model = sd) -> None:
        with pytest.raises(ModelError, match=message):
            wrong.apply(to)

    shape = WeightDelta({**delta.tensors, name: torch.zeros(2, 2)}, delta.meta)
    refused(shape, rf"'{name}' has another shape than the denoiser's; found: \(2, 2\) against")
    misspelt = WeightDelta({**delta.tensors, "conv_in.wight": torch.zeros(1)}, delta.meta)
    refused(misspelt, r"1 of the delta's 9 tensors.*'conv_in\.wight'.*did you mean 'conv_in\.weight'")
    refused(WeightDelta(delta.tensors, {"family": "sd"}), "does not say which base")
    refused(delta, "for the family 'sd'; found: a model of family 'sdxl'", _with_names(load(toy("sdxl")), delta))
    refused(delta, "learned on other weights than these", Model(_shifted(toy)))
    assert_same(sd, before)
    with misspelt.apply(sd, strict=False) as handle:
        assert handle.skipped == ("conv_in.wight",)
    assert_same(sd, before)


def _with_names(model: Model, delta: WeightDelta) -> Model:
    """An SDXL toy whose text is as wide as SD's, so that only the family tells them apart."""
    parameters = dict(model.denoiser.named_parameters())
    for name, tensor in delta.tensors.items():
        parameters[name].data = torch.zeros_like(tensor)
    return model


def _shifted(toy: Toy) -> object:
    pipe = load(toy("sd")).pipe
    pipe.unet.conv_in.bias.data.add_(1)
    return pipe


def test_another_base_is_possible_on_request(sd: Model, toy: Toy) -> None:
    delta, other = change(sd), Model(_shifted(toy))
    before = weights(other)
    with delta.apply(other, allow_other_base=True):
        name = other.cross_attention_kv()[0]
        assert weights(other)[name].equal(before[name] + delta.tensors[name])


def test_between_is_checked(sd: Model) -> None:
    before = weights(sd)
    name = sd.cross_attention_kv()[0]
    delta = WeightDelta.between(before, {name: before[name].half()}, {"method": "m"})
    assert delta.tensors[name].dtype == torch.float32 and list(delta.tensors) == [name]
    assert delta.meta["method"] == "m" and set(delta.meta["versions"]) >= {"torch", "diffusers"}
    with pytest.raises(ConfigError, match=r"no 'conv_in\.wieght'.*did you mean"):
        WeightDelta.between(before, {"conv_in.wieght": before[name]}, {})
    with pytest.raises(ConfigError, match="changed its shape"):
        WeightDelta.between(before, {name: before[name][:1]}, {})
    with pytest.raises(NumericsError, match="not finite"):
        WeightDelta.between(before, {name: before[name] / 0}, {})


# Files


def test_a_file_holds_everything(sd: Model, tmp_path: Path) -> None:
    delta = change(sd)
    path = delta.save(tmp_path / "new" / "delta.safetensors")
    again = WeightDelta.load(path)
    assert again.meta == delta.meta and again.tensors.keys() == delta.tensors.keys()
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in delta.tensors.items())
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["unteach"])
    assert (header["format"], header["version"], header["family"]) == ("unteach-delta", 1, "sd")
    assert set(load_file(path)) == set(sd.cross_attention_kv())
    with again.apply(sd):
        first = weights(sd)
    with delta.apply(sd):
        assert_same(sd, first)


def test_bad_files_are_refused(sd: Model, tmp_path: Path) -> None:
    delta = change(sd)
    path = delta.save(tmp_path / "delta.safetensors")
    whole = bytearray(path.read_bytes())

    def refused(message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            WeightDelta.load(path)

    path.write_bytes(whole[:-9])
    refused("damaged")
    flipped = whole.copy()
    flipped[-1] ^= 1
    path.write_bytes(flipped)
    refused("damaged")
    save_file(delta.tensors, path)
    refused("not written by Unteach")
    state.save(path, delta.tensors, {"format": "something"})
    refused("not a file of the format unteach-delta; found: format 'something'")
    state.save(path, delta.tensors, {"format": "unteach-delta", "version": 2})
    refused("newer version.*found: version 2 of its format; this one reads up to 1")
    halves = {name: tensor.half() for name, tensor in delta.tensors.items()}
    state.save(path, halves, {"format": "unteach-delta", "version": 1})
    refused("differences are float32")
    path.unlink()
    refused("there is no file")


def test_a_record_must_be_json(sd: Model, tmp_path: Path) -> None:
    delta = WeightDelta(change(sd).tensors, {"config": object()})
    with pytest.raises(ConfigError, match="must be JSON; found: a object"):
        delta.save(tmp_path / "delta.safetensors")
    assert not list(tmp_path.iterdir())


# Arithmetic


def test_merging_adds(sd: Model) -> None:
    names = sd.cross_attention_kv()
    one, two = change(sd, names[:5], seed=1), change(sd, names[3:], seed=2)
    both = merge([one, two], [2.0, -1.0])
    assert set(both.tensors) == set(names)
    for name in names:
        parts = [f * d.tensors[name] for f, d in ((2.0, one), (-1.0, two)) if name in d.tensors]
        torch.testing.assert_close(both.tensors[name], sum(parts[1:], parts[0]))
    assert both.meta["weights"] == [2.0, -1.0] and [m["method"] for m in both.meta["of"]] == ["test", "test"]
    before = weights(sd)
    with both.apply(sd):
        pass
    assert_same(sd, before)
    assert merge([one]).tensors[names[0]].equal(one.tensors[names[0]])
    assert one.scaled(3.0).scaled(0.5).meta["scale"] == 1.5 and "scale" not in one.meta


def test_merging_is_checked(sd: Model) -> None:
    delta = change(sd)
    for deltas, factors, error, message in (
        ([], None, ConfigError, "no deltas"),
        ([delta], [1.0, 2.0], ConfigError, "one weight a delta; found: 2 for 1"),
        (
            [delta, WeightDelta(delta.tensors, {**delta.meta, "base": "x"})],
            None,
            ModelError,
            "share their base",
        ),
        (
            [delta, WeightDelta(delta.tensors, {**delta.meta, "family": "x"})],
            None,
            ModelError,
            "share their family",
        ),
        (
            [delta, WeightDelta({sd.cross_attention_kv()[0]: torch.zeros(1)}, delta.meta)],
            None,
            ModelError,
            "disagree on the shape",
        ),
    ):
        with pytest.raises(error, match=message):
            merge(deltas, factors)


# Export


def test_an_exported_folder_is_base_plus_delta(model: Model, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, delta = weights(model), change(model)
    folder = delta.export(model, tmp_path / "a" / "erased")
    assert capfd.readouterr() == ("", "")
    assert_same(model, before)
    with delta.apply(model):
        assert_same(load(folder), weights(model))
        expected = sample(model, ["a dog"], [0], num_inference_steps=2)
    # Not bit for bit: where a file is mapped into memory, a product's last bit depends on where its tensors begin.
    torch.testing.assert_close(sample(load(folder), ["a dog"], [0], num_inference_steps=2), expected)
    note = json.loads((folder / "unteach.json").read_text())
    assert (note["format"], note["base"]) == ("unteach-delta", delta.meta["base"])
    texts = [file.read_text() for file in folder.rglob("*.json")]
    assert len(texts) > 5 and not any(str(model.path) in text for text in texts)
    assert [entry.name for entry in folder.parent.iterdir()] == ["erased"]


def test_an_export_never_mixes_with_other_files(sd: Model, tmp_path: Path) -> None:
    before, delta = weights(sd), change(sd)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        delta.export(sd, tmp_path)
    with pytest.raises(CheckpointError, match="cannot write"):
        delta.export(sd, tmp_path / "file" / "folder")
    assert_same(sd, before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
