"""Data sets in files: every format is written here at toy size and read back; damaged files are refused."""

import gzip
import hashlib
import importlib.util
import io
import json
import os
import pickle
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from unteach.data import digits, files
from unteach.errors import ConfigError, DataError, MissingExtraError

PACKS = Path(digits.__file__).parent / "packs"


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def same(read: torch.Tensor, want: np.ndarray) -> bool:
    return bool(torch.equal(read, torch.from_numpy(want)))


# ------------------------------------------------------------------------------------------------- digits


def test_digits_are_split_by_class_in_a_fixed_way():
    x, y = digits.scans()
    data = digits.digits()
    assert x.shape == (1797, 1, 8, 8) and x.dtype == torch.uint8 and x.min() == 0 and x.max() == 255
    assert set(x.unique().tolist()) == {round(level * 255 / 16) for level in range(17)}
    counts = y.bincount(minlength=10)
    assert torch.equal(data.test_y.bincount(minlength=10), (counts * 0.2).round().long())
    assert torch.equal(data.y.bincount() + data.test_y.bincount(), counts)
    # Together the two parts are all scans, each once.
    rows = sorted(map(bytes, torch.cat([data.x, data.test_x]).flatten(1).numpy()))
    assert rows == sorted(map(bytes, x.flatten(1).numpy()))
    text = data.test_x.numpy().tobytes() + data.test_y.numpy().tobytes()
    assert hashlib.sha256(text).hexdigest().startswith(DIGITS_TEST)


DIGITS_TEST = "c8abb65b0a05d432"  # the pictures and labels of the test part, in order


def test_digits_are_scikit_learns():
    datasets = pytest.importorskip("sklearn.datasets")
    data, (x, y) = datasets.load_digits(), digits.scans()
    assert same(y, data.target.astype(np.int64))
    assert same(x[:, 0], np.rint(data.images * 255 / 16).astype(np.uint8))


def test_the_licence_of_the_digits_is_told():
    source = json.loads((PACKS / "digits8.json").read_text(encoding="utf-8"))["source"]
    (row,) = [
        line
        for line in (PACKS / "LICENSES.md").read_text(encoding="utf-8").splitlines()
        if "`digits8`" in line and line[0] == "|"
    ]
    assert all(source[key] in row for key in ("author", "url", "licence", "package", "version"))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("digits8.png", lambda data: data[:-1], "digest"),
        ("digits8.png", lambda data: b"", "digest"),
        ("digits8.png", None, "missing"),
        ("digits8.json", lambda data: data[:-9], "damaged"),
        ("digits8.json", lambda data: b"[]", "not the index"),
        ("digits8.json", lambda data: data.replace(b'"version": 1,', b'"version": 2,'), "not the index"),
        ("digits8.json", lambda data: data.replace(b'"labels": "0', b'"labels": "1'), "digest"),
    ],
)
def test_damaged_digits_are_refused(tmp_path, name, change, said):
    for file in ("digits8.png", "digits8.json"):
        shutil.copy(PACKS / file, tmp_path)
    digits.read(tmp_path)
    file = tmp_path / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=f"{said}.*reinstall"):
        digits.read(tmp_path)


# ------------------------------------------------------------------------------------------- Fashion-MNIST


def idx(data: np.ndarray) -> bytes:
    return struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape) + data.tobytes()


