"""Cases for a network, one after the other; of pictures for a GPU the next are read while it works."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rwkvseg.data.case import Case
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.io import expected_pixels, is_volume
from rwkvseg.data.reading import read_case, read_geometry
from rwkvseg.errors import DataError
from rwkvseg.inference.predictor import Predictor, Protocol
from rwkvseg.parallel import available_cores, map_in_order

MOST_THREADS_AHEAD = 4  # what they call uses several cores itself
MOST_PIXELS_AHEAD = 2**24
"""Of all pictures that wait or are being read; each takes up to some 30 bytes."""


def read_cases(
    predictor: Predictor, inputs: Sequence[CaseFiles], protocol: Protocol
) -> Iterator[tuple[Case, Tensor | None]]:
    """Each case without its label and, of pictures that were read ahead, what the network sees of it.

    On a CPU the network needs every core itself, and of volumes one at a time is in memory: those are read
    when they are asked for. A case that is too large is refused before its voxels are read.

    Raises:
        DataError: at its turn, a case that cannot be read, does not fit the network or would not fit into
            memory.
    """
    threads = number_of_threads(predictor.device)
    ahead = threads > 1 and not predictor.sees_volumes and all(map(_is_picture, inputs))

    def read(files: CaseFiles) -> tuple[Case, Tensor | None]:
        geometry = read_geometry(files) if predictor.sees_volumes else None
        if geometry is not None:
            predictor.check_memory(geometry)
        case = read_case(files, with_label=False)
        return case, predictor.prepare(case, protocol=protocol) if ahead else None

    return map_in_order(read, inputs, threads=threads if ahead else 0, cost=_pixels, room=MOST_PIXELS_AHEAD)


def number_of_threads(device: torch.device) -> int:
    """All but two cores, up to four, with a GPU to feed; none on a CPU."""
    return max(0, min(MOST_THREADS_AHEAD, available_cores() - 2)) if device.type == "cuda" else 0


def _is_picture(files: CaseFiles) -> bool:
    try:
        return files.series is None and not is_volume(files.images[0])
    except DataError:
        return False  # whatever it is, its turn will tell


def _pixels(files: CaseFiles) -> int:
    return len(files.images) * expected_pixels(files.images[0])
