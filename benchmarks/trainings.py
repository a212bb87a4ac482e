"""Trainings by the trainer's own process, and what their models answer: what several benchmarks share."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tunewright.config import Compute, Training


def job_of(base: Path, tokens: Path, *, steps: int, batch: int, rate: float, **others: Any) -> Any:
    """A job of so many steps on the rows of a folder that render made, whose validation rows are read at the end.

    `others` are further fields of `training`, and those of the job but for these; `micro_batch` is `batch` by default.
    """
    from tunewright.tasks.train.trainer import Job

    of_training = {name: others.pop(name) for name in [*others] if name in Training.model_fields}
    training = Training(
        learning_rate=rate, max_steps=steps, evaluate_every=steps, batch=batch, patience=None, **of_training
    )
    fields = {"modules": (), "compute": Compute(), "micro_batch": batch} | others
    return Job.of(base, tokens, reference=str(base), training=training, **fields)


class Judge:
    """Asks a model: the loss on the validation rows and the exact match on the test rows."""

    def __init__(self, base: Path, tokens: Path, contract: dict[str, Any], rows: int | None) -> None:
        import pyarrow.parquet as pq
        from transformers import AutoTokenizer

        from tunewright.tasks.train.trainer.watch import Scores

        self.base, self.pad = base, contract["pad_token_id"]
        self.validation = pq.read_table(tokens / "validation.parquet").slice(0, rows).to_pylist()
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self.exact = Scores(tokens / "test.parquet", tokenizer, contract["stop_token_ids"], "exact_match", 16)
        self.exact.rows = self.exact.rows[:rows]

    def __call__(self, model: Path | None) -> tuple[float, float]:
        """Loss in nats per token, and share of exact answers."""
        import torch

        from tunewright.modeling.batches import answer_loss, num_labels, padded
        from tunewright.serving import load_weights

        device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = load_weights(self.base, model, dtype=torch.float32).to(device)
        total, labels = 0.0, 0
        with torch.inference_mode():
            for start in range(0, len(self.validation), 16):
                batch = padded(self.validation[start : start + 16], self.pad)
                batch["inputs"] = {name: tensor.to(device) for name, tensor in batch["inputs"].items()}
                total += answer_loss(loaded, batch, 1).item()
                labels += num_labels(batch)
            return total / labels, self.exact(loaded, lambda: False)


def train(job: Any, folder: Path) -> tuple[float, float, int]:
    """Seconds, seconds of CPU and peak memory of the trainer's process. Ends the benchmark where it fails."""
    import torch

    folder.mkdir()
    (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    started = time.perf_counter()
    with (folder / "trainer.log").open("w") as log:
        command = [sys.executable, "-m", "tunewright.tasks.train.trainer", str(folder / "job.json")]
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    seconds, cpu_seconds = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    if status:
        raise SystemExit((folder / "trainer.log").read_text(encoding="utf-8")[-2_000:])
    if not torch.cuda.is_available():
        return seconds, cpu_seconds, usage.ru_maxrss * 1024
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return seconds, cpu_seconds, max(json.loads(line).get("memory_bytes", 0) for line in lines)
