"""Fixtures for every test: where the real data lies, small runs to look at, and no leftover global state."""

import gc
import os
import re
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import hypothesis
import pytest
import torch

from small import small_recipe

REPOSITORY = Path(__file__).resolve().parents[1]

if not torch.cuda.is_available():
    # run Triton's kernels on the CPU; read when triton is first imported, and lightning imports it
    os.environ.setdefault("TRITON_INTERPRET", "1")

# a busy machine must not fail a test that is right
hypothesis.settings.register_profile("rwkvseg", deadline=None)
hypothesis.settings.load_profile("rwkvseg")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew")


def pytest_collection_finish() -> None:
    """Look no more for garbage among what importing has made: a million objects, again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written instead of compared."""
    return bool(request.config.getoption("--regenerate"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real annotated data; the test is skipped, with the reason, where it is absent."""
    folder = Path(os.environ.get("RWKVSEG_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real data is absent: set RWKVSEG_SHARED_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder of twenty 40 x 36 pictures with five labels. Not to be changed."""
    from rwkvseg.data.phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(folder, 20, size=(40, 36))
    return folder


@pytest.fixture(scope="session")
def phantom_3d(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data folder, nnU-Net layout, of ten 20 x 17 x 9 volumes. Not to be changed."""
    from rwkvseg.data.phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom_3d") / "data"
    write_phantom(folder, 10, dimensions=3, size=(20, 17, 9))
    return folder


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, phantom: Path) -> Path:
    """A finished run of two epochs on the phantom. Not to be changed: see `run_copy`."""
    from rwkvseg.training.recipe import Recipe
    from rwkvseg.training.run import train

    out = tmp_path_factory.mktemp("run") / "run"
    train(Recipe.from_mapping(small_recipe(phantom)), out, device="cpu")
    return out


@pytest.fixture
def run_copy(small_run: Path, tmp_path: Path) -> Path:
    """The small run, to be changed at will."""
    return Path(shutil.copytree(small_run, tmp_path / "run_copy"))


@pytest.fixture
def rwkvseg(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the program in this process: (exit code, standard output, standard error)."""
    from rwkvseg import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rwkvseg", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def fails(rwkvseg: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Run the program and expect one or two lines and the exit code; the lines."""

    def run(code: int, *arguments: object) -> str:
        found, out, err = rwkvseg(*arguments)
        assert found == code, (out, err)
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") <= 2
        assert "Traceback" not in out + err
        assert not err.startswith("error: unexpected")
        assert len(re.findall(r"[.`](?:\s|$)", err)) >= 2  # what is wrong, and how to mend it
        return err

    return run


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take most of the time of a small run; tests/evaluation and the ends of runs test them."""
    from rwkvseg.evaluation import report
    from rwkvseg.training import fusion, history

    monkeypatch.setattr(report, "distribution_plot", lambda *_: b"")
    monkeypatch.setattr(fusion, "fusion_plot", lambda *_: b"")
    monkeypatch.setattr(history, "draw_curves", lambda _rows, path, *_: path.write_bytes(b""))


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Stand-in for a full disk: within it no file of this process may grow beyond so many bytes."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
