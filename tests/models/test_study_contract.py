"""What every study of the papers promises as a network, at reduced width."""

from pathlib import Path

import pytest
import torch
from model_folders import assert_a_folder_restores
from study_cases import FEW_BLOCKS, SMALL, STUDIES, build_study, images, without_repeats
from torch.export import Dim

from onnx_files import check_onnx, open_onnx, write_onnx
from rwkvseg.ops import selective_scan


@pytest.mark.parametrize("study", STUDIES)
class TestStudyContract:
    @pytest.mark.parametrize("size", [(1, 1), (37, 53), (64, 16)], ids=str)
    def test_logits_have_the_size_of_the_images(self, study: str, size: tuple[int, int]) -> None:
        model = build_study(study).eval()
        with torch.no_grad():
            logits = model(images(2, 3, *size))
        assert logits.shape == (2, 2, *size)
        assert logits.isfinite().all()

    def test_images_of_a_batch_do_not_see_each_other(self, study: str) -> None:
        model = build_study(study).double().eval()
        x = images(3, 3, 32, 48).double()
        with torch.no_grad():
            torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=1e-8, atol=1e-10)

    def test_a_gradient_reaches_every_parameter(self, study: str) -> None:
        # evaluation mode and float64 for the reasons given in test_contract.py
        model = build_study(study).eval().double()
        (model(images(2, 3, 64, 80).double()) * images(2, 2, 64, 80, seed=2)).sum().backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 1e-11, key

    def test_training_repeats_bit_by_bit(self, study: str) -> None:
        results = []
        for _ in range(2):
            model = build_study(study)
            torch.manual_seed(3)
            logits = model(images(2, 3, 33, 47))
            logits.square().mean().backward()
            results.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
        assert len(results[0]) == 1 + len(list(model.parameters()))
        assert all(a.isfinite().all() and torch.equal(a, b) for a, b in zip(*results, strict=True))

    def test_a_model_file_restores_it(self, study: str, tmp_path: Path) -> None:
        model = build_study(study, seed=5).eval()
        overrides = {**SMALL, **STUDIES[study]}
        assert_a_folder_restores(
            model, images(1, 3, 37, 53), tmp_path / "model", name="rwkv_unet_tiny", overrides=overrides
        )

    def test_it_is_another_network_than_the_published_one(self, study: str) -> None:
        torch.manual_seed(0)
        published = build_study(study).eval()
        for name, value in STUDIES[study].items():
            assert getattr(published.config, name) == value
        counts = [sum(p.numel() for p in m.parameters()) for m in (published, _default())]
        shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (published, _default())]
        if study != "skips_3_retained":  # the same as "all"
            assert counts[0] != counts[1] or shapes[0] != shapes[1]

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_the_gpu_agrees_with_the_cpu(self, study: str) -> None:
        model = build_study(study).double().eval()
        x = images(2, 3, 37, 53).double()
        with torch.no_grad():
            logits = model(x)
            torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), logits, rtol=1e-6, atol=1e-6)


def _default() -> torch.nn.Module:
    from rwkvseg.models import create_model

    return create_model("rwkv_unet_tiny", num_classes=2, **SMALL)


# the published mixer is compiled in test_recompute.py
COMPILED: list[tuple[str, tuple[int, ...], dict[str, bool]]] = [
    ("bi_mamba", (0, 3), {}),
    ("everything", (1,), {"local_conv": False}),  # a mixer in a shallow stage
]


@pytest.mark.slow
@pytest.mark.parametrize(("study", "stages", "changes"), COMPILED, ids=[study for study, *_ in COMPILED])
def test_compiled_it_gives_the_same_logits_and_gradients(
    study: str, stages: tuple[int, ...], changes: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selective_scan, "LENGTH", 2)  # each step of a chunk is traced
    network = build_study(study, depths=FEW_BLOCKS, **changes)
    model = without_repeats(network, stages=stages).eval().double()
    x, upstream = images(2, 3, 31, 45).double(), images(2, 2, 31, 45, seed=2).double()
    torch.compiler.reset()
    try:
        results = []
        for run in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
            logits = run(x)
            results.append([logits, *torch.autograd.grad(logits, list(model.parameters()), upstream)])
    finally:
        torch.compiler.reset()
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow  # every mixer has a file of its own in test_mixers.py
def test_an_onnx_file_for_all_sizes_gives_the_logits_of_torch(tmp_path: Path) -> None:
    # one mixer, that with the fewest steps: each takes long; all stages are of the same blocks
    network = build_study("everything", mixer="attention", depths=(1, 2, 1, 1))
    model = without_repeats(network, stages=(1,)).eval()
    path = tmp_path / "study.onnx"
    # any number of images is tested beside the published network, any size of most of these parts as well
    write_onnx(model, (images(2, 3, 64, 80),), ({2: Dim.DYNAMIC, 3: Dim.DYNAMIC},), path)
    check_onnx(path)
    in_onnxruntime = open_onnx(path)
    for shape in [(2, 3, 64, 80), (2, 3, 37, 53), (2, 3, 160, 96), (2, 3, 16, 40)]:
        x = images(*shape)
        with torch.no_grad():
            expected = model(x)
        found = in_onnxruntime(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * min(1.0, float(expected.std())))
