"""Negatives: in range, reproducible, without an object, and really spoiled."""

import pytest
import torch
from tools.canvas.negatives import NO_OBJECT, NO_STYLE, Labelled

from tools.canvas import negatives
from unteach.core import seeds
from unteach.data.emoji import grid
from unteach.errors import ConfigError, DataError

ALL = (*negatives.TRAINED, *negatives.UNSEEN)


def views(step: int = 7) -> Labelled:
    objects, styles = (index[::step] for index in grid().pairs())
    return Labelled(grid().views(objects, styles, seeds.generator(0, "views")), objects, styles)


def test_every_kind_is_either_trained_or_held_out() -> None:
    assert sorted(ALL) == negatives.kinds.names()
    assert len(set(ALL)) == len(ALL)


@pytest.mark.parametrize("kind", ALL)
def test_kind_gives_pictures_without_an_object(kind: str) -> None:
    seen = views()
    out = negatives.make(kind, seen, seeds.generator(1, kind))
    again = negatives.make(kind, seen, seeds.generator(1, kind))
    other = negatives.make(kind, seen, seeds.generator(2, kind))
    assert out.images.shape == seen.images.shape
    assert out.images.dtype == torch.float32
    assert 0 <= float(out.images.min()) <= float(out.images.max()) <= 1
    assert bool((out.objects == NO_OBJECT).all())
    assert torch.equal(out.images, again.images)
    # Blurring is the only kind without chance.
    assert torch.equal(out.images, other.images) == (kind == "blur")
    distance = (out.images - seen.images).abs().mean(dim=(1, 2, 3))
    assert float(distance.mean()) > 0.05


@pytest.mark.parametrize("kind", ["blend", "halves", "blend3"])
def test_a_style_stays_only_where_all_parts_share_it(kind: str) -> None:
    seen = views(1)
    out = negatives.make(kind, seen, seeds.generator(1, kind))
    kept = out.styles != NO_STYLE
    assert bool((out.styles[kept] == seen.styles[kept]).all())
    # Partners are drawn at random: an eighth of two, a 64th of three share the style.
    expected = 1 / 64 if kind == "blend3" else 1 / 8
    assert 0 < float(kept.float().mean()) < 3 * expected


def test_of_one_style_everything_keeps_it() -> None:
    objects = torch.arange(60)
    styles = torch.full_like(objects, 3)
    seen = Labelled(grid().views(objects, styles), objects, styles)
    for kind, stays in (
        ("blend", True),
        ("halves", True),
        ("blend3", True),
        ("tiles", False),
        ("veil", False),
    ):
        out = negatives.make(kind, seen, seeds.generator(0, kind))
        assert bool((out.styles == (3 if stays else NO_STYLE)).all()), kind


def test_tiles_and_rows_only_move_pixels() -> None:
    seen = views()
    for kind in ("tiles", "rows"):
        out = negatives.make(kind, seen, seeds.generator(0, kind)).images
        before, after = (x.flatten(2).sort(dim=2).values for x in (seen.images, out))
        assert torch.equal(before, after), kind


def test_halves_and_scraps_are_made_of_the_views() -> None:
    seen = views()
    halves = negatives.make("halves", seen, seeds.generator(0, "halves")).images
    own = (halves == seen.images).all(dim=1).float().mean(dim=(1, 2))
    assert float(own.min()) >= 12 / 32
    scraps = negatives.make("scraps", seen, seeds.generator(0, "scraps")).images
    quarters = torch.cat([seen.images[:, :, a : a + 16, b : b + 16] for a in (0, 16) for b in (0, 16)])
    for a in (0, 16):
        for b in (0, 16):
            gap = torch.cdist(scraps[:, :, a : a + 16, b : b + 16].flatten(1), quarters.flatten(1))
            assert float(gap.min(dim=1).values.max()) < 0.05


def test_too_few_objects_are_an_error() -> None:
    seen = Labelled(*(t[:8] for t in views(1)))
    assert len(seen.objects.unique()) == 1
    with pytest.raises(DataError, match="at least 2 objects"):
        negatives.make("blend", seen, seeds.generator(0, "x"))


def test_unknown_kind_lists_near_misses() -> None:
    with pytest.raises(ConfigError, match="did you mean 'halves'"):
        negatives.make("halfs", views(), seeds.generator(0, "x"))


def test_bend_by_nothing_is_the_picture() -> None:
    images = views().images
    assert torch.allclose(negatives.bend(images, 0.0, seeds.generator(0, "x")), images, atol=1e-5)
