import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import rwkvseg

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCE = REPOSITORY / "src" / "rwkvseg"
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(SOURCE)], "rwkvseg."))
HEAVY = ("lightning", "monai", "matplotlib", "triton")


# one statement after the other, and what none so far may have loaded
MAY_NOT_LOAD = {
    "import rwkvseg": {*HEAVY, "torch", "numpy"},
    "dir(rwkvseg)": {*HEAVY, "torch"},
    "import rwkvseg.ops": {*HEAVY, "pydantic", "scipy"},
    "rwkvseg.list_models(); rwkvseg.create_model('rwkv_unet_tiny')": {*HEAVY, "nibabel"},
    "import rwkvseg.inference.predictor": {*HEAVY},
    "import rwkvseg.cli": {*HEAVY},
}


@pytest.fixture(scope="module")
def loaded():
    """Top-level modules that a fresh interpreter holds after each of the statements."""
    look = "; import sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    code = "\n".join(statement + look for statement in MAY_NOT_LOAD)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(MAY_NOT_LOAD, map(str.split, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("statement", MAY_NOT_LOAD)
def test_what_is_not_needed_is_not_loaded(statement, loaded):
    assert "rwkvseg" in loaded[statement]
    assert MAY_NOT_LOAD[statement].isdisjoint(loaded[statement])


def test_scoring_and_comparing_load_no_torch():
    code = "import rwkvseg.inference.evaluate_both, rwkvseg.inference.compare, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", *HEAVY}.isdisjoint(done.stdout.split())


def test_every_public_name_resolves():
    assert len(rwkvseg.__all__) <= 15
    assert sorted(rwkvseg.__all__) == rwkvseg.__dir__()
    assert set(rwkvseg.__all__) == {*rwkvseg._HOME, "__version__"}
    for name in rwkvseg.__all__:
        assert getattr(rwkvseg, name) is not None
        assert name == "__version__" or getattr(rwkvseg, name).__name__ == name


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(AttributeError, match=r"no attribute 'Predicter'; it has Case, Predictor"):
        rwkvseg.Predicter  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports(name):
    if name.rpartition(".")[2].startswith("triton_"):
        pytest.importorskip("triton")  # not everywhere, and imported only where it is used
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        assert hasattr(module, public)


def test_one_version_everywhere():
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert pyproject["project"]["version"] == citation["version"] == rwkvseg.__version__


def test_the_changelog_names_the_version():
    headings = re.findall(r"^## \[(.+?)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", rwkvseg.__version__)
    assert rwkvseg.__version__ in headings


BANNED = {
    "strict=False": r"load_state_dict\([^)]*strict\s*=\s*False",
    "weights_only=False": r"weights_only\s*=\s*False",
    "import *": r"^\s*from\s+\S+\s+import\s+\*",
    ".cuda()": r"\.cuda\(\)",
    "np.sqrt(n": r"np\.sqrt\(n\b",
    "absolute path": r"[\"'](/home|/root|/work|/tmp)/",
    "pickle.load": r"pickle\.loads?\(",
}


@pytest.mark.parametrize("pattern", BANNED.values(), ids=BANNED.keys())
def test_source_has_nothing_banned(pattern):
    found = [
        f"{path.relative_to(REPOSITORY)}: {match[0]}"
        for path in SOURCE.rglob("*.py")
        for match in re.finditer(pattern, path.read_text(), re.MULTILINE)
    ]
    assert not found


def test_every_torch_load_reads_weights_only():
    for path in SOURCE.rglob("*.py"):
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text()):
            assert "weights_only=True" in call, path
