"""Every reader of files that come from elsewhere, a line each at the end of this file."""

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import torch
import yaml
from harness import Layer, Reader
from PIL import Image

from array_folders import volume_arrays, write_h5
from compared import shifted, truths, write_evaluation
from dicom_cases import Grid, write_multi_frame, write_picture, write_series
from rwkvseg.data.files import read_groups
from rwkvseg.data.io import read_image, read_label
from rwkvseg.data.layouts import find_inputs, open_data, read_case
from rwkvseg.data.nifti import read_nifti_header
from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.data.splits import read_split
from rwkvseg.evaluation.evaluations import read_evaluations
from rwkvseg.inference.evaluation_context import read_record
from rwkvseg.inference.model_file import Architecture, ModelDescription, load_model, save_model
from rwkvseg.models.registry import create_model
from rwkvseg.training.pretrain_recipe import PretrainRecipe
from rwkvseg.training.recipe import Recipe
from small import OVERRIDES, small_recipe

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 255, (23, 17, 3)).astype(np.uint8)
MASK = (NOISE[..., 0] > 200).astype(np.uint8)


def picture(values: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path, **options)


def volume(dtype: type, *, extension: bool = False, second: bool = False) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
        values = RNG.integers(0, 3, (7, 5, 6)).astype(dtype)
        image = kind(values, np.diag([0.8, 1.5, 3.0, 1.0]))
        if extension:
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"of some words"))
        nibabel.save(image, path)

    return write


def sound_image(found: Any) -> None:
    image, spacing, affine = found
    assert image.ndim == (3 if affine is None else 4)
    assert image.size
    assert image.dtype.kind in "uif"
    assert np.isfinite(image).all()
    if affine is not None:
        assert np.isfinite(affine).all()
        assert min(spacing) > 0
        assert len(spacing) == 3


def sound_label(found: Any) -> None:
    label, affine = found
    assert label.dtype.kind in "iu"
    assert label.ndim == (2 if affine is None else 3)


def sound_array(found: Any) -> None:
    image, spacing, affine = found
    assert image.ndim in (3, 4)
    assert image.size
    assert np.isfinite(image).all()
    assert (spacing, affine) == (None, None)


def sound_array_label(found: Any) -> None:
    assert found[0].dtype.kind in "iu"
    assert found[0].ndim in (2, 3)


def sound_cases(cases: Any) -> None:
    for case in cases:
        sound_image((case.image, case.spacing, case.affine))


def png_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def png_without_checksums(content: bytes) -> bytes:
    """Header and pixels, uncompressed, behind each other."""
    chunks = dict(png_chunks(content))
    return chunks[b"IHDR"] + zlib.decompress(chunks[b"IDAT"])


