"""The authors' weights through the command line: converted, predicted with, or refused by what differs."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from published_files import encoder_alone, published_layout, saved
from rwkvseg.inference.model_file import load_model
from rwkvseg.models import create_model
from small import files_below


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(4)
    network = create_model("rwkv_unet_tiny", num_classes=3).eval()
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 * torch.rand_like(value))
    return network


@pytest.fixture(scope="module")
def published(network):
    return published_layout(network)


@pytest.fixture
def convert(rwkvseg, tmp_path):
    def run(content, *arguments, out="model"):
        path = saved(tmp_path / "file.pth", content)
        return rwkvseg("convert-published", path, "-o", tmp_path / out, *arguments)

    return run


@pytest.fixture
def picture(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {f"module.{name}": value for name, value in weights.items()},
        lambda weights: {"state_dict": weights, "args": argparse.Namespace(epochs=3)},
    ],
)
def test_a_checkpoint_becomes_a_model_folder(convert, published, network, tmp_path, wrap):
    code, out, err = convert(wrap(published), "--variant", "tiny", "--num-classes", "3")
    assert (code, err) == (0, "")
    assert "rwkv_unet_tiny, 3 classes" in out
    assert "licence: not stated" in out
    assert files_below(tmp_path / "model") == ["model.json", "model.safetensors"]
    loaded, description = load_model(tmp_path / "model")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert description.licence.startswith("not stated: the authors")
    assert description.labels == {"background": 0, "class_1": 1, "class_2": 2}
    assert description.preprocessing.size == (224, 224)
    assert description.protocol["converted_from"] == "file.pth"


def test_it_predicts(convert, published, rwkvseg, picture, tmp_path):
    assert convert(published, "--variant", "tiny", "--size", "64")[0] == 0
    code, _, err = rwkvseg("predict", "-m", tmp_path / "model", "-i", picture, "-o", tmp_path / "out")
    assert (code, err) == (0, "")
    with Image.open(tmp_path / "out" / "picture.png") as label_map:
        assert label_map.size == (56, 40)
        assert set(np.unique(np.array(label_map))) <= {0, 1, 2}


@pytest.mark.parametrize(("bias", "expected"), [(-0.1, {0}), (0.1, {1})])
def test_a_single_logit_is_foreground_above_zero(
    convert, published, rwkvseg, picture, tmp_path, bias, expected
):
    one = {name: value[:1] if name.startswith("final_conv") else value for name, value in published.items()}
    one["final_conv.weight"] = torch.zeros_like(one["final_conv.weight"])
    one["final_conv.bias"] = torch.tensor([bias])
    code, out, _ = convert(one, "--variant", "tiny")
    assert (code, "1 class)" in out) == (0, True)
    description = json.loads((tmp_path / "model" / "model.json").read_text())
    assert description["labels"] == {"background": 0, "foreground": 1}
    assert description["preprocessing"]["size"] == [256, 256]
    for protocol in ("strict", "transunet"):
        out = tmp_path / protocol
        assert (
            rwkvseg("predict", "-m", tmp_path / "model", "-i", picture, "-o", out, "--protocol", protocol)[0]
            == 0
        )
        with Image.open(out / "picture.png") as label_map:
            # the published zoom may put zeros into the last column
            assert set(np.unique(np.array(label_map)[:-1, :-1])) == expected


def test_an_encoder_alone_becomes_an_encoder_file(convert, published, tmp_path):
    code, out, err = convert(encoder_alone(published), "--variant", "tiny")
    assert (code, err) == (0, "")
    assert "licence: not stated" in out
    assert f"model.encoder_weights: {tmp_path / 'model' / 'encoder.safetensors'}" in out
    assert files_below(tmp_path / "model") == ["encoder.safetensors"]


def without(name):
    return lambda weights: {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (dict, ["--variant", "small"], "holds rwkv_unet_tiny, the model is rwkv_unet_small"),
        (dict, ["--variant", "tiny", "--num-classes", "9"], "for 3 classes, the model has 9"),
        (
            without("decoder1.conv.conv.weight"),
            ["--variant", "tiny"],
            "lacks decoder.blocks.0.expand.conv.weight",
        ),
        (without("final_conv.weight"), ["--variant", "tiny"], "lacks head.weight (1 in all)"),
        (lambda w: {**w, "extra": torch.ones(1)}, ["--variant", "tiny"], "no published RWKV-UNet: extra"),
        (lambda w: {"epoch": 1}, ["--variant", "tiny"], "entry epoch of"),
        (lambda w: list(w), ["--variant", "tiny"], "a list, no weights by name"),
    ],
)
def test_what_differs_is_named_and_nothing_is_written(convert, published, tmp_path, change, arguments, said):
    code, _, err = convert(change(published), *arguments)
    assert (code, err.count("\n")) == (1, 1)
    assert said in err
    assert "file.pth" in err
    assert not (tmp_path / "model").exists()


def test_a_truncated_download_and_a_missing_one(convert, published, rwkvseg, tmp_path):
    path = saved(tmp_path / "file.pth", published)
    path.write_bytes(path.read_bytes()[:100_000])
    for file, said in ((path, "truncated"), (tmp_path / "absent.pth", "no weights file")):
        code, _, err = rwkvseg("convert-published", file, "--variant", "tiny", "-o", tmp_path / "model")
        assert (code, said in err) == (1, True)
    assert not (tmp_path / "model").exists()


def test_a_model_is_not_overwritten(convert, published):
    assert convert(published, "--variant", "tiny")[0] == 0
    code, _, err = convert(published, "--variant", "tiny")
    assert (code, "already holds a model" in err) == (2, True)
