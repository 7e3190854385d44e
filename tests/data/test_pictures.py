"""Pictures as a viewer shows them (F5, F6), by both readers; what is none, too large or elsewhere (L12) is refused."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unteach.data import pictures
from unteach.data.captioned import captioned
from unteach.data.files import image_folder
from unteach.errors import DataError

RED, BLUE, WHITE, GREEN = [255, 0, 0], [0, 0, 255], [255, 255, 255], [0, 255, 0]


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def both(root: Path, name: str, data: bytes, size: int = 8) -> np.ndarray:
    """What the two readers see, (size, size, 3); they must see the same."""
    (root / "set").mkdir(parents=True)
    (root / "set" / name).write_bytes(data)
    (root / "set" / "metadata.jsonl").write_text(json.dumps({"file_name": name, "text": "a"}))
    for part in ("train", "test"):
        (root / "classes" / part / "a").mkdir(parents=True)
        (root / "classes" / part / "a" / name).write_bytes(data)
    seen = (captioned(root / "set", (size, size)).images[0] * 255).round().numpy().astype(np.uint8)
    assert np.array_equal(seen, image_folder(root / "classes", size).x[0].numpy())
    return seen.transpose(1, 2, 0)


UPRIGHT = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    # How a camera stores the upright picture, by the EXIF standard's wording of row 0 and column 0.
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.transpose(1, 0, 2),  # left, top
    6: lambda a: a.transpose(1, 0, 2)[::-1],  # right, top: row 0 is the right side, from the top
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", sorted(STORED))
def test_f5_a_phone_photo_stands_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT)))
    assert np.array_equal(both(tmp_path, "phone.png", encoded(stored, exif=exif)), UPRIGHT)


def test_f5_the_reported_photo_red_above_blue(tmp_path: Path) -> None:
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16], upright[16:] = RED, BLUE
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.rot90(upright, 1).copy()), "JPEG", exif=exif, quality=100)
    seen = both(tmp_path, "phone.jpg", data, 32).astype(int)
    assert np.abs(seen[:15] - RED).max() < 8 and np.abs(seen[17:] - BLUE).max() < 8


def test_damaged_notes_of_a_whole_picture_turn_nothing() -> None:
    data = encoded(Image.fromarray(UPRIGHT), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert np.array_equal(np.asarray(pictures.decode(data)), UPRIGHT)


def sticker() -> np.ndarray:
    """A green square on a transparent ground with noise for a hidden colour."""
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[2:6, 2:6] = [*GREEN, 255]
    return pixels


def on_white() -> np.ndarray:
    want = np.full((8, 8, 3), 255, np.uint8)
    want[2:6, 2:6] = GREEN
    return want


def test_f6_a_sticker_lies_on_white(tmp_path: Path) -> None:
    assert np.array_equal(both(tmp_path, "sticker.png", encoded(Image.fromarray(sticker()))), on_white())


def test_f6_a_half_transparent_pixel_is_mixed_with_white() -> None:
    seen = np.asarray(pictures.decode(encoded(Image.new("RGBA", (1, 1), (0, 100, 200, 51)))))
    assert seen.tolist() == [[[204, 224, 244]]]  # 0.2 of it and 0.8 of white


def test_f6_palette_grey_and_one_colour_that_stands_for_nothing(tmp_path: Path) -> None:
    flat = np.zeros((8, 8, 3), np.uint8)
    flat[2:6, 2:6] = GREEN
    palette = Image.fromarray(flat).quantize(4)
    clear = palette.getpixel((0, 0))
    cases = {
        "palette.png": (encoded(palette, transparency=clear), on_white()),
        "palette.gif": (encoded(palette, "GIF", transparency=clear), on_white()),
        "key.png": (encoded(Image.fromarray(flat), transparency=(0, 0, 0)), on_white()),
        "la.png": (encoded(Image.new("LA", (8, 8), (200, 0))), np.full((8, 8, 3), 255)),
        "l.png": (encoded(Image.new("L", (8, 8), 200), transparency=200), np.full((8, 8, 3), 255)),
        "opaque.png": (encoded(Image.new("LA", (8, 8), (200, 255))), np.full((8, 8, 3), 200)),
    }
    for name, (data, want) in cases.items():
        assert np.array_equal(both(tmp_path / name, name, data), want), name


def test_deep_pixels_are_scaled_to_8_bits(tmp_path: Path) -> None:
    deep = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)  # up to 65520
    want = np.repeat((deep / 257).round().astype(np.uint8)[..., None], 3, 2)
    assert np.array_equal(both(tmp_path / "png", "deep.png", encoded(Image.fromarray(deep))), want)
    assert np.array_equal(both(tmp_path / "tif", "deep.tif", encoded(Image.fromarray(deep), "TIFF")), want)
    body = b"P5 8 8 65535\n" + deep.astype(">u2").tobytes()
    assert np.array_equal(both(tmp_path / "pgm", "deep.pgm", body), want)
    for top in (1.0, 255.0):
        real = (np.arange(64).reshape(8, 8) / 63 * top).astype(np.float32)
        want = np.repeat((np.arange(64).reshape(8, 8) / 63 * 255).round().astype(np.uint8)[..., None], 3, 2)
        seen = both(tmp_path / str(top), "real.tif", encoded(Image.fromarray(real), "TIFF"))
        assert np.abs(seen.astype(int) - want).max() <= 1
    for value in (-1.0, 256.0, float("nan")):
        with pytest.raises(ValueError, match="its pixels are from"):
            pictures.decode(encoded(Image.fromarray(np.full((2, 2), value, np.float32)), "TIFF"))
    clear = Image.fromarray(np.array([[0, 65535]], np.uint16))
    clear.info["transparency"] = 0
    assert np.asarray(pictures.as_seen(clear)).tolist() == [[WHITE, WHITE]]


def test_p10_cmyk_one_bit_and_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), "blue")]
    cases = {
        "cmyk.jpg": (encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100), [0, 255, 255]),
        "bit.png": (encoded(Image.new("1", (8, 8), 1)), WHITE),
        "anim.gif": (encoded(Image.new("RGB", (8, 8), "red"), "GIF", save_all=True, append_images=frames), RED),
    }
    for name, (data, colour) in cases.items():
        assert (both(tmp_path / name, name, data) == colour).all(), name


def header(width: int, height: int) -> bytes:
    """A PNG of this size without its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)))
