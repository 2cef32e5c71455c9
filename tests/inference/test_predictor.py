import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import zoom
from torch.nn.functional import interpolate
from volume_cases import convolution
from volume_cases import make_predictor as volume_predictor

from rwkvseg.data.case import Case
from rwkvseg.data.layouts import find_inputs, read_case
from rwkvseg.data.phantom import make_phantom_2d, make_phantom_3d
from rwkvseg.data.preprocessing import Preprocessing, normalise, resize_image
from rwkvseg.errors import BackendError, DataError, UsageError
from rwkvseg.inference.device import choose_device
from rwkvseg.inference.model_file import Architecture, ModelDescription
from rwkvseg.inference.predict import predict_files
from rwkvseg.inference.predictor import Predictor, _label_maps
from rwkvseg.models.registry import create_model
from small import OVERRIDES

LABELS = {"background": 0, "one": 1, "two": 2}


def make_predictor(*, channels=1, size=(32, 32), batch_size=8, **preprocessing):
    """Predictor of a network whose head is balanced, so that every label occurs."""
    torch.manual_seed(0)
    network = create_model("rwkv_unet_tiny", in_channels=channels, num_classes=3, **OVERRIDES).eval()
    with torch.no_grad():
        logits = network(torch.rand(4, channels, 32, 32))
        deviation, mean = torch.std_mean(logits, dim=(0, 2, 3))
        network.head.weight.div_(deviation[:, None, None, None])
        network.head.bias.sub_(mean).div_(deviation)
    description = ModelDescription(
        rwkvseg_version="0.1.0",
        architecture=Architecture(name="rwkv_unet_tiny", in_channels=channels, num_classes=3),
        labels=LABELS,
        preprocessing=Preprocessing(channels=channels, size=size, **preprocessing),
    )
    return Predictor(network, description, torch.device("cpu"), batch_size=batch_size)


def random_case(*shape, seed=0, spacing=None):
    image = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    affine = None if spacing is None else np.diag([*spacing, 1.0])
    return Case(id="case", image=image, spacing=spacing, affine=affine)


def plain_strict(predictor, image):
    """Definition for one 2D picture: bilinear in, softmax, bilinear back, arg-max."""
    settings = predictor.description.preprocessing
    case = normalise(Case(id="x", image=image), settings)
    resized = resize_image(case.image, settings.size or image.shape[1:], settings.interpolation)
    with torch.no_grad():
        probabilities = predictor.network(torch.from_numpy(resized)[None]).softmax(1)
    back = interpolate(probabilities, size=image.shape[1:], mode="bilinear", align_corners=False)
    return back[0].argmax(0).numpy()


def plain_transunet(predictor, image):
    """Definition for one 2D picture: cubic spline in, arg-max, nearest neighbour back."""
    rows, columns = predictor.description.preprocessing.size
    case = normalise(Case(id="x", image=image), predictor.description.preprocessing)
    _, height, width = case.image.shape
    resized = np.stack([zoom(c, (rows / height, columns / width), order=3) for c in case.image])
    with torch.no_grad():
        label_map = predictor.network(torch.from_numpy(resized)[None]).argmax(1)[0].numpy()
    return zoom(label_map, (height / rows, width / columns), order=0)


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 45, 37), (1, 7, 90), (1, 1, 1), (3, 33, 21)])
@pytest.mark.parametrize("plain", [plain_strict, plain_transunet])
def test_pictures_equal_the_definition_of_the_protocol(shape, plain):
    predictor = make_predictor(channels=shape[0])
    case = random_case(*shape)
    protocol = "strict" if plain is plain_strict else "transunet"
    prediction = predictor.predict(case, protocol=protocol)
    assert prediction.shape == shape[1:]
    assert prediction.dtype == np.uint8
    np.testing.assert_array_equal(prediction, plain(predictor, case.image))


