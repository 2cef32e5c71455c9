"""Freed memory stays while a command predicts on glibc, for nobody else, and no longer than that."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from volume_cases import case_of, convolution, make_predictor, oblique_affine

from rwkvseg.data import notices
from rwkvseg.errors import DataError
from rwkvseg.inference import freed_memory, volume_memory
from rwkvseg.inference.freed_memory import can_keep, freed_memory_kept
from rwkvseg.inference.predictor import NOT_KEPT, Predictor
from rwkvseg.inference.volume_memory import fit_memory, memory_needed
from rwkvseg.inference.volume_plan import VolumeOptions, plan_volume

MIB = 2**20
glibc_only = pytest.mark.skipif(freed_memory._glibc() is None, reason="this process's malloc is not glibc's")
KEPT = [("mallopt", -1, -1), ("mallopt", -3, 512 * MIB)]
GIVEN_BACK = [
    ("mallopt", -3, 32 * MIB),
    ("mallopt", -4, 65536),
    ("mallopt", -1, 64 * MIB),
    ("malloc_trim", 0),
]


class FakeGlibc:
    """Remembers what it was told."""

    def __init__(self, largest_threshold=2**31 - 1):
        self.calls, self.largest = [], largest_threshold

    def mallopt(self, parameter, value):
        self.calls.append(("mallopt", parameter, value))
        return int(parameter != freed_memory.MMAP_THRESHOLD or value <= self.largest)

    def malloc_trim(self, pad):
        self.calls.append(("malloc_trim", pad))
        return 1


@pytest.fixture(autouse=True)
def undecided(monkeypatch):
    """An environment in which the user has chosen nothing."""
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv(freed_memory.VARIABLE, raising=False)
    notices._say.cache_clear()


@pytest.fixture
def glibc(monkeypatch):
    """A glibc on a machine of 64 GiB."""
    fake = FakeGlibc()
    monkeypatch.setattr(freed_memory, "_glibc", lambda: fake)
    monkeypatch.setattr(freed_memory, "available_memory", lambda: 64 * 2**30)
    return fake


class Witness(nn.Module):
    """Three classes; sees whether memory is kept while it runs."""

    def __init__(self, dimensions):
        super().__init__()
        self.layer = (nn.Conv2d if dimensions == 2 else nn.Conv3d)(1, 3, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append(freed_memory._holders)
        return self.layer(x)


class TestTheSetting:
    def test_it_lasts_as_long_as_the_block(self, glibc):
        with freed_memory_kept():
            assert glibc.calls == KEPT
        assert glibc.calls == [*KEPT, *GIVEN_BACK]

    def test_an_error_ends_it_too(self, glibc):
        with contextlib.suppress(ZeroDivisionError), freed_memory_kept():
            _ = 1 / 0
        assert glibc.calls == [*KEPT, *GIVEN_BACK]

    def test_unwanted_it_touches_nothing(self, glibc):
        with freed_memory_kept(False):
            pass
        assert glibc.calls == []

    def test_the_last_block_to_end_gives_back(self, glibc):
        with freed_memory_kept(), freed_memory_kept():
            with freed_memory_kept():
                pass
            assert glibc.calls == KEPT
        assert glibc.calls == [*KEPT, *GIVEN_BACK]

    def test_threads_share_it(self, glibc):
        within, end = threading.Barrier(5), threading.Event()

        def work():
            with freed_memory_kept():
                within.wait(20)
                end.wait(20)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        within.wait(20)
        assert (glibc.calls, freed_memory._holders) == (KEPT, 4)
        end.set()
        for thread in threads:
            thread.join(20)
        assert (glibc.calls, freed_memory._holders) == ([*KEPT, *GIVEN_BACK], 0)

    def test_a_small_machine_keeps_smaller_blocks(self, glibc, monkeypatch):
        monkeypatch.setattr(freed_memory, "available_memory", lambda: 2 * 2**30)
        with freed_memory_kept():
            assert glibc.calls[1] == ("mallopt", -3, 64 * MIB)

    def test_versions_that_take_no_such_threshold_map_nothing(self, glibc):
        glibc.largest = 32 * MIB
        with freed_memory_kept():
            assert glibc.calls == [*KEPT, ("mallopt", -4, 0)]
        assert glibc.calls[3:] == GIVEN_BACK


class TestWhereItIsLeftAlone:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MALLOC_MMAP_MAX_", "0"),
            ("MALLOC_MMAP_THRESHOLD_", "131072"),
            ("MALLOC_TRIM_THRESHOLD_", "131072"),
            ("MALLOC_TOP_PAD_", "0"),
            ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2:glibc.malloc.trim_threshold=1"),
            ("RWKVSEG_KEEP_MEMORY", "0"),
        ],
    )
    def test_the_environment_wins(self, glibc, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        assert not can_keep()
        with freed_memory_kept():
            pass
        assert glibc.calls == []

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("MALLOC_ARENA_MAX", "2"),
            ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2"),
            ("RWKVSEG_KEEP_MEMORY", "1"),
        ],
    )
    def test_what_has_nothing_to_do_with_it_does_not(self, glibc, monkeypatch, name, value):
        monkeypatch.setenv(name, value)
        with freed_memory_kept():
            assert glibc.calls == KEPT

    @pytest.mark.parametrize("platform", ["darwin", "win32"])
    def test_other_systems(self, monkeypatch, platform):
        monkeypatch.setattr(sys, "platform", platform)
        monkeypatch.setattr(freed_memory.ctypes, "CDLL", None)  # not even asked for
        assert freed_memory._glibc.__wrapped__() is None

    def test_musl(self, monkeypatch):
        """It has malloc and dladdr, and none of glibc's own."""

        class Musl:
            malloc = dladdr = None

        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda _: Musl())
        assert freed_memory._glibc.__wrapped__() is None
        monkeypatch.setattr(freed_memory, "_glibc", lambda: None)
        assert not can_keep()
        with freed_memory_kept():
            assert freed_memory._holders == 0

    @glibc_only
    def test_another_malloc_in_front_of_it(self, tmp_path):
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler to make another malloc with")
        source, library = tmp_path / "other.c", tmp_path / "other.so"
        source.write_text("void *__libc_malloc(unsigned long); void *malloc(unsigned long n)"
                          "{ return __libc_malloc(n); }")  # fmt: skip
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        program = "from rwkvseg.inference.freed_memory import can_keep; print(can_keep())"
        assert _run(program) == "True"
        assert _run(program, LD_PRELOAD=str(library)) == "False"


