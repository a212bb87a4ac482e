"""Seconds and memory of ingest, check, dedupe and split with their defaults, at several sizes, and how far from linear.

Each size runs in a process of its own with an empty home; memory is that of the whole process tree. CPU seconds are of
all processes and threads: on a busy machine they tell more than the clock. The rows are those of benchmarks/corpus.py.

    .venv/bin/python benchmarks/data.py --sizes 100000 300000 1000000 --files data/*.jsonl --plot scale.svg
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import corpus
from memory import watch

STAGES = ("ingest", "check", "dedupe", "split")
ALL = "all four"
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LIMIT_ROWS, LIMIT_SECONDS, LIMIT_MB = 1_000_000, 300, 4_000

EngineName = Literal["local", "ray"]
Figures = dict[str, dict[str, float]]  # stage -> seconds, cpu, mb


def run_stages(file: Path, engine: EngineName) -> None:
    """In a process of its own: runs the stages and prints when each began and ended."""
    from tunewright import config

    config.quiet_libraries()
    from tunewright.config import Checks, Data, Dedupe, Source, Split
    from tunewright.tasks.check import check
    from tunewright.tasks.dedupe import dedupe
    from tunewright.tasks.ingest import ingest, source_files
    from tunewright.tasks.split import split

    data = Data(sources=(Source(path=str(file)),))
    rows = told("ingest", lambda: ingest.fn(data=data, files=source_files(data), engine=engine))
    checked = told("check", lambda: check.fn(rows, Checks(), SPECIAL_TOKENS, engine=engine))
    unique = told("dedupe", lambda: dedupe.fn(rows=checked, settings=Dedupe(), engine=engine))
    told("split", lambda: split.fn(unique, held_out=rows, settings=Split(), earlier=None, engine=engine))


def told(stage: str, call: Callable[[], Any]) -> Any:
    """Call `call`, print the time and CPU seconds it took, and return its result."""
    begin, cpu = time.time(), sum(os.times()[:4])
    record = call()
    line = {"stage": stage, "begin": begin, "end": time.time(), "cpu": sum(os.times()[:4]) - cpu}
    print(json.dumps(line | {"record": record.model_dump(mode="json")}), flush=True)
    return record


def measure(num_rows: int, files: Iterable[Path], engine: EngineName) -> Figures:
    """The figures of each stage at this size, and of all together."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        corpus.write(file, num_rows, 0, files)
        home = {"TUNEWRIGHT_HOME": str(Path(folder) / "home")}
        seen = watch([sys.executable, __file__, "--run", str(file), "--engine", engine], home)
    found = {
        line["stage"]: {
            "seconds": line["end"] - line["begin"],
            "cpu": line["cpu"],
            "mb": seen.peak(line["begin"], line["end"]),
        }
        for line in seen.objects
    }
    account = {line["stage"]: line["record"] for line in seen.objects}
    print(said(num_rows, account), file=sys.stderr)
    found[ALL] = {
        "seconds": sum(figures["seconds"] for figures in found.values()),
        "cpu": sum(figures["cpu"] for figures in found.values()),
        "mb": max(figures["mb"] for figures in found.values()),
    }
    return found


def said(num_rows: int, records: dict[str, dict[str, Any]]) -> str:
    """Where the rows went. Raises SystemExit where that does not add up."""
    ingest, check, dedupe, split = (records[stage] for stage in STAGES)
    gone = {
        "refused": ingest["num_quarantined"],
        "set aside": check["num_quarantined"] + split["num_quarantined"],
        "removed": dedupe["num_removed"],
    }
    sides = {side: split[f"num_{side}"] for side in ("train", "validation", "test")}
    text = f"{num_rows:,} rows = " + " + ".join(f"{count:,} {name}" for name, count in (gone | sides).items())
    reasons = check["reasons"] | dedupe["reasons"] | split["reasons"]
    text += "".join(f"\n    {count:,} {reason}" for reason, count in reasons.items())
    if sum(gone.values()) + sum(sides.values()) != num_rows:
        raise SystemExit(f"the account does not add up: {text}")
    return text


def table(size: int, figures: dict[int, Figures]) -> str:
    """One line a stage at this size; `linear` is the CPU time a row, in that of the smallest size."""
    first = min(figures)
    lines = [f"{'rows':>10}  {'stage':<8}  {'seconds':>8}  {'CPU s':>8}  {'MB':>7}  {'linear':>6}"] * (size == first)
    for stage, found in figures[size].items():
        linear = found["cpu"] / size / (figures[first][stage]["cpu"] / first)
        numbers = f"{found['seconds']:>8.1f}  {found['cpu']:>8.1f}  {found['mb']:>7,.0f}  {linear:>6.2f}"
        lines.append(f"{size:>10,}  {stage:<8}  {numbers}")
    return "\n".join(lines)


def plot(figures: dict[int, Figures], file: Path) -> None:
    """Seconds and memory against rows, on logarithmic axes; dashed is what linear would be."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted(figures)
    _, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, name, label in ((axes[0], "seconds", "seconds"), (axes[1], "mb", "peak memory, MB")):
        for stage in (*STAGES, ALL):
            axis.loglog(sizes, [figures[size][stage][name] for size in sizes], marker="o", label=stage)
        start = figures[sizes[0]][ALL][name]
        axis.loglog(sizes, [start * size / sizes[0] for size in sizes], "--", color="grey", label="linear")
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.set(xlabel="rows", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    pyplot.savefig(file, dpi=150)


def failures(figures: dict[int, Figures]) -> list[str]:
    """Describe each exceeded limit of time or memory, at LIMIT_ROWS and below."""
    found = []
    for size, stages in figures.items():
        if size <= LIMIT_ROWS and stages[ALL]["seconds"] > LIMIT_SECONDS:
            found.append(f"{size:,} rows took {stages[ALL]['seconds']:.0f} s, over {LIMIT_SECONDS}")
        if size <= LIMIT_ROWS and stages[ALL]["mb"] > LIMIT_MB:
            found.append(f"{size:,} rows took {stages[ALL]['mb']:.0f} MB, over {LIMIT_MB:,}")
    return found


def main() -> None:
    """Prints the table and draws the plot; exits with 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--files", type=Path, nargs="*", default=(), help="JSONL whose sentences the text is made from")
    parser.add_argument("--engine", choices=get_args(EngineName), default="local", help="as data.engine")
    parser.add_argument("--plot", type=Path, help="where to draw the plot: a .png or .svg file")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        run_stages(given.run, given.engine)
        return
    figures: dict[int, Figures] = {}
    for size in sorted(given.sizes):
        figures[size] = measure(size, given.files, given.engine)
        print(table(size, figures), flush=True)  # now: the next size may take an hour
    if given.plot:
        plot(figures, given.plot)
    found = failures(figures)
    print("\n".join(f"does not hold: {failure}" for failure in found) or "all holds")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
