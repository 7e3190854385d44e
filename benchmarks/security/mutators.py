"""Ways to damage a file: bytes, values of JSON and YAML, headers of safetensors, cells, and files of another kind."""

import copy
import gzip
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


class Canary:
    """Unpickled, it makes a folder: code of the file was run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def odd(draw: random.Random) -> Any:
    """A value that hardly anybody expects."""
    values: list[Any] = [
        None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 5e-324, "", " ",
        "\x00", "\x1b[2J", "\u202egnp", "nan", "../../../etc/passwd", "/etc/passwd", "x" * 20_000, "9" * 5000,
        "é" * 300, [], {}, [[]], [None], {"": None}, ["x"] * 2000, {str(i): i for i in range(2000)}, deep(80),
        float("inf"), float("nan"), "os.system", "__import__('os')", "diffusers", "{{7*7}}", "%s%s%n", "<script>",
        "1e999",
    ]  # fmt: skip
    return draw.choice(values)


def deep(levels: int) -> Any:
    value: Any = 1
    for i in range(levels):
        value = [value] if i % 2 else {"a": value}
    return value


def raw(data: bytes, draw: random.Random, canary: Path, other: bytes = b"") -> bytes:
    """Damage that knows nothing of the format."""
    size = max(1, len(data))
    at, to = sorted((draw.randrange(size), draw.randrange(size + 1)))
    to = min(to, at + 4096)
    noise = draw.randbytes(draw.choice((1, 4, 64, 1000)))
    ways: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: data[:at],
        lambda: data[at:],
        lambda: data[:at] + data[to:],
        lambda: data[:at] + noise + data[at:],
        lambda: data[:at] + noise + data[at + len(noise) :],
        lambda: data[:to] + data[at:to] * draw.choice((1, 3, 50)) + data[to:],
        lambda: data[:at] + bytes(to - at) + data[to:],
        lambda: data[:at] + b"\xff" * (to - at) + data[to:],
        lambda: data + noise,
        lambda: noise,
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data.decode("latin-1").encode("utf-16"),
        lambda: data.replace(b"\n", b"\r"),
        lambda: data.replace(b'"', b"'", draw.randrange(1, 9)),
        lambda: data.replace(b"0", b"9" * 5000, 1),
        lambda: data.replace(b":", b": !!python/object/apply:os.mkdir [" + str(canary).encode() + b"] #", 1),
        lambda: data.replace(b"1", b"\\ud800", 1),
        lambda: flipped(data, draw),
        lambda: flipped(data, draw),
        lambda: pickle.dumps(Canary(canary)),
        lambda: pickle.dumps({b"data": Canary(canary), b"labels": [1]}, protocol=2),
        lambda: zipped(canary),
        lambda: gzip.compress(pickle.dumps(Canary(canary))),
        lambda: BOMB.encode(),
        lambda: b"[" * draw.choice((100, 3000, 100_000)),
        lambda: b'{"a":' * draw.choice((100, 3000, 100_000)),
        lambda: b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}",
        lambda: b"null",
        lambda: b"[1, 2]",
        lambda: b'"text"',
        lambda: b"{}",
        lambda: b"\x00" * 100,
        lambda: other or b"other",
    ]
    return draw.choice(ways)()


def flipped(data: bytes, draw: random.Random) -> bytes:
    """A few bits turned, half of the time near the beginning, where headers are."""
    changed = bytearray(data or b"\x00")
    near = min(len(changed), 256) if draw.random() < 0.5 else len(changed)
    for _ in range(draw.choice((1, 1, 2, 8))):
        changed[draw.randrange(near)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def zipped(canary: Path) -> bytes:
    """What ``torch.save`` and ``numpy.savez`` write, with a pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in ("archive/data.pkl", "x.npy", "train_x.npy"):
            archive.writestr(name, pickle.dumps(Canary(canary)))
    return made.getvalue()


def changed(value: Any, draw: random.Random) -> Any:
    """A copy of JSON data with one place changed: another value, a key away, a key more, an item twice."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return odd(draw)
    holder, key = draw.choice(places)
    way = draw.randrange(6)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[draw.choice(("", "extra", "_class_name", "\x1b", "__class__", f"{key} "))] = odd(draw)
    elif way == 2 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif way == 3 and isinstance(holder[key], str):
        holder[key] = holder[key][:-1] or "x"
    elif way == 4 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = draw.choice((-holder[key], holder[key] + 1, holder[key] * 1000, str(holder[key]), [holder[key]]))
    else:
        holder[key] = odd(draw)
    return value


def _places(value: Any) -> Any:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield value, key
        yield from _places(item)


def as_json(data: bytes, draw: random.Random) -> bytes:
    """JSON with one to three places changed."""
    value = json.loads(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        value = changed(value, draw)
    text = json.dumps(value, ensure_ascii=draw.random() < 0.5)
    if draw.random() < 0.05 and text.startswith("{"):
        text = text[:-1] + ("," if len(text) > 2 else "") + '"a": 1, "a": 2}'
    return text.encode("utf-8", "surrogatepass")


def as_lines(data: bytes, draw: random.Random) -> bytes:
    """JSON lines or text with one line changed."""
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    try:
        lines[at] = as_json(lines[at], draw)
    except ValueError:
        lines[at] = raw(lines[at], draw, Path("canary"))
    return b"\n".join(lines)


def as_yaml(data: bytes, draw: random.Random) -> bytes:
    """YAML with places changed, tags, anchors and texts that are no texts."""
    import yaml

    value = yaml.safe_load(data)
    for _ in range(draw.choice((1, 1, 2))):
        value = changed(value, draw)
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


def as_table(data: bytes, draw: random.Random) -> bytes:
    """CSV with a cell changed."""
    cell = draw.choice(('"', '"""', "x" * 200_000, ",,,,,,", "\x00", "\r", ";;;", "=1+1", "{}", "\u2028", "'", " "))
    at = draw.randrange(len(data) + 1)
    return data[:at] + cell.encode() + data[at:]


def as_ours(data: bytes, draw: random.Random) -> bytes:
    """A file of `core.state` with its record changed and its digest made anew, as anybody can who means it."""
    from safetensors.torch import load, save

    from unteach.core import state

    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    tensors = load(data)
    try:
        value = changed(json.loads(metadata["unteach"]), draw)
        text = draw.choice(("[" * 5000, "null", "[]", "1")) if draw.random() < 0.05 else json.dumps(value)
    except ValueError:
        text = "{"
    if draw.random() < 0.3 and tensors:
        name = draw.choice(sorted(tensors))
        tensors[draw.choice(("other", name + "'"))] = tensors.pop(name)
    digest = state.fingerprint([state.digest(tensors), text])
    return save(tensors, {"unteach": text, "digest": digest, "format": "pt"})


def as_safetensors(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file with its header changed: shapes, offsets, dtypes, names, metadata, length."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    way = draw.randrange(5)
    if way == 0 and "unteach" in header.get("__metadata__", {}):
        try:
            record = changed(json.loads(header["__metadata__"]["unteach"]), draw)
            header["__metadata__"]["unteach"] = json.dumps(record)
        except ValueError:
            header["__metadata__"]["unteach"] = "{"
    else:
        header = changed(header, draw)
    text = json.dumps(header).encode()
    if draw.random() < 0.1:
        text = text[:-1] + b"," + text[1:]
    size = len(text) if draw.random() < 0.9 else draw.choice((0, 1, len(text) - 1, 2**32, 2**63, 2**64 - 1))
    return size.to_bytes(8, "little") + text + body
