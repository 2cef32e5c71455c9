"""What labels and channels are called in dataset.json and labels.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvseg.errors import DataError

_LARGEST_VALUE = 65535  # that a label map can hold, see `write_label_map`


def parse_labels(named: Any, root: Path) -> dict[str, int]:
    """Name -> value from nnU-Net's {name: value} or MSD's {"value": name}; `root` is for the message.

    Raises:
        DataError: regions, an ignore label, no whole numbers, or a value used twice.
    """
    if not isinstance(named, dict):
        raise DataError(f"the labels in {root} are no JSON object. Write them as name: value.")
    if any(isinstance(value, list) for value in named.values()) or "ignore" in named:
        raise DataError(
            f"the labels in {root} use nnU-Net's regions or ignore label, which are not supported. "
            "Give each structure one value."
        )
    try:
        values_first = all(isinstance(value, str) and str(key).isdigit() for key, value in named.items())
        labels = (
            {str(v): int(k) for k, v in named.items()}
            if values_first
            else {k: _as_value(v) for k, v in named.items()}
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"the labels in {root} are not name: value. Mend dataset.json.") from error
    if not all(0 <= value <= _LARGEST_VALUE for value in labels.values()):
        raise DataError(
            f"the labels in {root} have values outside 0..{_LARGEST_VALUE}: {str(labels)[:200]}. "
            "Renumber the structures from 1 up."
        )
    if 0 not in labels.values():
        if "background" in labels:
            raise DataError(
                f"the labels in {root} call {labels['background']} background and name no 0, which it is. "
                "Renumber the labels."
            )
        labels = {"background": 0} | labels
    if len(set(labels.values())) != len(labels):
        raise DataError(f"two labels in {root} share a value: {labels}. Give each its own.")
    return dict(sorted(labels.items(), key=lambda item: item[1]))


def _as_value(value: Any) -> int:
    """Whole numbers, also as text; int() alone would cut 1.5 and take True."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    return int(value)


def channel_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """From nnU-Net's {"0": name}, or MSD's under the key modality, in the order of the numbers.

    >>> channel_names({"modality": {"1": "T2", "0": "FLAIR"}})
    ('FLAIR', 'T2')
    """
    named = settings.get("channel_names", settings.get("modality"))
    if not isinstance(named, dict) or not named:
        return None
    return tuple(str(named[key]) for key in sorted(named, key=lambda key: (len(key), key)))
