import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from torch import Tensor

from unteach.continual.augment import KINDS, augment, normalise
from unteach.core import seeds
from unteach.errors import ConfigError, DataError


def images(n: int, shape: tuple[int, ...] = (3, 7, 10), seed: int = 0) -> Tensor:
    return torch.randint(256, (n, *shape), generator=seeds.generator(seed, "images"), dtype=torch.uint8)


def literal(x: Tensor, kind: str, generator: torch.Generator, most: tuple[int, int], fill: int | str) -> Tensor:
    """Pixel by pixel, with the same draws."""
    n, _, height, width = x.shape
    down = torch.randint(-most[0], most[0] + 1, (n,), generator=generator).tolist()
    right = torch.randint(-most[1], most[1] + 1, (n,), generator=generator).tolist()
    flip = (torch.rand(n, generator=generator) < 0.5).tolist() if kind == "crop-flip" else [False] * n
    out = torch.empty_like(x)
    for b in range(n):
        view = torch.empty_like(x[b])
        for i in range(height):
            for j in range(width):
                si, sj = i - down[b], j - right[b]
                inside = 0 <= si < height and 0 <= sj < width
                if inside or fill == "edge":
                    view[:, i, j] = x[b, :, min(max(si, 0), height - 1), min(max(sj, 0), width - 1)]
                else:
                    view[:, i, j] = fill
        out[b] = view.flip(2) if flip[b] else view
    return out


@pytest.mark.parametrize("fill", ["edge", 0, 255])
@pytest.mark.parametrize("kind", ["shift", "crop", "crop-flip"])
@pytest.mark.parametrize("shape", [(3, 7, 10), (1, 8, 8), (2, 17, 5)])
def test_against_the_literal_loop(kind: str, shape: tuple[int, int, int], fill: int | str) -> None:
    x = images(12, shape)
    share = 0.3
    most = (int(share * shape[1]), int(share * shape[2])) if kind == "shift" else (4, 4)
    out = augment(x, kind, seeds.generator(0, "a"), share=share, fill=fill)
    assert out.dtype == torch.uint8 and out.shape == x.shape
    assert torch.equal(out, literal(x, kind, seeds.generator(0, "a"), most, fill))


def test_defaults() -> None:
    x = images(20, (3, 32, 32))
    g = lambda: seeds.generator(1, "a")  # noqa: E731
    assert torch.equal(augment(x, "crop-flip", g()), literal(x, "crop-flip", g(), (4, 4), 0))
    assert torch.equal(augment(x, "shift", g()), literal(x, "shift", g(), (4, 4), "edge"))
    small = images(20, (1, 8, 8))
    assert torch.equal(augment(small, "shift", g()), literal(small, "shift", g(), (1, 1), "edge"))
    assert torch.equal(augment(x, "crop", g(), padding=1), literal(x, "crop", g(), (1, 1), 0))


def test_every_move_and_flip_is_equally_likely() -> None:
    # The position of one bright pixel in the middle shows the draw of each sample.
    n = 20_000
    x = torch.zeros(n, 1, 9, 11, dtype=torch.uint8)
    x[:, :, 4, 4] = 1
    out = augment(x, "crop-flip", seeds.generator(0, "a"), padding=2)
    _, _, i, j = out.nonzero(as_tuple=True)
    assert len(i) == n
    counts = torch.bincount(i * 11 + j, minlength=99).reshape(9, 11)
    # Not mirrored: columns 2..6; mirrored (10 - j): columns 4..8. In 4..6 both add up.
    expected = torch.zeros(9, 11)
    expected[2:7, 2:7] += n / 50
    expected[2:7, 4:9] += n / 50
    assert (counts[expected == 0] == 0).all()
    hit = expected > 0
    assert stats.chisquare(counts[hit].double().numpy(), expected[hit].double().numpy()).pvalue > 0.001


def test_same_draws_same_views_and_nothing_else_moves() -> None:
    x = images(16)
    before, global_state = x.clone(), torch.get_rng_state()
    for kind in KINDS:
        first, second, third = (augment(x, kind, seeds.generator(0, "a", i)) for i in (0, 0, 1))
        assert torch.equal(first, second)
        assert torch.equal(first, third) == (kind == "none")
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), global_state)
    crop, both = (augment(x, kind, seeds.generator(0, "a")) for kind in ("crop", "crop-flip"))
    same, mirrored = ((a == both).flatten(1).all(1) for a in (crop, crop.flip(3)))
    assert (same | mirrored).all() and same.any() and mirrored.any()


