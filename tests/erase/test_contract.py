"""What every method of erasing must do, on every model family. A new method is tested by being registered."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from tests.erase.common import CONCEPT, QUICK, picture, quick, same, trained_names, weights

from unteach.core import state
from unteach.core.events import Steps
from unteach.diffusion import Model, WeightDelta, load
from unteach.erase import Method, erase, methods
from unteach.errors import CheckpointError, ConfigError, ModelError, NumericsError


@pytest.fixture(params=methods.names())
def name(request):
    return request.param


def test_the_config_survives_json(name):
    method = quick(name, strength=0.75, train=(".*attn2.*",))
    record = json.loads(json.dumps(method.to_dict()))
    assert record["method"] == name == method.name
    assert Method.from_dict(record) == method
    assert methods[name].from_dict({"method": name}) == methods[name]()


def test_the_config_names_every_mistake_at_once(name):
    with pytest.raises(ConfigError) as error:
        Method.from_dict({"method": name, "strenth": 1, "strength": "much", "train": "attn2"})
    text = str(error.value)
    assert "3 mistakes" in text and "unknown setting 'strenth' (did you mean 'strength'" in text
    assert "strength must be a finite number, found 'much'" in text
    assert "train must be a list of texts, found 'attn2'" in text


def test_only_the_selected_tensors_move(name, kind, model, erased):
    delta, before = erased(name, kind), weights(model)
    keys = model.cross_attention_kv()
    assert list(delta.tensors) == keys and len(keys) > 0
    assert all(bool(torch.isfinite(t).all()) and t.dtype == torch.float32 for t in delta.tensors.values())
    assert all(bool((t != 0).any()) for t in delta.tensors.values())
    delta.apply(model)
    moved = [key for key, value in weights(model).items() if not torch.equal(value, before[key])]
    assert moved == keys


def test_fewer_tensors_on_request(name, sd):
    value = sd.cross_attention_kv()[-1]
    assert list(erase(sd, CONCEPT, quick(name, train=(value.replace(".", r"\."),))).tensors) == [value]


def test_the_model_is_unchanged(name, kind, model, erased):
    before, flags = weights(model), [p.requires_grad for p in model.denoiser.parameters()]
    again = erase(model, CONCEPT, quick(name), seed=5)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    assert flags == [p.requires_grad for p in model.denoiser.parameters()] and not model.denoiser.training
    assert all(p.grad is None for p in model.denoiser.parameters())
    assert not any(m._forward_hooks for m in model.denoiser.modules())
    assert same(again, erased(name, kind)) and again.meta == erased(name, kind).meta  # two runs are equal


@pytest.mark.parametrize("kind", ["sd_v"], indirect=True)
def test_strength_scales_and_zero_changes_no_bit(name, kind, model, erased):
    none, half = (erase(model, CONCEPT, quick(name, strength=s), seed=5) for s in (0.0, 0.5))
    full = erased(name, kind)
    assert all(torch.equal(half.tensors[n], full.tensors[n] * 0.5) for n in full.tensors)
    before, drawn = weights(model), picture(model)
    none.apply(model)
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    assert torch.equal(picture(model), drawn)


def test_apply_undo_save_and_load(name, kind, model, erased, tmp_path):
    delta, drawn, digest = erased(name, kind), picture(model), model.digest()
    with delta.apply(model):
        changed = picture(model)
        assert not torch.equal(changed, drawn)
    assert torch.equal(picture(model), drawn) and model.digest() == digest
    loaded = WeightDelta.load(delta.save(tmp_path / "delta.safetensors"))
    assert same(loaded, delta) and loaded.meta == delta.meta
    with loaded.apply(model):
        assert torch.equal(picture(model), changed)


def test_the_record_says_where_the_delta_comes_from(name, kind, model, erased):
    meta = erased(name, kind).meta
    assert Method.from_dict(meta["config"]) == quick(name)
    assert meta["concepts"][0]["target"] == "twemoji" and meta["seed"] == 5
    assert meta["base"] == model.digest() and meta["family"] == model.family and "torch" in meta["versions"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(name, sd, erased, mode):
    with mode():
        sd.encode(["a twemoji dog"])
        delta = erase(sd, CONCEPT, quick(name), seed=5)
    assert same(delta, erased(name, "sd"))
    with delta.apply(sd):
        assert sd.digest() != delta.meta["base"]


def test_another_seed_is_another_run_of_whatever_draws(name, sd, erased):
    """The closed form draws nothing but the prompts that nobody wrote; without those, seeds are all one to it."""
    other = erase(sd, CONCEPT, quick(name), seed=6)
    assert not same(other, erased(name, "sd"))
    if name not in trained_names():
        plain = [erase(sd, CONCEPT, quick(name, kept_words=0, contexts=0), seed=seed) for seed in (5, 6)]
        assert same(*plain)


@pytest.mark.parametrize("kind", ["sd", "sdxl"], indirect=True)
def test_half_precision_gives_a_finite_delta(name, kind, folder):
    model = load(folder(kind), dtype=torch.bfloat16)
    before, drawn = weights(model), picture(model)
    delta = erase(model, CONCEPT, quick(name))
    assert all(bool(torch.isfinite(t).all()) and bool((t != 0).any()) for t in delta.tensors.values())
    assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    with delta.apply(model):
        assert model.dtype == torch.bfloat16 and not torch.equal(picture(model), drawn)


def test_a_denoiser_without_cross_attention_is_refused(name, sd):
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        mid_block_type=None,
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    parts = {**sd.pipe.components, "unet": unet}
    blind = Model(StableDiffusionPipeline(**parts, requires_safety_checker=False))
    with pytest.raises(ModelError, match=r"cross-attention, and this denoiser has none.*'train'"):
        erase(blind, CONCEPT, quick(name))


def test_patterns_that_match_nothing_are_an_error(name, sd):
    with pytest.raises(ModelError, match="no parameter"):
        erase(sd, CONCEPT, quick(name, train=("attn3.*",)))


def test_the_finished_delta_is_returned_and_another_run_refused(name, sd, erased, tmp_path):
    method, calls = quick(name), []
    first = erase(sd, CONCEPT, method, seed=5, out=tmp_path)
    stamp = (tmp_path / "delta.safetensors").stat().st_mtime_ns
    again = erase(sd, CONCEPT, method, seed=5, out=str(tmp_path), events=Steps(calls.append))
    assert same(first, again) and same(first, erased(name, "sd")) and calls == []
    assert (tmp_path / "delta.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(CheckpointError, match=r"holds another run.*seed was"):
        erase(sd, CONCEPT, method, seed=6, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"found: config\."):
        erase(sd, CONCEPT, quick(name, strength=0.5), seed=5, out=tmp_path)
    (tmp_path / "delta.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        erase(sd, CONCEPT, method, seed=5, out=tmp_path)


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", trained_names())
@pytest.mark.parametrize("kind", ["sd_v", "sdxl"], indirect=True)
def test_interrupted_is_unbroken(name, kind, model, erased, tmp_path):
    def stop(done):
        if done in (2, 3):
            raise Stop

    before, seen = weights(model), []
    for _ in range(2):  # stopped after step 2, then after step 3, each time right after that step was saved
        with pytest.raises(Stop):
            erase(model, CONCEPT, quick(name), seed=5, out=tmp_path, save_every=1, events=Steps(stop, name))
        assert all(torch.equal(value, before[key]) for key, value in weights(model).items())
    delta = erase(model, CONCEPT, quick(name), seed=5, out=tmp_path, events=Steps(seen.append, name))
    assert seen == [4] and same(delta, erased(name, kind))


@pytest.mark.parametrize("name", trained_names())
def test_a_checkpoint_of_other_settings_is_refused_but_strength_is_free(name, sd, erased, tmp_path):
    erase(sd, CONCEPT, quick(name), seed=5, out=tmp_path)
    (tmp_path / "delta.safetensors").unlink()
    seen: list[int] = []
    half = erase(sd, CONCEPT, quick(name, strength=0.5), seed=5, out=tmp_path, events=Steps(seen.append, name))
    assert seen == []  # the training was not repeated
    assert all(torch.equal(t, erased(name, "sd").tensors[n] * 0.5) for n, t in half.tensors.items())
    (tmp_path / "delta.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds another run.*config\.learning_rate was 0.01, is now 0.02"):
        erase(sd, CONCEPT, quick(name, learning_rate=0.02), seed=5, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"holds another run.*found: num_inference"):
        erase(sd, CONCEPT, quick(name, num_inference_steps=3), seed=5, out=tmp_path)


@pytest.mark.parametrize("name", trained_names())
def test_divergence_stops_the_run_and_keeps_the_last_good_state(name, sd, tmp_path):
    before = weights(sd)
    with pytest.raises(NumericsError, match="not finite"):
        erase(sd, CONCEPT, quick(name, learning_rate=1e30, steps=8, weight_decay=0.0), out=tmp_path, save_every=1)
    tensors, meta = state.load(tmp_path / "state.safetensors")
    assert 0 < meta["step"] < 8
    assert all(bool(torch.isfinite(t).all()) for key, t in tensors.items() if key.startswith("params/"))
    assert not (tmp_path / "delta.safetensors").exists()
    assert all(torch.equal(value, before[key]) for key, value in weights(sd).items())


def test_quick_settings_are_all_in_use():
    fields = {key for name in methods for key in methods[name]().to_dict()}
    assert set(QUICK) <= fields
