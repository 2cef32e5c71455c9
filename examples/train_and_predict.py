"""Train a small network on generated volumes, then predict one of them slice by slice on its own grid."""

import tempfile
from pathlib import Path

from rwkvseg import Predictor, Recipe, train
from rwkvseg.data.layouts import find_inputs, read_case
from rwkvseg.data.phantom import PHANTOM_LABELS, write_phantom

with tempfile.TemporaryDirectory() as folder:
    data, run = Path(folder, "data"), Path(folder, "run")
    write_phantom(data, number=10, dimensions=3, size=(32, 32, 8))
    recipe = Recipe.from_mapping(
        {
            "name": "example",
            "data": {"path": data, "labels": PHANTOM_LABELS},
            "preprocessing": {"channels": 1, "size": [32, 32], "normalisation": "percentile"},
            "model": {"overrides": {"depths": [1, 1, 2, 2], "widths": [8, 8, 16, 16]}},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 10},
            "training": {"epochs": 12, "batch_size": 4},
        }
    )
    result = train(recipe, run, device="cpu")
    dsc = result.evaluations["test"].summary.mean.dsc.mean
    print(f"test DSC after {result.summary['epochs']} epochs: {dsc:.2f}")

    case = read_case(find_inputs(data)[0])
    prediction = Predictor.from_file(run, device="cpu").predict(case)
    print(case)
    print("prediction", prediction.shape, prediction.dtype)
