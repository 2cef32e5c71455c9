"""The scripts that measure bi_wkv run, write their tables, and refuse an operator that is wrong."""

import importlib
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from rwkvseg.ops import available_backends, bi_wkv

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
Script = Callable[[str], ModuleType]
Loosened = Callable[..., Tensor]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Import a script of benchmarks/ anew, as if it were run from there."""
    monkeypatch.syspath_prepend(SCRIPTS)
    for name in [file.stem for file in SCRIPTS.glob("*.py")]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def off_by(change: Callable[[Tensor], Tensor]) -> Loosened:
    """Return bi_wkv whose backend scan, the one under test, is changed where it computes in float32."""

    def operator(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
        y = bi_wkv(w, u, k, v, backend=backend)
        return change(y) if backend == "scan" and y.dtype == torch.float32 else y

    return operator


def half_written(y: Tensor) -> Tensor:
    out = torch.empty_like(y)
    out[:, :-1] = y[:, :-1]
    return out + 0 * y


def noisy(y: Tensor) -> Tensor:
    return y + 1e-7 * torch.rand_like(y)


def wrong_gradient(y: Tensor) -> Tensor:
    return y.detach() + 1.001 * (y - y.detach())


WRONG = {
    "scaled": (lambda y: 1.0001 * y, "y "),
    "half written": (half_written, "y nan"),
    "another answer each time": (noisy, "other bits"),
    "wrong gradient": (wrong_gradient, "gv "),
}


def few_cases(accuracy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "grid", lambda quick: ([accuracy.Shape(2, 13, 5, 5)], [(3.0, "10")]))


def test_accuracy_of_scan(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "found.md"
    command = ["--quick", "--backend", "scan", "--device", "cpu", "-o", str(found)]
    assert script("accuracy_bi_wkv").main(command) == 0
    text = found.read_text()
    assert "Every result is within its limit." in text
    assert all(
        f"| {t} | {kind} |" in text for t in (1, 33, 4097) for kind in ("float32", "float16", "bfloat16")
    )
    assert str(tmp_path) not in text


@pytest.mark.parametrize("wrong", WRONG)
def test_accuracy_fails(wrong: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    change, sign = WRONG[wrong]
    accuracy: Any = script("accuracy_bi_wkv")
    few_cases(accuracy, monkeypatch)
    monkeypatch.setattr(accuracy, "bi_wkv", off_by(change))
    examination = accuracy.Examination("scan", "cpu", [(3.0, "10")])
    examination.examine(accuracy.Shape(2, 13, 5, 5))
    assert any(line.startswith(sign) or sign in line for line in examination.broken), examination.broken
    assert accuracy.main(["--backend", "scan", "--device", "cpu"]) == 1


def test_sixteen_bit_is_held_to_the_definition(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracy: Any = script("accuracy_bi_wkv")

    def coarse(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, backend: str) -> Tensor:
        y = bi_wkv(w, u, k, v, backend=backend)
        return y * 1.02 if backend == "scan" and y.dtype == torch.bfloat16 else y

    monkeypatch.setattr(accuracy, "bi_wkv", coarse)
    examination = accuracy.Examination("scan", "cpu", [(3.0, "10")])
    examination.examine(accuracy.Shape(2, 13, 5, 5))
    assert examination.broken
    assert all("bfloat16" in line for line in examination.broken)


def test_the_grid_is_that_of_the_specification(script: Script) -> None:
    accuracy: Any = script("accuracy_bi_wkv")
    shapes, cases = accuracy.grid(False)
    assert len(cases) == 40
    assert {(s.num_tokens, s.channels) for s in shapes if s.num_tokens <= 196} == {
        (t, c) for t in (1, 2, 3, 5, 31, 32, 33, 63, 196) for c in (1, 5, 16, 33, 576)
    }
    assert {(s.num_tokens, s.channels, s.compared) for s in shapes if 196 < s.num_tokens <= 4096} == {
        (t, c, min(c, 8) if c == 576 else c) for t in (784, 1000, 4096) for c in (1, 5, 33, 576)
    }
    assert max(s.num_tokens for s in shapes) == 262_144


def test_speed_of_scan(script: Script, tmp_path: Path) -> None:
    bench: Any = script("bench_bi_wkv")
    command = ["--backend", "scan", "--device", "cpu", "--only", "1,21,48", "--budget", "0.001", "--quick"]
    assert bench.main([*command, "-o", str(tmp_path)]) == 0
    (written,) = tmp_path.glob("*_bi_wkv.md")
    rows = [line for line in written.read_text().splitlines() if line.startswith("| 1, 21, 48")]
    assert len(rows) == 8
    assert not any("nan" in row for row in rows)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_operator_is_not_timed(wrong: str, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = script("bench_bi_wkv")
    monkeypatch.setattr(bench, "GATE", [(2, 13, 5)])
    monkeypatch.setattr(bench.accuracy, "bi_wkv", off_by(WRONG[wrong][0]))
    monkeypatch.setattr(bench, "measure", lambda options: pytest.fail("timed"))
    with pytest.raises(SystemExit, match="nothing is timed"):
        bench.main(["--backend", "scan", "--device", "cpu"])


def test_an_operator_wrong_at_one_size_is_not_timed(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = script("bench_bi_wkv")
    monkeypatch.setattr(bench, "GATE", [(2, 13, 5)])
    monkeypatch.setattr(bench, "bi_wkv", off_by(lambda y: 2 * y if y.shape[1] == 21 else y))
    with pytest.raises(SystemExit, match="at 1, 21, 48"):
        bench.main(["--backend", "scan", "--device", "cpu", "--only", "1,21,48", "--budget", "0.001"])


@pytest.mark.parametrize(("backend", "few"), [("scan", True), ("naive", False)])
def test_what_is_saved_for_the_backward_pass(backend: str, few: bool, script: Script) -> None:
    bench: Any = script("bench_bi_wkv")
    x = bench.job((2, 13, 5), torch.float32, "cpu").x
    saved = bench.saved_bytes(lambda *leaves: bi_wkv(*leaves, backend=backend), list(x[:4]))
    assert (saved == 0) if few else (saved >= 4 * 2 * 13 * 13 * 5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", available_backends())
def test_both_on_a_gpu(backend: str, script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("accuracy_bi_wkv").main(["--quick", "--backend", backend, "--tokens", "1", "33"]) == 0
    bench: Any = script("bench_bi_wkv")
    assert bench.main(["--backend", backend, "--only", "2,196,64", "--budget", "0.01", "--quick"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2, 196, 64")]
    assert len(rows) == 8
    assert ("| - |" in rows[0]) == (backend == "scan")


class LikeThePublished:
    """Its interface, computed by the definition on the CPU; crashes at T = 196."""

    def forward(self, *arguments: Any) -> None:
        *_, w, u, k, v, y = arguments
        if k.shape[1] == 196:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        y.copy_(bi_wkv(w, u, k, v))

    def backward(self, *arguments: Any) -> None:
        *_, w, u, k, v, g, gw, gu, gk, gv = arguments
        leaves = [x.detach().requires_grad_() for x in (w, u, k, v)]
        by_w, by_u, by_k, by_v = torch.autograd.grad(bi_wkv(*leaves), leaves, g)
        gw[0], gu[0] = by_w, by_u
        gk.copy_(by_k)
        gv.copy_(by_v)


def test_the_published_kernel_is_timed_and_may_crash(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    bench: Any = script("bench_bi_wkv")
    kernel = bench.PublishedKernel(LikeThePublished(), 1024)
    shapes = [(1, 196, 2), (2, 13, 5), (1, 1025, 1)]
    plans = [(shape, dtype) for shape in shapes for dtype in (torch.float32, torch.bfloat16)]
    tables = bench.Tables([], {plan: [[], []] for plan in plans})
    bench.add_published(kernel, tables, plans, bench.Clock("cpu", 0.001))
    (ms, error), _ = tables.peers[(2, 13, 5), torch.float32]
    assert float(ms) >= 0
    assert float(error) < 1e-5
    assert 1e-4 < float(tables.peers[(2, 13, 5), torch.bfloat16][0][1]) < 1e-2
    assert tables.peers[(1, 1025, 1), torch.float32] == [["-", "-"]] * 2
    assert tables.peers[(1, 196, 2), torch.float32][0][0] == "crashed"
    assert tables.peers[(1, 196, 2), torch.bfloat16] == [["not run", ""]] * 2


def test_published_kernel_is_looked_for(script: Script, tmp_path: Path) -> None:
    published: Any = script("published_kernel")
    with pytest.raises(FileNotFoundError, match="wkv_op"):
        published.compile_published(tmp_path)
    assert published.longest_sequence(tmp_path) == 1024
    (tmp_path / "network.py").write_text("import math\nT_MAX = 4096 # tokens\n")
    assert published.longest_sequence(tmp_path) == 4096


LOOP = (
    "from rwkvseg.ops import naive_bi_wkv\ndef biwkv_loop(w, u, k, v):\n    return naive_bi_wkv(w, u, k, v)"
)


def test_loop_of_a_file(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench: Any = script("bench_scan_cpu")
    threads = str(torch.get_num_threads())
    file = tmp_path / "loop.py"
    command = ["--threads", threads, "--repeats", "1", "--only", "1,9,4", "--loop", str(file)]
    with pytest.raises(SystemExit, match="not a Python file"):
        bench.main(command)
    file.write_text(LOOP)
    bench.main(command)
    assert "biwkv_loop of loop.py" in capsys.readouterr().out
    file.write_text(LOOP + " * 1.01")
    with pytest.raises(SystemExit, match="the loop is wrong"):
        bench.main(command)


def test_images_a_second_of_nano(script: Script, tmp_path: Path) -> None:
    bench: Any = script("bench_nano_cpu")
    before = torch.get_num_threads()
    command = ["--models", "rwkv_unet_nano", "--batches", "1", "2", "--size", "32", "--seconds", "0"]
    try:
        assert bench.main([*command, "--threads", "1", "--when-idle", "-o", str(tmp_path / "found.md")]) == 0
    finally:
        torch.set_num_threads(before)
    rows = [line for line in (tmp_path / "found.md").read_text().splitlines() if "rwkv_unet_nano |" in line]
    assert [row.split(" | ")[1:3] for row in rows] == [["0.54", "1"], ["0.54", "2"]]
    assert 0 <= bench.busy_share(0.01) <= 1
    assert all(float(figure) > 0 for row in rows for figure in row.strip("| ").split(" | ")[3:])


def test_training_memory_measures_a_row_and_fails_with_it(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("training_memory")
    small = module.Candidate("rwkv_unet_nano", 1, 2, (48, 32))
    monkeypatch.setitem(module.ROWS, "cpu", [(small, 2)])
    found = module.measure_row(small, 2, "cpu", graphs=False)
    assert list(found) == ["grown"]
    assert found["grown"] >= 0
    monkeypatch.setattr(module, "run_row", lambda *_, **__: {"grown": 3 * 2**20})
    text, failed = module.table("cpu", graphs=False)
    assert not failed
    assert "| rwkv_unet_nano | 48 x 32 | 2 |" in text
    monkeypatch.setattr(module, "run_row", lambda *_, **__: {"failed": 1})
    text, failed = module.table("cpu", graphs=False)
    assert failed
    assert "| failed | - |" in text


def test_items_a_second_of_the_loader(
    script: Script, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    from small import small_recipe

    recipe = small_recipe(phantom) | {"name": "pictures"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["--data", str(tmp_path / "recipe.yaml"), str(phantom), "--seconds", "0.2", "--cases", "9"]
    found = tmp_path / "found.md"
    loader = script("loader_throughput")
    before = torch.get_num_threads()
    try:
        assert loader.main([*command, "--workers", "0", "1", "-o", str(found)]) == 0
    finally:
        torch.set_num_threads(before)
    text = found.read_text()
    assert str(tmp_path) not in text
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "pictures |" in line
    ]
    assert [row[:4] for row in rows] == [["pictures", "9", "4", "0"], ["pictures", "9", "4", "1"]]
    for row in rows:
        assert float(row[4]) > 0
        assert float(row[6]) > 0
    assert capsys.readouterr().out.rstrip().endswith(text.rstrip())  # the table last


def test_made_up_data_of_the_loader_is_what_the_recipes_want(script: Script, tmp_path: Path) -> None:
    loader = script("loader_throughput")
    for file, folder in loader._generated(tmp_path):
        changes = [f"data.path={folder}", "split.rule=paper", "split.file=null"]
        items = loader.read_items(loader.Recipe.from_file(Path(file), changes=changes), 3)
        item = items[0, 1]
        assert item["image"].shape[1:] == item["label"].shape
        assert item["label"].unique().numel() > 1
    memory, seconds = loader.look()
    assert memory > 2**20
    assert seconds > 0


class Kept:
    """Stand-in for `run_command`: the first call runs it, the later ones give its files and figures again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cost = folder, None

    def __call__(self, arguments: Sequence[str], *, threads: int) -> Any:
        out = Path(arguments[-1])
        if self.cost is None:
            self.cost = importlib.import_module("command").run_command(arguments, threads=threads)
            shutil.copytree(out, self.folder)
        elif not out.exists():
            shutil.copytree(self.folder, out)
        return self.cost


