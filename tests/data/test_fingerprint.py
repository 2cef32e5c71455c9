"""Every number of a fingerprint against its definition on folders of known content."""

import json
import tracemalloc

import nibabel
import numpy as np
import pytest
from nibabel.affines import from_matvec
from PIL import Image

from data_folders import write_pictures, write_volume, write_volumes
from rwkvseg.data import Case, open_data, read_case
from rwkvseg.data.case_facts import CaseFacts
from rwkvseg.data.fingerprint_plots import draw_plots
from rwkvseg.data.fingerprint_reader import take_fingerprint
from rwkvseg.data.fingerprint_text import class_rows, intensity_rows, overview
from rwkvseg.data.preprocessing import Preprocessing, iterate_slices, slice_axis
from rwkvseg.data.volume_intensity import foreground_intensity
from rwkvseg.errors import DataError


def test_pictures_against_numpy(tmp_path):
    pairs = write_pictures(tmp_path, 7, (24, 20, 3))
    seen = []
    found = take_fingerprint(tmp_path, on_case=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 7) for done in range(1, 8)]
    content = found.as_object()
    assert (content["dimensions"], content["cases"], content["types"]) == (2, 7, {"uint8": 7})
    assert content["size"] == {"median": [24, 20], "least": [24, 20], "most": [24, 20]}
    assert content["spacing_mm"] is None
    images = np.stack([image for image, _ in pairs]).astype(np.float64)
    labels = np.stack([label for _, label in pairs])
    for channel in range(3):
        told = content["intensities"][channel]
        for region, values in (
            ("all", images[..., channel].ravel()),
            ("foreground", images[..., channel][labels == 1]),
        ):
            assert told[region]["voxels"] == len(values)
            assert told[region]["mean"] == pytest.approx(values.mean(), rel=1e-5)
            assert told[region]["deviation"] == pytest.approx(values.std(), rel=1e-5)
            expected = np.percentile(values, [0.5, 50, 99.5])
            percentiles = [told[region]["percentiles"][key] for key in ("0.5", "50", "99.5")]
            assert percentiles == pytest.approx(expected, rel=1e-5)
        assert told["classes"] == {"foreground": told["foreground"]}


def test_classes_and_boxes_of_pictures(tmp_path):
    labels = np.stack([label for _, label in write_pictures(tmp_path, 7)])
    content = take_fingerprint(tmp_path).as_object()
    number = int(labels.sum())
    assert content["classes"] == [
        {
            "label": 0,
            "name": "background",
            "voxels": labels.size - number,
            "share": pytest.approx(1 - number / labels.size, rel=1e-5),
            "cases": 7,
        },
        {
            "label": 1,
            "name": "foreground",
            "voxels": number,
            "share": pytest.approx(number / labels.size, rel=1e-5),
            "cases": 7,
        },
    ]
    shares = [6 * (3 + index % 3) / 480 for index in range(7)]
    assert content["labelled_box_share"]["median"] == pytest.approx(np.median(shares), abs=1e-6)
    assert content["labelled_box_share"]["most"] == pytest.approx(max(shares), abs=1e-6)


def test_volumes_geometry_and_classes(tmp_path):
    rng = np.random.default_rng(0)
    turned = from_matvec(np.array([[0, 0, -2.0], [-1.0, 0, 0], [0, 4.0, 0]]), (1, 2, 3))  # axes P, S, L
    for name, shape, affine in (("a", (6, 9, 11), np.diag([1.0, 2.0, 3.0, 1.0])), ("b", (7, 8, 5), turned)):
        image = rng.normal(50, 9, shape).astype(np.float32)
        image[:2] = 0  # a border of zeros
        label = np.zeros(shape, np.int16)
        label[3:5, 2:6, 1:4] = 2
        if name == "b":
            label[3, 3, 3] = 3
        write_volume(tmp_path, name, image, label, affine)
    labels = {"background": 0, "none of it": 1, "box": 2, "point": 3}
    (tmp_path / "labels.json").write_text(json.dumps({"labels": labels}))
    found = take_fingerprint(tmp_path)
    content = found.as_object()
    assert found.named
    assert content["orientations"] == {"RAS": 1, "PSL": 1}
    assert content["spacing_mm"]["least"] == [1, 2, 2]
    assert content["spacing_mm"]["most"] == [1, 4, 3]
    assert content["anisotropy"] == {"median": 3.5, "least": 3.0, "most": 4.0}
    voxels = {entry["name"]: (entry["voxels"], entry["cases"]) for entry in content["classes"]}
    assert voxels["none of it"] == (0, 0)
    assert voxels["box"] == (24 + 23, 2)
    assert voxels["point"] == (1, 1)
    each = {case["id"]: case for case in content["each"]}
    assert each["a"]["labelled_box"] == [2, 4, 3]
    assert (each["a"]["nonzero_box"], each["b"]["nonzero_box"]) == ([4, 9, 11], [5, 8, 5])
    assert content["nonzero_box_share"]["least"] == pytest.approx(4 / 6, abs=1e-6)
    assert all(case.labelled_outside == 0 for case in found.cases)
    assert each["b"]["type"] == "float32"


