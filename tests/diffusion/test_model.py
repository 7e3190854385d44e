from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import toys

from unteach.core import seeds
from unteach.diffusion import Conditioning, Model, families, load
from unteach.diffusion import model as model_module
from unteach.errors import ConfigError, DataError, ModelError

Toy = Callable[[str], Path]
TIMES = torch.tensor([0, 500, 999])


def noise(model: Model, batch: int = 3, purpose: str = "test") -> torch.Tensor:
    return seeds.randn(model.latent_shape, 0, purpose, 0, range(batch))


# Text


def test_encoding_is_the_pipelines(model: Model) -> None:
    prompts = ["a dog", "an openmoji cat", "a dog"]
    cond = model.encode(prompts)
    theirs = model.pipe.encode_prompt(prompts, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    torch.testing.assert_close(cond.hidden, theirs[0])
    assert len(cond) == 3 and cond.hidden.shape[1] == toys.LENGTH
    assert not torch.allclose(cond.hidden[0], cond.hidden[1])
    assert not any(part.requires_grad or part.is_inference() for part in cond.tensors().values())
    if model.family == "sdxl":
        torch.testing.assert_close(cond["pooled"], theirs[2])
        assert cond["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 3
    else:
        assert cond.tensors().keys() == {"hidden"}


def test_each_prompt_is_encoded_once_alone_and_returned_as_a_copy(model: Model) -> None:
    calls: list[int] = []
    model.pipe.text_encoder.register_forward_hook(lambda module, args, output: calls.append(output[0].shape[0]))
    first = model.encode(["a dog", "a cat", "a dog"])
    assert calls == [1, 1]
    first.hidden.zero_()
    again = model.encode(["a dog"])
    assert calls == [1, 1] and again.hidden.any()
    again.hidden.zero_()
    assert model.encode(["a dog"]).hidden.any()
    model.forget_prompts()
    model.encode(["a dog"])
    assert calls == [1, 1, 1]


def test_the_cache_is_bounded_and_drops_the_oldest(sd: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    row = sd.encode(["a dog"]).hidden
    # A limit of two prompts instead of 256 MiB, so that a toy can reach it; the cache itself is the real one.
    monkeypatch.setattr(model_module, "_CACHE_BYTES", 2 * row.numel() * row.element_size())
    calls: list[int] = []
    sd.pipe.text_encoder.register_forward_hook(lambda module, args, output: calls.append(1))
    sd.encode(["a cat"])
    sd.encode(["a dog"])
    sd.encode(["a bomb"])
    assert len(calls) == 2
    sd.encode(["a dog", "a bomb"])
    assert len(calls) == 2
    assert len(sd.encode(["a cat", "a bomb", "a house"])) == 3
    assert len(calls) == 2 + 2  # the cat pushed out the dog, not the bomb


def test_unconditional_is_what_the_pipeline_uses(model: Model) -> None:
    cond = model.unconditional(2)
    _, negative, *pooled = model.pipe.encode_prompt(
        ["a dog", "a cat"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
    )
    torch.testing.assert_close(cond.hidden, negative)
    assert len(cond) == 2
    if model.family == "sdxl":
        torch.testing.assert_close(cond["pooled"], pooled[1])
        assert not cond.hidden.any()
        model.pipe.register_to_config(force_zeros_for_empty_prompt=False)
        torch.testing.assert_close(model.unconditional(1).hidden, model.encode([""]).hidden)
    else:
        assert cond.hidden.any()


def test_prompts_are_checked(sd: Model) -> None:
    with pytest.raises(ConfigError, match="list of strings; found: 'a dog'"):
        sd.encode("a dog")
    with pytest.raises(ConfigError, match="list of strings"):
        sd.encode([3])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="at least one prompt"):
        sd.encode([])


def test_conditioning_rows(model: Model) -> None:
    cond = model.encode(["a dog", "a cat", "a bomb"])
    picked = cond.index([2, 0, 0])
    assert {name: part.shape[0] for name, part in picked.tensors().items()} == dict.fromkeys(cond.tensors(), 3)
    assert torch.equal(picked.hidden, cond.hidden[[2, 0, 0]])
    assert torch.equal(cond.index(slice(1, None)).hidden, cond.index(torch.tensor([1, 2])).hidden)
    joined = Conditioning.cat([cond.index([0]), cond.index([1, 2])])
    assert all(torch.equal(joined.tensors()[name], part) for name, part in cond.tensors().items())
    assert len(cond.index([1]).expand(4)) == 4 and cond.expand(3) is cond
    with pytest.raises(ConfigError, match="4 latents need 4 prompts, or one for all; found: 3 prompts"):
        cond.expand(4)
    with pytest.raises(ConfigError, match="different model families"):
        Conditioning.cat([cond, Conditioning(cond.hidden, other=torch.zeros(3, 2))])


# Denoiser


def test_predict_is_the_denoisers_output(model: Model) -> None:
    x_t, cond = noise(model), model.encode(["a dog", "a cat", "a bomb"])
    added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]} if model.family == "sdxl" else None
    theirs = model.pipe.unet(x_t, TIMES, encoder_hidden_states=cond.hidden, added_cond_kwargs=added).sample
    assert torch.equal(model.predict(x_t, TIMES, cond), theirs)
    one = model.predict(x_t, 500, cond.index([0]))
    torch.testing.assert_close(one, model.predict(x_t, torch.full((3,), 500), cond.index([0, 0, 0])))
    assert not torch.allclose(one[1], model.predict(x_t, 500, cond.index([1]))[1])


def test_a_frozen_teacher_is_a_few_replacement_tensors(model: Model) -> None:
    x_t, cond = noise(model), model.encode(["a dog", "a cat", "a bomb"])
    teacher = model.predict(x_t, TIMES, cond)
    names = model.cross_attention_kv()
    parameters = dict(model.denoiser.named_parameters())
    before = {name: parameters[name].detach().clone() for name in names}
    with torch.no_grad():
        for name in names:
            parameters[name].mul_(1.5)
    changed = {name: parameters[name].detach().clone() for name in names}
    student = model.predict(x_t, TIMES, cond)
    assert not torch.allclose(student, teacher)
    assert torch.equal(model.predict(x_t, TIMES, cond, params=before), teacher)
    assert torch.equal(model.predict(x_t, TIMES, cond, params=changed), student)
    assert all(torch.equal(parameters[name], changed[name]) for name in names)
    with pytest.raises(
        ModelError, match=r"no parameter called 'conv_in\.wight'; to do: did you mean 'conv_in\.weight'"
    ):
        model.predict(x_t, TIMES, cond, params={"conv_in.wight": torch.zeros(1)})


def test_gradients_flow_to_parameters_and_to_replacements(model: Model) -> None:
    x_t, cond = noise(model), model.encode(["a dog"])
    name = model.cross_attention_kv()[0]
    parameter = dict(model.denoiser.named_parameters())[name]
    assert not model.predict(x_t, TIMES, cond).requires_grad
    parameter.requires_grad_(True)
    (own,) = torch.autograd.grad(model.predict(x_t, TIMES, cond).square().mean(), parameter)
    parameter.requires_grad_(False)
    stand_in = parameter.detach().clone().requires_grad_(True)
    loss = model.predict(x_t, TIMES, cond, params={name: stand_in}).square().mean()
    (other,) = torch.autograd.grad(loss, stand_in)
    assert own.any() and torch.allclose(own, other)


def test_cross_attention_names_are_keys_and_values_of_the_text(model: Model) -> None:
    names = model.cross_attention_kv()
    assert len(names) == (8 if model.family == "sd" else 16)
    assert names == [n for n, _ in model.denoiser.named_parameters() if n in set(names)]
    width = model.encode(["a dog"]).hidden.shape[-1]
    parameters = dict(model.denoiser.named_parameters())
    assert all(parameters[name].shape[1] == width for name in names)
    assert all(".attn2.to_k." in name or ".attn2.to_v." in name for name in names)


# Images


def test_latents_and_images(model: Model) -> None:
    images = seeds.rand(model.image_shape, 0, "images", 0, range(3))
    latents = model.to_latents(images)
    vae = model.pipe.vae
    posterior = vae.encode(images * 2 - 1).latent_dist
    torch.testing.assert_close(latents, posterior.mean * vae.config.scaling_factor)
    assert latents.shape == (3, *model.latent_shape) and not latents.requires_grad
    drawn = [model.to_latents(images, seeds.generator(seed, "posterior")) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    decoded = model.decode(latents)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1
    latents.requires_grad_(True)
    assert torch.autograd.grad(model.decode(latents).sum(), latents)[0].any()


def test_latents_are_centred_where_sdxls_vae_says_so(toy: Toy) -> None:
    model = load(toy("sdxl"))
    images = seeds.rand(model.image_shape, 0, "images", 0, range(2))
    plain = model.to_latents(images)
    decoded = model.decode(plain)
    mean, std = [1.0, -1.0, 0.5, 0.0], [2.0, 1.0, 0.5, 4.0]
    model.pipe.vae.register_to_config(latents_mean=mean, latents_std=std)
    centred = model.to_latents(images)
    scale = model.pipe.vae.config.scaling_factor
    expected = (plain / scale - torch.tensor(mean).view(1, 4, 1, 1)) / torch.tensor(std).view(1, 4, 1, 1) * scale
    torch.testing.assert_close(centred, expected)
    torch.testing.assert_close(model.decode(centred), decoded)


def test_a_vae_that_overflows_in_half_precision_works_in_float32(toy: Toy) -> None:
    model = load(toy("sdxl"), dtype=torch.float16)
    images = seeds.rand(model.image_shape, 0, "images", 0, range(2))
    assert model.pipe.vae.config.force_upcast
    assert model.to_latents(images).dtype == torch.float32
    assert model.pipe.vae.dtype == torch.float16
    assert model.decode(model.to_latents(images)).dtype == torch.float32
    assert model.pipe.vae.dtype == torch.float16


def test_images_are_checked(sd: Model) -> None:
    good = torch.rand(1, 3, 16, 16)
    for wrong, message in (
        (good[0], r"floating \(B, 3, H, W\).*float32 \(3, 16, 16\)"),
        ((good * 255).byte(), "uint8"),
        (good * 2 - 1, r"in \[0, 1\]; found: -"),
        (torch.full_like(good, float("nan")), "found: nan"),
    ):
        with pytest.raises(DataError, match=message):
            sd.to_latents(wrong)


# Digest


def test_the_digest_follows_the_weights(model: Model, toy: Toy) -> None:
    assert model.path is not None
    first = model.digest()
    assert first == load(model.path).digest() and len(first) == 64
    parameter = next(model.denoiser.parameters())
    with torch.no_grad():
        parameter.view(-1)[0] += 1e-3
    assert model.digest() == first
    assert model.digest(fresh=True) not in (first, None)
    changed = model.digest()
    with torch.no_grad():
        parameter.zero_()
    model.weights_changed()
    assert model.digest() not in (first, changed)


def test_the_digest_does_not_depend_on_the_dtype_of_loading(tmp_path: Path, toy: Toy) -> None:
    folder = toys.build("sd", tmp_path / "half", dtype=torch.float16)
    assert load(folder).digest() == load(folder, dtype=torch.float16).digest()
    assert load(toy("sd")).digest() != load(toy("sd"), dtype=torch.float16).digest()


def test_toys_are_the_same_each_time(tmp_path: Path) -> None:
    folders = [toys.build("sd", tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    digests = [load(folder).digest() for folder in folders]
    assert digests[0] == digests[1] != digests[2]
    assert families.names() == ["sd", "sd3", "sdxl"]