@pytest.fixture(scope="module")
def kept_evaluation(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Of the two small volumes, which are the same each time."""
    return Kept(tmp_path_factory.mktemp("evaluation") / "out")


def test_the_evaluation_of_volumes_is_timed(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_evaluation: Kept
) -> None:
    bench: Any = script("evaluate_synapse_size")
    monkeypatch.setattr(bench, "run_command", kept_evaluation)
    small = ["--cases", "2", "--shape", "48", "40", "21", "--threads", "1", "--limit", "600"]
    assert bench.main([*small, "-o", str(tmp_path / "found.md")]) == 0
    text = (tmp_path / "found.md").read_text()
    assert "2 volumes of 48 x 40 x 21 with 8 organs" in text
    row = text.splitlines()[-1].split("|")[1:-1]
    assert float(row[0]) == 2
    assert all(float(cell) >= 0 for cell in row)
    assert str(tmp_path) not in text
    assert bench.main([*small[:-1], "0", "-o", str(tmp_path / "slow.md")]) == 1
    assert not (tmp_path / "slow.md").exists()


def test_an_evaluation_that_differs_from_medpys_is_not_kept(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_evaluation: Kept
) -> None:
    bench: Any = script("evaluate_synapse_size")
    monkeypatch.setattr(bench, "run_command", kept_evaluation)
    honest = bench.hd95
    monkeypatch.setattr(bench, "hd95", lambda *masks: honest(*masks) + 0.01)
    command = [
        "--cases",
        "2",
        "--shape",
        "48",
        "40",
        "21",
        "--threads",
        "1",
        "-o",
        str(tmp_path / "found.md"),
    ]
    assert bench.main(command) == 1
    assert not (tmp_path / "found.md").exists()


@pytest.mark.parametrize(
    "path", sorted((SCRIPTS / "results").rglob("recipe.yaml")), ids=lambda path: path.parent.name
)
def test_a_kept_recipe_finds_its_split_on_any_machine(path: Path) -> None:
    recipe = yaml.safe_load(path.read_text())
    named = [source["recipe"] for source in recipe["data"].get("sources", {}).values()]
    assert not any(Path(name).is_absolute() for name in named)
    kept = recipe.get("split", {}).get("file")  # a recipe of pre-training names other recipes instead
    assert kept is None or (not Path(kept).is_absolute() and (path.parent / kept).is_file())