def test_labels_in_the_border_of_zeros_are_counted(tmp_path):
    image, label = np.ones((4, 5, 6), np.float32), np.zeros((4, 5, 6), np.uint8)
    image[0] = 0
    label[0, :2, 0] = label[2, 2, 2] = 1
    write_volume(tmp_path, "a", image, label)
    (case,) = take_fingerprint(tmp_path).cases
    assert case.labelled_outside == 2
    assert case.box == (3, 3, 3)


def test_the_foreground_is_that_of_the_normalisation(phantom_3d):
    """What "ct" will be trained with is what the fingerprint shows."""
    folder = open_data(phantom_3d)
    expected = foreground_intensity(read_case(files, folder.labels) for files in folder.cases)
    (channel,) = take_fingerprint(phantom_3d).channels
    shown = channel.foreground
    assert (shown.percentiles["0.5"], shown.percentiles["99.5"]) == pytest.approx(
        (expected.low, expected.high)
    )
    assert (shown.mean, shown.deviation) == pytest.approx((expected.mean, expected.std), rel=1e-6)


def test_black_and_white_masks_are_one_class(tmp_path):
    write_pictures(tmp_path / "white", 3, white=255)
    write_pictures(tmp_path / "one", 3)
    white, one = (take_fingerprint(tmp_path / name) for name in ("white", "one"))
    assert white.labels == {"background": 0, "foreground": 1}
    assert white.classes == one.classes
    assert white.channels == one.channels


def test_labels_with_gaps_keep_their_values(tmp_path):
    write_pictures(tmp_path, 3, white=7)
    found = take_fingerprint(tmp_path)
    assert found.labels is None
    assert [(facts.value, facts.name) for facts in found.classes] == [(0, "value 0"), (7, "value 7")]


def test_checksums_are_those_of_a_run(small_run, phantom):
    listed = json.loads((small_run / "cases.json").read_text())
    each = {case["id"]: case for case in take_fingerprint(phantom).as_object()["each"]}
    assert len(each) == 20
    assert {case["id"]: case["sha256"] for case in listed} == {i: each[i]["sha256"] for i in each}


def test_a_run_holds_that_of_its_training_part(small_run, phantom):
    told = json.loads((small_run / "fingerprint.json").read_text())
    train = json.loads((small_run / "split.json").read_text())["train"]
    every = {case["id"]: case for case in take_fingerprint(phantom).as_object()["each"]}
    assert [case["id"] for case in told["each"]] == train
    assert told["each"] == [every[case] for case in train]
    assert told["cases"] == len(train) < len(every)


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["patient1_a", "patient1_b", "patient02_a"], ["patient1", "patient1", "patient02"]),
        (["patient1_a", "patient2_a", "patient3_a"], [None] * 3),  # nobody has two
        (["patient1_a", "patient1_b", "other"], [None] * 3),
    ],
)
def test_patients_in_ids(tmp_path, names, groups):
    write_pictures(tmp_path, 3, names=names)
    found = {case.id: case.group for case in take_fingerprint(tmp_path).cases}
    assert [found[name] for name in names] == groups


def test_patients_in_ids_behind_the_name_of_a_part(tmp_path):
    for part, names in (("train", ["patient1_a", "patient1_b"]), ("test", ["patient2_a"])):
        write_pictures(tmp_path / part, len(names), names=names)
    found = take_fingerprint(tmp_path)
    assert {case.group for case in found.cases} == {"patient1", "patient2"}


def test_what_cannot_be_read_is_named_and_passed_over(tmp_path):
    write_pictures(tmp_path, 4)
    (tmp_path / "images" / "case1.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "masks" / "case2.png")
    found = take_fingerprint(tmp_path)
    assert [case.id for case in found.cases] == ["case0", "case3"]
    told = {case.id: case.why for case in found.unreadable}
    assert set(told) == {"case1", "case2"}
    assert "images/case1.png" in told["case1"]
    assert "masks/case2.png" in told["case2"]
    for index in (0, 3):
        (tmp_path / "images" / f"case{index}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 4 cases .* The first: cannot decode .*case0\.png"):
        take_fingerprint(tmp_path)


def test_pictures_beside_volumes_are_refused(tmp_path):
    write_volumes(tmp_path, [(6, 6, 6)] * 2)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "imagesTr" / "flat.png")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "labelsTr" / "flat.png")
    with pytest.raises(DataError, match=r"mixes pictures \(flat\) and volumes \(case00.\)"):
        take_fingerprint(tmp_path)


