"""A driver: damages files of every kind that users bring; nothing but a result or an error of ours may come.

python tests/data/damage.py SEED COUNT
"""

import gzip
import json
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from unteach.data import files, tables
from unteach.data.captioned import captioned
from unteach.data.concepts import ConceptSet
from unteach.errors import UnteachError

SWAPS = (
    (b":[0,", b":[999999999,"), (b"U8", b"F64"), (b"I64", b"U64"), (b"{", b"[" * 50_000), (b'"', b""), (b"\n", b"\x0c"),
    (b'"a"', b"9" * 5000), (b"a", b"\\ud800"),
)  # fmt: skip


def sound(root: Path) -> dict[str, tuple[Callable[[], object], Path]]:
    """Reader and file or folder of every kind, at toy size."""
    random = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return random.integers(0, 256, shape, dtype=np.uint8)

    for name in ("idx", "cifar", "tiny/train/n1", "tiny/val/images", "set"):
        (root / name).mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, data in (("images-idx3", noise(4, 28, 28)), ("labels-idx1", np.arange(4, dtype=np.uint8))):
            content = struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape) + data.tobytes()
            (root / "idx" / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    for name in ("train.bin", "test.bin"):
        (root / "cifar" / name).write_bytes(b"".join(bytes([i, i]) + noise(3072).tobytes() for i in range(4)))
    for i, end in enumerate(("png", "jpg", "gif", "webp", "tif", "bmp")):
        for folder in ("train/a", "test/a"):
            (root / "classes" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(8, 8, 3)).save(root / "classes" / folder / f"{i}.{end}")
    shutil.copytree(root / "classes" / "train" / "a", root / "set", dirs_exist_ok=True)
    lines = [json.dumps({"file_name": file.name, "text": "a"}) for file in sorted((root / "set").iterdir())]
    (root / "set" / "metadata.jsonl").write_text("\n".join(lines))
    Image.fromarray(noise(64, 64, 3)).save(root / "tiny" / "train" / "n1" / "a.JPEG")
    Image.fromarray(noise(64, 64, 3)).save(root / "tiny" / "val" / "images" / "b.JPEG")
    (root / "tiny" / "wnids.txt").write_text("n1\n")
    (root / "tiny" / "words.txt").write_text("n1\tcat, house cat\n")
    (root / "tiny" / "val" / "val_annotations.txt").write_text("b.JPEG\tn1\t0\n")
    x, y = torch.from_numpy(noise(6, 3, 8, 8)), torch.arange(6) % 3
    held = {"x_train": x, "y_train": y, "x_test": x.clone(), "y_test": y.clone()}
    save_file(held, root / "a.safetensors", metadata={"class_names": '["a", "b", "c"]'})
    (root / "c.csv").write_text('target,anchor,prompts\nbomb,"apple",a {};the {}\n')
    (root / "p.csv").write_text('n,prompt\n1,"a, b"\n2,"say ""hi"""\n')
    return {
        "idx": (lambda: files.fashion_mnist(root / "idx"), root / "idx"),
        "cifar": (lambda: files.cifar100(root / "cifar"), root / "cifar"),
        "tiny": (lambda: files.tiny_imagenet(root / "tiny"), root / "tiny"),
        "classes": (lambda: files.image_folder(root / "classes", 8), root / "classes"),
        "arrays": (lambda: files.arrays(root / "a.safetensors"), root / "a.safetensors"),
        "captions": (lambda: captioned(root / "set", (8, 8)), root / "set"),
        "concepts": (lambda: ConceptSet.load(root / "c.csv"), root / "c.csv"),
        "prompts": (lambda: tables.prompts(root / "p.csv"), root / "p.csv"),
    }


def damaged(whole: bytes, random: np.random.Generator) -> bytes:
    """Changed bytes, a cut, something put in, or one of :data:`SWAPS`."""
    data = bytearray(whole)
    head = min(len(data), int(random.choice([64, 400, 10**9])))  # most of what can go wrong stands at the beginning
    kind = int(random.integers(6))
    if kind < 3:
        for place in random.integers(0, head, 1 + random.integers(6)):
            data[place] = random.integers(256)
    elif kind == 3:
        del data[random.integers(len(data)) :]
    elif kind == 4:
        place = int(random.integers(head))
        data[place:place] = bytes(random.choice(list(b'[{",:9-\\\n\0\xff'), random.integers(1, 40)).astype(np.uint8))
    else:
        data = data.replace(*SWAPS[random.integers(len(SWAPS))])
    return bytes(data)


def run(seed: int, count: int) -> tuple[Counter[tuple[str, str]], int]:
    """How often each kind of file was read and refused, and the length of the longest message."""
    random, told, longest = np.random.default_rng(seed), Counter[tuple[str, str]](), 0
    with tempfile.TemporaryDirectory() as name:
        kinds = sound(Path(name))
        for read, _ in kinds.values():
            read()
        for i in range(count):
            kind = list(kinds)[i % len(kinds)]
            read, where = kinds[kind]
            every = [where] if where.is_file() else sorted(file for file in where.rglob("*") if file.is_file())
            file = every[random.integers(len(every))]
            whole = file.read_bytes()
            file.write_bytes(damaged(whole, random))
            try:
                read()
                told[kind, "read"] += 1
            except UnteachError as error:
                told[kind, "refused"] += 1
                longest = max(longest, len(str(error)))
            file.write_bytes(whole)
    return told, longest


if __name__ == "__main__":
    counts, most = run(int(sys.argv[1]), int(sys.argv[2]))
    for key, number in sorted(counts.items()):
        print(*key, number)
    print(f"{sum(counts.values())} files, none raised anything else; the longest message has {most} characters")
