"""What pictures lose where they are written anew, and that it is said."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rwkvseg.data.convert import Options, convert_data
from rwkvseg.data.io import read_image
from rwkvseg.data.pictures import left_behind

RNG = np.random.default_rng(0)
SIZE = (13, 9)


def bytes_of(channels):
    return RNG.integers(0, 256, (*SIZE, channels), dtype=np.uint8).squeeze()


def png_of_48_bits(path):
    """Colours of 16 bit, which Pillow cannot write."""
    values = RNG.integers(0, 65536, (*SIZE, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", *SIZE[::-1], 16, 2, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts.items()
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return values


def clear_palette(path):
    picture = Image.fromarray(bytes_of(3)).quantize(8)
    picture.save(path, transparency=3)


WRITERS = {
    "RGBA": (lambda path: Image.fromarray(bytes_of(4), "RGBA").save(path), "transparency (alpha)"),
    "LA": (lambda path: Image.fromarray(bytes_of(2), "LA").save(path), "transparency (alpha)"),
    "palette with a clear colour": (clear_palette, "transparency (alpha)"),
    "48 bits": (png_of_48_bits, "colours of 16 bit"),
    "RGB": (lambda path: Image.fromarray(bytes_of(3)).save(path), None),
    "L": (lambda path: Image.fromarray(bytes_of(1)).save(path), None),
    "16 bits": (lambda path: Image.fromarray(bytes_of(1).astype(np.uint16) * 257).save(path), None),
    "palette": (lambda path: Image.fromarray(bytes_of(3)).quantize(8).save(path), None),
    "1 bit": (lambda path: Image.fromarray(bytes_of(1) > 99).save(path), None),
}


def folder_of(root, write):
    """Three pictures with masks, the first as `write` writes it."""
    for index in range(3):
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True, exist_ok=True)
        write(root / "images" / "0.png") if index == 0 else None
        mask = np.zeros(SIZE, np.uint8)
        mask[3:6, 2:7] = 1
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    with Image.open(root / "images" / "0.png") as first:
        mode = "L" if first.mode in ("1", "L", "LA", "I;16") else "RGB"
    for index in (1, 2):
        Image.fromarray(bytes_of(3)).convert(mode).save(root / "images" / f"{index}.png")
    return root


@pytest.mark.parametrize("kind", WRITERS)
def test_what_a_new_file_lacks_is_said(tmp_path, kind):
    write, lost = WRITERS[kind]
    source = folder_of(tmp_path / "source", write)
    done = convert_data(source, tmp_path / "Dataset001_X", Options(to="nnunet"))
    said = [line for line in done.lost if lost and line.startswith(f"1 of 3 cases: {lost}")]
    assert len(done.lost) == len(said) == (lost is not None)
    assert json.loads((tmp_path / "Dataset001_X" / "conversion.json").read_text())["lost"] == list(done.lost)
    before, after = (
        read_image(path)[0]
        for path in (source / "images" / "0.png", tmp_path / "Dataset001_X" / "imagesTr" / "0_0000.png")
    )
    assert np.array_equal(before, after)  # what is trained on is the same in any case


@pytest.mark.parametrize("kind", ["RGBA", "LA", "48 bits"])
def test_a_copied_file_lacks_nothing(tmp_path, kind):
    source = folder_of(tmp_path / "source", WRITERS[kind][0])
    assert convert_data(source, tmp_path / "again", Options(to="images")).lost == ()
    files = [folder / "images" / "0.png" for folder in (source, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_arrays_have_no_transparency(tmp_path):
    source = folder_of(tmp_path / "source", WRITERS["LA"][0])
    (line,) = convert_data(source, tmp_path / "arrays", Options(to="transunet")).lost
    assert line.startswith("1 of 3 cases: transparency (alpha)")


def test_colours_of_print_are_said(tmp_path):
    Image.fromarray(bytes_of(4), "CMYK").save(tmp_path / "a.jpg")
    assert left_behind(tmp_path / "a.jpg") == ("colours of print (CMYK) become red, green and blue",)


def test_the_upper_bits_of_48_are_kept(tmp_path):
    values = png_of_48_bits(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png")[0], np.moveaxis(values >> 8, -1, 0))
