"""EmojiCanvas as it is packed: sizes, pictures, views, licences; and what a damaged pack says."""

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import unteach
from unteach.core import seeds
from unteach.data import emoji
from unteach.data.vocabulary import OBJECTS, STYLE_SETS, STYLES
from unteach.errors import ConfigError

SOURCE = Path(unteach.__file__).parent
PACKS = SOURCE / "data" / "packs"
OPEN = {"CC-BY-4.0", "CC-BY-SA-4.0", "Apache-2.0", "MIT"}


@pytest.fixture(scope="module")
def canvas() -> emoji.Canvas:
    return emoji.grid()


@pytest.fixture(scope="module")
def pictures(canvas: emoji.Canvas) -> torch.Tensor:
    """All canonical views, (480, 3, 32, 32), float in [0, 1]."""
    return canvas.views(*canvas.pairs())


def nearest(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Root mean squared difference of each picture of ``a`` to the nearest of ``b`` (other than itself)."""
    distance = torch.cdist(a.flatten(1), b.flatten(1)) / a[0].numel() ** 0.5
    if a is b:
        distance.fill_diagonal_(torch.inf)
    return distance.min(1).values


# ------------------------------------------------------------------------------------------------------- grid


def test_the_grid_is_sixty_objects_in_eight_styles(canvas: emoji.Canvas) -> None:
    assert canvas.icons.shape == (60, 8, 4, 64, 64) and canvas.icons.dtype == torch.uint8
    assert canvas.objects == OBJECTS and canvas.styles == STYLES
    assert emoji.grid() is canvas


def test_every_icon_is_drawn_and_leaves_room(canvas: emoji.Canvas) -> None:
    alpha = canvas.icons[:, :, 3].float() / 255
    covered = alpha.mean((2, 3))
    assert float(covered.min()) > 0.09 and float(covered.max()) < 0.95
    assert bool((alpha.amax((2, 3)) == 1).all())  # somewhere it is opaque


def test_every_picture_can_be_seen_and_is_unlike_every_other(pictures: torch.Tensor) -> None:
    assert pictures.shape == (480, 3, 32, 32)
    ink = (1 - pictures).mean((1, 2, 3))
    assert float(ink.min()) > 0.04
    assert float(nearest(pictures, pictures).min()) > 0.08  # nearest: the red balloons of two sets


def test_a_style_looks_like_itself(canvas: emoji.Canvas) -> None:
    """Two sets are drawn in one colour, six in many: the sheets are not mixed up."""
    icons = canvas.icons.float() / 255
    colour = (icons[:, :, :3].amax(2) - icons[:, :, :3].amin(2)) * icons[:, :, 3]
    saturation = dict(zip(STYLES, colour.mean((0, 2, 3)).tolist(), strict=True))
    assert all((value < 0.01) == (style in ("mono", "contrast")) for style, value in saturation.items()), saturation


def test_objects_are_where_their_names_say(canvas: emoji.Canvas) -> None:
    """By colour, in all sets in colour: the strawberry is red, the cactus is green, the panda is grey."""
    coloured = [i for i, style in enumerate(STYLES) if style not in ("mono", "contrast")]

    def mean(name: str) -> torch.Tensor:
        icons = canvas.icons[canvas.object_index(name)][coloured].float() / 255
        weight = icons[:, 3:].expand(-1, 3, -1, -1)
        return (icons[:, :3] * weight).sum((2, 3)) / weight.sum((2, 3))  # (styles, RGB)

    for name in ("strawberry", "apple", "ladybird"):
        red = mean(name)
        assert bool((red[:, 0] > red[:, 1:].amax(1) + 0.15).all()), name
    for name in ("frog", "cactus", "fir tree", "conifer"):
        green = mean(name)
        assert bool((green[:, 1] > green[:, [0, 2]].amax(1) + 0.01).all()), name
    grey = mean("panda")
    assert bool((grey.amax(1) - grey.amin(1) < 0.1).all())


def test_names_and_styles_are_found_and_near_misses_named(canvas: emoji.Canvas) -> None:
    for i, info in enumerate(OBJECTS):
        assert {canvas.object_index(name) for name in info.names} == {i}
    assert [canvas.style_index(style) for style in STYLES] == list(range(8))
    with pytest.raises(ConfigError, match=r"no object is called 'strawbery'.*'strawberry'"):
        canvas.object_index("strawbery")
    with pytest.raises(ConfigError, match=r"no style is called 'twemojis'.*'twemoji'"):
        canvas.style_index("twemojis")


def test_pairs_are_the_whole_grid_objects_slowest(canvas: emoji.Canvas) -> None:
    objects, styles = canvas.pairs()
    assert list(zip(objects.tolist(), styles.tolist(), strict=True)) == list(itertools.product(range(60), range(8)))


# ------------------------------------------------------------------------------------------------------ views


def test_images_are_the_canonical_views_in_bytes(canvas: emoji.Canvas, pictures: torch.Tensor) -> None:
    images = canvas.images(*canvas.pairs())
    assert images.dtype == torch.uint8 and images.shape == (480, 3, 32, 32)
    assert float((images.float() / 255 - pictures).abs().max()) <= 0.5 / 255 + 1e-6


def test_the_canonical_view_is_centred_on_white_and_always_the_same(canvas: emoji.Canvas) -> None:
    everything = canvas.pairs()
    torch.manual_seed(0)
    first = canvas.views(*everything)
    torch.rand(5)
    assert torch.equal(canvas.views(*everything), first)
    assert torch.equal(canvas.views(*everything, strong=True)[:, :, 0, 0], torch.ones(480, 3))
    bare = canvas.icons[..., 3, :8, :8].flatten(0, 1).amax((1, 2)) == 0  # nothing drawn in the corner
    assert int(bare.sum()) > 400 and bool((first[bare][:, :, 0, 0] == 1).all())
    # A symmetric icon stays symmetric: nothing is shifted or turned.
    square = torch.zeros(1, 4, 64, 64, dtype=torch.uint8)
    square[:, 3, 16:48, 16:48] = 255
    view = emoji.draw(square)[0]
    for turned in (view.flip(1), view.flip(2), view.transpose(1, 2)):
        torch.testing.assert_close(turned, view)


def test_a_view_is_a_mean_over_pixels_with_colours_weighted_by_alpha() -> None:
    """The hidden colour of transparent pixels does not matter, and half covered is half background."""
    icon = torch.zeros(2, 4, 64, 64, dtype=torch.uint8)
    icon[1, :3] = 77
    icon[:, 0, :, :32], icon[:, 1:3, :, :32] = 255, 0
    icon[:, 3, :, :32] = 255
    view = emoji.draw(icon)
    torch.testing.assert_close(view[0], view[1], atol=0.02, rtol=0)
    full = torch.full((1, 4, 64, 64), 255, dtype=torch.uint8)
    full[:, 1:3] = 0
    full[:, 3] = 51  # a fifth
    inner = emoji.draw(full)[0, :, 4:-4, 4:-4]
    torch.testing.assert_close(inner, torch.tensor([1, 0.8, 0.8])[:, None, None].expand_as(inner))


@pytest.mark.parametrize("strong", [False, True])
def test_views_are_in_range_reproducible_and_varied(canvas: emoji.Canvas, strong: bool) -> None:
    objects, styles = canvas.pairs()

    def draw(key: int) -> torch.Tensor:
        return canvas.views(objects, styles, seeds.generator(0, "views", key), strong=strong)

    views = draw(0)
    assert views.shape == (480, 3, 32, 32) and views.dtype == torch.float32
    assert float(views.min()) >= 0 and float(views.max()) <= 1
    assert torch.equal(draw(0), views)
    other = draw(1)
    assert bool(((other - views).abs().amax((1, 2, 3)) > 0.02).all())  # no view is drawn twice alike


def test_backgrounds_are_white_in_most_views_and_pale_in_the_rest() -> None:
    empty = torch.zeros(1, 4, 64, 64, dtype=torch.uint8).expand(500, -1, -1, -1)
    views = torch.cat([emoji.draw(empty, seeds.generator(0, "paper", part)) for part in range(8)])
    paper = Counter(tuple(round(value, 2) for value in view[:, 5, 5].tolist()) for view in views)
    assert set(paper) == {tuple(round(v, 2) for v in row) for row in emoji.BACKGROUNDS.tolist()}
    share = paper[(1.0, 1.0, 1.0)] / 4000
    assert abs(share - 0.6) < 0.04 and all(abs(n / 4000 - 0.1) < 0.03 for c, n in paper.items() if c != (1, 1, 1))
    assert bool((views.amax((2, 3)) == views.amin((2, 3))).all())  # an empty icon is the paper alone


def test_a_background_may_be_given_and_no_icons_are_no_views(canvas: emoji.Canvas) -> None:
    icons = canvas.icons[:2, 0]
    blue = torch.tensor([[0.1, 0.2, 0.9]]).expand(2, 3)
    view = emoji.draw(icons, background=blue)
    torch.testing.assert_close(view[:, :, 0, 0], blue)
    none = torch.empty(0, dtype=torch.long)
    assert canvas.views(none, none).shape == (0, 3, 32, 32)
    assert canvas.images(none, none).shape == (0, 3, 32, 32)


def test_a_view_stays_near_its_icon(canvas: emoji.Canvas, pictures: torch.Tensor) -> None:
    """Small shifts and scales: of all pictures the icon's own is nearest, for nearly all views on white."""
    objects, styles = canvas.pairs()
    views = emoji.draw(canvas.icons[objects, styles], seeds.generator(0, "near", 0), background=torch.ones(480, 3))
    found = torch.cdist(views.flatten(1), pictures.flatten(1)).argmin(1)
    assert float((found == torch.arange(480)).float().mean()) > 0.95


# ---------------------------------------------------------------------------------------- adaptation domains


def test_domains_have_their_sizes_and_words() -> None:
    domains = emoji.adaptation()
    assert {name: len(domain.icons) for name, domain in domains.items()} == {
        "fxemoji": 55, "emojione-v1": 55, "instruments": 64, "digits": 320,
    }  # fmt: skip
    for name, domain in domains.items():
        assert domain.name == name
        assert domain.icons.shape[1:] == (4, 64, 64) and domain.icons.dtype == torch.uint8
        assert len(domain.icons) == len(domain.objects) == len(domain.styles)
        assert float((domain.icons[:, 3].float() / 255).mean((1, 2)).min()) > 0.1
    assert set(domains["fxemoji"].styles) == {"fxemoji"} and len(set(domains["fxemoji"].objects)) == 55
    assert set(domains["emojione-v1"].styles) == {"emojione-v1"}
    assert len(set(zip(domains["instruments"].objects, domains["instruments"].styles, strict=True))) == 64
    digits = Counter(zip(domains["digits"].objects, domains["digits"].styles, strict=True))
    assert len(digits) == 80 and set(digits.values()) == {4}


def test_domains_are_new_to_a_model_of_the_grid(pictures: torch.Tensor) -> None:
    """Either the style or the object is not in the grid, and no picture is one of the grid's."""
    names = {name for info in OBJECTS for name in info.names}
    for name, domain in emoji.adaptation().items():
        new_style, new_object = not set(domain.styles) & set(STYLES), not set(domain.objects) & names
        assert (new_style, new_object) == {
            "fxemoji": (True, False), "emojione-v1": (True, False), "instruments": (False, True),
            "digits": (True, True),
        }[name]  # fmt: skip
        rows = torch.arange(len(domain.icons))
        assert float(nearest(domain.views(rows), pictures).min()) > 0.1, name
        icons = {icon.numpy().tobytes() for icon in domain.icons}
        assert len(icons) == len(domain.icons) and not icons & {
            icon.numpy().tobytes() for icon in emoji.grid().icons.flatten(0, 1)
        }


def test_the_other_icon_sets_show_objects_of_the_grid_by_their_first_name() -> None:
    first = {info.name for info in OBJECTS}
    for name in ("fxemoji", "emojione-v1"):
        assert set(emoji.adaptation()[name].objects) <= first


def test_digits_are_in_their_colour() -> None:
    domain = emoji.adaptation()["digits"]
    solid = domain.icons[:, 3] > 128
    colours: dict[str, set[tuple[int, ...]]] = {}
    for icon, mask, style in zip(domain.icons, solid, domain.styles, strict=True):
        colours.setdefault(style, set()).update(tuple(rgb) for rgb in icon[:3, mask].T.unique(dim=0).tolist())
    assert len(colours) == 8 and all(len(found) == 1 for found in colours.values())
    red, green, blue = (next(iter(colours[name])) for name in ("red", "green", "blue"))
    assert (red.index(max(red)), green.index(max(green)), blue.index(max(blue))) == (0, 1, 2)


def test_captions_and_views_of_a_domain() -> None:
    domains = emoji.adaptation()
    captions = domains["instruments"].captions()
    assert captions[0] == "a twemoji guitar" and "an openmoji violin" in captions and len(captions) == 64
    held_out = domains["digits"].captions("{s} style: {o}")
    assert held_out[0] == "red style: digit zero" and len(held_out) == 320
    rows = torch.tensor([3, 3, 0])
    views = domains["fxemoji"].views(rows, seeds.generator(0, "domain", 1))
    assert views.shape == (3, 3, 32, 32)
    assert torch.equal(views, domains["fxemoji"].views(rows, seeds.generator(0, "domain", 1)))
    assert not torch.equal(views[0], views[1])


# --------------------------------------------------------------------------------------------------- full set


def test_the_full_set_is_every_common_name_in_every_style() -> None:
    full = emoji.full()
    assert full.images.shape == (1048, 8, 3, 32, 32) and full.images.dtype == torch.uint8
    assert full.styles == STYLES
    assert len(full.names) == len(full.categories) == len(full.subcategories) == 1048
    assert list(full.names) == sorted(set(full.names))
    assert {info.file for info in OBJECTS} <= set(full.names)
    assert len(set(full.categories)) == 8 and len(set(full.subcategories)) == 92
    assert min(Counter(full.categories).values()) >= 50
    parents: dict[str, set[str]] = {}
    for category, subcategory in zip(full.categories, full.subcategories, strict=True):
        parents.setdefault(subcategory, set()).add(category)
    assert sum(len(found) > 1 for found in parents.values()) <= 3  # two tables, nearly one tree


def test_no_picture_of_the_full_set_is_blank_and_few_are_alike() -> None:
    full = emoji.full()
    assert bool((full.images.flatten(2).amin(2) <= 230).all())  # the palest: white squares and circles
    distinct = {image.numpy().tobytes() for image in full.images.flatten(0, 1)}
    assert len(distinct) == 8367  # sets in one colour draw the hearts, circles and diamonds alike


def test_the_full_set_shows_the_grid_s_objects(canvas: emoji.Canvas) -> None:
    """The same icons, packed twice in two sizes: the larger one, halved, is the smaller one."""
    full = emoji.full()
    rows = [full.names.index(info.file) for info in OBJECTS]
    icons = canvas.icons.flatten(0, 1).float() / 255
    halved = torch.nn.functional.avg_pool2d(torch.cat([icons[:, :3] * icons[:, 3:], icons[:, 3:]], 1), 2)
    small = (halved[:, :3] + 1 - halved[:, 3:]).view(60, 8, 3, 32, 32)
    difference = (small - full.images[rows].float() / 255).abs()
    assert float(difference.mean((2, 3, 4)).max()) < 0.02


# ---------------------------------------------------------------------------------------------- the index


def test_every_source_has_a_licence_an_author_and_an_address() -> None:
    sources = emoji.index()["sources"]
    assert set(sources) == {*STYLE_SETS.values(), "fxemoji", "emojione-v1", "digits", "emojibase"}
    for name, source in sources.items():
        assert set(source) == {"package", "version", "author", "url", "licence"}, name
        assert source["licence"] in OPEN and source["url"].startswith("https://")
        assert source["author"] and re.fullmatch(r"\d+\.\d+\.\d+", source["version"])
    share_alike = {name for name, source in sources.items() if "SA" in source["licence"]}
    assert share_alike == {"openmoji", "emojione-v1"}


def test_the_licence_file_names_every_source_as_the_index_does() -> None:
    text = (PACKS / "LICENSES.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    for name, source in emoji.index()["sources"].items():
        rows = [line for line in lines if f"`{source['package']}` {source['version']}" in line]
        assert len(rows) == 1, name
        for part in (source["author"], source["url"], source["licence"]):
            assert part in rows[0], f"{name}: {part}"
    for sheet in emoji.index()["sheets"]:
        assert f"`{sheet}`" in text, sheet
    for licence in ("by/4.0", "by-sa/4.0", "LICENSE-2.0"):
        assert licence in text


def test_the_folder_holds_the_sheets_of_the_index_and_nothing_else() -> None:
    sheets = emoji.index()["sheets"]
    assert {path.name for path in PACKS.iterdir()} == {f"{name}.webp" for name in sheets} | {
        "index.json", "LICENSES.md", "digits8.json", "digits8.png",
    }  # fmt: skip
    assert len(sheets) == 20
    for name, expected in sheets.items():
        assert hashlib.sha256((PACKS / f"{name}.webp").read_bytes()).hexdigest() == expected


# ------------------------------------------------------------------------------------------- damaged packs

DAMAGE = """
import json, sys
from pathlib import Path
import unteach
from unteach.data import emoji
from unteach.errors import DataError

packs = Path(unteach.__file__).parent / "data" / "packs"
assert str(packs).startswith(sys.argv[1])
sheet, index = packs / "grid-noto.webp", packs / "index.json"
data, text = sheet.read_bytes(), index.read_bytes()
table = json.loads(text)
flipped = bytearray(data); flipped[len(data) // 2] ^= 1

def renamed(**changes):
    return json.dumps({**table, **changes}).encode()

without = dict(table); del without["full"]
swapped = {**table["grid"], "styles": table["grid"]["styles"][::-1]}
cases = {
    "sheet truncated": (sheet, data[: len(data) // 2]), "sheet flipped bit": (sheet, bytes(flipped)),
    "sheet empty": (sheet, b""), "sheet of another set": (sheet, (packs / "grid-blob.webp").read_bytes()),
    "sheet missing": (sheet, None),
    "index truncated": (index, text[:-100]), "index empty": (index, b""),
    "index not text": (index, b"\\xff" * 50),
    "index a list": (index, b"[]"), "index foreign": (index, b"{}"), "index missing": (index, None),
    "index of another version": (index, renamed(version=2)),
    "index without a part": (index, json.dumps(without).encode()),
    "index of other styles": (index, renamed(grid=swapped)),
    "sheet of another size": (index, renamed(grid={**table["grid"], "size": 32})),
}
caches = [emoji.index, emoji.grid, emoji.adaptation, emoji.full]
said = {}
for name, (path, content) in cases.items():
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    for cache in caches:
        cache.cache_clear()
    try:
        emoji.grid()
        said[name] = None
    except DataError as error:
        said[name] = str(error)
    path.write_bytes(before)
for cache in caches:
    cache.cache_clear()
assert emoji.grid().icons.shape == (60, 8, 4, 64, 64)
print(json.dumps(said))
"""


def test_a_damaged_pack_is_a_clear_error(tmp_path: Path) -> None:
    """On a copy of the installed package, in its own process."""
    copy = tmp_path / "unteach"
    for part in ("core", "data"):
        shutil.copytree(SOURCE / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("__init__.py", "errors.py"):
        shutil.copy(SOURCE / part, copy / part)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", DAMAGE, str(tmp_path)],
        capture_output=True, text=True, timeout=600, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    expected = {
        "sheet truncated": "the packed sheet 'grid-noto' is damaged",
        "sheet flipped bit": "the packed sheet 'grid-noto' is damaged",
        "sheet empty": "found: 0 bytes",
        "sheet of another set": "the packed sheet 'grid-noto' is damaged",
        "sheet missing": "the packed sheet 'grid-noto' is missing; found: No such file",
        "index truncated": "missing or damaged",
        "index empty": "missing or damaged",
        "index not text": "missing or damaged",
        "index a list": "is not its index",
        "index foreign": "is not its index",
        "index missing": "missing or damaged; found: .*No such file",
        "index of another version": "of another version; found: 2",
        "index without a part": r"found: no \['full'\]",
        "index of other styles": "does not fit this version's objects and styles",
        "sheet of another size": "has the wrong size",
    }
    assert set(said) == set(expected)
    for name, pattern in expected.items():
        assert said[name] is not None and re.search(pattern, said[name]), f"{name}: {said[name]}"
        assert "to do: re" in said[name]  # reinstall, or rebuild the packs