def write_fashion(root: Path, packed: bool = False, n: int = 12) -> dict[str, np.ndarray]:
    held = {}
    for i, (part, count) in enumerate((("train", n), ("t10k", 5))):
        held[f"{part}-images-idx3-ubyte"] = rand(count, 28, 28, seed=i)
        held[f"{part}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, data in held.items():
        file = root / (name + (".gz" if packed else ""))
        file.write_bytes(gzip.compress(idx(data)) if packed else idx(data))
    return held


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist(tmp_path, packed):
    held = write_fashion(tmp_path, packed)
    data = files.fashion_mnist(tmp_path)
    assert data.x.shape == (12, 1, 28, 28) and data.x.dtype == torch.uint8 and data.y.dtype == torch.int64
    assert same(data.x[:, 0], held["train-images-idx3-ubyte"])
    assert same(data.test_x[:, 0], held["t10k-images-idx3-ubyte"])
    assert data.y.tolist() == [*range(10), 0, 1] and data.test_y.tolist() == [0, 1, 2, 3, 4]
    assert len(data.class_names) == 10 and data.class_names[9] == "ankle boot"


X, Y = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (X, lambda data: data[:-1], "should hold"),
        (X, lambda data: data + b"0", "should hold"),
        (X, lambda data: data[:9], "should hold"),
        (X, lambda data: b"", "an empty file"),
        (X, lambda data: b"\0\0\x0d\x03" + data[4:], "00 00 0d 03"),  # an IDX file of floats
        (Y, lambda data: idx(np.zeros((12, 1), np.uint8)), "1 dimensions"),
        (Y, lambda data: data[:-1] + b"\x0a", r"outside 0\.\.9.*10"),
        (Y, lambda data: idx(np.zeros(11, np.uint8)), "12 pictures, 11 labels"),
        (Y, None, f"no {Y}"),
    ],
)
def test_damaged_fashion_mnist(tmp_path, name, change, said):
    write_fashion(tmp_path)
    file = tmp_path / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=f"{said}.*to do:"):
        files.fashion_mnist(tmp_path)


@pytest.mark.parametrize("change", [lambda data: data[:-12], lambda data: b"gzip" + data, lambda data: data[:30]])
def test_damaged_gzip(tmp_path, change):
    write_fashion(tmp_path, packed=True)
    file = tmp_path / f"{X}.gz"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=f"cannot read .*{X}.gz"):
        files.fashion_mnist(tmp_path)


def test_l5_gzip_is_unpacked_under_a_limit(tmp_path, monkeypatch):
    write_fashion(tmp_path, packed=True)
    file = tmp_path / f"{X}.gz"
    size = len(gzip.decompress(file.read_bytes()))
    monkeypatch.setattr(files, "MOST_UNPACKED", size)
    files.fashion_mnist(tmp_path)
    monkeypatch.setattr(files, "MOST_UNPACKED", size - 1)
    with pytest.raises(DataError, match=f"{X}.gz holds too much when unpacked"):
        files.fashion_mnist(tmp_path)
    monkeypatch.setattr(files, "MOST_UNPACKED", 2**20)
    with gzip.open(file, "wb", compresslevel=1) as packed:  # 64 MiB of zeros in 300 kB
        for _ in range(64):
            packed.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 1 MiB"):
            files.fashion_mnist(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_corrupt_body_of_gzip_is_told(tmp_path):
    write_fashion(tmp_path, packed=True)
    file = tmp_path / f"{X}.gz"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(bytes(data))
    with pytest.raises(DataError, match="cannot read"):
        files.fashion_mnist(tmp_path)


# --------------------------------------------------------------------------------------------------- CIFAR


def write_cifar10(root: Path) -> list[np.ndarray]:
    root.mkdir(parents=True, exist_ok=True)
    pixels = []
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        pixels.append(rand(4, 3, 32, 32, seed=i))
        labels = ((np.arange(4) + 4 * i) % 10).astype(np.uint8)
        (root / name).write_bytes(b"".join(bytes([y]) + x.tobytes() for x, y in zip(pixels[-1], labels, strict=True)))
    return pixels


def write_cifar100(root: Path) -> dict[str, np.ndarray]:
    root.mkdir(parents=True, exist_ok=True)
    held = {name: rand(n, 3, 32, 32, seed=n) for name, n in (("train", 100), ("test", 10))}
    for name, pixels in held.items():
        records = (bytes([i % 20, i]) + x.tobytes() for i, x in enumerate(pixels))
        (root / f"{name}.bin").write_bytes(b"".join(records))
    (root / "fine_label_names.txt").write_text("\n".join(f"fine{i}" for i in range(100)) + "\n")
    return held


@pytest.mark.parametrize("inner", ["", "cifar-10-batches-bin"])
def test_cifar10_binary(tmp_path, inner):
    pixels = write_cifar10(tmp_path / inner)
    data = files.cifar10(tmp_path)
    assert same(data.x, np.concatenate(pixels[:5])) and same(data.test_x, pixels[5])
    assert data.y.tolist() == [i % 10 for i in range(20)] and data.test_y.tolist() == [0, 1, 2, 3]
    assert data.class_names[:2] == ("airplane", "automobile")


def test_cifar100_binary_takes_the_fine_label(tmp_path):
    held = write_cifar100(tmp_path)
    data = files.cifar100(tmp_path)
    assert same(data.x, held["train"]) and same(data.test_x, held["test"])
    assert data.y.tolist() == list(range(100)) and data.class_names[99] == "fine99"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data[:-1], "whole number of records of 3073 bytes"),
        (lambda data: b"", "whole number of records"),
        (lambda data: data[:3073], "not equally long.*'data_batch_3.bin': 1"),
        (lambda data: b"\x0a" + data[1:], r"outside 0\.\.9.*\[10\]"),
        (None, "cannot read .*data_batch_3.bin"),
    ],
)
def test_damaged_cifar10(tmp_path, change, said):
    write_cifar10(tmp_path)
    file = tmp_path / "data_batch_3.bin"
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DataError, match=said):
        files.cifar10(tmp_path)


