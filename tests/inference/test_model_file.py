import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rwkvseg.data.preprocessing import Preprocessing
from rwkvseg.errors import ModelFileError, OutputError
from rwkvseg.inference.model_file import Architecture, ModelDescription, load_model, save_model
from rwkvseg.inference.predictor import Predictor
from rwkvseg.models.registry import create_model
from small import OVERRIDES, files_below


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def make_model(seed=0, **architecture):
    torch.manual_seed(seed)
    settings = {"in_channels": 1, "num_classes": 3} | architecture
    network = create_model("rwkv_unet_tiny", **settings, **OVERRIDES)
    description = ModelDescription(
        rwkvseg_version="0.1.0",
        architecture=Architecture(name="rwkv_unet_tiny", overrides=OVERRIDES, **settings),
        labels={"background": 0, "liver": 1, "größe": 2},
        preprocessing=Preprocessing(channels=settings["in_channels"], size=(48, 40), slice_axis=2),
        metrics={"test": {"dsc": 0.5, "hd95": None}},
        licence="CC-BY",
    )
    return network, description


@pytest.fixture
def model(tmp_path):
    save_model(tmp_path / "model", *make_model())
    return tmp_path / "model"


def refused(path, match):
    with pytest.raises(ModelFileError, match=match) as caught:
        load_model(path)
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(model, **changes):
    """Change keys of model.json."""
    content = json.loads((model / "model.json").read_text())
    for key, value in changes.items():
        place = content
        *groups, leaf = key.split("__")
        for group in groups:
            place = place[group]
        place[leaf] = value
    (model / "model.json").write_text(json.dumps(content))


def test_round_trip_is_bit_equal(model):
    network, description = make_model()
    loaded, read = load_model(model)
    assert not loaded.training
    ours, theirs = network.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert read == description.model_copy(update={"weights_sha256": digest})
    assert files_below(model) == ["model.json", "model.safetensors"]
    image = torch.randn(1, 1, 33, 47, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network.eval()(image), loaded(image))


def test_run_folder_model_folder_and_files_are_the_same_model(small_run):
    places = [small_run, small_run / "model"]
    places += [small_run / "model" / name for name in ("model.json", "model.safetensors")]
    models = [load_model(place) for place in places]
    assert all(description == models[0][1] for _, description in models)
    assert str(Predictor.from_file(str(small_run), device="cpu").device) == "cpu"


def test_a_run_describes_itself(small_run):
    _, description = load_model(small_run)
    assert description.labels["aorta"] == 4
    assert description.licence == "Apache-2.0 (generated)"
    assert description.protocol["cases"] == {"train": 16, "val": 2, "test": 2}
    assert description.metrics["test"]["protocol"] == "strict"
    assert description.architecture.num_classes == 5


def test_no_model(tmp_path, small_run):
    refused(tmp_path / "absent", r"there is no model at .*absent\. Check the path")
    refused(tmp_path, "neither a run nor a model folder")
    (tmp_path / "killed").mkdir()
    shutil.copy(small_run / "recipe.yaml", tmp_path / "killed")
    refused(tmp_path / "killed", "a run that was killed must be resumed first")
    (tmp_path / "file.txt").write_text("x")
    refused(tmp_path / "file.txt", "neither a run nor a model folder")


def test_missing_weights(model):
    (model / "model.safetensors").unlink()
    refused(model, r"cannot read the weights .*model\.safetensors: No such file")
    (model / "model.safetensors").mkdir()
    refused(model, "cannot read the weights")


@pytest.mark.parametrize("damage", ["one bit", "truncated", "empty", "longer"])
def test_altered_weights(model, damage):
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[-1] ^= 1
    elif damage == "truncated":
        content = content[:-4]
    elif damage == "empty":
        content = bytearray()
    else:
        content += b"\0"
    path.write_bytes(content)
    refused(model, r"was altered or belongs to another model: its SHA-256 starts with \w{12}")


def test_foreign_weights(model, tmp_path):
    save_model(tmp_path / "other", *make_model(seed=1))
    shutil.copy(tmp_path / "other" / "model.safetensors", model)
    refused(model, "was altered or belongs to another model")


@pytest.mark.parametrize("kind", ["renamed", "missing", "additional", "reshaped"])
def test_foreign_weights_with_their_own_checksum(model, kind):
    path = model / "model.safetensors"
    state = load_file(path)
    first = next(name for name in state if name.endswith("weight"))
    if kind == "renamed":
        state["x"] = state.pop(first)
    elif kind == "missing":
        del state[first]
    elif kind == "additional":
        state["x"] = torch.zeros(1)
    else:
        state[first] = state[first].flatten()[:1].clone()
    save_file(state, path)
    rewrite(model, weights_sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    refused(model, "do not fit the architecture 'rwkv_unet_tiny'")


def test_weights_that_are_no_safetensors(model):
    (model / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0hello!!!")
    digest = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    rewrite(model, weights_sha256=digest)
    refused(model, "is not a safetensors file")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture__name": "unet"}, "there is no model named 'unet'"),
        ({"architecture__overrides": {"depth": 3}}, "has no field 'depth'"),
        ({"architecture__overrides": {"in_channels": 3}}, "do not fit the architecture"),
        ({"architecture__num_classes": 4}, "do not fit the architecture"),
        ({"architecture__num_classes": -1}, "num_classes"),
        ({"format_version": 2}, "'format_version': Input should be 1"),
        ({"format": "other"}, "'format'"),
        ({"labels": 3}, "'labels'"),
        ({"preprocessing__normalisation": "minmax"}, r"'preprocessing\.normalisation'"),
        ({"a_key_of_the_future": 1}, "'a_key_of_the_future': Extra inputs"),
        ({"weights_sha256": ""}, "was altered"),
    ],
)
def test_a_description_that_does_not_fit(model, change, match):
    rewrite(model, **change)
    refused(model, match)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_damaged_description(model, content):
    (model / "model.json").write_bytes(content)
    refused(model, r"model\.json")


@pytest.mark.parametrize(
    "name", ["w.pth", "w.PT", "w.ckpt", "w.pkl", "pytorch_model.bin", "model.safetensors"]
)
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_is_never_opened(model, name, form):
    trap = {"state_dict": Trap(model / "sprung")}
    path = model / name
    if form == "torch":
        torch.save(trap, path)
    else:
        path.write_bytes(pickle.dumps(trap))
    refused(path, "altered" if name == "model.safetensors" else "is a pickle, which can run any code")
    assert not (model / "sprung").exists()


def test_the_checkpoint_of_a_run_is_no_model(small_run):
    refused(small_run / "checkpoints" / "last.ckpt", r"Give a folder with model\.json and model\.safetensors")


def test_a_full_disk_leaves_no_model_that_would_load(model, file_size_limit):
    before = (model / "model.safetensors").read_bytes()
    network, description = make_model(seed=1)
    with file_size_limit(8000), pytest.raises(OutputError):
        save_model(model, network, description)
    assert (model / "model.safetensors").read_bytes() == before
    load_model(model)
    with file_size_limit(8000), pytest.raises(OutputError):
        save_model(model.parent / "new", network, description)
    assert files_below(model.parent / "new") == []