class TestWhoAsks:
    def test_the_library_does_not(self, glibc):
        for dimensions in (2, 3):
            predictor, case = _witness(dimensions)
            predictor.predict(case)
            assert set(predictor.network.seen) == {0}
        assert glibc.calls == []

    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_asked_it_keeps_while_the_network_runs(self, glibc, dimensions):
        predictor, case = _witness(dimensions, keep_memory=True)
        predictor.predict(case)
        assert set(predictor.network.seen) == {1}
        assert glibc.calls == [*KEPT, *GIVEN_BACK]

    def test_predictions_are_the_same(self, glibc):
        case = case_of(np.random.default_rng(0).random((21, 18, 15)), oblique_affine())
        network = convolution()
        plain = make_predictor(network, num_classes=3, patch=(12, 10, 8))
        kept = Predictor(network, plain.description, torch.device("cpu"), keep_memory=True)
        np.testing.assert_array_equal(plain.predict(case), kept.predict(case))
        assert glibc.calls == [*KEPT, *GIVEN_BACK]

    def test_on_a_gpu_it_means_nothing(self):
        predictor, _ = _witness(3)
        on_meta = Predictor(
            nn.Identity(), predictor.description, torch.device("meta"), keep_memory=True
        )  # any device that is no CPU
        assert not on_meta.keep_memory

    def test_the_command_asks_once_for_all_pictures(self, glibc, rwkvseg, small_run, phantom, tmp_path):
        code, _, err = rwkvseg(
            "predict", "-m", small_run, "-i", phantom, "-o", tmp_path / "out", "--device", "cpu"
        )
        assert (code, err) == (0, "")
        assert len(list((tmp_path / "out").glob("*.png"))) == 20
        assert glibc.calls == [*KEPT, *GIVEN_BACK]

    def test_times_of_a_figure_are_taken_as_predictions_are_made(self, glibc, rwkvseg, tmp_path, monkeypatch):
        network = "rwkv_unet_tiny:depths=[1,1,1,1];widths=[4,4,4,4];stem_width=4"
        for told, out in (("kept", "a.svg"), ("as the allocator does", "b.svg")):
            command = ["-m", network, "--sizes", "16,32", "--repeats", "1", "--device", "cpu"]
            assert rwkvseg("figure", "resolution", *command, "-o", tmp_path / out)[0] == 0
            numbers = json.loads((tmp_path / out).with_suffix(".json").read_text())
            assert numbers["settings"]["freed_memory"] == told
            assert glibc.calls == [*KEPT, *GIVEN_BACK]  # of the first round
            monkeypatch.setenv(freed_memory.VARIABLE, "0")


