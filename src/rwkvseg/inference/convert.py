"""The authors' published weights as files of ours: a model folder, or an encoder to train from."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rwkvseg import __version__
from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.errors import ModelFileError, UsageError
from rwkvseg.inference.model_file import DESCRIPTION, Architecture, ModelDescription, save_model
from rwkvseg.models.encoder_files import ENCODER_FILE, load_encoder, save_encoder
from rwkvseg.models.published import is_encoder_alone, load_published, num_classes_of
from rwkvseg.models.registry import create_model
from rwkvseg.models.weight_files import read_state_dict

LICENCE = (
    "not stated: the authors of RWKV-UNet publish their weights without a licence, "
    "so all rights stay with them; ask them before you use or pass them on"
)


@dataclass(frozen=True)
class Converted:
    """What was written: a model folder, or, from a file without decoder, the path of an encoder file."""

    path: Path
    model: str
    num_classes: int | None  # None: an encoder alone


def convert_published(
    file: Path, out: Path, *, variant: str, num_classes: int | None = None, size: int | None = None
) -> Converted:
    """Read a file of the authors, whole or not at all, and write it in our form.

    Args:
        file: a segmentation checkpoint of the authors, or an encoder alone, of either generation.
        out: folder to write: a model folder for `Predictor`, or one with `encoder.safetensors`.
        variant: "tiny", "small" or "base".
        num_classes: that the file must have; None takes what it has.
        size: rows and columns that images are resized to; None: as the authors, 256 for one class, else 224.

    Raises:
        UsageError: num_classes is given for an encoder, or `out` holds a model.
        ModelFileError: missing, truncated, no weights, or of another variant or number of classes.
        OutputError: it cannot be written.
    """
    name = f"rwkv_unet_{variant}"
    if (out / DESCRIPTION).exists() or (out / ENCODER_FILE).exists():
        raise UsageError(f"{out} already holds a model. Choose another --out.")
    state = read_state_dict(file)
    if is_encoder_alone(state):
        if num_classes is not None:
            raise UsageError(f"{file} holds an encoder alone, which has no classes. Drop --num-classes.")
        return _convert_encoder(file, out, name)
    classes = num_classes or num_classes_of(state) or 1
    network: Any = create_model(name, num_classes=classes)
    try:
        load_published(network, state)
    except ModelFileError as error:
        raise ModelFileError(f"{file}: {error}") from error
    pixels = size or (256 if classes == 1 else 224)
    description = ModelDescription(
        rwkvseg_version=__version__,
        architecture=Architecture(name=name, in_channels=3, num_classes=classes),
        labels=_labels(classes),
        preprocessing=Preprocessing(channels=3, size=(pixels, pixels), interpolation="cubic"),
        protocol={"converted_from": file.name, "trained_by": "the authors of RWKV-UNet (arXiv:2501.08458)"},
        licence=LICENCE,
    )
    save_model(out, network, description)
    return Converted(out, name, classes)


def _convert_encoder(file: Path, out: Path, name: str) -> Converted:
    network: Any = create_model(name)
    load_encoder(network, file)
    path = out / ENCODER_FILE
    save_encoder(
        path, network.encoder.state_dict(), model=name, config=asdict(network.config), licence=LICENCE
    )
    return Converted(path, name, None)


def _labels(num_classes: int) -> dict[str, int]:
    if num_classes == 1:
        return {"background": 0, "foreground": 1}
    return {"background": 0, **{f"class_{value}": value for value in range(1, num_classes)}}