def test_pictures_to_train_on_and_volumes_to_test_on_are_pictures(tmp_path):
    """As in TransUNet's folders: a network for pictures sees the volumes slice by slice."""
    write_pictures(tmp_path / "train", 3, (12, 14))
    image, label = np.ones((5, 7, 4), np.float32), np.zeros((5, 7, 4), np.uint8)
    label[1:3, 2:6, :2] = 1
    for folder, values in (("images", image), ("masks", label)):
        path = tmp_path / "test" / folder / "v.nii.gz"
        path.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), path)
    found = take_fingerprint(tmp_path)
    assert found.dimensions == 2
    volume = next(case for case in found.cases if case.id == "test_v")
    assert (volume.shape, volume.box, volume.spacing) == ((5, 7), (2, 4), None)
    assert volume.voxels == {0: 140 - 16, 1: 16}
    assert found.as_object()["size"] == {"median": [12, 14], "least": [5, 7], "most": [12, 14]}


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 5.0), (4.0, 1.0, 1.0), (2.0, 1.0, 2.0), None]
)
def test_slices_are_those_of_the_preprocessing(spacing):
    case = Case("x", np.ones((1, 4, 6, 8), np.float32), np.ones((4, 6, 8), np.uint8), spacing=spacing)
    cut = next(iterate_slices(case, slice_axis(case, Preprocessing())))
    known = CaseFacts("x", None, None, {}, (4, 6, 8), 1, "u", spacing, None, {}, (1, 2, 3), (4, 6, 8), 0)
    assert known.sliced().shape == cut.spatial_shape
    assert len(known.sliced().box) == 2


@pytest.mark.parametrize("folder", ["images", "imagesTr"])
def test_a_folder_without_labels_says_so(tmp_path, folder):
    (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / folder / "a.png")
    with pytest.raises(DataError, match=r"holds 1 image and no label"):
        take_fingerprint(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        take_fingerprint(tmp_path / "nowhere")


def test_modality_comes_from_dataset_json_if_it_fits(tmp_path):
    write_volumes(tmp_path, [(6, 6, 6)] * 2, channel="CT")
    assert take_fingerprint(tmp_path).modality == ("CT",)
    settings = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(settings | {"modality": {"0": "T1", "1": "T2"}}))
    assert take_fingerprint(tmp_path).modality is None


@pytest.mark.parametrize("name", ["phantom", "phantom_3d"])
def test_plots_and_tables_of_every_kind(name, request):
    found = take_fingerprint(request.getfixturevalue(name))
    plots = draw_plots(found)
    assert sorted(plots) == ["classes.png", "intensities.png", "sizes.png"]
    assert all(picture.startswith(b"\x89PNG") for picture in plots.values())
    assert plots == draw_plots(found)
    rows = dict(overview(found))
    assert rows["cases"] == str(len(found.cases))
    assert [row[1] for row in class_rows(found)] == ["background", "liver", "spleen", "kidney", "aorta"]
    assert [row[1] for row in intensity_rows(found)][:3] == ["all", "all labels", "liver"]
    json.dumps(found.as_object(), allow_nan=False)


def test_a_folder_without_foreground(tmp_path):
    write_pictures(tmp_path, 3, white=0)
    found = take_fingerprint(tmp_path)
    assert found.as_object()["cases_without_foreground"] == 3
    assert found.channels[0].foreground is None
    draw_plots(found)
    assert dict(overview(found))["box of all labels"] == "none"


def test_memory_does_not_grow_with_the_cases(tmp_path):
    peaks = []
    for number in (6, 24):
        root = tmp_path / str(number)
        write_volumes(root, [(64, 48, 40)] * number)
        take_fingerprint(root)  # what is imported and cached once
        tracemalloc.start()
        take_fingerprint(root)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    volume = 64 * 48 * 40 * 4
    # 18 more cases would be 18 volumes; what is kept of each is 2 x 10,000 values of the 122,880
    assert peaks[1] - peaks[0] < 18 * 4 * 35_000 < 18 * volume / 3


def test_labels_json_names_the_channels_of_layouts_without_dataset_json(tmp_path):
    write_pictures(tmp_path, 3, (9, 8, 3))
    names = {"2": "blue", "0": "red", "1": "green"}
    (tmp_path / "labels.json").write_text(json.dumps({"channel_names": names}))
    assert take_fingerprint(tmp_path).modality == ("red", "green", "blue")
