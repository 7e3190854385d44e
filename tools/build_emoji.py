"""Build EmojiCanvas's packed data from the icon sets' npm packages.

    python tools/build_emoji.py --work BUILD_FOLDER [--out src/unteach/data/packs]

Fetches the tarballs with ``npm pack`` (no JavaScript runs) unless they are in BUILD_FOLDER already, renders
SVG with resvg, and writes lossless WebP sheets plus ``index.json``: ``grid`` (60 objects x 8 styles, 64 px
RGBA), ``full`` (all names common to the eight styles, 32 px) and ``domain-*`` (adaptation domains the bundled
model never sees, 64 px RGBA).
Needs ``pip install 'unteach[build]'``.
"""

import argparse
import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import sklearn
from PIL import Image
from sklearn.datasets import load_digits

from unteach.data.vocabulary import OBJECTS, STYLE_SETS, STYLES

VERSIONS = {
    "twemoji": "1.2.5",
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji-high-contrast": "1.2.6",
    "emojione": "1.2.3",
    "emojione-monotone": "1.2.1",
    "fxemoji": "1.2.2",
    "emojione-v1": "1.2.3",
}
# The icon package says Apache-2.0; by the set's own LICENSE.md that is for code, and pictures are CC BY 4.0.
ARTWORK_LICENCES = {"fxemoji": "CC-BY-4.0"}
EMOJIBASE = "17.0.0"  # Unicode's sub-groups (MIT)
INSTRUMENTS = {
    "guitar": "guitar",
    "violin": "violin",
    "trumpet": "trumpet",
    "saxophone": "saxophone",
    "drum": "drum",
    "musical-keyboard": "piano",
    "postal-horn": "horn",
    "studio-microphone": "microphone",
}
FXEMOJI_NAMES = {
    "dog-face": "dog", "cat-face": "cat", "panda": "pandaface", "pig-face": "pig",
    "lady-beetle": "ladybeetle", "red-apple": "redapple", "pizza": "sliceofpizza",
    "ice-cream": "icecream", "birthday-cake": "birthdaycake", "beer-mug": "beermug",
    "french-fries": "frenchfries", "hot-beverage": "hotbeverage", "evergreen-tree": "evergreen",
    "palm-tree": "palmtree", "house": "housebuilding", "castle": "europeancastle",
    "scissors": "blackscissors", "soccer-ball": "soccerball", "alarm-clock": "alarmclock",
    "wrapped-gift": "present", "cigarette": "smokingsymbol", "dagger": "daggerknife",
}  # fmt: skip
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (214, 40, 40), "blue": (37, 99, 235), "green": (22, 140, 60), "orange": (234, 120, 16),
    "purple": (130, 60, 200), "pink": (230, 80, 160), "brown": (120, 72, 40), "teal": (16, 140, 140),
}  # fmt: skip


