"""A predictor whose label is where the intensity lies, and grids of DICOM series to predict on."""

import torch
from torch import nn

from dicom_cases import Grid
from rwkvseg.data.layouts import find_inputs, read_case
from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.inference.model_file import Architecture, ModelDescription
from rwkvseg.inference.predict import predict_files
from rwkvseg.inference.predictor import Predictor

LABELS = {"background": 0, "liver": 1, "odd thing": 3, "never": 4}
GRIDS = {
    "axial": Grid(),
    "oblique": Grid.rotated((20, -35, 50)),
    "sagittal": Grid(along_row=(0, 1, 0), down_column=(0, 0, -1)),
    "normal to the feet": Grid(down_column=(0, -1, 0)),
    "anisotropic": Grid.rotated((-5, 8, 170), spacing=(0.35, 2.1, 0.6)),
    "tilted gantry": Grid(shear=(0, 0.9, 0)),
    "oblique and tilted": Grid.rotated((10, 5, -60), shear=(0.2, 0.4, -0.3)),
}


class Bands(nn.Module):
    """Labels 0, 1, 3 for a dark, middle and bright third of the range: pixel by pixel."""

    def forward(self, x):
        centres = torch.tensor([1 / 6, 1 / 2, 9, 5 / 6, 9]).view(1, 5, 1, 1)
        return -100 * (x[:, :1] - centres) ** 2


def bands(**preprocessing):
    description = ModelDescription(
        rwkvseg_version="0.1.0",
        architecture=Architecture(name="bands", in_channels=1, num_classes=5),
        labels=LABELS,
        preprocessing=Preprocessing(**({"channels": 1, "size": None} | preprocessing)),
        weights_sha256="0123456789abcdef" * 4,
    )
    return Predictor(Bands(), description, torch.device("cpu"))


def predict(folder, out, **options):
    files = find_inputs(folder)
    done = predict_files(bands(), files, out, **options)
    return read_case(files[0]), done[0].file
