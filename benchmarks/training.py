"""Rows a second of a training step, with what all rows begin with computed once and with padded rows.

Both sides take turns on the same batches of the demo's rows in one process, so that a busy machine slows both; the
figure is the median of the ratios of neighbouring steps. The loss of each pair is compared as well.

    .venv/bin/python benchmarks/training.py            # needs an earlier `make demo`, whose base and rows it reads
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any


def newest(home: Path, stage: str) -> Path:
    """The folder of a stage's newest artifact."""
    found = sorted((home / "artifacts" / stage).glob("*/manifest.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise SystemExit(f"no artifact of {stage} in {home}: run `make demo` first")
    return found[-1].parent


def step(model: Any, batch: Any) -> tuple[float, float]:
    """Forward and backward of one batch: seconds and loss."""
    import torch

    from tasks.batches import answer_loss
    from tasks.methods import has_bfloat16

    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
        loss = answer_loss(model, batch)
    loss.backward()
    model.zero_grad()
    return time.perf_counter() - started, loss.item()


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("TUNEWRIGHT_HOME", ".tunewright")))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()

    from tasks import config

    config.quiet_libraries()
    import pyarrow.parquet as pq

    from tasks import batches, methods
    from tasks.config import Method

    tokens, base = newest(arguments.home, "render"), newest(arguments.home, "base")
    rows = pq.read_table(tokens / "train.parquet", columns=["input_ids", "labels"]).to_pylist()
    pad = json.loads((tokens / "contract.json").read_text(encoding="utf-8"))["pad_token_id"]
    model = methods.load_trainable(base / "weights", Method()).train()
    groups = [rows[start : start + arguments.batch] for start in range(0, len(rows), arguments.batch)]
    shared, plain, losses = [], [], []
    for group in groups[: arguments.steps + 1]:
        model.set_attn_implementation(batches.ATTENTION)
        seconds, loss = step(model, batches.shared_batch(group))
        model.set_attn_implementation("sdpa")
        other_seconds, other_loss = step(model, batches.plain_batch(group, pad))
        shared.append(seconds)
        plain.append(other_seconds)
        losses.append(abs(loss - other_loss) / other_loss)
    shared, plain = shared[1:], plain[1:]  # the first pair warms up
    print(
        json.dumps(
            {
                "shared_rows_per_second": round(arguments.batch / statistics.median(shared), 2),
                "plain_rows_per_second": round(arguments.batch / statistics.median(plain), 2),
                "ratio": round(statistics.median(b / a for a, b in zip(shared, plain, strict=True)), 2),
                "largest_relative_loss_difference": round(max(losses), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