def test_damaged_cifar100(tmp_path):
    write_cifar100(tmp_path)
    data = bytearray((tmp_path / "test.bin").read_bytes())
    data[0], data[1] = 200, 99  # the coarse label is not read
    (tmp_path / "test.bin").write_bytes(data)
    assert files.cifar100(tmp_path).test_y[0] == 99
    data[1] = 100
    (tmp_path / "test.bin").write_bytes(data)
    with pytest.raises(DataError, match=r"test.bin has labels outside 0\.\.99.*100"):
        files.cifar100(tmp_path)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize(
    ("read", "names"),
    [
        (files.cifar10, ["data_batch_1", "test_batch"]),
        (files.cifar10, ["cifar-10-batches-py/data_batch_1"]),
        (files.cifar100, ["train", "test", "meta"]),
        (files.cifar100, ["cifar-100-python/train"]),
    ],
)
def test_pickled_cifar_is_refused_and_not_opened(tmp_path, read, names):
    sprung = tmp_path / "sprung"
    for name in names:
        file = tmp_path / "data" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError, match=r"pickled .*binary version") as caught:
        read(tmp_path / "data")
    assert "://" not in str(caught.value) and not sprung.exists()


def test_a_folder_without_cifar(tmp_path):
    with pytest.raises(DataError, match="holds no CIFAR data; found: an empty folder; to do: give the folder with"):
        files.cifar10(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        files.cifar10(tmp_path / "nowhere")


def test_parquet_needs_its_extra(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1")
    if importlib.util.find_spec("pyarrow") is None:
        with pytest.raises(MissingExtraError, match=r"pyarrow.*unteach\[parquet\]"):
            files.cifar10(tmp_path)
    else:
        with pytest.raises(DataError, match="not a whole parquet file"):
            files.cifar10(tmp_path)


@pytest.mark.parametrize(
    ("read", "column", "label"), [("cifar10", "img", "label"), ("cifar100", "image", "fine_label")]
)
def test_cifar_parquet(tmp_path, read, column, label):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pixels = rand(6, 32, 32, 3)
    for part, rows in (("train", range(4)), ("test", range(4, 6))):
        pictures = [{"bytes": png(pixels[i]), "path": None} for i in rows]
        table = arrow.table({column: pictures, label: list(rows)})
        parquet.write_table(table, tmp_path / f"{part}-00000-of-00001.parquet")
    data = getattr(files, read)(tmp_path)
    assert same(data.x, pixels[:4].transpose(0, 3, 1, 2)) and same(data.test_x, pixels[4:].transpose(0, 3, 1, 2))
    assert data.y.tolist() == [0, 1, 2, 3] and data.test_y.tolist() == [4, 5]
    with pytest.raises(DataError, match="lacks 'img' or"):
        parquet.write_table(arrow.table({"else": [1]}), tmp_path / "train-00000-of-00001.parquet")
        getattr(files, read)(tmp_path)
    for content, said in ((b"no picture", "picture 0 of .* cannot be used"), (None, "not encoded in the file")):
        table = arrow.table({column: [{"bytes": content, "path": "a.png"}], label: [0]})
        parquet.write_table(table, tmp_path / "train-00000-of-00001.parquet")
        with pytest.raises(DataError, match=said):
            getattr(files, read)(tmp_path)
    many = arrow.table({column: [None] * 1_000_001, label: arrow.array([0] * 1_000_001, arrow.int8())})
    parquet.write_table(many, tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match="too many rows; found: 1000001"):
        getattr(files, read)(tmp_path)


# ------------------------------------------------------------------------------------------------ pictures


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def write_folder(root: Path, test: str = "test", size: int = 8) -> dict[str, np.ndarray]:
    held = {}
    for i, name in enumerate(["train/owl/a", "train/owl/b", "train/cat/a", f"{test}/cat/a", f"{test}/owl/sub/a"]):
        held[name] = rand(size, size, 3, seed=i)
        file = root / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(held[name]))
    return held


@pytest.mark.parametrize("test", ["test", "val"])
def test_image_folder(tmp_path, test):
    held = write_folder(tmp_path, test)
    (tmp_path / "train" / "owl" / "notes.txt").write_text("not a picture")
    data = files.image_folder(tmp_path, 8)
    assert data.class_names == ("cat", "owl") and data.y.tolist() == [0, 1, 1] and data.test_y.tolist() == [0, 1]
    want = np.stack([held[name] for name in ("train/cat/a", "train/owl/a", "train/owl/b")])
    assert same(data.x, want.transpose(0, 3, 1, 2))
    assert files.image_folder(tmp_path, 4).x.shape == (3, 3, 4, 4)


def test_other_kinds_of_pictures_become_rgb_of_one_size(tmp_path):
    write_folder(tmp_path)
    own = tmp_path / "train" / "cat"
    Image.new("L", (20, 10), 77).save(own / "grey.jpg", quality=100)
    Image.new("RGBA", (3, 3), (10, 20, 30, 255)).save(own / "alpha.webp", lossless=True)
    data = files.image_folder(tmp_path, 8)
    assert data.x[1].flatten(1).float().mean(1).tolist() == [10, 20, 30]
    assert (data.x[2].float() - 77).abs().max() <= 1


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda root: shutil.rmtree(root / "test"), "not a folder of pictures; found: train"),
        (lambda root: shutil.rmtree(root / "train"), "not a folder of pictures; found: test"),
        (lambda root: (root / "test" / "dog").mkdir(), "not the same.*'dog'"),
        (
            lambda root: (root / "train/cat/a.png").write_bytes(b"no"),
            r"1 of 5 pictures in .*a.png \(.*(cut off early|not whole)",
        ),
        (lambda root: cut(root / "train/cat/a.png"), r"1 of 5 pictures in .*a.png \(.*(cut off early|not whole)"),
    ],
)
def test_damaged_image_folder(tmp_path, harm, said):
    write_folder(tmp_path)
    harm(tmp_path)
    with pytest.raises(DataError, match=said):
        files.image_folder(tmp_path, 8)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-60])


