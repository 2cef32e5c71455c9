"""`rwkvseg predict`: label maps of images and volumes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rwkvseg.cli.console import say
from rwkvseg.cli.options import (
    Device,
    DeviceOption,
    FormatOption,
    LargestOption,
    MemoryOption,
    MirrorOption,
    OverlapOption,
    PrecisionName,
    PrecisionOption,
    ProtocolName,
    ResultFormat,
    SeriesOption,
    volume_options,
)
from rwkvseg.errors import UsageError
from rwkvseg.progress import CaseProgress, progress_bar
from rwkvseg.wording import counted

if TYPE_CHECKING:
    from rwkvseg.data.files import CaseFiles


def predict(
    model: Annotated[Path, typer.Option("-m", "--model", help="Run or model folder.")],
    inputs: Annotated[
        Path, typer.Option("-i", "--input", help="Image, volume, or a folder of them or of DICOM.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the label maps.")],
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = PrecisionName.float32,
    protocol: Annotated[
        ProtocolName, typer.Option(help="strict resamples probabilities; transunet resamples labels.")
    ] = ProtocolName.strict,
    part: Annotated[
        str | None, typer.Option(help="Only this part (train, val, test) of the run's split.")
    ] = None,
    wanted: FormatOption = ResultFormat.auto,
    series: SeriesOption = None,
    largest: LargestOption = None,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also write pictures of the result.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a machine-readable report (JSON).")] = None,
    overlap: OverlapOption = 0.5,
    mirror: MirrorOption = False,
    max_memory: MemoryOption = None,
) -> None:
    """Predict label maps on the inputs' own grids: PNG for pictures, NIfTI for volumes, or DICOM-SEG.

    Examples:
        rwkvseg predict -m runs/kvasir -i polyp.jpg -o predictions --overlay

        rwkvseg predict -m runs/acdc -i ACDC/imagesTs -o predictions --max-memory 8G --report run.json

        rwkvseg predict -m runs/kvasir -i Kvasir-SEG --part test -o predictions

        rwkvseg predict -m runs/ct -i study --series 3 --format dicom-seg -o predictions

        rwkvseg predict -m runs/ct -i folder --keep-largest liver --keep-largest spleen -o predictions
    """
    from rwkvseg.inference.predict import cases_trained_on, predict_files
    from rwkvseg.inference.prediction_record import write_report_json
    from rwkvseg.inference.predictor import Predictor

    options = volume_options(overlap, mirror=mirror, max_memory=max_memory)
    if part is not None and series:
        raise UsageError("--part is of a run's split, --series of DICOM. Give one of them.")
    predictor = Predictor.from_file(
        model, device=device.value, options=options, keep_memory=True, precision=precision.value
    )
    cases = _find_cases(inputs, series or (), model, part)
    console = Console()
    with progress_bar(console, "predicting", len(cases)) as advance:
        bar = CaseProgress(advance, len(cases))
        done = predict_files(
            predictor,
            cases,
            out,
            protocol=protocol.value,
            wanted=wanted.value,
            overlay=overlay,
            largest=largest or (),
            source=str(inputs),
            trained_on=cases_trained_on(model),
            on_case=bar.on_case,
            on_windows=bar.on_windows,
        )
    if report is not None:
        write_report_json(report, predictor, protocol.value, done)
    made = f"{counted(len(done), 'label map')} in {out}"
    say(console, f"{made}, {sum(item.seconds for item in done):.1f} s on {predictor.device}")


def _find_cases(inputs: Path, series: Sequence[str], model: Path, part: str | None) -> "list[CaseFiles]":
    from rwkvseg.data.inputs import find_inputs
    from rwkvseg.inference.predict import find_part

    return list(find_inputs(inputs, series)) if part is None else find_part(inputs, model, part)
