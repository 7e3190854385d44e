import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unteach.continual import networks as module
from unteach.continual.networks import build, check, features, head, networks
from unteach.core import seeds
from unteach.errors import ConfigError, ModelError

BUILT_IN = ["mlp", "reduced-resnet18", "resnet18", "small-conv", "small-conv-gn", "vit"]
SMALL: dict[str, dict] = {"reduced-resnet18": {"width": 4}, "resnet18": {"width": 4}, "vit": {"width": 16, "depth": 1}}


def inputs(n: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(n, *shape, generator=seeds.generator(seed, "inputs"))


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_what_there_is() -> None:
    assert set(BUILT_IN) <= set(networks.names())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (1, 16, 16), (3, 8, 8), (3, 8, 16)])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_network_learns_on_every_shape(name: str, shape: tuple[int, ...]) -> None:
    options = dict(SMALL.get(name, {}))
    if name == "vit" and shape[1] == 28:
        options["patch"] = 7
    model = build(name, shape, 5, seed=0, **options)
    assert model.training and all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    logits = model(inputs(4, shape))
    assert logits.shape == (4, 5)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert all(p.grad.any() for n, p in model.named_parameters() if n.endswith("weight"))
    last = head(model)[1]
    assert last.out_features == 5
    out, inner = features(model.eval(), inputs(4, shape))
    torch.testing.assert_close(last(inner), out)  # the features are the input of the head
    assert torch.equal(out, model(inputs(4, shape)))
    assert inner.shape == (4, last.in_features) and inner.requires_grad
    assert not last._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet18", (3, 32, 32), 100, 11_220_132),
        ("reduced-resnet18", (3, 32, 32), 10, 1_094_750),
        ("mlp", (1, 28, 28), 10, 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10),
        ("small-conv", (3, 32, 32), 10, 9 * 16 * (3 + 32 + 128) + 2 * 7 * 16 + 64 * 10 + 10),
    ],
)
def test_sizes(name: str, shape: tuple[int, ...], classes: int, parameters: int) -> None:
    assert count(build(name, shape, classes, 0)) == parameters


def test_residual_stages_halve_the_side() -> None:
    x, sides = inputs(1, (3, 32, 32)), []
    for layer in build("resnet18", (3, 32, 32), 10, 0, width=4)[:-3]:
        x = layer(x)
        sides.append((x.shape[1], x.shape[2]))
    assert sides[3:] == [(4, 32)] * 2 + [(8, 16)] * 2 + [(16, 8)] * 2 + [(32, 4)] * 2


@pytest.mark.parametrize("name", BUILT_IN)
def test_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    shape, options = (3, 16, 16), SMALL.get(name, {})
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = build(name, shape, 4, 0, **options).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    again, other = (build(name, shape, 4, seed, **options).state_dict() for seed in (0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name != "vit"])
def test_plain_layers_and_nothing_in_place(name: str) -> None:
    plain = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.Linear)
    for layer in build(name, (3, 16, 16), 4, 0, **SMALL.get(name, {})).modules():
        assert not getattr(layer, "inplace", False)
        assert isinstance(layer, plain) or not list(layer.parameters(recurse=False))


@pytest.mark.parametrize("name", ["mlp", "small-conv", "small-conv-gn", "reduced-resnet18"])
def test_per_sample_gradients_by_vmap_are_those_of_the_samples(name: str) -> None:
    model = build(name, (1, 8, 8), 3, 0, **SMALL.get(name, {})).eval()
    x, y = inputs(3, (1, 8, 8)), torch.tensor([0, 1, 2])
    params = {key: p.detach() for key, p in model.named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, params, (x[None],)), y[None])

    many = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)
    for i in range(3):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for key, p in model.named_parameters():
            torch.testing.assert_close(many[key][i], p.grad, rtol=1e-4, atol=1e-6)


def test_options() -> None:
    assert [m.out_features for m in build("mlp", (5,), 3, 0, hidden=[7, 4]) if isinstance(m, nn.Linear)] == [7, 4, 3]
    assert count(build("mlp", (5,), 3, 0, hidden=())) == 5 * 3 + 3
    wide = build("small-conv", (1, 8, 16), 3, 0, width=32, pool="flatten", norm="none")
    assert head(wide)[1].in_features == 128 * 1 * 2
    assert not any(isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for m in wide.modules())
    groups = [m for m in build("small-conv-gn", (1, 8, 8), 3, 0, width=6).modules() if isinstance(m, nn.GroupNorm)]
    assert [m.num_groups for m in groups] == [2, 4, 8]


def test_groups_do_not_mix_samples() -> None:
    model = build("small-conv-gn", (3, 8, 8), 4, 0)
    x = inputs(6, (3, 8, 8))
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    batch = build("small-conv", (3, 8, 8), 4, 0)
    assert not torch.allclose(batch(x)[:1], batch(x[:2])[:1])


# ---- of your own ----


def own(shape: tuple[int, ...], classes: int, *, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), classes, bias=bias))


def test_builder_and_module_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_items", dict(networks._items))  # so the name is gone after the test
    networks.add("own")(own)
    by_name, by_builder = build("own", (2, 3), 4, 0, bias=False), build(own, (2, 3), 4, 0, bias=False)
    assert torch.equal(by_name[1].weight, by_builder[1].weight) and by_builder[1].bias is None
    assert build(by_name, (2, 3), 4, 7) is by_name
    with pytest.raises(ConfigError, match="takes no options"):
        build(by_name, (2, 3), 4, 0, bias=True)