BROKEN = {
    "zero.jpg": (b"", "the file is empty"),
    "html.jpg": (b"<!DOCTYPE html><html>not found</html>", "begins with b'<!DOCTYPE"),
    "lfs.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "begins with b'version"),
    "heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "no known kind of picture"),
    "cut.png": (WHOLE[: len(WHOLE) // 2], "not whole"),
    "headless.png": (WHOLE[:20], "not whole"),
    "huge.png": (header(20000, 20000), "more than 64 million pixels"),  # Pillow raises DecompressionBombError
    "big.png": (header(9000, 9000), "9000 x 9000 pixels"),  # Pillow warns
}


def test_all_broken_pictures_are_named_with_reasons_in_one_message(tmp_path: Path) -> None:
    lines = [json.dumps({"file_name": name, "text": "a"}) for name in BROKEN]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a" / "good.png").write_bytes(WHOLE)
    for name, (data, _) in BROKEN.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / "train" / "a" / name).write_bytes(data)
    for read in (lambda: captioned(tmp_path, (8, 8)), lambda: image_folder(tmp_path, 8)):
        with pytest.raises(DataError) as caught:
            read()
        said = str(caught.value)
        assert "object at 0x" not in said
        for name, (_, reason) in BROKEN.items():
            after = said[said.index(name) :]
            assert reason in after[: after.find("; ")], (name, said)
    assert "8 of 10 pictures" in said


def test_a_message_lists_twenty_and_counts_the_rest() -> None:
    said = pictures.listed([f"p{i}" for i in range(25)])
    assert said.count("p") == 20 and said.endswith("p19;\n  and 5 more")


def test_l12_links_out_of_the_folder_are_refused_and_links_within_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for part in ("train", "test"):
        (root / part / "a").mkdir(parents=True)
        (root / part / "a" / "good.png").write_bytes(WHOLE)
    (tmp_path / "secret.png").write_bytes(WHOLE)
    (root / "train" / "a" / "within.png").symlink_to("good.png")
    assert len(image_folder(root, 8).x) == 2
    (tmp_path / "name").symlink_to(root)  # the folder itself may be a link
    assert len(image_folder(tmp_path / "name", 8).x) == 2
    (root / "train" / "a" / "out.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(DataError, match=r"out.png .it is outside the folder"):
        image_folder(root, 8)
    (root / "metadata.jsonl").write_text(json.dumps({"file_name": "train/a/out.png", "text": "a"}))
    with pytest.raises(DataError, match=r"out.png': it is outside the folder"):
        captioned(root, (8, 8))
    (root / "train" / "a" / "out.png").unlink()
    (root / "train" / "b").symlink_to(root.parent)
    (root / "test" / "b").mkdir()
    (root / "test" / "b" / "good.png").write_bytes(WHOLE)
    with pytest.raises(DataError, match=r"secret.png .it is outside the folder"):
        image_folder(root, 8)


def test_what_is_no_plain_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe would keep its reader waiting for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "folder.png"):
        with pytest.raises(ValueError, match="no plain file"):
            pictures.content(tmp_path / name, tmp_path)


def test_a_picture_that_is_one_long_line_is_refused_before_it_is_enlarged(tmp_path: Path) -> None:
    Image.new("L", (60_000, 1)).save(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "text": "a"}))
    with pytest.raises(DataError, match="too narrow: 60000 x 1"):
        captioned(tmp_path, (64, 64))


def test_whatever_a_decoder_raises_is_a_reason() -> None:
    """L4: a thousand damaged files of seven kinds give a picture or a ValueError."""
    random = np.random.default_rng(0)
    image = Image.fromarray(UPRIGHT)
    kinds = [encoded(image, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    refused = 0
    for i in range(1000):
        data = bytearray(kinds[i % len(kinds)])
        for place in random.integers(0, len(data), 1 + i % 5):
            data[place] = random.integers(0, 256)
        if i % 3 == 0:
            data = data[: random.integers(0, len(data))]
        try:
            assert pictures.decode(bytes(data)).mode == "RGB"
        except ValueError:
            refused += 1
    assert 300 < refused < 1000
