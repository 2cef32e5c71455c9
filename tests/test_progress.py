"""The bar: nothing without a terminal, windows of one volume, parts of several."""

import io

from rich.console import Console

from rwkvseg.progress import CaseProgress, progress_bar


def moved(cases):
    seen = []
    bar = CaseProgress(lambda done, total: seen.append((done, total)), cases)
    for case in range(cases):
        for window in (1, 2, 4):
            bar.on_windows(window, 4)
        bar.on_case(case)
    return seen


def test_one_volume_counts_windows_and_several_count_cases():
    assert moved(1) == [(1, 4), (2, 4), (4, 4)]
    assert moved(2) == [(0.25, 2), (0.5, 2), (1, 2), (1, 2), (1.25, 2), (1.5, 2), (2, 2), (2, 2)]


def test_shown_on_a_terminal_only():
    for is_terminal in (False, True):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=is_terminal, width=80)
        with progress_bar(console, "predicting", 1) as advance:
            CaseProgress(advance, 1).on_windows(3, 7)
        assert ("3/7" in screen.getvalue()) == is_terminal
        assert bool(screen.getvalue()) == is_terminal