def test_check_leaves_the_network_as_it_was() -> None:
    model = build("small-conv", (3, 8, 8), 4, 0)
    model[1].eval()
    model(inputs(4, (3, 8, 8)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    check(model, (3, 8, 8), 4)
    assert [m.training for m in model.modules()] == modes and False in modes and True in modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- errors ----


def test_wrong_names_and_options() -> None:
    with pytest.raises(ConfigError, match="did you mean 'resnet18' or 'reduced-resnet18'"):
        build("resnet-18", (3, 8, 8), 4, 0)
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'wide'.*known: width, norm, pool"):
        build("small-conv", (3, 8, 8), 4, 0, wide=3)
    for name, options, message in (
        ("small-conv", {"width": 0}, "width must be a whole number above 0, found 0"),
        ("small-conv", {"norm": "layer"}, "norm must be"),
        ("small-conv", {"pool": "max"}, "pool must be"),
        ("mlp", {"hidden": [10, -1]}, "hidden.1. must be a whole number above 0, found -1"),
        ("mlp", {"hidden": 10}, "list of widths"),
        ("resnet18", {"width": 2.5}, "width must be"),
        ("vit", {"width": 30}, "heads must divide width"),
        ("vit", {"patch": 3}, "patch both sides"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(name, (3, 8, 8), 4, 0, **options)


@pytest.mark.parametrize("name", ["small-conv", "resnet18", "reduced-resnet18", "vit"])
def test_images_are_asked_for(name: str) -> None:
    with pytest.raises(ModelError, match=r"takes images \(C, H, W\).*use 'mlp'"):
        build(name, (20,), 4, 0)


def test_wrong_shapes() -> None:
    with pytest.raises(ModelError, match=r"at least 8x8 pixels.*\(1, 7, 9\)"):
        build("small-conv", (1, 7, 9), 4, 0)
    model = build("mlp", (1, 8, 8), 4, 0)
    with pytest.raises(ModelError, match=r"does not take inputs of the stream's shape \(1, 9, 9\)"):
        check(model, (1, 9, 9), 4)
    with pytest.raises(ModelError, match=r"does not give logits for 5 classes.*\(2, 4\).*wanted \(2, 5\)"):
        check(model, (1, 8, 8), 5)
    assert model.training
    with pytest.raises(ModelError, match=r"must be an nn.Module"):
        build(lambda shape, classes: "net", (1, 8, 8), 4, 0)

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ModelError, match="must return its logits; found: tuple"):
        build(Pair(), (4,), 4, 0)


def test_features_that_cannot_be_had() -> None:
    with pytest.raises(ModelError, match="no last Linear layer"):
        head(nn.Sequential(nn.Flatten()))

    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    model = Aside()
    with pytest.raises(ModelError, match=r"does not go through.*found: unused"):
        features(model, inputs(2, (3,)))
    assert not model.unused._forward_pre_hooks


# ---- a pretrained vision transformer ----


def test_vit_from_a_folder(tmp_path) -> None:
    source = build("vit", (3, 16, 16), 7, 0, width=16, depth=1)
    source.vit.save_pretrained(tmp_path / "vit")
    model = build("vit", (3, 8, 8), 4, 1, path=str(tmp_path / "vit"))
    assert model.size == (16, 16) and model.training
    theirs, ours = source.vit.state_dict(), model.vit.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if not key.startswith("classifier"))
    assert head(model)[1].out_features == 4
    x = inputs(2, (3, 8, 8))
    big = nn.functional.interpolate(x, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.eval()(x), model(big))
    again = build("vit", (3, 8, 8), 4, 1, path=str(tmp_path / "vit"))
    assert torch.equal(head(again)[1].weight, head(model)[1].weight)  # the new head, too, is the seed's


def test_vit_from_a_folder_that_is_none(tmp_path) -> None:
    source = build("vit", (3, 16, 16), 7, 0, width=16, depth=1)
    source.vit.save_pretrained(tmp_path / "vit")
    torch.save(source.vit.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    (tmp_path / "vit" / "model.safetensors").unlink()
    for folder in ("vit", "nowhere"):  # nothing is unpickled
        with pytest.raises(ModelError, match="no vision transformer could be loaded"):
            build("vit", (3, 16, 16), 4, 0, path=str(tmp_path / folder))


def test_vit_from_a_folder_with_holes(tmp_path) -> None:
    source = build("vit", (3, 16, 16), 7, 0, width=16, depth=1)
    source.vit.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(key for key in tensors if "query" in key or "q_proj" in key)
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="not a whole vision transformer"):
        build("vit", (3, 16, 16), 4, 0, path=str(tmp_path))


# ---- time ----


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
def test_time(shape: tuple[int, ...]) -> None:
    assert torch.get_num_threads() == 1
    model = module.build("small-conv", shape, 10, 0)
    x, y = inputs(32, shape), torch.arange(32) % 10
    times = []
    for _ in range(15):
        start = time.process_time()
        nn.functional.cross_entropy(model(x), y).backward()
        times.append(time.process_time() - start)
    print(f"small-conv {shape}: {count(model)} parameters, {min(times) * 1e3:.2f} ms a batch of 32, one thread")
    assert min(times) < 0.2
