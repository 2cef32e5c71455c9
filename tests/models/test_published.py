"""Published weights: every name accounted for, anything else refused."""

import pytest
import torch

from rwkvseg.errors import ModelFileError
from rwkvseg.models import create_model
from rwkvseg.models.published import convert_state_dict, load_published

pytestmark = pytest.mark.shared_data
GENERATIONS = ["current", "early_2025"]


@pytest.fixture(scope="module")
def tiny_file(golden):
    return golden.state_dict("tiny", "current")


@pytest.fixture(scope="module")
def tiny_model():
    return create_model("rwkv_unet_tiny", num_classes=9)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_both_generations_load_strictly(golden, variant: str, generation: str) -> None:
    model = create_model(f"rwkv_unet_{variant}", num_classes=9)
    published = golden.state_dict(variant, generation)
    model.load_state_dict(convert_state_dict(published), strict=True)
    head = model.state_dict()["head.weight"]
    assert torch.equal(head, published["final_conv.weight"])


def test_generations_agree_and_the_prefix_is_stripped(golden, tiny_file) -> None:
    converted = convert_state_dict(tiny_file)
    for other in (
        convert_state_dict(golden.state_dict("tiny", "early_2025")),
        convert_state_dict({f"module.{name}": value for name, value in tiny_file.items()}),
    ):
        assert converted.keys() == other.keys()
        assert all(torch.equal(converted[name], other[name]) for name in converted)


def test_every_value_goes_to_its_own_place(tiny_file) -> None:
    converted = convert_state_dict(tiny_file)
    storages = [value.data_ptr() for value in converted.values()]
    assert len(set(storages)) == len(storages)
    assert torch.equal(
        converted["encoder.stages.2.1.mixer.decay"], tiny_file["encoder.stage3.1.att.spatial_decay"]
    )
    assert torch.equal(
        converted["encoder.stages.3.1.mixer.mix_v"],
        tiny_file["encoder.stage4.1.att.spatial_mix_v"].flatten(),
    )
    assert torch.equal(converted["ccm.project_in.2.weight"], tiny_file["ccm.projections.0.weight"])


@pytest.mark.parametrize(
    "name",
    [
        "optimizer",
        "encoder.stage3.1.att.extra",
        "encoder.stage1.0.att.extra.weight",
        "encoder.stage1.0.norm.norm.weight",
        "encoder.stage3.1.norm.running_mean",
        "encoder.stage5.0.conv.conv.weight",
        "encoder.stage0.1.conv.conv.weight",
        "encoder.stage1.7.conv.conv.weight",
        "encoder.stage1.7.ln2.weight",
        "encoder.stage1.1.se.conv_reduce.weight",
        "decoder5.conv.conv.weight",
        "decoder1.ln2.weight",
        "ccm.projections.3.weight",
        "module.final_conv.weight",
    ],
)
def test_an_unexpected_name_is_refused_by_name(tiny_file, name: str) -> None:
    with pytest.raises(ModelFileError, match=rf"{name} \(1 in all\)"):
        convert_state_dict({**tiny_file, name: torch.zeros(3)})


def test_many_unexpected_names_are_counted(tiny_file) -> None:
    foreign = {f"foreign.{i}": torch.zeros(1) for i in range(12)}
    with pytest.raises(ModelFileError, match=r"foreign\.4 and 7 more \(12 in all\)"):
        convert_state_dict({**tiny_file, **foreign})


@pytest.mark.parametrize("state_dict", [{}, {"state_dict": {}, "epoch": 3}, {0: torch.zeros(1)}], ids=str)
def test_something_else_is_refused(state_dict) -> None:
    with pytest.raises(ModelFileError, match="Give the state dict itself"):
        convert_state_dict(state_dict)


def test_a_value_that_is_no_tensor_is_refused(tiny_file) -> None:
    with pytest.raises(ModelFileError, match=r"final_conv\.bias is a list"):
        convert_state_dict({**tiny_file, "final_conv.bias": [0.0] * 9})


def test_an_encoder_alone_is_refused(tiny_file) -> None:
    encoder = {n.removeprefix("encoder."): v for n, v in tiny_file.items() if n.startswith("encoder.")}
    with pytest.raises(ModelFileError, match="encoder alone"):
        convert_state_dict(encoder)


def test_missing_entries_are_named(tiny_file, tiny_model) -> None:
    for name, ours in {
        "encoder.stage3.1.conv.conv.weight": "encoder.stages.2.1.expand.conv.weight",
        "encoder.stage4.1.att.spatial_first": "encoder.stages.3.1.mixer.bonus",
    }.items():
        damaged = {key: value for key, value in tiny_file.items() if key != name}
        with pytest.raises(ModelFileError, match=rf"lacks {ours} \(1 in all\)"):
            load_published(tiny_model, damaged)


def test_a_shape_that_differs_is_named(tiny_file, tiny_model) -> None:
    damaged = {**tiny_file, "encoder.stage3.1.att.spatial_decay": torch.zeros(287)}
    with pytest.raises(ModelFileError, match=r"mixer\.decay \(287,\) instead of \(288,\)"):
        load_published(tiny_model, damaged)


def test_a_scalar_in_place_of_weights_is_named(tiny_file, tiny_model) -> None:
    with pytest.raises(ModelFileError, match=r"head\.weight \(\) instead of \(9, 24, 1, 1\)"):
        load_published(tiny_model, {**tiny_file, "final_conv.weight": torch.tensor(0.0)})


def test_a_failed_load_leaves_the_model_as_it_was(tiny_file) -> None:
    model = create_model("rwkv_unet_tiny", num_classes=9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelFileError):
        load_published(model, {**tiny_file, "final_conv.bias": torch.zeros(8)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_variant_is_refused(golden, tiny_model) -> None:
    with pytest.raises(ModelFileError, match="holds rwkv_unet_small"):
        load_published(tiny_model, golden.state_dict("small", "current"))


def test_another_number_of_classes_is_refused(tiny_file) -> None:
    with pytest.raises(ModelFileError, match=r"9 classes, the model has 1.*num_classes=9"):
        load_published(create_model("rwkv_unet_tiny"), tiny_file)
