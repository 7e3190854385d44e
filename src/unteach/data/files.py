"""Labelled pictures from files on disk, in the formats in which the usual data sets are handed out.

Every function returns a :class:`Labelled`. Nothing is unpickled: the pickled ("python") version of CIFAR is
recognised and refused. A file that is missing, cut off or of another format is a
:class:`~unteach.errors.DataError`.
"""

import gzip
import importlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unteach.data import folders, pictures, tables
from unteach.errors import ConfigError, DataError, MissingExtraError

__all__ = ["Labelled", "arrays", "cifar10", "cifar100", "fashion_mnist", "image_folder", "tiny_imagenet"]

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
AGAIN = "get the file again; it may have been cut off on the way"
MOST_UNPACKED = 512 * 2**20
"""A packed file (``.gz``) may hold so many bytes; every usual one does."""
MOST_ROWS = 1_000_000
"""Rows of a parquet file, at most; CIFAR has 50,000."""
FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Labelled(NamedTuple):
    """Pictures with labels.

    ``x`` uint8 (N, C, H, W), ``y`` int64 (N,) in [0, len(class_names)); ``test_x`` and ``test_y`` alike. From
    :func:`arrays` ``x`` may also be float32 (N, ...).
    """

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, parts: Sequence[Tensor], class_names: Sequence[str]) -> "Labelled":
        """From the four tensors in a row."""
        x, y, test_x, test_y = parts
        return cls(x, y, test_x, test_y, tuple(class_names))


def fashion_mnist(path: Path | str) -> Labelled:
    """Fashion-MNIST, or MNIST, from a folder with its four IDX files, packed (``.gz``) or not: 1 x 28 x 28."""
    root = _folder(path)
    parts: list[Tensor] = []
    for part in ("train", "t10k"):
        x = _idx(_either(root, f"{part}-images-idx3-ubyte"), dims=3)
        y = _idx(_either(root, f"{part}-labels-idx1-ubyte"), dims=1)
        if len(x) != len(y):
            raise DataError(
                f"the '{part}' files in {root} do not belong together",
                found=f"{len(x)} pictures, {len(y)} labels",
                fix="get all four files from one place",
            )
        parts += [x[:, None], _labels(y, len(FASHION), root / f"{part}-labels-idx1-ubyte")]
    return Labelled.of(parts, FASHION)


