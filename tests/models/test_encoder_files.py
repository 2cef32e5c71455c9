"""Encoder weights: every file that a training may start from, and stems for other numbers of channels."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from published_files import encoder_alone, published_layout, saved
from rwkvseg.errors import ModelFileError, OutputError, UsageError
from rwkvseg.inference.convert import convert_published
from rwkvseg.models import RWKVUNet, create_model
from rwkvseg.models.encoder_files import describe_encoder, fit_stem, load_encoder, save_encoder

SMALL = {"depths": (1, 1, 2, 2), "widths": (4, 5, 6, 7), "expansions": (1.0, 1.0, 1.5, 2.0), "stem_width": 4}


def randomise(network: nn.Module, seed: int = 3) -> nn.Module:
    """Move every weight and statistic away from its initial value."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(value + torch.rand(value.shape, generator=generator))
    return network.eval()


def small(in_channels: int = 3, seed: int = 0, **settings: object) -> RWKVUNet:
    torch.manual_seed(seed)
    network = create_model("rwkv_unet_tiny", in_channels=in_channels, **SMALL, **settings)
    assert isinstance(network, RWKVUNet)
    return network


@pytest.fixture
def pretrained() -> RWKVUNet:
    return randomise(small(seed=7))  # type: ignore[return-value]


@pytest.fixture
def file(pretrained, tmp_path):
    path = tmp_path / "encoder.safetensors"
    state = pretrained.encoder.state_dict()
    save_encoder(path, state, model="rwkv_unet_tiny", config=SMALL, licence="CC0")
    return path


def agree(first: nn.Module, second: nn.Module) -> bool:
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_file_says_what_it_is(file):
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    assert (metadata["kind"], metadata["model"]) == ("rwkvseg-encoder", "rwkv_unet_tiny")
    assert json.loads(metadata["config"])["widths"] == [4, 5, 6, 7]


def test_where_weights_come_from_is_told(file, tmp_path):
    told = describe_encoder(file.parent)
    assert told == {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": "CC0",
    }
    published = saved(tmp_path / "file.pth", {"w": torch.ones(1)})
    assert describe_encoder(published)["licence"] == "not stated"
    (tmp_path / "model").mkdir()
    file.rename(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.json").write_text('{"licence": "CC-BY"}')
    assert describe_encoder(tmp_path / "model")["licence"] == "CC-BY"
    with pytest.raises(ModelFileError, match="there is no weights file"):
        describe_encoder(tmp_path / "absent.safetensors")


def test_training_starts_from_it_and_the_rest_is_fresh(file, pretrained):
    fresh, started = small(), small(encoder_weights=file)
    assert agree(started.encoder, pretrained.encoder)
    assert not agree(fresh.encoder, pretrained.encoder)
    for part in ("ccm", "decoder", "head"):
        assert agree(getattr(started, part), getattr(fresh, part))
    assert started.training


def test_a_path_may_be_text(file, pretrained):
    assert agree(small(encoder_weights=str(file)).encoder, pretrained.encoder)


def test_a_folder_with_it_and_a_whole_network_will_do(file, pretrained, tmp_path):
    from safetensors.torch import save_file

    assert agree(small(encoder_weights=file.parent).encoder, pretrained.encoder)
    for folder in (tmp_path / "model_folder", tmp_path / "run" / "model"):
        folder.mkdir(parents=True)
        save_file(pretrained.state_dict(), folder / "model.safetensors")
    for path in ("model_folder", "model_folder/model.safetensors", "run"):
        assert agree(small(encoder_weights=tmp_path / path).encoder, pretrained.encoder)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("alone", [True, False])
def test_the_authors_files_will_do(tmp_path, alone, prefix):
    network = randomise(create_model("rwkv_unet_tiny", num_classes=4))
    content = published_layout(network)
    content = encoder_alone(content) if alone else content
    path = saved(tmp_path / "file.pth", {prefix + name: value for name, value in content.items()})
    started = create_model("rwkv_unet_tiny", num_classes=2, encoder_weights=path)
    assert agree(started.encoder, network.encoder)  # type: ignore[arg-type]


@pytest.mark.shared_data
@pytest.mark.parametrize("generation", ["current", "early_2025"])
@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_every_published_layout_will_do(golden, tmp_path, variant, generation):
    published = golden.state_dict(variant, generation)
    alone = {n.removeprefix("encoder."): v for n, v in published.items() if n.startswith("encoder.")}
    path = saved(tmp_path / "encoder.pth", {"state_dict": alone, "epoch": 299})
    started = create_model(f"rwkv_unet_{variant}", encoder_weights=path)
    assert torch.equal(
        started.encoder.stages[3][1].mixer.decay,  # type: ignore[union-attr, index]
        published["encoder.stage4.1.att.spatial_decay"],
    )


def test_the_authors_encoder_becomes_our_file(tmp_path):
    network = randomise(create_model("rwkv_unet_tiny"))
    path = saved(tmp_path / "imagenet.pth", encoder_alone(published_layout(network)))
    done = convert_published(path, tmp_path / "out", variant="tiny")
    assert (done.path, done.num_classes) == (tmp_path / "out" / "encoder.safetensors", None)
    assert agree(create_model("rwkv_unet_tiny", encoder_weights=done.path).encoder, network.encoder)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="has no classes"):
        convert_published(path, tmp_path / "other", variant="tiny", num_classes=9)
    with pytest.raises(ModelFileError, match="encoder of rwkv_unet_tiny, the network is rwkv_unet_base"):
        convert_published(path, tmp_path / "other", variant="base")
    assert not (tmp_path / "other").exists()


