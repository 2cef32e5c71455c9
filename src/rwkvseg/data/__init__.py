"""Files to cases: readers, layouts, splits. Transforms and phantom are loaded by those who need them."""

from rwkvseg.data.case import Case
from rwkvseg.data.files import CaseFiles
from rwkvseg.data.inputs import find_inputs
from rwkvseg.data.io import case_id, read_image, read_label, write_label_map
from rwkvseg.data.layouts import DataFolder, open_data
from rwkvseg.data.reading import read_case
from rwkvseg.data.splits import Split, make_split, read_split, write_split

__all__ = [
    "Case",
    "CaseFiles",
    "DataFolder",
    "Split",
    "case_id",
    "find_inputs",
    "make_split",
    "open_data",
    "read_case",
    "read_image",
    "read_label",
    "read_split",
    "write_label_map",
    "write_split",
]
