"""What networks cost: our count by hand on small networks, and the papers' figures by the papers' tool."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from published_order import published_cost, published_order
from study_cases import build_study
from test_contract import SMALLER, smaller
from torch import Tensor, nn
from volumes import SMALL

from rwkvseg.errors import UsageError
from rwkvseg.models import RWKVUNet, counting, create_model, list_models
from rwkvseg.models.counting import activation_bytes, count_macs, measure
from rwkvseg.models.mixing import SpatialMix
from rwkvseg.models.rwkv_unet import CrossChannelMix

PAPERS = {  # M and GMAC of the encoder at 224; of the network with 1 class at 256; GMAC at 224 with 9 classes
    "tiny": ("2.94", "1.83", "3.15", "3.70", None),
    "small": ("9.42", "4.73", "9.70", "7.64", "5.86"),
    "base": ("16.69", "8.96", "17.13", "14.50", "11.11"),
}


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def network(variant: str, num_classes: int = 1) -> RWKVUNet:
    model = create_model(f"rwkv_unet_{variant}", num_classes=num_classes).eval()
    assert isinstance(model, RWKVUNet)
    return model


@pytest.mark.parametrize("study", [None, "skips_2_retained"])
def test_the_published_order_of_steps_is_the_same_function(study: str | None) -> None:
    model = network("tiny", num_classes=3) if study is None else build_study(study).eval()
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        expected = model(x)
        with published_order():
            found = model(x)
    assert not torch.equal(found, expected)  # other steps, other rounding
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.std()))


@pytest.mark.parametrize("variant", PAPERS)
def test_the_papers_figures_by_the_papers_tool(variant: str) -> None:
    encoder_size, encoder_macs, size, macs, macs_9 = PAPERS[variant]
    model = network(variant)
    found = published_cost(model.encoder, (224, 224))
    assert (f"{found[1] / 1e6:.2f}", f"{found[0] / 1e9:.2f}") == (encoder_size, encoder_macs)
    found = published_cost(model, (256, 256))
    assert (f"{found[1] / 1e6:.2f}", f"{found[0] / 1e9:.2f}") == (size, macs)
    if macs_9 is not None:
        assert f"{published_cost(network(variant, 9), (224, 224))[0] / 1e9:.2f}" == macs_9


def test_the_papers_tool_leaves_no_trace() -> None:
    before = {place: dict(vars(place)) for place in (F, torch, Tensor)}
    published_cost(build_study("plain_3"), (32, 32))
    assert all(dict(vars(place)) == names for place, names in before.items())


@pytest.mark.parametrize("variant", PAPERS)
def test_our_count_is_near_the_papers(variant: str) -> None:
    _, encoder_macs, size, macs, macs_9 = PAPERS[variant]
    cost = measure(f"rwkv_unet_{variant}", 256)
    assert f"{cost.parameters / 1e6:.2f}" == size
    assert cost.macs / 1e9 == pytest.approx(float(macs), rel=5e-3)
    assert cost.macs_run < 0.98 * cost.macs
    encoder = network(variant).encoder.to("meta")
    assert count_macs(encoder, meta(1, 3, 224, 224))[0] / 1e9 == pytest.approx(float(encoder_macs), rel=5e-3)
    if macs_9 is not None:
        nine = measure(f"rwkv_unet_{variant}", 224, num_classes=9).macs / 1e9
        assert nine == pytest.approx(float(macs_9), rel=5e-3)


@pytest.mark.parametrize(
    ("module", "shape", "products", "rest"),
    [
        (nn.Conv2d(3, 5, 3, padding=1, bias=False), (1, 3, 4, 6), 24 * 5 * 27, 0),
        (nn.Conv2d(3, 5, 3, stride=2, padding=1), (1, 3, 4, 6), 6 * 5 * 27, 6 * 5),
        (nn.Conv2d(6, 6, 5, padding=2, groups=6), (2, 6, 3, 3), 2 * 9 * 6 * 25, 2 * 9 * 6),
        (nn.ConvTranspose2d(4, 3, 2, stride=2), (1, 4, 3, 5), 15 * 4 * 3 * 4, 60 * 3),
        (nn.Conv3d(2, 3, 3, padding=1, bias=False), (1, 2, 3, 4, 5), 60 * 3 * 54, 0),
        (nn.Linear(7, 3, bias=False), (2, 5, 7), 10 * 21, 0),
        (nn.Linear(7, 3), (10, 7), 10 * 21, 30),
        (nn.BatchNorm2d(4), (1, 4, 3, 3), 0, 72),
        (nn.InstanceNorm2d(4), (1, 4, 3, 3), 0, 72),
        (nn.GroupNorm(2, 4), (1, 4, 3, 3), 0, 72),
        (nn.LayerNorm(4), (2, 4), 0, 16),
        (nn.ReLU(), (2, 3), 0, 6),
        (nn.PReLU(), (2, 3), 0, 6),
        (nn.SiLU(), (2, 3), 0, 6),
        (nn.MaxPool2d(2), (1, 2, 4, 4), 0, 32),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (1, 2, 3, 4), 0, 96),
        (SpatialMix(6), (1, 6, 3, 5), 15 * (4 * 36 + 4 * 6), 2 * 90),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_single_layers_by_hand(module: nn.Module, shape: tuple[int, ...], products: int, rest: int) -> None:
    total, run = count_macs(module.eval().to("meta"), meta(*shape))
    assert (run, total - run) == (products, rest)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_attention_is_counted(device: str) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    assert count_macs(Attention(), torch.zeros(2, 3, 10, 4, device=device))[1] == 2 * 3 * 2 * 10 * 10 * 4


def test_the_papers_order_of_the_ccm_by_hand() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ccm = CrossChannelMix((4, 5, 6))

        def forward(self, *features: Tensor) -> list[Tensor]:
            return self.ccm(list(features))

    model = Mixed().eval().to("meta")
    features = [meta(1, 4, 8, 12), meta(1, 5, 4, 6), meta(1, 6, 2, 3)]
    small, _ = count_macs(model, *features)
    order = counting._PapersOrder(model)
    model(*features)
    inward = (96 - 24) * (5 * 4 + 4) + (96 - 6) * (6 * 4 + 4)
    outward = (96 - 24) * (4 * 5 + 5) + (96 - 6) * (4 * 6 + 6)
    assert order.more == inward + outward
    assert small > order.more


def test_kept_activations_by_hand() -> None:
    # a linear layer keeps its input, a sigmoid its output, once although two read it
    layers = nn.Sequential(nn.Linear(5, 3, bias=False), nn.Sigmoid(), nn.Linear(3, 2)).to("meta")
    assert activation_bytes(layers, meta(7, 5)) == 4 * (7 * 5 + 7 * 3)


def test_the_count_on_meta_is_the_count_on_the_cpu() -> None:
    model = create_model("rwkv_unet_tiny", **SMALLER["rwkv_unet"]).eval()
    on_cpu = count_macs(model, torch.zeros(1, 3, 48, 64))
    model.train()
    kept = activation_bytes(model, torch.randn(2, 3, 48, 64))
    model.to("meta")
    assert activation_bytes(model, meta(2, 3, 48, 64)) == kept
    assert count_macs(model.eval(), meta(1, 3, 48, 64)) == on_cpu


def test_checkpointing_keeps_less() -> None:
    plain = measure("rwkv_unet_tiny", 64, **SMALLER["rwkv_unet"])
    less = measure("rwkv_unet_tiny", 64, gradient_checkpointing=True, **SMALLER["rwkv_unet"])
    assert (less.macs, less.parameters) == (plain.macs, plain.parameters)
    assert less.activation_bytes < 0.5 * plain.activation_bytes


def test_compute_grows_with_the_number_of_pixels() -> None:
    small, large = (measure("rwkv_unet_nano", size) for size in (128, 256))
    assert large.macs == pytest.approx(4 * small.macs, rel=1e-4)
    assert measure("monai_unet", 64, spatial_dims=3).size == (64, 64, 64)
    with pytest.raises(UsageError, match="Give at least 32"):
        measure("rwkv_unet_tiny", 31)


class TestCommand:
    @pytest.fixture(autouse=True)
    def _few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(counting, "list_models", lambda: ["monai_unetr", "rwkv_unet_tiny"])

    def test_json_is_a_list_of_objects(self, rwkvseg) -> None:
        code, out, err = rwkvseg("models", "--size", 64, "--num-classes", 9, "--json")
        assert (code, err) == (0, "")
        rows = json.loads(out)
        assert [row["name"] for row in rows] == ["monai_unetr", "rwkv_unet_tiny"]
        assert rows[1]["parameters"] == 3_145_961
        assert rows[1]["size"] == [64, 64]
        assert {"macs", "macs_run", "activation_bytes"} <= rows[1].keys()
        assert all(isinstance(row["macs"], int) for row in rows)

    def test_the_table_says_what_is_counted(self, rwkvseg) -> None:
        code, out, err = rwkvseg("models")
        assert (code, err) == (0, "")
        assert "256 x 256" in out
        assert any(
            "rwkv_unet_tiny" in line and "3.15" in line and "3.69" in line for line in out.splitlines()
        )
        assert "as the papers count" in out

    def test_a_missing_extra_leaves_the_rest(self, rwkvseg, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "einops", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        code, out, err = rwkvseg("models", "--size", 64, "--json")
        assert code == 0
        assert [row["name"] for row in json.loads(out)] == ["rwkv_unet_tiny"]
        assert "not counted: monai_unetr needs einops" in err

    def test_an_impossible_size_is_refused(self, rwkvseg) -> None:
        code, _, err = rwkvseg("models", "--size", 8)
        assert (code, err) == (2, "error: size is 8. Give at least 32.\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_network_can_be_counted(name: str) -> None:
    cost = measure(name, 64, **(SMALL if name.startswith("urwkv3d") else smaller(name)))
    assert 0 < cost.macs_run <= cost.macs
    assert cost.activation_bytes > 0
