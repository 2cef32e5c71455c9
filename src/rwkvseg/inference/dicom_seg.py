"""Label maps of DICOM series as DICOM segmentations (SEG), through highdicom.

One binary segment per label, on the source's own planes and in its frame of reference; every frame references
the image it was made from. Segments that do not occur are described and have no frames.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvseg import __version__
from rwkvseg.data.dicom import Series
from rwkvseg.data.dicom_parsing import quiet, read_dataset
from rwkvseg.data.files import CaseFiles
from rwkvseg.errors import DataError, MissingExtraError, RWKVSegError, one_line
from rwkvseg.evaluation.drawing import class_colour
from rwkvseg.inference.model_file import ModelDescription
from rwkvseg.output import write_atomically

LabelMap = NDArray[np.integer[Any]]

KNOWN_STRUCTURES = {
    "aorta": ("15825003", "Aorta"),
    "bladder": ("89837001", "Urinary bladder"),
    "brain": ("12738006", "Brain"),
    "esophagus": ("32849002", "Esophagus"),
    "gallbladder": ("28231008", "Gallbladder"),
    "heart": ("80891009", "Heart"),
    "kidney": ("64033007", "Kidney"),
    "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"),
    "pancreas": ("15776009", "Pancreas"),
    "prostate": ("41216001", "Prostate"),
    "spleen": ("78961009", "Spleen"),
    "stomach": ("69695003", "Stomach"),
}
"""SNOMED CT codes of label names; all others get a private code of their name."""
EMPTY_IF_UNKNOWN = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
PRIVATE_SCHEME = "99RWKVSEG"
SERIES_NUMBERS = 1000  # added to the number of the source's series


def import_highdicom() -> Any:
    """The module highdicom.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise MissingExtraError(
            "DICOM segmentations need highdicom. Install it with pip install 'rwkvseg[dicom]'."
        ) from error
    return highdicom


def write_dicom_seg(
    path: Path, files: CaseFiles, prediction: LabelMap, description: ModelDescription
) -> None:
    """Write the label map of a DICOM case as one SEG file, whole or not at all.

    Args:
        path: to write.
        files: the case; its headers are read again, for patient, study and frame of reference.
        prediction: (i, j, k) on the case's own grid, or (row, column) of a picture.
        description: of the model: label names, and what the algorithm is called.

    Raises:
        DataError: the source lacks what a segmentation must carry over.
        MissingExtraError: highdicom is not installed.
        OutputError: it cannot be written.
    """
    highdicom = import_highdicom()
    series = Series.from_files(files.images)
    sources = _sources(series)
    numbers = np.zeros(256, np.uint8)  # segments count from 1, whatever the labels' values
    values = [value for value in description.labels.values() if value != 0]
    numbers[values] = np.arange(1, len(values) + 1)
    frames = numbers[_frames(prediction, series)]
    try:
        with quiet():  # odd names and dates of the source go over as they are
            segmentation = _segmentation(highdicom, sources, frames, description)
            with write_atomically(path) as temporary:
                segmentation.save_as(temporary)
    except RWKVSegError:
        raise
    except Exception as error:  # of incomplete headers highdicom raises whatever its parts raise
        raise DataError(
            f"{series.name}: no DICOM segmentation can be made: {one_line(error)}. "
            "Mend its headers, or write --format nifti or png."
        ) from error


def _frames(prediction: LabelMap, series: Series) -> LabelMap:
    """Label map (frame, row, column): slices in order, or frames in the order of their one file."""
    if series.stack is None:
        return prediction[np.newaxis]
    frames = prediction.transpose(2, 1, 0)
    return frames if len(series.instances) > 1 else frames[np.argsort(series.stack.order)]


def require_references(files: CaseFiles) -> None:
    """Raise DataError where a case's first file lacks what a segmentation refers to."""
    _require_references(read_dataset(files.images[0], stop_before_pixels=True), files.id)


def _require_references(source: Any, name: str) -> None:
    needed = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
    if source.get("ImagePositionPatient"):
        needed.append("FrameOfReferenceUID")
    for key in needed:
        if not source.get(key):
            raise DataError(
                f"{name} lacks a {key}, so no DICOM segmentation can refer to it. "
                "Write --format nifti or png."
            )


def _sources(series: Series) -> list[Any]:
    """Headers in the order of the slices; what may be empty by the standard is filled, the rest refused."""
    if len(series.instances) > 1 and any(instance.shape[0] > 1 for instance in series.instances):
        raise DataError(
            f"{series.name} is spread over {len(series.instances)} files of many frames, which a DICOM "
            "segmentation cannot refer to. Write --format nifti or png."
        )
    sources = [read_dataset(path, stop_before_pixels=True) for path in series.files]
    for source in sources:
        _require_references(source, series.name)
        for key in EMPTY_IF_UNKNOWN:
            if key not in source:
                setattr(source, key, None)
    return sources


def _segmentation(
    highdicom: Any, sources: list[Any], frames: NDArray[np.uint8], description: ModelDescription
) -> Any:
    number = min(int(sources[0].get("SeriesNumber") or 0) + SERIES_NUMBERS, 2**31 - 1)  # of an IS at most
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=frames,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=_segments(highdicom, description),
        series_instance_uid=highdicom.UID(),
        series_number=number,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="rwkvseg",
        manufacturer_model_name=description.architecture.name,
        software_versions=__version__,
        device_serial_number=description.weights_sha256[:16] or "unknown",
        content_description=f"Segmentation by {description.architecture.name}"[:64],
        content_label="SEGMENTATION",
        series_description=f"Segmentation by {description.architecture.name}"[:64],
        omit_empty_frames=bool(frames.any()),
        specific_character_set="ISO_IR 192",  # labels may have any letters, whatever the source has
    )


def _segments(highdicom: Any, description: ModelDescription) -> list[Any]:
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=description.architecture.name,
        family=codes.DCM.ArtificialIntelligence,
        version=description.weights_sha256[:12] or description.rwkvseg_version,
        source=f"rwkvseg {description.rwkvseg_version}",
    )
    structures = {name: value for name, value in description.labels.items() if value != 0}
    segments = []
    for number, (name, value) in enumerate(structures.items(), start=1):
        category, structure = _concepts(highdicom, name)
        segment = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=category,
            segmented_property_type=structure,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*class_colour(value)),
        )
        segments.append(segment)
    return segments


def _concepts(highdicom: Any, name: str) -> tuple[Any, Any]:
    """Category and type of a label."""
    concept = highdicom.sr.CodedConcept
    if name.lower() in KNOWN_STRUCTURES:
        code, meaning = KNOWN_STRUCTURES[name.lower()]
        return concept("91723000", "SCT", "Anatomical Structure"), concept(code, "SCT", meaning)
    category = concept("SEGMENTED", PRIVATE_SCHEME, "Segmented structure")
    return category, concept(name.upper().replace(" ", "_"), PRIVATE_SCHEME, name[:64])
