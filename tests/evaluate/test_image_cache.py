from pathlib import Path

import pytest
import torch
from torch import Tensor

from unteach.core import state
from unteach.errors import CheckpointError
from unteach.evaluate.image_cache import ImageStore, quantise

ITEMS = [(f"prompt {i}", 100 + i) for i in range(7)]
CONFIG = {"steps": 2}


def draw(prompts: list[str], seeds: list[int]) -> Tensor:
    """A picture that depends on its prompt and seed alone."""
    rows = [
        torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(seed + len(prompt)))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return torch.stack(rows)


class Counting:
    """Draws, and remembers what was drawn; stops like a user after ``most`` calls."""

    def __init__(self, most: int = 10**6) -> None:
        self.most, self.drawn = most, []  # type: tuple[int, list[str]]

    def __call__(self, prompts: list[str], seeds: list[int]) -> Tensor:
        if self.most == 0:
            raise KeyboardInterrupt
        self.most -= 1
        self.drawn += prompts
        return draw(prompts, seeds)


def expected() -> Tensor:
    return quantise(draw([prompt for prompt, _ in ITEMS], [seed for _, seed in ITEMS]))


def test_in_memory_each_picture_is_drawn_once() -> None:
    store, counting = ImageStore(None, CONFIG), Counting()
    found = store.fetch([*ITEMS, ITEMS[0]], counting, chunk=3)
    assert torch.equal(found, torch.cat([expected(), expected()[:1]])) and found.dtype == torch.uint8
    store.fetch(ITEMS[:2], counting)
    assert len(counting.drawn) == len(store) == 7 and ITEMS[3] in store


def test_interrupted_is_unbroken(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ImageStore(tmp_path, CONFIG).fetch(ITEMS, Counting(most=2), chunk=2)
    again = Counting()
    found = ImageStore(tmp_path, CONFIG).fetch(ITEMS, again, chunk=2)
    assert again.drawn == [prompt for prompt, _ in ITEMS[4:]]
    assert torch.equal(found, expected())
    third = Counting(most=0)
    assert torch.equal(ImageStore(tmp_path, CONFIG).fetch(ITEMS[::-1], third), expected().flip(0))


def test_another_configuration_has_its_own_folder(tmp_path: Path) -> None:
    ImageStore(tmp_path, CONFIG).fetch(ITEMS, draw)
    other = Counting()
    ImageStore(tmp_path, {"steps": 3}).fetch(ITEMS, other)
    assert len(other.drawn) == 7 and len(list(tmp_path.iterdir())) == 2


def test_two_writers_do_not_harm_each_other(tmp_path: Path) -> None:
    one, two = ImageStore(tmp_path, CONFIG), ImageStore(tmp_path, CONFIG)
    one.fetch(ITEMS[:5], draw, chunk=2)
    two.fetch(ITEMS[2:], draw, chunk=3)
    assert torch.equal(ImageStore(tmp_path, CONFIG).fetch(ITEMS, Counting(most=0)), expected())


def test_damaged_and_foreign_chunks_are_refused(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, CONFIG)
    store.fetch(ITEMS, draw, chunk=4)
    assert store.folder is not None
    chunk = sorted(store.folder.iterdir())[0]
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match="damaged"):
        ImageStore(tmp_path, CONFIG)
    state.save(chunk, {"images": expected()}, {"items": [], "config": {"steps": 9}})
    with pytest.raises(CheckpointError, match="other pictures than its folder"):
        ImageStore(tmp_path, CONFIG)


def test_quantised_as_a_png_would() -> None:
    values = torch.tensor([-0.1, 0.0, 0.4999 / 255, 0.5001 / 255, 0.5, 1.0, 1.2])
    assert quantise(values).tolist() == [0, 0, 0, 1, 128, 255, 255]