def _witness(dimensions, **settings):
    predictor = make_predictor(Witness(3), num_classes=3, patch=(8, 8, 8))
    description = predictor.description
    case = case_of(np.random.default_rng(0).random((9, 8, 7)), oblique_affine())
    if dimensions == 2:
        preprocessing = description.preprocessing.model_copy(update={"dimensions": 2, "patch": None})
        description = description.model_copy(update={"preprocessing": preprocessing})
    return Predictor(Witness(dimensions), description, torch.device("cpu"), **settings), case


class TestThePlan:
    WINDOW = 2**28

    def plan(self, **options):
        case = case_of(np.zeros((40, 30, 20), np.float32), oblique_affine())
        predictor = make_predictor(nn.Identity(), patch=(16, 16, 16))
        return plan_volume(
            case,
            predictor.description.preprocessing,
            VolumeOptions(**options),
            num_classes=5,
            device=torch.device("cpu"),
        )

    def most(self, plan):
        return max(memory_needed(plan, self.WINDOW).values())

    def test_only_windows_take_more(self):
        plan = self.plan()
        given_back = memory_needed(plan, self.WINDOW)
        kept = memory_needed(replace(plan, keeps_memory=True), self.WINDOW)
        factor = volume_memory.WORKSPACE_KEPT - volume_memory.WORKSPACE
        assert kept.pop("windows") - given_back.pop("windows") == factor * self.WINDOW > 0
        assert kept == given_back

    def test_the_limit_decides(self):
        plan = self.plan()
        little, much = self.most(plan), self.most(replace(plan, keeps_memory=True))
        for limit, keeps in ((much, True), (much - 1, False), (little, False)):
            fitted = fit_memory(self.plan(max_memory=limit), self.WINDOW, keep=True)
            assert fitted.keeps_memory is keeps
            assert self.most(fitted) <= limit
        with pytest.raises(DataError, match="--max-memory allows"):
            fit_memory(self.plan(max_memory=little - 1), self.WINDOW, keep=True)
        assert not fit_memory(self.plan(max_memory=much), self.WINDOW).keeps_memory  # unasked

    def test_smaller_batches_come_first(self):
        plan = replace(self.plan(), keeps_memory=True)
        limit = self.most(replace(plan, batch_size=2))
        fitted = fit_memory(self.plan(batch_size=8, max_memory=limit), self.WINDOW, keep=True)
        assert (fitted.batch_size, fitted.keeps_memory) == (2, True)

    def test_too_tight_it_predicts_all_the_same_and_says_so_once(self, glibc, caplog):
        limited, case = _witness(3, keep_memory=True)
        plan = limited.check_memory(case)
        assert plan.keeps_memory
        limit = max(memory_needed(replace(plan, keeps_memory=False), limited._bytes_of_a_window).values())
        limited.options = VolumeOptions(max_memory=limit)
        for _ in range(2):
            limited.predict(case)
        assert set(limited.network.seen) == {0}
        assert glibc.calls == []
        assert [record.message for record in caplog.records] == [NOT_KEPT]


@glibc_only
def test_glibc_does_what_is_asked_of_it():
    """Of 640 MiB in blocks of 40 MiB most stays when freed within the block, and nothing after it."""
    program = """
import torch
from rwkvseg.inference.freed_memory import freed_memory_kept

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4 // 1024

def use():
    blocks = [torch.ones(10 * 2**20) for _ in range(16)]

before = resident()
use()
print(resident() - before)
with freed_memory_kept():
    use()
    print(resident() - before)
print(resident() - before)
"""
    given_back, kept, after = map(int, _run(program).split())
    assert given_back < 100
    assert kept > 600
    assert after < 100


@pytest.mark.slow
@glibc_only
def test_the_plan_bounds_what_a_process_takes():
    """`rwkvseg predict` with U-RWKV tiny in a process of its own; the script fails where it takes more."""
    script = Path(__file__).parents[2] / "benchmarks" / "predict_large_volume.py"
    # not in this process: the peak is that of the largest child it ever had
    sizes = "--shape 80 80 80 --spacing 0 --patch 80 80 80 --threads 1"
    done = subprocess.run(
        [sys.executable, script, *sizes.split()],
        env=os.environ | {freed_memory.VARIABLE: "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _run(program, **environment):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()
