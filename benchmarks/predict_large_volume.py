"""Memory and time of `rwkvseg predict` on a large volume, 512 x 512 x 800 by default, on CPU cores.

    python benchmarks/predict_large_volume.py [--spacing 1.5 1.5 1.5] [--patch 96 96 96] [--overlap 0.5]
        [--max-memory 8G] [--threads 2] [-o benchmarks/results]

Makes a CT-like NIfTI (int16, 0.76 x 0.76 x 1 mm, oblique, LPS order) and a network with random weights in a
temporary folder, predicts in a process of its own, and reads the peak of that process's resident memory
(ru_maxrss) when it ends. --spacing 0 keeps the file's own grid. Beside it stands what the plan said before a
voxel was read, for this spacing and for others. Exit code 1 where the peak exceeds --max-memory or the plan,
or where the label map does not lie on the file's grid.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import report
import torch
from command import Cost, run_command
from numpy.typing import NDArray

from rwkvseg import __version__
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.preprocessing import Intensity, Preprocessing
from rwkvseg.data.reading import read_geometry
from rwkvseg.inference.model_file import Architecture, ModelDescription, save_model
from rwkvseg.inference.predictor import Predictor
from rwkvseg.inference.volume_memory import memory_needed
from rwkvseg.inference.volume_plan import VolumeOptions
from rwkvseg.memory import parse_size, show_size
from rwkvseg.models import create_model
from rwkvseg.models.live_memory import live_bytes

FILE_SPACING = (0.76, 0.76, 1.0)  # mm
OTHERS = (0.0, 1.5, 3.0)  # mm of the network's grid, in the table of plans; 0: the file's


def by(numbers: Sequence[float]) -> str:
    """Numbers as "512 x 512 x 800"."""
    return " x ".join(f"{number:g}" for number in numbers)


def oblique_affine(shape: Sequence[int]) -> NDArray[np.float64]:
    """LPS order, turned by 5 degrees about the long axis, the volume's middle at the origin."""
    cosine, sine = np.cos(np.radians(5)), np.sin(np.radians(5))
    turn = np.array([[-cosine, sine, 0], [-sine, -cosine, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn * FILE_SPACING
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def write_volume(path: Path, shape: tuple[int, int, int]) -> None:
    """Ellipses of soft tissue and bone in air, with a texture that repeats, so that the file is small."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape[:2]), indexing="ij")
    texture = np.random.default_rng(0).integers(-20, 20, shape[:2], dtype=np.int16)
    values = np.empty(shape, np.int16, order="F")
    for index, height in enumerate(np.linspace(-1, 1, shape[2])):
        width = 0.8 - 0.3 * height**2
        radius = np.hypot(rows / width, columns / (0.7 * width))
        plane = np.where(radius < 1, 40, -1000) + np.where(np.abs(radius - 0.6) < 0.05, 700, 0)
        values[..., index] = plane + texture
    nibabel.save(nibabel.Nifti1Image(values, oblique_affine(shape)), path)


def description(options: argparse.Namespace, spacing: float | Sequence[float]) -> ModelDescription:
    """Of the network, at one spacing in mm; 0 for the file's."""
    wanted = (spacing,) * 3 if isinstance(spacing, float) else tuple(spacing)
    return ModelDescription(
        rwkvseg_version=__version__,
        architecture=Architecture(name=options.model, in_channels=1, num_classes=options.classes),
        labels={"background": 0, **{f"organ_{value}": value for value in range(1, options.classes)}},
        preprocessing=Preprocessing(
            dimensions=3,
            channels=1,
            patch=tuple(options.patch),
            spacing=wanted if all(wanted) else None,
            orientation="RAS",
            normalisation="ct",
            intensity=Intensity(low=-900, high=700, mean=100, std=200),
        ),
    )


def predict(folder: Path, options: argparse.Namespace) -> Cost:
    """Run the command in a process of its own."""
    arguments = ["predict", "--device", "cpu", "--max-memory", options.max_memory]
    arguments += ["-m", str(folder / "model"), "-i", str(folder / "scan.nii.gz"), "-o", str(folder / "out")]
    arguments += ["--overlap", str(options.overlap), *(["--mirror"] if options.mirror else [])]
    return run_command(arguments, threads=options.threads)


def plan_rows(folder: Path, options: argparse.Namespace, spacings: Sequence[float]) -> tuple[list[str], int]:
    """Rows of the table of plans, and the most memory that the last one needs."""
    network = create_model(options.model, in_channels=1, num_classes=options.classes)
    window = live_bytes(network, (1, 1, *options.patch))
    geometry = read_geometry(CaseFiles("scan", (folder / "scan.nii.gz",)))
    assert geometry is not None
    rows, most = [], 0
    chosen = VolumeOptions(overlap=options.overlap, mirror=(0, 1, 2) if options.mirror else ())
    for spacing in [*spacings, options.spacing]:
        predictor = Predictor(
            network, description(options, spacing), torch.device("cpu"), options=chosen, keep_memory=True
        )
        plan = predictor.check_memory(geometry)
        needed = memory_needed(plan, window)
        most = max(needed.values())
        grids = f"{by(plan.preprocessing.spacing or FILE_SPACING)} | {by(plan.grid.network_shape)}"
        sizes = " | ".join(show_size(size) for size in [*needed.values(), most])
        rows.append(f"| {grids} | {plan.windows.count} | {sizes} |")
    return rows, most


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", nargs=3, type=int, default=[512, 512, 800])
    parser.add_argument(
        "--spacing", nargs="+", type=float, default=[1.5], help="of the network; 0: the file's"
    )
    parser.add_argument("--model", default="urwkv3d_tiny")
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--patch", nargs=3, type=int, default=[96, 96, 96])
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--max-memory", default="8G")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, help="folder or .md file for the table")
    options = parser.parse_args(arguments)
    options.spacing = options.spacing * 3 if len(options.spacing) == 1 else options.spacing
    return options


def table(options: argparse.Namespace, rows: list[str], result: list[str]) -> str:
    """Text of the report."""
    mirroring = "on" if options.mirror else "off"
    lines = [
        f"# `rwkvseg predict` on a volume of {by(options.shape)} voxels, on CPU cores",
        "",
        *report.header("cpu"),
        f"- file: int16, {by(FILE_SPACING)} mm, oblique, LPS order",
        f"- network: {options.model}, {options.classes} classes, random weights",
        f"- windows: {by(options.patch)}, overlap {options.overlap}, mirroring {mirroring}",
        f"- {report.load()}",
        "",
        *result,
        "",
        "What the plan says before a voxel is read; the last row is the run above:",
        "",
        "| spacing (mm) | network's grid | windows | reading | preprocessing | windows | writing | most |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    shape = tuple(options.shape)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_volume(folder / "scan.nii.gz", shape)
        torch.manual_seed(0)
        network = create_model(options.model, in_channels=1, num_classes=options.classes)
        save_model(folder / "model", network, description(options, options.spacing))
        rows, planned = plan_rows(folder, options, OTHERS)
        cost = predict(folder, options)
        written = nibabel.load(folder / "out" / "scan.nii.gz")
        overlays = written.shape == shape and np.allclose(written.affine, oblique_affine(shape), atol=1e-4)
    result = [
        f"**Peak of resident memory {show_size(cost.peak)}**, allowed {options.max_memory}, planned "
        f"{show_size(planned)}. **{cost.clock:.0f} s** in all, with reading and writing; "
        f"{cost.processor:.0f} s of processor time.",
        f"The label map {'lies' if overlays else 'DOES NOT LIE'} on the file's grid.",
    ]
    text = table(options, rows, result)
    print(cost.said, text, sep="\n\n")
    if options.out is not None:
        report.save(options.out, "large_volume", "cpu", text)
    return 0 if overlays and cost.peak <= min(planned, parse_size(options.max_memory)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
