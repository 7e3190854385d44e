"""How well the bundled model follows prompts, by both judges: the figures of its model card.

    python benchmarks/canvas_grid.py [--half train|held-out|other-names]

Every object in every style (480 prompts a set, one seed each), on train templates, held-out templates and other names.
About a minute a set and core; writes ``benchmarks/results/canvas_grid.json`` and ``docs/canvas-grid.png``.
"""

import argparse
import math
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image

from unteach.canvas import model_path
from unteach.canvas.judges import judges
from unteach.core import seeds, state
from unteach.data.vocabulary import HELD_OUT_TEMPLATES, OBJECTS, STYLES, TRAIN_TEMPLATES, caption
from unteach.diffusion.model import load
from unteach.diffusion.sample import sample
from unteach.records import environment
from unteach.records.stats import wilson

STEPS, GUIDANCE, SEED = 20, 3.0, 188
SETS = {
    "train templates": (TRAIN_TEMPLATES, 0),
    "held-out templates": (HELD_OUT_TEMPLATES, 0),
    "other names": (TRAIN_TEMPLATES, 1),
}
SHEET = Path(__file__).parent.parent / "docs" / "canvas-grid.png"
RESULT = Path(__file__).parent / "results" / "canvas_grid.json"


def measure(name: str, out: Path) -> dict[str, object]:
    """Shares of the grid whose object and style are seen as asked, by judge, with Wilson intervals."""
    templates, which = SETS[name]
    pairs = [(o, s) for o in range(len(OBJECTS)) for s in range(len(STYLES))]
    prompts = [caption(templates[(3 * o + s) % len(templates)], OBJECTS[o].names[which], STYLES[s]) for o, s in pairs]
    noise = [seeds.integer(SEED, "canvas grid", name, i) for i in range(len(pairs))]
    images = sample(
        load(model_path()), prompts, noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE, batch_size=48, out=out
    )
    if name == "train templates":
        picture(images, SHEET)
    asked = torch.tensor(pairs)
    rows: dict[str, object] = {"n": len(pairs)}
    for judge_name, judge in judges().items():
        for column, (what, chances) in enumerate(zip(("object", "style"), judge.probabilities(images), strict=True)):
            trained = chances.clone()  # what the judge said before its "none" was calibrated
            trained[:, -1] *= math.exp(-judge.meta["doubt"][column])
            for label, table in ((f"{judge_name} {what}", chances), (f"{judge_name} {what}, as trained", trained)):
                rows[label] = asdict(wilson(int((table.argmax(1) == asked[:, column]).sum()), len(pairs)))
    return rows


def picture(images: torch.Tensor, path: Path, columns: int = 24, scale: int = 2) -> None:
    """A contact sheet of 32 px pictures, enlarged without smoothing."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * 34, rows * 34), "white")
    for i, image in enumerate(images):
        pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        sheet.paste(Image.fromarray(pixels), (i % columns * 34 + 1, i // columns * 34 + 1))
    sheet.resize((sheet.width * scale, sheet.height * scale), Image.Resampling.NEAREST).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=sorted(SETS), action="append", help="which (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.set or SETS:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(name, Path(folder))
        result = state.read_json(RESULT) if RESULT.exists() else {"sets": {}}
        result |= {
            "command": "python benchmarks/canvas_grid.py",
            "config": {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "seed": SEED},
            "environment": environment.collect(),
        }
        result["sets"][name] = rows
        state.write_json(RESULT, result)
        print(name, rows)


if __name__ == "__main__":
    main()
