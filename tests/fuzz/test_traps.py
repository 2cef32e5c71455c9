"""Files made to hurt: claims of huge sizes, numbers that are none, texts that nest or multiply."""

import gzip
import io
import json
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from harness import FLOOD, Reader, outcome, refused
from PIL import Image
from readers import (
    NNUNET,
    data_folder,
    folder_of,
    model_folder,
    model_of,
    png_with_checksums,
    sound_image,
    summaries,
    summary,
)

from rwkvseg.data.io import read_image, read_label
from rwkvseg.data.splits import parse_split
from rwkvseg.inference.evaluation_context import read_record
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.recipe import Recipe


def nifti(path: Path, change) -> Path:
    image = nibabel.Nifti1Image(np.ones((4, 3, 5), np.int16), np.diag([1.0, 2.0, 3.0, 1.0]))
    content = bytearray(image.to_bytes())
    change(content)
    path.write_bytes(gzip.compress(bytes(content)) if path.suffix == ".gz" else bytes(content))
    return path


def put(kind: str, offset: int, *values):
    return lambda content: content.__setitem__(
        slice(offset, offset + struct.calcsize("<" + kind * len(values))),
        struct.pack("<" + kind * len(values), *values),
    )


def put_extension(content: bytearray, size: int) -> None:
    put("f", 108, 2.0**31)(content)
    put("i", 348, 1, size, 6)(content)


NIFTI_TRAPS = {  # offsets of the NIfTI-1 header: dim 40, pixdim 76, vox_offset 108, srow_x 280, extension 348
    "32767 voxels a side": (put("h", 42, 32767, 32767, 32767), "claims"),
    "seven axes": (put("h", 40, 7, 30, 30, 30, 30, 30, 30, 30), None),
    "negative size": (put("h", 42, -4, 3, 5), None),
    "no axes": (put("h", 40, 0), None),
    "NaN in the affine": (put("f", 280, np.nan), "maps no volume"),
    "infinity in the affine": (put("f", 292, np.inf), "maps no volume"),
    "flat affine": (put("f", 280, 0, 0, 0, 0), "maps no volume"),
    "voxels far away": (put("f", 108, 2e9), None),
    "voxels nowhere": (put("f", 108, np.nan), None),
    "voxels before the file": (put("f", 108, -1e9), None),
    "unknown type": (put("h", 70, 77), None),
    "scaled by infinity": (put("f", 112, np.inf), None),
    "an extension of 2 GiB": (lambda content: put_extension(content, 2**31 - 16), None),
    "an extension of less than nothing": (lambda content: put_extension(content, -16), None),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("trap", NIFTI_TRAPS)
def test_nifti_traps(tmp_path, trap, suffix):
    change, words = NIFTI_TRAPS[trap]
    path = nifti(tmp_path / f"a{suffix}", change)
    if trap == "scaled by infinity":  # NiBabel ignores a slope that is no number
        assert np.isfinite(read_image(path)[0]).all()
        return
    message = refused(path, read_image)
    assert words is None or words in message
    refused(path, read_label)


def test_a_nifti_2_header_may_claim_100000_voxels_a_side(tmp_path):
    image = nibabel.Nifti2Image(np.ones((4, 3, 5), np.uint8), np.eye(4))
    content = bytearray(image.to_bytes())
    content[24:48] = struct.pack("<3q", *[100_000] * 3)
    for name, written in (("a.nii", bytes(content)), ("b.nii.gz", gzip.compress(bytes(content)))):
        (tmp_path / name).write_bytes(written)
        assert f"its header claims {10**15} bytes of voxels" in refused(tmp_path / name, read_image)


def test_a_gzip_file_may_go_on_for_long(tmp_path):
    """What follows the voxels is read for the checksum only, and kept nowhere."""
    image = nibabel.Nifti1Image(np.ones((4, 3, 5), np.int16), np.eye(4))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(image.to_bytes() + bytes(60 * 2**20), 1))
    tracemalloc.start()
    try:
        values, *_ = read_image(tmp_path / "a.nii.gz")
        assert tracemalloc.get_traced_memory()[1] < FLOOD / 20
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(values, 1)


def png(width, height, depth=8, colour=2, pixels=b"\0"):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return png_with_checksums(header + pixels)


def saved(values: np.ndarray, kind: str, **options) -> bytearray:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **options)
    return bytearray(file.getvalue())


BLACK = np.zeros((16, 16, 3), np.uint8)


def jpeg(width, height):
    content = saved(BLACK, "JPEG")
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def tiff(width, height, compression):
    content = saved(BLACK, "TIFF", compression=compression)
    directory = struct.unpack("<I", content[4:8])[0]
    for entry in range(*struct.unpack("<H", content[directory : directory + 2])):
        at = directory + 2 + 12 * entry
        tag, kind = struct.unpack("<HH", content[at : at + 4])
        if tag in (256, 257, 278):  # width, height, rows a strip
            size = width if tag == 256 else height
            content[at + 8 : at + 12] = struct.pack("<I" if kind == 4 else "<H2x", size)
    return bytes(content)


def bmp(width, height):
    content = saved(BLACK, "BMP")
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


PICTURE_TRAPS = {
    "huge.png": png(9000, 9000),
    "bits.png": png(9400, 9400, depth=1, colour=0),
    "deep.png": png(9000, 9000, depth=16, colour=6),
    "bomb.png": png(20_000, 20_000, pixels=bytes(2**20)),
    "huge.jpg": jpeg(9000, 9000),
    "raw.tif": tiff(9000, 9000, "raw"),
    "deflate.tif": tiff(9000, 9000, "tiff_deflate"),
    "lzw.tif": tiff(9000, 9000, "tiff_lzw"),
    "packed.tif": tiff(9000, 9000, "packbits"),
    "huge.bmp": bmp(9000, 9000),
}


