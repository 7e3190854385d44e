"""What every model family must do. A new family is tested by a toy in tests/toys.py and its name in ``FAMILIES``.

Real classes, random weights: load, sample, the denoiser's call and times, erase by every method, delta, guard, verify.
"""

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import toys
from tests.erase.common import CONCEPT, quick, same
from tests.guard import sets
from torch import nn

from unteach.core import seeds
from unteach.core.loop import Step
from unteach.diffusion import Model, WeightDelta, families, load, sample
from unteach.diffusion.families import layers
from unteach.diffusion.finetune import Finetune, finetune
from unteach.diffusion.foreign import unremarked
from unteach.diffusion.tokens import last_tokens, name_ends, read, segments, vocabulary
from unteach.erase import erase, methods
from unteach.errors import ConfigError, ModelError
from unteach.guard.budget import costs, groups, layer_type
from unteach.guard.enforce import enforce
from unteach.guard.manifest import FreezeManifest
from unteach.guard.methods.controls import matched
from unteach.guard.methods.freezeasguard import FreezeAsGuard
from unteach.guard.methods.learner import learn
from unteach.guard.policy import mask_of
from unteach.guard.verify import verify
from unteach.records.mask import Mask

PROMPTS = ["a dog", "a cat", "a bomb"]
EACH = pytest.mark.parametrize("kind", families.names(), indirect=True, scope="module")
"""Costly tests: one toy a family."""