def test_a_missing_or_foreign_file_is_refused(file, tmp_path):
    with pytest.raises(ModelFileError, match=r"there is no weights file .*absent\.safetensors"):
        small(encoder_weights=tmp_path / "absent.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"empty holds none of encoder\.safetensors"):
        small(encoder_weights=tmp_path / "empty")
    with pytest.raises(ModelFileError, match="entries of no published RWKV-UNet: w"):
        small(encoder_weights=saved(tmp_path / "other.pth", {"w": torch.ones(1)}))
    with pytest.raises(OutputError):
        save_encoder(file / "below.safetensors", {}, model="rwkv_unet_tiny", config={})


def test_another_encoder_is_refused_by_what_differs_and_nothing_changes(file):
    network = create_model("rwkv_unet_tiny", **{**SMALL, "widths": (4, 5, 6, 8), "depths": (1, 1, 2, 1)})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(
        ModelFileError, match=r"has in addition stages\.3\.1\..*\(7, 24, 1, 1\) instead of \(8, 24"
    ):
        load_encoder(network, file)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_network_without_encoder_is_refused(file):
    with pytest.raises(UsageError, match="PaddedNetwork has no encoder"):
        create_model("monai_basic_unet", features=(4, 4, 4, 4, 4, 4), encoder_weights=file)


@pytest.mark.parametrize("in_channels", [2, 4, 5, 7])
def test_a_stem_for_other_channels_sees_grey_as_before(file, pretrained, in_channels):
    started = small(in_channels, encoder_weights=file).double().eval()
    grey = torch.randn(2, 1, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = pretrained.double().encoder(grey.expand(-1, 3, -1, -1))
        found = started.encoder(grey.expand(-1, in_channels, -1, -1))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.std()))


def test_every_channel_counts_in_a_new_stem(file):
    started = small(5, encoder_weights=file).eval()
    x = torch.randn(1, 5, 32, 32)
    with torch.no_grad():
        before = started.encoder(x)[0]
        for channel in range(5):
            changed = x.clone()
            changed[:, channel] += 1
            assert not torch.allclose(started.encoder(changed)[0], before)


@pytest.mark.parametrize("in_channels", [1, 3])
def test_three_channels_need_no_new_stem(file, pretrained, in_channels):
    assert agree(small(in_channels, encoder_weights=file).encoder, pretrained.encoder)
    state = pretrained.encoder.state_dict()
    fitted = fit_stem(state, 3)
    assert all(fitted[name] is value for name, value in state.items())


def test_weights_for_other_channels_are_not_turned_back(tmp_path):
    path = tmp_path / "five.safetensors"
    save_encoder(path, small(5).encoder.state_dict(), model="rwkv_unet_tiny", config=SMALL)
    assert agree(small(5, encoder_weights=path).encoder, small(5).encoder)
    with pytest.raises(ModelFileError, match=r"stem\.expand\.conv\.weight \(5, 5, 1, 1\) instead of \(3, 3"):
        small(3, encoder_weights=path)