def test_the_protocols_differ_only_off_the_networks_grid():
    predictor = make_predictor()
    same, other = random_case(1, 32, 32), random_case(1, 61, 53)
    first, second = (predictor.predict(same, protocol=p) for p in ("strict", "transunet"))
    np.testing.assert_array_equal(first, second)
    first, second = (predictor.predict(other, protocol=p) for p in ("strict", "transunet"))
    assert 0 < (first != second).mean() < 1
    assert set(np.unique(second)) == {0, 1, 2}  # so the comparison means something


def test_without_a_size_pictures_keep_their_own_grid():
    predictor = make_predictor(size=None)
    case = random_case(1, 35, 50)
    for protocol in ("strict", "transunet"):
        np.testing.assert_array_equal(
            predictor.predict(case, protocol=protocol), plain_strict(predictor, case.image)
        )


@pytest.mark.parametrize(("axis", "chosen"), [(0, 0), (1, 1), (2, 2), (None, 1)])
@pytest.mark.parametrize("protocol", ["strict", "transunet"])
def test_volumes_equal_their_slices(axis, chosen, protocol):
    case = random_case(1, 11, 5, 13, spacing=(1.0, 6.0, 1.5))
    predictor = make_predictor(slice_axis=axis, batch_size=3)
    prediction = predictor.predict(case, protocol=protocol)
    assert prediction.shape == (11, 5, 13)
    # "unit" of uint8 does not depend on the other slices, so each may be normalised alone
    for index in range(case.spatial_shape[chosen]):
        image = case.image.take(index, axis=chosen + 1)
        expected = predictor.predict(Case(id="slice", image=image), protocol=protocol)
        np.testing.assert_array_equal(prediction.take(index, axis=chosen), expected)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_nothing(batch_size):
    case = random_case(1, 9, 8, 5, spacing=(1.0, 1.0, 3.0))
    whole = make_predictor(batch_size=8).predict(case)
    np.testing.assert_array_equal(make_predictor(batch_size=batch_size).predict(case), whole)


def test_statistics_are_those_of_the_whole_volume():
    case = random_case(1, 16, 16, 4, spacing=(1.0, 1.0, 3.0))
    case.image[..., 0] //= 8
    predictor = make_predictor(normalisation="zscore")
    prediction = predictor.predict(case)
    values = case.image.astype(np.float64)
    standard = ((values - values.mean()) / values.std()).astype(np.float32)
    for index in range(4):
        resized = resize_image(standard[..., index], (32, 32))
        with torch.no_grad():
            probabilities = predictor.network(torch.from_numpy(resized)[None]).softmax(1)
        back = interpolate(probabilities, size=(16, 16), mode="bilinear", align_corners=False)
        np.testing.assert_array_equal(prediction[..., index], back[0].argmax(0).numpy())


def test_the_label_of_the_case_is_not_looked_at():
    case = make_phantom_2d(1, (40, 36))[0]
    predictor = make_predictor()
    wrong = case.replace(label=np.full_like(case.label, 77))
    np.testing.assert_array_equal(predictor.predict(case), predictor.predict(wrong))


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="case case has 3 channels, the network takes 1"):
        make_predictor(channels=1).predict(random_case(3, 20, 20))
    assert make_predictor(channels=3).predict(random_case(1, 20, 20)).shape == (20, 20)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
