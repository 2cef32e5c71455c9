"""What every registered network for pictures promises; test_urwkv3d_contract.py has those for volumes."""

from typing import Any

import pytest
import torch
from study_cases import images, with_random_decays
from torch import nn

from rwkvseg.errors import RWKVSegError, ShapeError, UsageError
from rwkvseg.models import create_model, list_models

SMALLER = {  # fewer channels and blocks, the same parts: these tests are about shapes, not about size
    "rwkv_unet": {"depths": (1, 2, 2, 2), "widths": (6, 10, 12, 14), "stem_width": 5},
    "monai_basic_unet": {"features": (4, 6, 8, 10, 12, 6)},
    "monai_unet_plus_plus": {"features": (4, 6, 8, 10, 12, 6)},
    "monai_unet": {"features": (4, 6, 8, 10, 12)},
    "monai_attention_unet": {"features": (4, 6, 8, 10, 12)},
    "monai_segresnet": {"features": 8},
    "monai_dynunet": {"features": (4, 6, 8, 8, 8, 8)},
    "monai_swin_unetr": {"features": 12},
    "monai_unetr": {"features": 4, "hidden": 24, "image_size": 80},  # the longest side it may be given
}
WITHOUT_BATCH_NORM = {"monai_dynunet", "monai_segresnet", "monai_swin_unetr", "monai_unetr"}
BEFORE_INSTANCE_NORM = {"monai_attention_unet": "merge.conv.bias"}  # which removes the effect of a bias
SIZES = [(1, 1), (1, 40), (16, 16), (37, 53), (224, 32)]


def smaller(name: str) -> dict[str, Any]:
    """Overrides that make a registered network small."""
    return dict(SMALLER.get(name, SMALLER["rwkv_unet"]))


def build(name: str, in_channels: int = 3, num_classes: int = 2, seed: int = 0, **changes: Any) -> nn.Module:
    overrides = smaller(name) | changes
    torch.manual_seed(seed)
    return with_random_decays(
        create_model(name, in_channels=in_channels, num_classes=num_classes, **overrides)
    )


@pytest.mark.parametrize("name", [name for name in list_models() if not name.startswith("urwkv3d")])
class TestModelContract:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    def test_logits_have_the_size_of_the_images(self, name: str, size: tuple[int, int]) -> None:
        made_for = {"image_size": 224} if name == "monai_unetr" and max(size) > 80 else {}
        model = build(name, **made_for).eval()
        with torch.no_grad():
            logits = model(images(2, 3, *size))
        assert logits.shape == (2, 2, *size)
        assert logits.isfinite().all()

    @pytest.mark.parametrize("in_channels", [1, 2, 3, 5])
    def test_any_number_of_channels(self, name: str, in_channels: int) -> None:
        model = build(name, in_channels, num_classes=4).eval()
        with torch.no_grad():
            assert model(images(1, in_channels, 20, 33)).shape == (1, 4, 20, 33)

    def test_the_border_is_padded_by_repeating_it(self, name: str) -> None:
        model = build(name).eval()
        x = images(1, 3, 21, 37)
        stride = getattr(model, "stride", 16)
        padded = torch.cat([x, x[:, :, -1:].expand(-1, -1, -21 % stride, -1)], dim=2)
        padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, -37 % stride)], dim=3)
        with torch.no_grad():
            torch.testing.assert_close(model(x), model(padded)[..., :21, :37])

    def test_images_of_a_batch_do_not_see_each_other(self, name: str) -> None:
        model = build(name).eval()
        x = images(3, 3, 32, 48)
        with torch.no_grad():
            torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-4, atol=1e-5)

    def test_a_gradient_reaches_every_parameter(self, name: str) -> None:
        # eval mode, since batch norm in training rightly removes the effect of a bias before it;
        # float64, where a small gradient of a fresh network stands far above rounding
        model = build(name).eval().double()
        (model(images(2, 3, 64, 80).double()) * images(2, 2, 64, 80, seed=2)).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            if not key.endswith(BEFORE_INSTANCE_NORM.get(name, "nothing")):
                assert parameter.grad.abs().max() > 1e-11, key

    def test_training_mode_learns_statistics_and_gradients(self, name: str) -> None:
        model = build(name)
        model(images(2, 3, 64, 80)).square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        tracked = [b for key, b in model.named_buffers() if key.endswith("num_batches_tracked")]
        assert tracked or name in WITHOUT_BATCH_NORM
        assert all(int(b) == 1 for b in tracked)

    def test_a_state_dict_restores_the_model(self, name: str) -> None:
        first, second = build(name, seed=0).eval(), build(name, seed=5).eval()
        x = images(1, 3, 37, 53)
        with torch.no_grad():
            assert not torch.equal(first(x), second(x))
            second.load_state_dict(first.state_dict(), strict=True)
            assert torch.equal(first(x), second(x))

    def test_the_same_seed_gives_the_same_bits(self, name: str) -> None:
        results = []
        for _ in range(2):
            model = build(name)
            torch.manual_seed(3)
            logits = model(images(2, 3, 33, 47))
            logits.square().mean().backward()
            results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_channels_last_is_the_same_network(self, name: str) -> None:
        model = build(name).eval()
        x = images(2, 3, 37, 53)
        with torch.no_grad():
            logits = model(x)
            model = model.to(memory_format=torch.channels_last)
            again = model(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-4 * float(logits.std()))

    def test_bfloat16_autocast_stays_near_float32(self, name: str) -> None:
        model = build(name).eval()
        x = images(2, 3, 48, 64)
        with torch.no_grad():
            logits = model(x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = model(x)
        assert (low.float() - logits).abs().mean() < 0.05 * logits.std()

    @pytest.mark.parametrize("shape", [(2, 32, 32), (1, 4, 32, 32), (1, 3, 0, 32), (1, 3, 8, 8, 8)], ids=str)
    def test_images_of_another_shape_are_refused(self, name: str, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match="in_channels"):
            build(name).eval()(torch.zeros(shape))

    def test_integer_images_are_refused(self, name: str) -> None:
        with pytest.raises(ShapeError, match=r"uint8.*Normalise"):
            build(name).eval()(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))

    def test_an_unknown_override_names_the_known_ones(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"'depht'.*in_channels, num_classes"):
            create_model(name, depht=3)

    @pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "3", None])
    @pytest.mark.parametrize("field", ["in_channels", "num_classes"])
    def test_impossible_channels_are_refused(self, name: str, field: str, wrong: object) -> None:
        with pytest.raises(RWKVSegError, match="at least 1"):
            create_model(name, **{field: wrong})  # type: ignore[arg-type]

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_the_gpu_agrees_with_the_cpu(self, name: str) -> None:
        model = build(name).double().eval()
        x = images(2, 3, 37, 53).double()
        with torch.no_grad():
            logits = model(x)
            torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), logits, rtol=1e-6, atol=1e-6)