def fill(root: Path, names, value=lambda k: 10 * k) -> Path:
    """One 2 x 2 picture of grey value 10·k for the k-th class, in train and test."""
    for part in ("train", "test"):
        for k, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            Image.new("L", (2, 2), value(k)).save(root / part / name / "a.png")
    return root


@pytest.mark.parametrize(
    ("names", "want"),
    [
        ([str(k) for k in range(12)], [str(k) for k in range(12)]),
        (["2", "007", "10", "1"], ["1", "2", "007", "10"]),
        (["10", "9", "x"], ["10", "9", "x"]),
        (["²", "1", "10"], ["1", "10", "²"]),
    ],
)
def test_f8_numbers_as_names_are_in_the_order_of_numbers(tmp_path, names, want):
    data = files.image_folder(fill(tmp_path, names), 2)
    assert list(data.class_names) == want
    assert data.x[:, 0, 0, 0].tolist() == [10 * names.index(name) for name in want] == data.test_x[:, 0, 0, 0].tolist()


def test_names_that_no_record_could_hold_are_refused(tmp_path):
    os.mkdir(os.fsencode(fill(tmp_path, ["a"]) / "train") + b"/caf\xe9")
    with pytest.raises(DataError, match=r"not UTF-8; found: \['caf.udce9'\]; to do: rename"):
        files.image_folder(tmp_path, 2)
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"class_names": '["\\ud800", "b", "c"]'})
    with pytest.raises(DataError, match="list of texts"):
        files.arrays(tmp_path / "a.safetensors")