def cifar10(path: Path | str) -> Labelled:
    """CIFAR-10 (3 x 32 x 32) from a folder with the binary version, parquet files or folders of pictures."""
    return _cifar(_folder(path, "cifar-10-batches-bin"), [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin")


def cifar100(path: Path | str) -> Labelled:
    """CIFAR-100 (3 x 32 x 32, the 100 fine classes) from a folder; formats as in :func:`cifar10`."""
    return _cifar(_folder(path, "cifar-100-binary"), ["train.bin"], "test.bin")


def tiny_imagenet(path: Path | str) -> Labelled:
    """Tiny ImageNet (3 x 64 x 64) in its own layout.

    Read are ``wnids.txt``, ``words.txt``, ``train/ID/images/*`` and ``val/images/*`` with
    ``val/val_annotations.txt``, or ``val/ID/*`` where that was sorted into classes. The validation pictures become
    the test data, as usual: the test set has no labels.
    """
    root = _folder(path, "tiny-imagenet-200")
    ids = _text(root / "wnids.txt").split()
    if len(set(ids)) < len(ids) or any(not _is_name(wnid) for wnid in ids):
        raise DataError(f"{root / 'wnids.txt'} must hold the name of each class's folder once", fix=AGAIN)
    words = dict(line.split("\t", 1) for line in _text(root / "words.txt").splitlines() if "\t" in line)
    files, y = folders.by_class(root / "train", ids)
    notes, place = root / "val" / "val_annotations.txt", {wnid: label for label, wnid in enumerate(ids)}
    test_files: list[Path] = []
    test_y: list[int] = []
    if not notes.exists() and any((root / "val" / wnid).is_dir() for wnid in ids):
        test_files, test_y = folders.by_class(root / "val", ids)
    else:
        for number, line in enumerate(_text(notes).splitlines(), 1):
            fields = line.split("\t")
            if len(fields) < 2 or fields[1] not in place:
                raise DataError(f"{notes}, line {number}, names no class of wnids.txt", found=line[:80], fix=AGAIN)
            if not _is_name(fields[0]):
                raise DataError(f"{notes}, line {number}, is not the name of a picture", found=line[:80], fix=AGAIN)
            test_files.append(root / "val" / "images" / fields[0])
            test_y.append(place[fields[1]])
    if not files or not test_files:
        raise DataError(f"{root} has no training or no validation pictures", fix="unpack the whole archive")
    # In full a name is a list of synonyms ("goldfish, Carassius auratus"): the first will do.
    names = tuple(words.get(wnid, wnid).split(",")[0] for wnid in ids)
    x = folders.read(files + test_files, 64, root)
    return Labelled(x[: len(y)], torch.tensor(y), x[len(y) :], torch.tensor(test_y), names)


def image_folder(path: Path | str, size: int = 32) -> Labelled:
    """Pictures in ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/CLASS/*``), as RGB of ``size`` x ``size`` pixels.

    Pictures of another size are resized (bilinear, the aspect ratio is not kept). Classes are the folders of
    ``train``, sorted; names that are all numbers, by number. Names that begin with a dot are no data, at any level.
    A class folder without pictures, broken pictures and links that lead out of the folder are refused, all at once.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError("the size of pictures must be a whole number of pixels above 0", found=size, fix="32, say")
    root = _folder(path)
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if not (root / "train").is_dir() or test is None:
        raise DataError(
            f"{root} is not a folder of pictures",
            found=_listing(root),
            fix="make it train/CLASS/* and test/CLASS/* (or val/CLASS/*)",
        )
    names = folders.classes(root / "train")
    strange = sorted(set(folders.classes(test)) - set(names))
    if strange or not names:
        raise DataError(
            f"the classes of {test} and {root / 'train'} are not the same",
            found=f"no training folder for {strange[:5]}" if strange else "no folder of a class",
            fix="give every class its folder in both",
        )
    files, y = folders.by_class(root / "train", names)
    test_files, test_y = folders.by_class(test, names)
    x = folders.read(files + test_files, size, root)
    return Labelled(x[: len(y)], torch.tensor(y), x[len(y) :], torch.tensor(test_y), tuple(names))


def arrays(path: Path | str) -> Labelled:
    """Tensors ``x_train``, ``y_train``, ``x_test`` and ``y_test`` of one safetensors file.

    ``x`` is uint8 (N, C, H, W) in 0..255 or floating point (N, ...); ``y`` holds whole numbers, 0 or more. The
    header's metadata may hold ``class_names``, a JSON list: a name for each label from 0, or, if labels have gaps or
    begin at 1, for each label that occurs, in their order. Without it such labels are numbered anew, from 0, and the
    names are the labels as they were.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"there is no file {path}", fix="check the path")
    try:
        with safe_open(path, framework="pt") as file:
            held, header = set(file.keys()), file.metadata() or {}
            missing = [key for key in ARRAYS if key not in held]
            tensors = {} if missing else {key: file.get_tensor(key) for key in ARRAYS}
            names = json.loads(header.get("class_names", "[]"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a whole safetensors file", found=error, fix="write it again") from error
    if missing:
        raise DataError(
            f"{path} lacks {', '.join(missing)}",
            found=sorted(held)[:20],
            fix="call them x_train, y_train, x_test, y_test",
        )
    for key, tensor in tensors.items():
        wanted = tensor.is_floating_point() or tensor.dtype == torch.uint8
        if key.startswith("y"):
            whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
            wanted = whole and tensor.ndim == 1 and tensor.numel() > 0 and int(tensor.long().min()) >= 0
        if not wanted:
            kind = "whole numbers from 0, (N,)" if key.startswith("y") else "uint8 (N, C, H, W) or floating point"
            raise DataError(
                f"{key} in {path} must be {kind}", found=f"{tensor.dtype} {tuple(tensor.shape)}", fix="mend it"
            )
    x, test_x = (t if t.dtype == torch.uint8 else t.float() for t in (tensors["x_train"], tensors["x_test"]))
    y, test_y = tensors["y_train"].long(), tensors["y_test"].long()
    labels = torch.unique(torch.cat([y, test_y]))
    count = int(labels[-1]) + 1
    if not isinstance(names, list) or not all(isinstance(name, str) and tables.whole(name) for name in names):
        raise DataError(f"class_names in {path} must be a list of texts", found=type(names), fix="mend the metadata")
    if len(names) < count and len(names) in (0, len(labels)):
        names = names or [str(label) for label in labels.tolist()]
        y, test_y = torch.searchsorted(labels, y), torch.searchsorted(labels, test_y)
    elif len(names) < count:
        raise DataError(
            f"class_names in {path} must be a list of {count} texts, one a label from 0",
            found=f"{len(names)} texts, {len(labels)} labels up to {count - 1}",
            fix="mend the metadata, or leave it out: then the labels are the names",
        )
    return Labelled(x, y, test_x, test_y, tuple(names))


# ------------------------------------------------------------------------------------------------- formats


def _cifar(root: Path, train: Sequence[str], test: str) -> Labelled:
    """CIFAR in whichever format the folder holds; ``train`` and ``test`` are the names in the binary version."""
    many = len(train) == 1
    if any((root / name).exists() for name in (*train, test)):
        read = [[_cifar_records(root / name, many) for name in names] for names in (train, [test])]
        sizes = {name: len(y) for name, (_, y) in zip(train, read[0], strict=True)}
        if len(set(sizes.values())) > 1:
            raise DataError(f"the batches in {root} are not equally long", found=sizes, fix=AGAIN)
        parts = [torch.cat(column) for part in read for column in zip(*part, strict=True)]
        return Labelled.of(parts, _cifar_names(root, many))
    if list(root.rglob("*.parquet")):
        return _cifar_parquet(root, "fine_label" if many else "label", _cifar_names(root, many))
    if (root / "train").is_dir():
        return image_folder(root, 32)
    if any((root / name.removesuffix(".bin")).is_file() for name in (*train, test)) or list(root.glob("*-py*")):
        raise DataError(
            f"{root} holds the pickled (python) version, which is not read: unpickling can run any code",
            found=_listing(root),
            fix="get the 'binary version (suitable for C programs)' from the same page and unpack it",
        )
    raise DataError(
        f"{root} holds no CIFAR data",
        found=_listing(root),
        fix=f"give the folder with {train[0]} and {test} (binary version), with *.parquet, or with train/ and test/",
    )


def _cifar_records(file: Path, many: bool) -> tuple[Tensor, Tensor]:
    """One file of the binary version: records of 1 label byte (or coarse and fine) and 3 x 32 x 32 bytes."""
    data = _bytes(file)
    head = 2 if many else 1
    if not data or len(data) % (head + 3072):
        raise DataError(
            f"{file} is not a whole number of records of {head + 3072} bytes", found=f"{len(data)} bytes", fix=AGAIN
        )
    records = _tensor(data).view(-1, head + 3072)
    return records[:, head:].reshape(-1, 3, 32, 32), _labels(records[:, head - 1], 100 if many else 10, file)


def _cifar_names(root: Path, many: bool) -> tuple[str, ...]:
    file = root / ("fine_label_names.txt" if many else "batches.meta.txt")
    names = tuple(_text(file).split()) if file.is_file() else ()
    count = 100 if many else 10
    return names if len(names) == count else CIFAR10 if not many else tuple(f"class {i}" for i in range(count))


def _cifar_parquet(root: Path, label: str, names: tuple[str, ...]) -> Labelled:
    """Parquet files ``train*`` and ``test*`` with a column of encoded pictures and one of labels."""
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    parts: list[Tensor] = []
    for part in ("train", "test"):
        pixels, labels = [], []
        for file in sorted(root.rglob(f"{part}*.parquet")):
            column: list[int] = []
            for i, (picture, value) in enumerate(_parquet_rows(parquet, file, label)):
                content = picture.get("bytes") if isinstance(picture, dict) else picture
                if not isinstance(content, bytes):
                    raise DataError(f"picture {i} of {file} is not encoded in the file", found=type(content), fix=AGAIN)
                if isinstance(value, bool) or not isinstance(value, int):
                    raise DataError(f"'{label}' in {file} must hold whole numbers", found=type(value), fix=AGAIN)
                try:
                    pixels.append(folders.square(pictures.decode(content), 32))
                except ValueError as error:
                    raise DataError(f"picture {i} of {file} cannot be used", found=error, fix=AGAIN) from error
                column.append(value)
            labels.append(_labels(torch.tensor(column), len(names), file))
        if not pixels:
            raise DataError(f"{root} has no {part} pictures in parquet files", found=_listing(root), fix=AGAIN)
        parts += [torch.from_numpy(np.stack(pixels)), torch.cat(labels)]
    return Labelled.of(parts, names)


def _parquet_rows(parquet: Any, file: Path, label: str) -> Iterator[tuple[Any, Any]]:
    """Picture and label of each row, a few rows in memory at a time: a small file can hold many gigabytes."""
    try:
        with parquet.ParquetFile(file) as table:
            columns = table.schema_arrow.names
            picture = next((key for key in ("img", "image") if key in columns), None)
            if picture is None or label not in columns:
                raise DataError(
                    f"{file} lacks 'img' or '{label}'", found=sorted(columns)[:20], fix="check which data set it is"
                )
            if table.metadata.num_rows > MOST_ROWS:
                raise DataError(f"{file} has too many rows", found=table.metadata.num_rows, fix=AGAIN)
            for batch in table.iter_batches(batch_size=256, columns=[picture, label]):
                yield from zip(batch[picture].to_pylist(), batch[label].to_pylist(), strict=True)
    except DataError:
        raise
    except Exception as error:  # pyarrow's own errors are of many kinds
        raise DataError(f"{file} is not a whole parquet file", found=error, fix=AGAIN) from error


def _idx(file: Path, dims: int) -> Tensor:
    """An IDX file of bytes: magic number 0, 0, 8, dims; sizes as big-endian 32-bit numbers; the bytes."""
    data = _bytes(file)
    if data[:4] != bytes([0, 0, 8, dims]):
        wrong = data[:4].hex(" ") or "an empty file"
        raise DataError(f"{file} is not an IDX file of bytes with {dims} dimensions", found=wrong, fix=AGAIN)
    start = 4 + 4 * dims
    sizes = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    if len(data) != start + math.prod(sizes) or 0 in sizes:
        raise DataError(f"{file} should hold {sizes} bytes", found=f"{len(data)} bytes in all", fix=AGAIN)
    return _tensor(data[start:]).view(sizes)


# ------------------------------------------------------------------------------------------------ small parts


def _folder(path: Path | str, inner: str = "") -> Path:
    """The folder, or the one in it that the archive unpacks to."""
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", fix="unpack the data set and give the path of its folder")
    return root / inner if inner and (root / inner).is_dir() else root


def _is_name(text: str) -> bool:
    """Whether it can be the name of a file in a folder."""
    return text == Path(text).name and text.isprintable() and 0 < len(text.encode()) < 256


def _either(root: Path, name: str) -> Path:
    for file in (root / name, root / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataError(f"there is no {name} and no {name}.gz in {root}", found=_listing(root), fix="add the file")


def _bytes(file: Path) -> bytes:
    try:
        if file.suffix != ".gz":
            return file.read_bytes()
        with gzip.open(file) as packed:
            data = packed.read(MOST_UNPACKED + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:  # a file that is not gzip is an OSError
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {file}", found=reason, fix=AGAIN) from error
    if len(data) > MOST_UNPACKED:
        raise DataError(
            f"{file} holds too much when unpacked",
            found=f"more than {MOST_UNPACKED // 2**20} MiB",
            fix="unpack it yourself if you trust it",
        )
    return data


def _text(file: Path) -> str:
    try:
        return _bytes(file).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text", found=error, fix=AGAIN) from error


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def _labels(y: Tensor, count: int, file: Path) -> Tensor:
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < count:
        wrong = sorted({int(label) for label in y[(y < 0) | (y >= count)]})[:5]
        raise DataError(f"{file} has labels outside 0..{count - 1}", found=wrong, fix=AGAIN)
    return y.long()


def _listing(root: Path) -> str:
    names = sorted(child.name for child in root.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "an empty folder"