def png_with_checksums(payload: bytes) -> bytes:
    parts = {b"IHDR": payload[:13], b"IDAT": zlib.compress(payload[13:], 1), b"IEND": b""}
    packed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def npz_members(content: bytes) -> bytes:
    """Arrays behind each other, each with its name and length, without zip's checksums."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    found = [(name, archive.read(name)) for name in archive.namelist()]
    return b"".join(len(body).to_bytes(4, "big") + name.encode().ljust(16) + body for name, body in found)


def npz_zipped(content: bytes) -> bytes:
    file, at = io.BytesIO(), 0
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        taken = set()
        while at + 20 <= len(content):
            size = min(int.from_bytes(content[at : at + 4], "big"), len(content) - at - 20)
            name = content[at + 4 : at + 20].split(b"\0")[0].strip().decode("latin1") or "x"
            if name not in taken:
                archive.writestr(zipfile.ZipInfo(name), content[at + 20 : at + 20 + size])
            taken.add(name)
            at += 20 + size
    return file.getvalue()


NPZ: Layer = (npz_members, npz_zipped)
PNG: Layer = (png_without_checksums, png_with_checksums)
GZIP: Layer = (gzip.decompress, lambda content: gzip.compress(content, 1, mtime=0))


def data_folder(content: Any, *, nnunet: bool = False) -> Callable[[Path], None]:
    """MSD or nnU-Net layout of two cases, or image folders for labels.json."""

    def write(path: Path) -> None:
        folder, pictures = path.parent, path.name == "labels.json"
        for kind in ("images", "masks") if pictures else ("imagesTr", "labelsTr"):
            (folder / kind).mkdir()
            for case in ("a", "b"):
                ending = (
                    ".png" if pictures else "_0000.nii.gz" if nnunet and kind == "imagesTr" else ".nii.gz"
                )
                (folder / kind / f"{case}{ending}").touch()
        path.write_text(json.dumps(content))

    return write


MSD = {
    "name": "x",
    "labels": {"0": "background", "1": "organ"},
    "licence": "CC0",
    "numTraining": 2,
    "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "ab"],
}
NNUNET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def sound_folder(found: Any) -> None:
    assert found.cases
    if found.labels is not None:
        assert all(type(name) is str and type(value) is int for name, value in found.labels.items())
        assert 0 in found.labels.values()
        assert min(found.labels.values()) == 0
        " ".join(found.labels).encode()
    (found.licence or "").encode()
    for case in found.cases:
        assert all(path.is_file() for path in case.images)
        case.id.encode()


def split_file(path: Path) -> None:
    data_folder(NNUNET, nnunet=True)(path.with_name("dataset.json"))
    content = {"rule": "paper", "seed": 0, "train": ["a"], "val": ["b"], "test": []}
    path.write_text(json.dumps(content))


def split_of(path: Path) -> Any:
    return read_split(path, open_data(path.parent).cases)


def record(path: Path) -> None:
    content = {
        "protocol": "strict",
        "resize": {"rule": "r", "network_size": [32, 32], "cases": ["a"]},
        "labels": {"background": 0, "organ": 1},
        "images": "data",
        "model": {"name": "x", "weights_sha256": "0"},
        "cases": {"a": "a.png"},
    }
    path.write_text(json.dumps(content))


def summary(path: Path) -> None:
    for name in ("x", "y"):
        folder = path.parents[1] / name
        folder.mkdir(exist_ok=True)
        write_evaluation(folder, shifted(truths(3), 1), truths(3))


def summaries(path: Path) -> Any:
    return read_evaluations([str(path.parent), str(path.parents[1] / "y")])


def recipe_of(mapping: dict[str, Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(yaml.safe_dump(mapping))

    return write


PRETRAIN = {
    "name": "p",
    "task": "classify",
    "data": {"path": "d"},
    "model": {"name": "rwkv_unet_tiny"},
    "pictures": {"size": 32, "normalisation": "unit"},
}


def model_folder(path: Path) -> None:
    torch.manual_seed(0)
    network = create_model("rwkv_unet_tiny", in_channels=1, num_classes=2, **OVERRIDES)
    architecture = Architecture(
        name="rwkv_unet_tiny", in_channels=1, num_classes=2, overrides=dict(OVERRIDES)
    )
    description = ModelDescription(
        rwkvseg_version="0.1.0",
        architecture=architecture,
        labels={"background": 0, "organ": 1},
        preprocessing=Preprocessing(channels=1, size=(32, 32)),
    )
    save_model(path.parent, network, description)


def groups(path: Path) -> None:
    path.write_text("id,group\na,p1\nb,p1\nc,p2\n")


def case_folder(path: Path) -> None:
    for kind, values in (("images", NOISE), ("masks", MASK)):
        folder = path.parents[1] / kind
        folder.mkdir(exist_ok=True)
        Image.fromarray(values).save(folder / "a.png")


def case_of(path: Path) -> Any:
    """Image and label of one case, as training reads them."""
    return read_case(open_data(path.parents[1]).cases[0], {"background": 0, "organ": 1})


def npz(path: Path) -> None:
    np.savez(path, **{name: values[0] for name, values in volume_arrays(0).items()})


def h5(path: Path) -> None:
    write_h5(path, volume_arrays(0))


def packed_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name, values in volume_arrays(0).items():
            file.create_dataset(name, data=values, chunks=(2, 4, 5), compression="gzip", shuffle=True)


GRID = Grid(shape=(7, 6, 3))


def numbered(dataset: Any, index: int) -> None:
    """The same file every time."""
    for key in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, key, f"1.2.3.{index + 1}" if key == "SOPInstanceUID" else "1.2.3")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def dicom_series(path: Path) -> None:
    write_series(path.parent, GRID, change=numbered).files[1].rename(path)


def dicom_frames(path: Path) -> None:
    write_multi_frame(path, GRID, (2, 0, 1), change=numbered)


def dicom_picture(path: Path) -> None:
    write_picture(path, NOISE)


def dicom_of(path: Path) -> Any:
    return [read_case(case, with_label=False) for case in find_inputs(path.parent)]


def folder_of(path: Path) -> Any:
    return open_data(path.parent)


def model_of(path: Path) -> Any:
    return load_model(path.parent)


DEEP, GREY16 = {"examples": 120}, NOISE[..., 0].astype(np.uint16) * 99
READERS = [
    Reader("png", "a.png", picture(NOISE), read_image, sound_image, PNG),
    Reader("png of 16 bits", "a.png", picture(GREY16), read_image, sound_image, PNG),
    Reader("png mask", "a.png", picture(MASK), read_label, sound_label, PNG),
    Reader("jpeg", "a.jpg", picture(NOISE, quality=60), read_image, sound_image),
    Reader("progressive jpeg", "a.jpeg", picture(NOISE, progressive=True), read_image, sound_image),
    Reader("jpeg mask", "a.jpg", picture(0 * MASK), read_label, sound_label),
    Reader("tiff", "a.tif", picture(NOISE), read_image, sound_image, **DEEP),
    Reader("tiff deflate", "a.tiff", picture(NOISE, compression="tiff_deflate"), read_image, sound_image),
    Reader("tiff lzw", "a.tiff", picture(NOISE, compression="tiff_lzw"), read_image, sound_image),
    Reader("tiff mask", "a.tif", picture(MASK), read_label, sound_label),
    Reader("bmp", "a.bmp", picture(NOISE), read_image, sound_image),
    Reader("nifti", "a.nii", volume(np.int16), read_image, sound_image, **DEEP),
    Reader("nifti gz", "a.nii.gz", volume(np.int16), read_image, sound_image, GZIP, **DEEP),
    Reader("nifti extension", "a.nii", volume(np.float32, extension=True), read_image, sound_image, **DEEP),
    Reader("nifti 2", "a.nii.gz", volume(np.float64, second=True), read_image, sound_image, GZIP, **DEEP),
    Reader("nifti label", "a.nii.gz", volume(np.uint8), read_label, sound_label, GZIP, **DEEP),
    Reader("nifti header", "a.nii.gz", volume(np.uint8), read_nifti_header, layer=GZIP),
    Reader("case", "masks/a.png", case_folder, case_of, layer=PNG),
    Reader("npz", "a.npz", npz, read_image, sound_array, NPZ, **DEEP),
    Reader("npz label", "a.npz", npz, read_label, sound_array_label, NPZ),
    Reader("h5", "a.h5", h5, read_image, sound_array, **DEEP),
    Reader("h5 gzip", "a.npy.h5", packed_h5, read_image, sound_array, **DEEP),
    Reader("h5 label", "a.h5", h5, read_label, sound_array_label),
    Reader("dicom slice", "s/x.dcm", dicom_series, dicom_of, sound_cases),
    Reader("dicom frames", "s/x.dcm", dicom_frames, dicom_of, sound_cases),
    Reader("dicom picture", "s/x.dcm", dicom_picture, dicom_of, sound_cases),
    Reader("msd", "dataset.json", data_folder(MSD), folder_of, sound_folder, **DEEP),
    Reader("nnunet", "dataset.json", data_folder(NNUNET, nnunet=True), folder_of, sound_folder, **DEEP),
    Reader("labels", "labels.json", data_folder({"labels": {"bg": 0, "x": 1}}), folder_of, sound_folder),
    Reader("groups", "groups.csv", groups, read_groups),
    Reader("split", "split.json", split_file, split_of),
    Reader("prediction", "prediction.json", record, lambda path: read_record(path.parent)),
    Reader("summary", "x/summary.json", summary, summaries, **DEEP),
    Reader("recipe", "recipe.yaml", recipe_of(small_recipe(Path("data"))), Recipe.from_file, **DEEP),
    Reader("pretrain recipe", "recipe.yaml", recipe_of(PRETRAIN), PretrainRecipe.from_file),
    Reader("model", "model.json", model_folder, model_of),
    Reader("weights", "model.safetensors", model_folder, model_of),
]