class IconSet:
    """One npm package of icons as JSON."""

    def __init__(self, work: Path, name: str) -> None:
        self.name = name
        archive = fetch(work, f"@iconify-json/{name}", VERSIONS[name], f"iconify-json-{name}-{VERSIONS[name]}.tgz")
        with tarfile.open(archive) as tar:
            read = {key: json.load(tar.extractfile(f"package/{key}.json")) for key in ("icons", "info")}  # type: ignore[arg-type]
        self.icons, self.info = read["icons"], read["info"]

    def names(self) -> set[str]:
        return {*self.icons["icons"], *self.icons.get("aliases", {})}

    def render(self, name: str, size: int) -> Image.Image:
        """The icon as RGBA, ``size`` x ``size`` pixels, drawn at four times that size and averaged."""
        aliases = self.icons.get("aliases", {})
        while name not in self.icons["icons"]:
            name = aliases[name]["parent"]
        icon = self.icons["icons"][name]
        width = icon.get("width", self.icons.get("width", 16))
        height = icon.get("height", self.icons.get("height", 16))
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        )
        big = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=4 * size, height=4 * size))))
        big = big.convert("RGBA")
        canvas = Image.new("RGBA", (4 * size, 4 * size))
        big.thumbnail(canvas.size)
        canvas.paste(big, ((canvas.width - big.width) // 2, (canvas.height - big.height) // 2))
        # Average with colours weighted by alpha, so that no fringe of the transparent colour appears.
        return canvas.convert("RGBa").resize((size, size), Image.Resampling.BOX).convert("RGBA")


def fetch(work: Path, package: str, version: str, file: str) -> Path:
    """The package's tarball in ``work``, packed by npm when it is not there yet."""
    if not (work / file).exists():
        subprocess.run(["npm", "pack", "--silent", f"{package}@{version}"], cwd=work, check=True)
    return work / file


def subgroups(work: Path) -> dict[str, str]:
    """Icon name (as in noto) to Unicode sub-group."""
    archive = fetch(work, "emojibase-data", EMOJIBASE, f"emojibase-data-{EMOJIBASE}.tgz")
    with tarfile.open(archive) as tar:
        emoji = json.load(tar.extractfile("package/en/data.json"))  # type: ignore[arg-type]
        words = json.load(tar.extractfile("package/meta/groups.json"))["subgroups"]  # type: ignore[arg-type]
    with tarfile.open(work / f"iconify-json-noto-{VERSIONS['noto']}.tgz") as tar:
        chars = json.load(tar.extractfile("package/chars.json"))  # type: ignore[arg-type]
    by_code = {e["hexcode"].lower().replace("-fe0f", ""): words[str(e["subgroup"])] for e in emoji if "subgroup" in e}
    return {
        name: by_code[code.replace("-fe0f", "")] for code, name in chars.items() if code.replace("-fe0f", "") in by_code
    }


def sheet(path: Path, icons: list[Image.Image], columns: int) -> None:
    """Write icons of one size as one lossless WebP, row by row."""
    size = icons[0].width
    rows = -(-len(icons) // columns)
    mode = icons[0].mode
    canvas = Image.new(mode, (columns * size, rows * size))
    for i, icon in enumerate(icons):
        canvas.paste(icon, (i % columns * size, i // columns * size))
    canvas.save(path, lossless=True, quality=100, method=6, exact=False)


def on_white(icon: Image.Image) -> Image.Image:
    white = Image.new("RGBA", icon.size, "white")
    return Image.alpha_composite(white, icon).convert("RGB")


def digits_in_colour(per_class: int = 4) -> tuple[list[Image.Image], list[dict[str, str]]]:
    """scikit-learn's 8x8 digits, enlarged to 64 px and coloured: so many of each digit in each colour."""
    data = load_digits()
    icons, rows = [], []
    for digit in range(10):
        scans = data.images[data.target == digit]
        for c, (colour, rgb) in enumerate(COLOURS.items()):
            for k in range(per_class):
                scan = Image.fromarray((scans[c * per_class + k] * 255 / 16).astype(np.uint8)).resize(
                    (56, 56), Image.Resampling.BICUBIC
                )
                alpha = Image.new("L", (64, 64))
                alpha.paste(scan, (4, 4))
                icon = Image.new("RGBA", (64, 64), rgb)
                icon.putalpha(alpha)
                icons.append(icon)
                rows.append({"object": f"digit {DIGITS[digit]}", "style": colour})
    return icons, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/unteach/data/packs"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    sets = {name: IconSet(args.work, name) for name in VERSIONS}
    styles = [sets[STYLE_SETS[style]] for style in STYLES]
    index: dict[str, Any] = {"format": "unteach-emoji", "version": 1, "sources": {}}
    for name, icons in sets.items():
        info = icons.info
        index["sources"][name] = {
            "package": f"@iconify-json/{name}", "version": VERSIONS[name], "author": info["author"]["name"],
            "url": info["author"]["url"], "licence": ARTWORK_LICENCES.get(name, info["license"]["spdx"]),
        }  # fmt: skip
    index["sources"]["digits"] = {
        "package": "scikit-learn", "version": sklearn.__version__, "author": "E. Alpaydin, C. Kaynak",
        "url": "https://doi.org/10.24432/C50P49", "licence": "CC-BY-4.0",
    }  # fmt: skip
    index["sources"]["emojibase"] = {
        "package": "emojibase-data", "version": EMOJIBASE, "author": "Miles Johnson",
        "url": "https://github.com/milesj/emojibase", "licence": "MIT",
    }  # fmt: skip

    for style, icons in zip(STYLES, styles, strict=True):
        sheet(args.out / f"grid-{style}.webp", [icons.render(o.file, 64) for o in OBJECTS], 10)
    index["grid"] = {"size": 64, "columns": 10, "objects": [o.file for o in OBJECTS], "styles": list(STYLES)}

    common = sorted(set.intersection(*[icons.names() for icons in styles]))
    groups = subgroups(args.work)
    with tarfile.open(args.work / f"iconify-json-noto-{VERSIONS['noto']}.tgz") as tar:
        categories = json.load(tar.extractfile("package/metadata.json"))["categories"]  # type: ignore[arg-type]
    category = {name: key for key, names in categories.items() for name in names}
    common = [name for name in common if name in category and name in groups]
    for style, icons in zip(STYLES, styles, strict=True):
        sheet(args.out / f"full-{style}.webp", [on_white(icons.render(name, 32)) for name in common], 32)
    index["full"] = {
        "size": 32, "columns": 32, "styles": list(STYLES),
        "names": [{"name": n, "category": category[n], "subcategory": groups[n]} for n in common],
    }  # fmt: skip

    domains: dict[str, tuple[list[Image.Image], list[dict[str, str]]]] = {}
    for name in ("fxemoji", "emojione-v1"):
        known, rows, drawn = sets[name].names(), [], []
        for o in OBJECTS:
            file = FXEMOJI_NAMES.get(o.file, o.file) if name == "fxemoji" else o.file
            if file in known:
                drawn.append(sets[name].render(file, 64))
                rows.append({"object": o.name, "style": name})
        domains[name] = (drawn, rows)
    pairs = [(file, word, s) for file, word in INSTRUMENTS.items() for s in STYLES]
    domains["instruments"] = (
        [sets[STYLE_SETS[s]].render(file, 64) for file, _, s in pairs],
        [{"object": word, "style": s} for _, word, s in pairs],
    )
    domains["digits"] = digits_in_colour()
    for name, (drawn, rows) in domains.items():
        sheet(args.out / f"domain-{name}.webp", drawn, 10)
        index.setdefault("domains", {})[name] = {"size": 64, "columns": 10, "items": rows}
    index["sheets"] = {
        file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(args.out.glob("*.webp"))
    }
    text = json.dumps(index, indent=1, ensure_ascii=False)
    (args.out / "index.json").write_text(text + "\n", encoding="utf-8")
    for file in sorted(args.out.iterdir()):
        print(f"{file.stat().st_size / 1024:9.0f} KiB  {file.name}")


if __name__ == "__main__":
    main()