def test_every_kind_of_picture_gives_a_map_of_its_size(tmp_path, mode):
    grey = np.random.default_rng(1).integers(0, 256, (23, 31), dtype=np.uint8)
    picture = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey)
    (tmp_path / "in").mkdir()
    (picture if mode == "I;16" else picture.convert(mode)).save(tmp_path / "in" / "a b.v2.png")
    predictor = make_predictor(channels=3)
    done = predict_files(predictor, find_inputs(tmp_path / "in"), tmp_path / "out", overlay=True)
    assert done[0].file == tmp_path / "out" / "a b.v2.png"
    with Image.open(done[0].file) as written:
        assert (written.mode, written.size) == ("L", (31, 23))
        values = np.asarray(written)
    assert done[0].pixels == {name: int((values == value).sum()) for name, value in LABELS.items()}
    with Image.open(tmp_path / "out" / "overlays" / "a b.v2.png") as overlay:
        assert overlay.size[0] >= 31


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_volumes_keep_their_oblique_affine(tmp_path, suffix):
    case = make_phantom_3d(1, (20, 17, 9), (0.9, 1.1, 4.0), oblique=True)[0]
    affine = case.affine.copy()
    affine[:3, 3] += (12.5, -7.25, 100.125)
    nifti = nibabel.Nifti1Image(case.image[0], affine)
    nifti.set_sform(affine, code=1)
    nifti.set_qform(affine, code=1)
    nibabel.save(nifti, tmp_path / f"scan{suffix}")
    files = find_inputs(tmp_path / f"scan{suffix}")
    done = predict_files(make_predictor(), files, tmp_path / "out", overlay=True)
    written = nibabel.load(done[0].file)
    original = nibabel.load(tmp_path / f"scan{suffix}")
    assert done[0].file.name == "scan.nii.gz"
    np.testing.assert_array_equal(written.affine, original.affine)
    np.testing.assert_allclose(written.get_qform(), original.get_qform(), atol=1e-5)
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(
        np.asarray(written.dataobj), make_predictor().predict(read_case(files[0], with_label=False))
    )
    assert (tmp_path / "out" / "overlays" / "scan.png").is_file()


def test_devices():
    assert choose_device("cpu") == choose_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UsageError, match=r"unknown device 'tpu'\. Choose auto, cpu, cuda or cuda:NUMBER"):
        choose_device("tpu")
    with pytest.raises(BackendError):
        choose_device("cuda:99")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(BackendError, match="no CUDA device was found"):
        choose_device("cuda")


def test_the_first_of_equal_scores_wins_as_in_argmax():
    scores = torch.randint(0, 3, (2, 5, 31, 17), generator=torch.Generator().manual_seed(0)).float()
    np.testing.assert_array_equal(_label_maps(scores), scores.numpy().argmax(1))


def test_bfloat16_computes_in_sixteen_bits_and_hardly_changes_a_label():
    exact, short = make_predictor(), make_predictor()
    short.precision = "bfloat16"
    image = random_case(1, 45, 37).image.astype(np.float32)
    images = torch.from_numpy(image)[None] / 255
    wide, narrow = exact.logits(images), short.logits(images)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow, narrow.bfloat16().float()), "not the network's own 16 bits"
    assert not torch.equal(wide, wide.bfloat16().float())
    assert (wide - narrow).abs().max() < 0.1 * wide.std()
    same = exact.predict(random_case(1, 45, 37)) == short.predict(random_case(1, 45, 37))
    assert same.mean() > 0.97


def test_bfloat16_of_a_volume():
    case = Case(id="case", image=np.random.default_rng(0).random((1, 20, 18, 22), dtype=np.float32))
    case = case.replace(spacing=(1.0, 1.0, 1.0), affine=np.eye(4))
    predictors = [
        volume_predictor(convolution(), num_classes=3, patch=(16, 16, 16), normalisation="none") for _ in "ab"
    ]
    predictors[1].precision = "bfloat16"
    seen = []
    network = predictors[1].network  # which planning runs on tensors without content
    network.register_forward_hook(lambda module, x, y: seen.append(y.dtype) if not y.is_meta else None)
    exact, short = (predictor.predict(case) for predictor in predictors)
    assert set(seen) == {torch.bfloat16}
    assert (exact == short).mean() > 0.97


@pytest.mark.parametrize(("precision", "device"), [("half", "cpu"), ("bfloat16", "meta")])
def test_an_unknown_precision_is_refused(precision, device):
    predictor = make_predictor()
    with pytest.raises(UsageError, match=precision):
        Predictor(predictor.network, predictor.description, torch.device(device), precision=precision)