@pytest.fixture(scope="module", params=toys.FAMILIES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never written to."""
    return toys.build(kind, tmp_path_factory.mktemp("families") / kind)


@pytest.fixture
def model(folder: Path) -> Model:
    return load(folder)


def noise(model: Model, batch: int = 3, purpose: str = "test") -> torch.Tensor:
    return seeds.randn(model.latent_shape, 0, purpose, 0, range(batch))


def times(model: Model) -> torch.Tensor:
    return model.schedule.at(torch.tensor([0.1, 0.5, 0.9]))


def test_there_is_a_toy_of_every_family() -> None:
    assert {kind.partition("_")[0] for kind in toys.FAMILIES} == set(families)


# The folder


def test_it_is_loaded_in_the_dtype_asked_for_and_says_what_it_is(model: Model, folder: Path, kind: str) -> None:
    assert model.family == kind.partition("_")[0] and type(model.pipe) is model.conventions.pipeline
    networks = {name: part for name, part in model.pipe.components.items() if isinstance(part, nn.Module)}
    assert set(networks) == set(model.parts) >= set(model.conventions.components) - model.conventions.optional
    half = load(folder, dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for name in half.parts for p in getattr(half.pipe, name).parameters())
    assert not any(p.requires_grad for name in model.parts for p in getattr(model.pipe, name).parameters())
    assert model.digest() == Model(model.pipe).digest() == load(folder).digest() != half.digest()


def test_every_part_that_is_needed_is_asked_for(folder: Path, model: Model, tmp_path: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    needed = {*model.conventions.components, *model.conventions.tokenizers, "scheduler"} - model.conventions.optional
    for part in needed:
        place = Path(shutil.copytree(folder, tmp_path / part))
        (place / "model_index.json").write_text(json.dumps({**index, part: [None, None]}))
        with pytest.raises(ModelError, match=part):
            load(place)


def test_a_folder_with_a_scheduler_of_another_kind_is_refused(folder: Path, model: Model, tmp_path: Path) -> None:
    other = {"EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "DDIMScheduler"} - {*model.conventions.schedulers}
    for name in other:
        place = Path(shutil.copytree(folder, tmp_path / name))
        index = json.loads((place / "model_index.json").read_text())
        (place / "model_index.json").write_text(json.dumps({**index, "scheduler": ["diffusers", name]}))
        with pytest.raises(ModelError, match=f"scheduler of .* not of a known kind; found: {name}"):
            load(place)


# Text


def test_text_states_are_the_pipelines_own(model: Model) -> None:
    cond = model.encode(PROMPTS)
    accepted = inspect.signature(model.pipe.encode_prompt).parameters
    texts = {name: PROMPTS for name in ("prompt", "prompt_2", "prompt_3") if name in accepted}
    theirs = model.pipe.encode_prompt(**texts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    torch.testing.assert_close(cond.hidden, theirs[0])
    torch.testing.assert_close(model.unconditional(3).hidden, theirs[1])
    if "pooled" in cond.tensors():
        torch.testing.assert_close(cond["pooled"], theirs[2])
        torch.testing.assert_close(model.unconditional(3)["pooled"], theirs[3])
    assert all(len(part) == 3 for part in cond.tensors().values())


def test_tokens_are_found_where_their_states_are(model: Model) -> None:
    """A word changes the states from its own place on in a causal encoder, and none of the others' segments' ends."""
    parts = segments(model)
    a, b = (model.encode([text]).hidden[0] for text in ("a red dog", "a red cat"))
    assert parts[0].start == 0 and sum(part.length for part in parts) <= len(a)
    ends = name_ends(model, "a red dog", "dog")
    assert ends is not None and ends == last_tokens(model, "a red dog")
    for part, end in zip(parts, ends, strict=True):
        moved = (a != b).any(1).nonzero().flatten() - part.start
        inside = moved[(moved >= 0) & (moved < part.length)]
        assert end in inside and (not part.marked or int(inside.min()) == end)
    assert {len(ids) for ids in read(model, "a dog")} == {part.length for part in parts}
    assert read(model, "a dog") != read(model, "a cat") and "dog</w>" in vocabulary(model)
    assert name_ends(model, "a " * 300 + "dog", "dog") is None


# Time, noise and the denoiser


def test_the_target_is_what_the_denoiser_would_have_to_say(model: Model) -> None:
    x0, eps, t = noise(model, purpose="x0").double(), noise(model, purpose="eps").double(), times(model)
    a, s = model.schedule.rates(t, x0)
    assert bool((a[:-1] > a[1:]).all() and (s[:-1] < s[1:]).all())  # later is noisier
    x_t, out = model.noise(x0, eps, t), model.target(x0, eps, t)
    torch.testing.assert_close(x_t, a * x0 + s * eps)
    torch.testing.assert_close(model.to_x0(x_t, out, t), x0)
    torch.testing.assert_close(model.to_eps(x_t, out, t), eps)
    anything = noise(model, purpose="anything").double()
    rebuilt = a * model.to_x0(x_t, anything, t) + s * model.to_eps(x_t, anything, t)
    torch.testing.assert_close(rebuilt, x_t)


def test_times_are_in_range_and_functions_of_the_step(model: Model) -> None:
    schedule, step = model.schedule, Step(3, 10, 0)
    spread = schedule.spread(step, range(8), 8)
    assert torch.equal(spread[2:5], schedule.spread(step, range(2, 5), 8))
    drawn = torch.cat([schedule.draw(Step(k, 500, 0), "t", range(8)) for k in range(500)])
    assert torch.equal(drawn[8:16], schedule.draw(Step(1, 500, 0), "t", range(8)))
    assert 0 <= float(drawn.min()) < 0.1 * schedule.last and 0.9 * schedule.last < float(drawn.max()) <= schedule.last
    late = torch.cat([schedule.draw(Step(k, 500, 0), "t", range(8), 0.5, 0.75) for k in range(500)]) / schedule.last
    assert 0.5 <= float(late.min()) < 0.51 and 0.74 < float(late.max()) <= 0.75
    # The same distribution, drawn one by one, spread, and cut.
    places = torch.linspace(0.05, 0.95, 7)
    found = torch.quantile(drawn.float(), places) / schedule.last
    torch.testing.assert_close(found, schedule.at(places).float() / schedule.last, atol=0.03, rtol=0)
    inside = drawn[(drawn >= 0.5 * schedule.last) & (drawn < 0.75 * schedule.last)].float().mean() / schedule.last
    assert float(late.float().mean()) == pytest.approx(float(inside), abs=0.015)
    for wrong in (-1, schedule.last + 1):
        with pytest.raises(ConfigError, match="timesteps go from 0 to"):
            model.noise(noise(model), noise(model), wrong)


def test_a_call_with_other_tensors_is_a_call_of_another_network(model: Model) -> None:
    x_t, t, cond = noise(model), times(model), model.encode(PROMPTS)
    own = model.predict(x_t, t, cond)
    assert own.shape == x_t.shape and not own.requires_grad
    torch.testing.assert_close(model.predict(x_t[:1], t[:1], cond.index([0])), own[:1], rtol=1e-4, atol=1e-5)
    name = model.cross_attention_kv()[0]
    stand_in = {name: (model.denoiser.get_parameter(name).detach() * 1.5).requires_grad_(True)}
    other = model.predict(x_t, t, cond, stand_in)
    (gradient,) = torch.autograd.grad(other.square().mean(), stand_in[name])
    assert bool(gradient.any()) and not torch.equal(other, own)
    assert torch.equal(model.predict(x_t, t, cond), own)
    with toys.change(model, [name]).apply(model):
        assert not torch.equal(model.predict(x_t, t, cond), own)
    with pytest.raises(ModelError, match="no parameter called 'weigth'"):
        model.predict(x_t, t, cond, {"weigth": x_t})


def test_latents_come_back_through_their_scale(model: Model) -> None:
    raw = noise(model)
    scaled = model.conventions.scale_latents(model.pipe.vae, raw)
    torch.testing.assert_close(model.conventions.unscale_latents(model.pipe.vae, scaled), raw)
    pictures = torch.rand(2, *model.image_shape, generator=seeds.generator(0, "pictures"))
    latents = model.to_latents(pictures)
    assert latents.shape[1:] == model.latent_shape and model.decode(latents).shape == pictures.shape
    assert model.image_shape[1] % model.conventions.pixels(model.pipe) == 0


def test_sampling_is_the_pipelines_and_the_same_in_any_batch(model: Model) -> None:
    drawn = sample(model, PROMPTS, [1, 2, 3], num_inference_steps=3, guidance_scale=2.5)
    assert torch.equal(drawn, sample(model, PROMPTS, [1, 2, 3], num_inference_steps=3, guidance_scale=2.5))
    alone = sample(model, PROMPTS, [1, 2, 3], num_inference_steps=3, guidance_scale=2.5, batch_size=1)
    torch.testing.assert_close(alone, drawn, rtol=1e-3, atol=1e-4)
    model.pipe.set_progress_bar_config(disable=True)
    with unremarked():
        theirs = model.pipe(
            PROMPTS[0], num_inference_steps=3, guidance_scale=2.5, height=16, width=16, output_type="pt",
            generator=torch.Generator().manual_seed(1),
        ).images  # fmt: skip
    torch.testing.assert_close(drawn[:1], theirs, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(drawn[0], sample(model, ["a cat"], [1], num_inference_steps=3)[0], atol=1e-3)


# The network's parts


def test_every_parameter_has_a_place_and_attention_has_its_roles(model: Model) -> None:
    names = [name for name, _ in model.denoiser.named_parameters()]
    table = model.conventions.layers(names)
    assert list(table) == names and table == layers(names)  # also found without being told the family
    assert all(name.startswith(layer.block) and name.startswith(layer.part) for name, layer in table.items())
    kinds = {layer.kind for layer in table.values()}
    assert {"cross-attention", "self-attention", "feed-forward", "transformer", "embedding"} <= kinds
    assert sum(layer.kind == "other" for layer in table.values()) < 0.1 * len(names)
    kv = model.cross_attention_kv()
    assert {table[name].kind for name in kv} == {"cross-attention"} and {table[n].role for n in kv} == {"k", "v"}
    attention = [layer for layer in table.values() if layer.kind.endswith("-attention")]
    assert {layer.role for layer in attention} >= {"q", "k", "v", "out"} and "" not in {a.role for a in attention}
    assert set(model.text_layers()) <= set(names) and model.text_layers()


@EACH
def test_budgets_and_matched_masks_know_the_network(model: Model) -> None:
    params = dict(model.denoiser.named_parameters())
    blocks = groups(list(params), "block")
    assert sorted(name for block in blocks for name in block) == sorted(params) and 4 < len(blocks) < len(params) / 4
    flops = costs(model, "flops")
    assert flops.keys() == params.keys() and flops[model.cross_attention_kv()[0]] > 1
    like = [*model.cross_attention_kv(), *list(params)[::5]]
    mask = matched(params, set(like), 0)
    kinds = [sorted(layer_type(name, params[name].ndim) for name in names) for names in (mask, set(like))]
    assert kinds[0] == kinds[1] and mask != set(like)


# Training, erasing, deltas


@EACH
def test_only_the_selected_parameters_move_in_training(model: Model) -> None:
    before = toys.weights(model)
    data = sets.examples(model, "data", ["dog", "cat"], 4)
    first = model.cross_attention_kv()[0]
    for way in ("stratified", "uniform"):
        done = finetune(
            model, data.batches, Finetune(steps=2, batch_size=4, timesteps=way, train=(first.replace(".", r"\."),))
        )
        assert all(torch.isfinite(torch.tensor(row["loss"])) for row in done.history.records)
    moved = [name for name, value in toys.weights(model).items() if not torch.equal(value, before[name])]
    assert moved == [first]


@EACH
@pytest.mark.parametrize("name", methods.names())
def test_erasing_gives_a_delta_that_can_be_applied_undone_saved_and_repeated(
    name: str, model: Model, folder: Path, tmp_path: Path
) -> None:
    before, drawn = toys.weights(model), sample(model, ["a twemoji dog"], [7], num_inference_steps=2)
    method = quick(name, contexts=2, kept_words=4)
    # Looked at in the quickest; tests/erase/test_check.py has the rest.
    delta = erase(model, CONCEPT, method, seed=5, check=name == "uce")
    assert all(torch.equal(value, before[key]) for key, value in toys.weights(model).items())
    assert list(delta.tensors) == method.offered(model)
    assert all(bool(torch.isfinite(t).all()) and bool(t.any()) for t in delta.tensors.values())
    assert (delta.check is not None) == (name == "uce") and delta.meta["family"] == model.family
    loaded = WeightDelta.load(delta.save(tmp_path / "delta.safetensors"))
    assert same(loaded, delta) and loaded.meta == delta.meta
    again = load(folder)
    assert same(erase(again, CONCEPT, method, seed=5, check=False), delta)
    with loaded.apply(again):
        changed = {key for key, value in toys.weights(again).items() if not torch.equal(value, before[key])}
        assert changed == set(delta.tensors)
        assert not torch.equal(sample(again, ["a twemoji dog"], [7], num_inference_steps=2), drawn)
    assert all(torch.equal(value, before[key]) for key, value in toys.weights(again).items())
    assert torch.equal(sample(again, ["a twemoji dog"], [7], num_inference_steps=2), drawn)
    with pytest.raises(ModelError, match="learned on other weights"):
        delta.apply(load(toys.build(folder.name, tmp_path / "other", seed=1)))


@EACH
@pytest.mark.parametrize("name", methods.names())
def test_erasing_in_half_precision_is_finite(name: str, folder: Path) -> None:
    model = load(folder, dtype=torch.bfloat16)
    delta = erase(model, CONCEPT, quick(name), check=False)
    assert all(bool(torch.isfinite(t).all()) and bool(t.any()) for t in delta.tensors.values())


def test_uce_gives_the_target_the_anchors_values(model: Model) -> None:
    """In every layer that reads the text and in every part of it, which is all that the closed form promises."""
    method = quick("uce", lam=1e-6, tokens="last", templates=False, kept_words=0, contexts=0, balance=False)
    edit = erase(model, CONCEPT, method, check=False).tensors
    for name, part in model.text_layers().items():
        old = model.denoiser.get_parameter(name).detach().double()
        new = old + edit[name].double()
        target, anchor = (method.states(model, word, word, part) for word in ("twemoji", "openmoji"))
        torch.testing.assert_close(target @ new.T, anchor @ old.T, rtol=1e-2, atol=1e-2)


@EACH
def test_a_delta_is_exported_as_a_folder_and_as_a_lora(model: Model, folder: Path, tmp_path: Path) -> None:
    delta = toys.change(model)
    out = delta.export(model, tmp_path / "exported")
    with delta.apply(model):
        assert load(out).digest() == model.digest()
    delta.to_lora(16, tmp_path / "lora")
    pipe = load(folder).pipe
    pipe.load_lora_weights(tmp_path / "lora")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    with delta.apply(model):
        for name in delta.tensors:
            mine, fused = (dict(m.named_parameters())[name] for m in (model.denoiser, Model(pipe).denoiser))
            torch.testing.assert_close(fused, mine, rtol=1e-4, atol=1e-4)


# Guarding


@pytest.fixture(scope="module")
def guarded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FreezeManifest]:
    """A mask, learned on the toy; the base as published, and its manifest."""
    model = load(folder)
    config = FreezeAsGuard(steps=2, relearn_steps=2, batch_size=4, rho=0.3)
    learned = learn(model, sets.guard_data(model, 2), config, seed=1)
    assert 0 < len(learned.frozen) < len(learned.scores)
    assert model.digest(fresh=True) == load(folder).digest()
    mask = mask_of(model, learned, config, seed=1, illegal=("bomb",), innocent=("dog",), seconds=1.0)
    assert Mask.load(mask.save(tmp_path_factory.mktemp("mask") / "mask.json")) == mask
    manifest = FreezeManifest.of(mask.manifest)
    assert manifest.component == model.conventions.denoiser and set(manifest.components) == set(model.parts) - {
        manifest.component
    }
    return folder, manifest


def upload(folder: Path, manifest: FreezeManifest, out: Path, held: bool) -> Path:
    """A training of one step in plain PyTorch, with the frozen tensors held or not, saved by the pipeline itself."""
    model = load(folder)
    data = sets.examples(model, "upload", ["dog", "cat"], 4)
    optimizer = torch.optim.AdamW(model.denoiser.requires_grad_(True).parameters(), lr=1e-2)
    if held:
        enforce(model.denoiser, optimizer, frozen=manifest)
    x_t, t = noise(model, 8), model.schedule.spread(Step(0, 1, 0), range(8), 8)
    model.predict(x_t, t, data.conditioning).square().mean().backward()
    optimizer.step()
    model.pipe.save_pretrained(out, safe_serialization=True)
    return out


@EACH
def test_whoever_keeps_to_the_mask_conforms_and_whoever_does_not_is_caught(
    guarded: tuple[Path, FreezeManifest], tmp_path: Path
) -> None:
    folder, manifest = guarded
    good = verify(folder, upload(folder, manifest, tmp_path / "good", True), manifest)
    assert good.outcome == "conform" and good.findings == (), good.text()
    bad = verify(folder, upload(folder, manifest, tmp_path / "bad", False), manifest)
    assert bad.outcome == "violates"
    assert {f.tensor for f in bad.findings if f.tensor} <= set(manifest.frozen)


@EACH
def test_an_adapter_is_read_in_the_familys_names(guarded: tuple[Path, FreezeManifest], tmp_path: Path) -> None:
    folder, manifest = guarded
    model = load(folder)
    modules = {n.rpartition(".")[0] for n, p in model.denoiser.named_parameters() if p.ndim == 2}
    touched = {name.rpartition(".")[0] for name in manifest.frozen}
    weights = [f"{name}.weight" for name in sorted(modules)]
    held = next(name for name in weights if name in manifest.frozen)
    free = next(name for name in weights if name.removesuffix(".weight") not in touched)
    for name, outcome in ((held, "violates"), (free, "conform")):
        toys.change(model, [name]).to_lora(4, tmp_path / outcome)
        verdict = verify(folder, tmp_path / outcome, manifest)
        assert verdict.outcome == outcome, verdict.text()


@EACH
def test_another_text_encoder_or_configuration_is_caught(guarded: tuple[Path, FreezeManifest], tmp_path: Path) -> None:
    folder, manifest = guarded
    assert verify(folder, folder, manifest).outcome == "conform"
    for part in manifest.components:
        place = Path(shutil.copytree(folder, tmp_path / part))
        (weights,) = (place / part).glob("*.safetensors")
        tensors = load_file(weights)
        name = next(name for name, value in tensors.items() if value.is_floating_point() and value.ndim > 1)
        save_file({**tensors, name: tensors[name] + 1}, weights, {"format": "pt"})
        assert verify(folder, place, manifest).outcome == "violates"
    place = Path(shutil.copytree(folder, tmp_path / "config"))
    config = place / manifest.component / "config.json"
    changed = {"num_layers": 1, "layers_per_block": 2}
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, **{key: value for key, value in changed.items() if key in content}}))
    assert verify(folder, place, manifest).outcome != "conform"
