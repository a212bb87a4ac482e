"""How many of the wrong answers that were put into the demo's rows label_errors lists, and how many right ones.

In a share of the rows one value of the JSON answer is exchanged for that of another row. The stage is that of a run,
with the base and the steps of the demo. Average precision is of all rows by log_odds, and by the loss.

    .venv/bin/python benchmarks/label_errors.py
"""

import argparse
import datetime
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pipelines
import pyarrow.parquet as pq


def with_errors(share: float, seed: int) -> list[dict[str, Any]]:
    """The demo's rows in JSON answers, each with whether it is `wrong`."""
    lines = (pipelines.DEMO.parent / "demo" / "messages.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    answers = [json.loads(row["output"]) for row in rows]
    drawn = random.Random(seed)
    for at in drawn.sample(range(len(rows)), round(share * len(rows))):
        other = drawn.choice([answer for answer in answers if answer != answers[at]])
        key = drawn.choice([key for key in other if other[key] != answers[at][key]])
        rows[at] |= {"output": json.dumps(answers[at] | {key: other[key]}, ensure_ascii=False), "wrong": True}
    return rows


def listed(folder: Path, folds: int) -> list[dict[str, Any]]:
    """The rows of label_errors.parquet of a run on rows.jsonl in the folder."""
    file = folder / "bench.yaml"
    pipelines.write(file, pipelines.demo() | {"data": {"sources": [{"path": "rows.jsonl"}]}})
    changes = (f"checks.label_error_folds={folds}", "dedupe.near=false", "registry.name=bench")
    found = pipelines.run(file, folder / "home", *changes, until="label_errors")
    return pq.read_table(found["label_errors"]["rows"]).to_pylist()


def average_precision(scores: Sequence[float], wrong: Sequence[bool]) -> float:
    """The mean precision at each wrong row, in falling order of the scores."""
    ranked = [is_wrong for _, is_wrong in sorted(zip(scores, wrong, strict=True), key=lambda each: -each[0])]
    precisions = [sum(ranked[: at + 1]) / (at + 1) for at, is_wrong in enumerate(ranked) if is_wrong]
    return sum(precisions) / len(precisions)


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.05, help="of the rows whose answer is made wrong")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = with_errors(options.share, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        found = listed(Path(folder), options.folds)
    wrong = [bool(rows[row["line"] - 1].get("wrong")) for row in found]
    likely = [is_wrong for row, is_wrong in zip(found, wrong, strict=True) if row["likely"]]
    print(
        json.dumps(
            {
                "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "training_rows": len(found),
                "wrong": sum(wrong),
                "likely": len(likely),
                "precision": round(sum(likely) / max(1, len(likely)), 2),
                "recall": round(sum(likely) / max(1, sum(wrong)), 2),
                "average_precision": round(average_precision([row["log_odds"] for row in found], wrong), 3),
                "average_precision_by_loss": round(average_precision([row["loss"] for row in found], wrong), 3),
                "got_the_given_answer": round(sum(r["answer"] == r["reference"] for r in found) / len(found), 2),
            }
        )
    )


if __name__ == "__main__":
    main()
