"""What is known of a public data set; what could not be verified says so."""

from dataclasses import dataclass
from typing import Any

from rwkvseg.data.downloads import Download

NOT_VERIFIED = "not verified"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Facts about one public data set; None: not verified.

    They come from the RWKV-UNet paper (both versions) and from the notes beside the copies that were checked.
    """

    name: str
    """Key of `get_dataset`."""
    title: str
    aliases: tuple[str, ...] = ()
    """What else it is called."""
    modality: str
    dimensions: int
    """Spatial axes of what a network sees here: 2 or 3."""
    cases: str
    """How many, and of what."""
    labels: dict[str, int] | None
    """Name -> value in the label maps, background 0 included."""
    layout: str | None
    """How it is published."""
    prepare: str
    """How to lay it out for this program."""
    split: str
    """The official split, or the paper's rule."""
    parts: tuple[int, int, int] | None = None
    """Training, validation and test cases of that split."""
    split_files: tuple[str, ...] = ()
    """Under recipes/splits/ of the repository."""
    groups: str | None = None
    """What must not cross a split, and where it is named."""
    citation: str | None
    licence: str | None
    source: str | None
    """Where to get it."""
    download: Download | None = None
    """Open link of its owners, for `rwkvseg data download`; None: there is none whose checksum is known."""
    unverified: tuple[str, ...] = ()
    """Fields that are stated from general knowledge and could not be checked."""

    def told(self, field: str) -> str:
        """A field as text, marked where it is not verified."""
        value: Any = getattr(self, field)
        if field == "download":
            return "none; see source" if value is None else f"{value.url} ({value.checksum})"
        if value is None:
            return NOT_VERIFIED
        if field == "labels":
            text = ", ".join(f"{number} {name}" for name, number in value.items())
        elif field == "parts":
            text = " / ".join(map(str, value))
        elif field == "split_files":
            text = ", ".join(f"recipes/splits/{name}" for name in value) or "none"
        elif field == "aliases":
            text = ", ".join(value) or "none"
        else:
            text = str(value)
        return f"{text} ({NOT_VERIFIED})" if field in self.unverified else text