def test_f7_names_that_begin_with_a_dot_are_neither_class_nor_sample(tmp_path):
    root = fill(tmp_path / ".hidden above" / "set", ["a", "b"])
    want = files.image_folder(root, 2)
    for folder in (".ipynb_checkpoints", "a/.ipynb_checkpoints", "b/deep/.cache/more"):
        for part in ("train", "test"):
            (root / part / folder).mkdir(parents=True)
            Image.new("L", (2, 2), 99).save(root / part / folder / "a-checkpoint.png")
    (root / "train" / "a" / "._a.png").write_bytes(b"a Mac's notes beside the picture")
    (root / "train" / ".empty").mkdir()
    data = files.image_folder(root, 2)
    assert data.class_names == ("a", "b")
    assert all(torch.equal(a, b) for a, b in zip(data[:4], want[:4], strict=True))


def test_classes_without_pictures_are_told_by_name(tmp_path):
    root = fill(tmp_path, ["a", "b", "c", "d"])
    for name in ("b", "c"):
        (root / "test" / name / "a.png").unlink()
    shutil.rmtree(root / "test" / "d")
    with pytest.raises(
        DataError, match=r"test does not have .*test/b;\n  no pictures in .*test/c;\n  there is no .*test/d"
    ):
        files.image_folder(root, 2)


def test_other_endings_are_read_and_what_cannot_be_decoded_is_not_passed_over(tmp_path):
    root = fill(tmp_path, ["a"])
    for name in ("b.JPEG", "c.jfif", "d.Jpe"):
        Image.new("L", (2, 2)).save(root / "train" / "a" / name, "JPEG")
    (root / "train" / "a" / "notes.txt").write_text("notes")
    assert len(files.image_folder(root, 2).x) == 4
    (root / "train" / "a" / "e.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(DataError, match=r"1 of 6 .*e.heic .no known kind"):
        files.image_folder(root, 2)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "8"])
def test_a_size_must_be_whole(tmp_path, size):
    with pytest.raises(ConfigError, match="whole number of pixels"):
        files.image_folder(tmp_path, size)


def test_cifar_as_a_folder_of_pictures(tmp_path):
    write_folder(tmp_path, size=32)
    assert files.cifar10(tmp_path).x.shape == (3, 3, 32, 32)


def write_tiny(root: Path) -> Path:
    root = root / "tiny-imagenet-200"
    for i, wnid in enumerate(("n02", "n01")):
        own = root / "train" / wnid / "images"
        own.mkdir(parents=True)
        for k in range(2):
            mode, colour = ("RGB", (40 * i + 9 * k, 5, 200)) if k else ("L", 40 * i)
            Image.new(mode, (64, 64), colour).save(own / f"{wnid}_{k}.JPEG", quality=95)
    (root / "val" / "images").mkdir(parents=True)
    for k, shade in enumerate((250, 10)):
        Image.new("RGB", (64, 64), (shade, shade, shade)).save(root / "val" / "images" / f"val_{k}.JPEG")
    (root / "val" / "val_annotations.txt").write_text("val_1.JPEG\tn01\t0\t0\t9\t9\nval_0.JPEG\tn02\t0\t0\t9\t9\n")
    (root / "wnids.txt").write_text("n02\nn01\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcat\nn03\tdog\n")
    return root


def test_tiny_imagenet(tmp_path):
    root = write_tiny(tmp_path)
    for path in (tmp_path, root):
        data = files.tiny_imagenet(path)
        assert data.class_names == ("cat", "goldfish") and data.x.shape == (4, 3, 64, 64)
        assert data.y.tolist() == [0, 0, 1, 1] and data.test_y.tolist() == [1, 0]
        assert data.test_x.float().mean((1, 2, 3)).round().tolist() == [10, 250]
        assert data.x[2].float().mean().round() == 40