def test_nothing_to_do() -> None:
    x = images(5)
    assert torch.equal(augment(x, "crop", seeds.generator(0, "a"), padding=0), x)
    assert torch.equal(augment(x, "shift", seeds.generator(0, "a"), share=0), x)
    assert augment(x[:0], "crop-flip", seeds.generator(0, "a")).shape == (0, 3, 7, 10)
    features = torch.randn(5, 8)
    assert augment(features, "none", seeds.generator(0, "a")) is features
    view = images(5).to(memory_format=torch.channels_last)
    assert torch.equal(augment(view, "crop", seeds.generator(0, "a")), augment(x, "crop", seeds.generator(0, "a")))


def test_refuses() -> None:
    g = seeds.generator(0, "a")
    with pytest.raises(ConfigError, match="did you mean 'crop-flip'"):
        augment(images(2), "crop_flip", g)
    for x in (torch.randn(2, 8), torch.randn(2, 3, 8, 8), images(2)[0]):
        with pytest.raises(ConfigError, match="use the augmentation 'none'"):
            augment(x, "crop", g)
    for wrong in ({"padding": -1}, {"share": 1.5}, {"fill": 256}):
        with pytest.raises(ConfigError, match="out of range"):
            augment(images(2), "crop", g, **wrong)


# ---- normalise ----


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalise(channels_last: bool) -> None:
    x, mean, std = images(6), (0.2, 0.5, 0.9), (0.1, 0.25, 0.6)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    out = normalise(x, mean, std)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    m, s = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (mean, std))
    torch.testing.assert_close(out.double(), (x.double() / 255 - m) / s, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(normalise(x, (), ()), x / 255)
    torch.testing.assert_close(normalise(x, (0.5,), (0.5,)), x / 127.5 - 1)
    flat = x.flatten(2)[:, 0]
    torch.testing.assert_close(normalise(flat, (0.5,), (0.5,)), flat / 127.5 - 1)


def test_normalise_passes_floats_and_refuses_the_rest() -> None:
    x = torch.randn(3, 5)
    assert normalise(x, (), ()) is x
    with pytest.raises(DataError, match="uint8 or floating point"):
        normalise(torch.arange(6).reshape(2, 3), (), ())
    for mean, std in (((0.5, 0.5), (1.0, 1.0)), ((0.5,), ()), ((0.5,) * 3, (0.1, 0.0, 0.1))):
        with pytest.raises(ConfigError, match="one number a channel"):
            normalise(images(2), mean, std)


# ---- time ----


def one_by_one(arrays: list[np.ndarray], rng: np.random.RandomState, mean: Tensor, std: Tensor) -> Tensor:
    """An image at a time through Pillow, as the usual data sets do: pad, crop, flip, to a tensor, normalise."""
    out = []
    for array in arrays:
        image = ImageOps.expand(Image.fromarray(array), border=4, fill=0)
        i, j = rng.randint(0, 9), rng.randint(0, 9)
        image = image.crop((j, i, j + 32, i + 32))
        if rng.rand() < 0.5:
            image = ImageOps.mirror(image)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        out.append((tensor - mean) / std)
    return torch.stack(out)


def test_time() -> None:
    x = images(128, (3, 32, 32))
    arrays = [image.permute(1, 2, 0).contiguous().numpy() for image in x]
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    m, s = (torch.tensor(v)[:, None, None] for v in (mean, std))
    rng, generator = np.random.RandomState(0), seeds.generator(0, "a")

    def best(work) -> float:
        times = []
        for _ in range(10):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    batched = best(lambda: normalise(augment(x, "crop-flip", generator), mean, std))
    loop = best(lambda: one_by_one(arrays, rng, m, s))
    print(f"crop, flip, normalise 128: {batched * 1e3:.2f} ms, one by one {loop * 1e3:.2f} ms, x{loop / batched:.1f}")
    assert loop > 2 * batched