@pytest.mark.parametrize("name", PICTURE_TRAPS)
def test_picture_traps(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(PICTURE_TRAPS[name])
    assert path.stat().st_size < 10_000
    message = refused(path, read_image)
    assert "claims" in message or "more than" in message
    refused(path, read_label)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".png", {}),
        (".png", {"bits": 1}),
        (".jpg", {"quality": 5}),
        (".jpg", {"quality": 5, "progressive": True, "optimize": True}),
        (".tif", {"compression": "tiff_deflate"}),
        (".tif", {"compression": "tiff_lzw"}),
        (".tif", {"compression": "packbits"}),
        (".tif", {"compression": "group4"}),
        (".tif", {}),
        (".bmp", {}),
    ],
    ids=str,
)
def test_the_emptiest_of_large_pictures_are_no_traps(tmp_path, suffix, options):
    """Black pictures are squeezed as well as any can be."""
    black = Image.new("1" if options.get("compression") == "group4" else "L", (3001, 2003))
    black.save(tmp_path / f"a{suffix}", **options)
    image, *_ = read_image(tmp_path / f"a{suffix}")
    assert image.shape == (1, 2003, 3001)
    assert image.max() < 9  # JPEG's black is not quite


NEST = "[" * 100_000
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=False)
)
YAML_TRAPS = {
    "laughs": "name: x\n" + LAUGHS,
    "laughs in a value": LAUGHS.replace("i: &i", "name: &i"),
    "itself": "name: x\ndata: &d {path: *d}\n",
    "nest": "name: " + NEST[:1500],
    "no date": "name: 2001-99-99\n",
    "long number": "name: " + "9" * 5000,
    "key of no text": "name: x\n1: 2\n? [a]\n: 3\n",
    "tag": "name: !!python/object/apply:os.system ['true']\n",
    "not unicode": "name: \ud800",
}


@pytest.mark.parametrize("kind", [Recipe, PretrainRecipe])
@pytest.mark.parametrize("trap", YAML_TRAPS)
def test_recipe_traps(tmp_path, trap, kind):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(YAML_TRAPS[trap].encode("utf-8", "surrogatepass"))
    refused(path, kind.from_file, watched=False)  # PyYAML is slow as it is


def test_a_recipe_may_repeat_a_part_by_its_name(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "name: x\nmodel: {name: rwkv_unet_tiny, overrides: {depths: &d [1, 1, 1, 1], widths: *d}}\n"
    )
    assert Recipe.from_file(path).model.overrides["widths"] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "text", [NEST, '{"a":' * 100_000, '{"labels": ' + "9" * 5000 + "}", "\ufeff\0", "{}" * 3]
)
def test_json_traps(tmp_path, text):
    data_folder(NNUNET, nnunet=True)(tmp_path / "dataset.json")
    model_folder(tmp_path / "model.json")
    (tmp_path / "x").mkdir()
    summary(tmp_path / "x" / "summary.json")
    for name, read in (
        ("dataset.json", folder_of),
        ("split.json", parse_split),
        ("model.json", model_of),
        ("prediction.json", lambda path: read_record(path.parent)),
        ("x/summary.json", summaries),
    ):
        path = tmp_path / name
        path.write_text(text)
        refused(path, read)


def labels_of(tmp_path, labels):
    data_folder(NNUNET | {"labels": labels}, nnunet=True)(tmp_path / "dataset.json")
    assert json.loads((tmp_path / "dataset.json").read_text())["labels"] == labels
    return tmp_path / "dataset.json"


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "a": 1.5},
        {"background": 0, "a": True},
        {"background": 0, "a": -1},
        {"background": 0, "a": 2**40},
        {"background": 0, "a": float("inf")},
        {"background": 0, "\ud800": 1},
        {"background": 0, "a": "1.5"},
        {"0": "background", "99999999999": "a"},
    ],
    ids=ascii,
)
def test_labels_that_are_no_values(tmp_path, labels):
    refused(labels_of(tmp_path, labels), folder_of)


def test_a_text_chunk_of_a_png_may_not_unfold_into_memory(tmp_path):
    content = png(4, 4, colour=0, pixels=bytes(20))
    text = b"comment\0\0" + zlib.compress(bytes(120 * 2**20), 9)
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text + struct.pack(">I", zlib.crc32(b"zTXt" + text))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])
    refused(tmp_path / "a.png", read_image)


@pytest.mark.parametrize("place", [0, 1])
def test_a_chunk_of_a_png_may_claim_more_than_the_file_holds(tmp_path, place):
    """Its pixels may be whole all the same; what is asked of the file must not be what is claimed."""
    pixels = bytes(16 * (1 + 16 * 3))
    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    chunks = [header, zlib.compress(pixels)]
    content = b"\x89PNG\r\n\x1a\n"
    for index, (kind, body) in enumerate(zip((b"IHDR", b"IDAT"), chunks, strict=True)):
        size = 0x7FFF0000 if index == place else len(body)
        content += struct.pack(">I", size) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "a.png").write_bytes(content)
    found = outcome(Reader("png", "a.png", lambda _: None, read_image, sound_image), tmp_path)
    assert found == ("refused", "read")[place]