def test_tiny_imagenet_with_its_validation_sorted_into_classes(tmp_path):
    """As many scripts leave it: with or without a folder "images" in each class, the notes gone."""
    root = write_tiny(tmp_path)
    before = files.tiny_imagenet(root)
    for file, wnid, inner in (("val_0.JPEG", "n02", ""), ("val_1.JPEG", "n01", "images")):
        (root / "val" / wnid / inner).mkdir(parents=True)
        (root / "val" / "images" / file).rename(root / "val" / wnid / inner / file)
    (root / "val" / "val_annotations.txt").unlink()
    data = files.tiny_imagenet(root)
    assert data.test_y.tolist() == [0, 1] and torch.equal(data.test_x, before.test_x.flip(0))
    assert torch.equal(data.x, before.x) and data.class_names == before.class_names
    shutil.rmtree(root / "val" / "n01")
    with pytest.raises(DataError, match=r"no folder .*n01"):
        files.tiny_imagenet(root)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda root: (root / "wnids.txt").unlink(), "cannot read .*wnids.txt"),
        (lambda root: (root / "words.txt").write_bytes(b"\xff\xfe"), "words.txt is not text"),
        (lambda root: (root / "wnids.txt").write_text("n02\nn09\n"), "no folder .*n09"),
        (lambda root: (root / "wnids.txt").write_text("n02\n"), "line 1, names no class"),
        (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\n"), "line 1, names no class"),
        (lambda root: (root / "val/val_annotations.txt").write_text(""), "no validation pictures"),
        (lambda root: (root / "wnids.txt").write_text("n02\n../n01\n"), "name of each class's folder once"),
        (lambda root: (root / "wnids.txt").write_text("n02\nn02\n"), "name of each class's folder once"),
        (lambda root: (root / "wnids.txt").write_text("n02\n" + "n" * 300), "name of each class's folder once"),
        (lambda root: (root / "val/val_annotations.txt").write_text("/etc/a.png\tn01\n"), "line 1, is not the name"),
        (lambda root: (root / "val/val_annotations.txt").write_text("../a.png\tn01\n"), "line 1, is not the name"),
        (lambda root: (root / "val/images/val_0.JPEG").unlink(), "val_0.JPEG .cannot read it: No such file"),
        (lambda root: cut(root / "train/n01/images/n01_0.JPEG"), "n01_0.JPEG .*cut off early"),
    ],
)
def test_damaged_tiny_imagenet(tmp_path, harm, said):
    harm(write_tiny(tmp_path))
    with pytest.raises(DataError, match=said):
        files.tiny_imagenet(tmp_path)


# ------------------------------------------------------------------------------------------------- tensors


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "x_train": torch.rand(6, 5, generator=generator, dtype=torch.float64),
        "y_train": torch.tensor([0, 1, 2, 0, 1, 2], dtype=torch.int32),
        "x_test": torch.rand(3, 5, generator=generator),
        "y_test": torch.tensor([2, 1, 0], dtype=torch.uint8),
    }


def test_arrays(tmp_path):
    held, file = tensors(), tmp_path / "data.safetensors"
    save_file(held, file)
    data = files.arrays(file)
    assert torch.equal(data.x, held["x_train"].float()) and data.test_x.dtype == torch.float32
    assert data.y.dtype == data.test_y.dtype == torch.int64 and data.test_y.tolist() == [2, 1, 0]
    assert data.class_names == ("0", "1", "2")
    save_file(held, file, metadata={"class_names": json.dumps(["a", "b", "c"])})
    assert files.arrays(file).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("labels", "names", "want"),
    [
        ([3, 7, 42, 50], None, ("3", "7", "42", "50")),
        ([1, 2, 3, 4], None, ("1", "2", "3", "4")),
        ([1, 2, 3, 4], ["a", "b", "c", "d"], ("a", "b", "c", "d")),
        ([2**40, 5, 3, 4], ["a", "b", "c", "d"], ("a", "b", "c", "d")),
        ([0, 1, 2, 3], ["a", "b", "c", "d"], ("a", "b", "c", "d")),
    ],
)
@pytest.mark.parametrize("kind", [torch.int64, torch.uint64])
def test_f11_labels_with_gaps_or_from_1_are_numbered_anew(tmp_path, labels, names, want, kind):
    y = torch.tensor(labels)
    held = {"x_train": torch.rand(4, 2), "y_train": y, "x_test": torch.rand(4, 2), "y_test": y.flip(0).contiguous()}
    held |= {key: held[key].to(kind) for key in ("y_train", "y_test")}
    metadata = None if names is None else {"class_names": json.dumps(names)}
    save_file(held, tmp_path / "a.safetensors", metadata=metadata)
    data = files.arrays(tmp_path / "a.safetensors")
    places = [sorted(labels).index(label) for label in labels]
    assert data.class_names == want and data.y.tolist() == places and data.test_y.tolist() == places[::-1]
    assert data.y.dtype == data.test_y.dtype == torch.int64 and torch.equal(data.x, held["x_train"])


