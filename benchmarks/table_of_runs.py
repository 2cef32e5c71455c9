"""One table of several networks over several seeds, from the run folders that `rwkvseg train` wrote.

Runs of one network are pooled over their test cases; a case that several seeds test counts once a seed, and
the bootstrap draws all its appearances together. Two networks are compared by the paired test over the same
(seeds, case). Where a data set has no test part, it is the part that validates.

    python benchmarks/table_of_runs.py --runs tiny=runs/tiny0,runs/tiny1 unet=runs/unet0,runs/unet1
"""

import argparse
import csv
import json
import statistics
from pathlib import Path

import yaml

from rwkvseg.evaluation.statistics import bootstrap_interval, paired_permutation_test

Scores = dict[tuple[int, int, str], float]


def part_of(run: Path) -> str:
    """The part that the table tells of: the one that validates where there is none to test on."""
    return "test" if (run / "evaluation" / "test").is_dir() else "val"


def read_scores(runs: list[Path], column: str) -> Scores:
    """(seed of the split, of the training, case) -> mean over its classes."""
    scores = {}
    for run in runs:
        recipe = yaml.safe_load((run / "recipe.yaml").read_text())
        seeds = recipe["split"]["seed"], recipe["training"]["seed"]
        with (run / "evaluation" / part_of(run) / "scores.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        name = next(key for key in rows[0] if key.startswith(column))
        for case in dict.fromkeys(row["case"] for row in rows):
            values = [float(row[name]) for row in rows if row["case"] == case and row[name]]
            scores[*seeds, case] = statistics.fmean(values) if values else float("nan")
    return scores


def print_row(name: str, runs: list[Path]) -> None:
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    dsc, hd95 = read_scores(runs, "dsc"), read_scores(runs, "hd95")
    means = [
        100 * summary["results"][part_of(run)]["mean"]["dsc"]["mean"]
        for run, summary in zip(runs, summaries, strict=True)
    ]
    cases = [case for *_, case in dsc]
    pooled = bootstrap_interval(list(dsc.values()), groups=cases)
    distance = bootstrap_interval(list(hd95.values()), groups=cases)
    spread = f"{statistics.stdev(means):.2f}" if len(means) > 1 else "-"
    print(
        f"| {name} | {summaries[0]['parameters'] / 1e6:.2f} M | {summaries[0]['epochs']} | "
        f"{', '.join(f'{mean:.2f}' for mean in means)} | {statistics.fmean(means):.2f} | {spread} | "
        f"{100 * pooled.low:.2f} to {100 * pooled.high:.2f} | {distance.mean:.2f} "
        f"({distance.low:.2f} to {distance.high:.2f}) | "
        f"{', '.join(str(round(summary['total_seconds'])) for summary in summaries)} | "
        f"{', '.join(str(round(summary['images_per_second'])) for summary in summaries)} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=RUN,RUN,...")
    networks = {
        name: [Path(run) for run in runs.split(",")]
        for name, runs in (item.split("=", 1) for item in parser.parse_args().runs)
    }
    first = next(iter(networks.values()))[0]
    environment = json.loads((first / "environment.json").read_text())
    print(
        f"{environment['device']}, torch {environment['packages']['torch']}, commit {environment['commit']}\n"
    )
    print(
        "| network | parameters | epochs | test DSC % of each seed | mean | deviation | "
        "95 % interval, pooled cases | HD95 px (interval) | seconds of a run | images/s with validation |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, runs in networks.items():
        print_row(name, runs)
    if len(networks) != 2:
        return
    (name_a, runs_a), (name_b, runs_b) = networks.items()
    a, b = read_scores(runs_a, "dsc"), read_scores(runs_b, "dsc")
    shared = [key for key in a if key in b]
    test = paired_permutation_test(
        [100 * a[key] for key in shared],
        [100 * b[key] for key in shared],
        groups=[case for *_, case in shared],
    )
    print(
        f"\n{name_a} - {name_b}: {test.difference:+.2f} DSC points, "
        f"95 % interval {test.low:+.2f} to {test.high:+.2f}, "
        f"paired permutation test p = {test.p_value:.2g}, {test.cases} (seed, case) pairs of "
        f"{len({case for *_, case in shared})} cases"
    )


if __name__ == "__main__":
    main()