def test_f11_names_for_more_classes_than_occur_are_kept(tmp_path):
    """A name for every label from 0: the labels stay as they are, and the stream will say which class has no data."""
    y = torch.tensor([1, 3])
    held = {"x_train": torch.rand(2, 2), "y_train": y, "x_test": torch.rand(2, 2), "y_test": y.clone()}
    save_file(held, tmp_path / "a.safetensors", metadata={"class_names": json.dumps(["a", "b", "c", "d"])})
    data = files.arrays(tmp_path / "a.safetensors")
    assert data.class_names == ("a", "b", "c", "d") and data.y.tolist() == [1, 3]
    save_file(held, tmp_path / "a.safetensors", metadata={"class_names": json.dumps(["a", "b", "c"])})
    with pytest.raises(DataError, match=r"list of 4 texts.*found: 3 texts, 2 labels up to 3.*leave it out"):
        files.arrays(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x_test": None}, "lacks x_test"),
        ({"y_test": torch.zeros(3, dtype=torch.complex64)}, "y_test .*whole numbers"),
        ({"y_test": torch.tensor([2**63 + 5, 0, 1], dtype=torch.uint64)}, "y_test .*whole numbers"),
        ({"x_train": torch.zeros(6, 5, dtype=torch.int64)}, "x_train .*must be uint8"),
        ({"y_train": torch.zeros(6)}, "y_train .*whole numbers"),
        ({"y_train": torch.zeros(6, dtype=torch.bool)}, "y_train .*whole numbers"),
        ({"y_test": torch.tensor([0, -1, 2])}, "y_test .*whole numbers from 0"),
        ({"y_test": torch.zeros(3, 1, dtype=torch.int64)}, r"y_test .*\(3, 1\)"),
        ({"y_test": torch.zeros(0, dtype=torch.int64)}, "y_test .*whole numbers"),
    ],
)
def test_wrong_arrays(tmp_path, change, said):
    held = {key: value for key, value in (tensors() | change).items() if value is not None}
    save_file(held, tmp_path / "data.safetensors")
    with pytest.raises(DataError, match=said):
        files.arrays(tmp_path / "data.safetensors")


def test_damaged_arrays(tmp_path):
    file = tmp_path / "data.safetensors"
    with pytest.raises(DataError, match="no file"):
        files.arrays(file)
    save_file(tensors(), file, metadata={"class_names": '["a"]'})
    with pytest.raises(DataError, match=r"class_names .*3 texts"):
        files.arrays(file)
    for names in ("[" * 100_000, "9" * 5000, "a, b"):  # L4: RecursionError, ValueError
        save_file(tensors(), file, metadata={"class_names": names})
        with pytest.raises(DataError, match="not a whole safetensors file"):
            files.arrays(file)
    save_file(tensors(), file, metadata={"class_names": "a, b"})
    with pytest.raises(DataError, match="not a whole safetensors file"):
        files.arrays(file)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(DataError, match="not a whole safetensors file"):
        files.arrays(file)
    file.write_bytes(pickle.dumps({"x_train": 1}))
    with pytest.raises(DataError, match="not a whole safetensors file"):
        files.arrays(file)
