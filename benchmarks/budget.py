"""The memory that training takes, as the plan predicts it and as it is measured, method by method.

Each case trains two steps in a trainer process of its own on rows of random tokens: on a CPU the peak is that process's
largest resident set, and on a GPU torch's max_memory_allocated, which the runtime is no part of.

    .venv/bin/python benchmarks/budget.py               # the newest base of an earlier `make demo`, and a random model
    .venv/bin/python benchmarks/budget.py --base FOLDER --cases lora,full
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 2
# About 60 million parameters of another shape: wide, flat, no grouped heads, a small vocabulary, an untied head.
OTHER = {
    "vocab_size": 16_000,
    "hidden_size": 640,
    "intermediate_size": 2_560,
    "num_hidden_layers": 6,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2_048,
}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "lora-attention": {"kind": "lora", "target": "attention"},
    "dora": {"kind": "lora", "dora": True, "target": "attention"},
    "qlora": {"kind": "qlora"},
    "qlora-8": {"kind": "qlora", "bits": 8},
    "full": {"kind": "full"},
    "spectrum": {"kind": "spectrum"},
}
SIZES = ((4, 64, 8), (8, 128, 16), (8, 256, 128))  # rows, tokens of a row, labelled ones of them


@dataclass(frozen=True)
class Case:
    """The method, rows and compute settings of one training."""

    name: str
    method: dict[str, Any]
    rows: int
    length: int
    labelled: int
    micro_batch: int = 0
    compute: tuple[tuple[str, Any], ...] = ()


def cases(names: list[str]) -> Iterator[Case]:
    """Every method at every size, and what else changes memory at the middle one."""
    for name in names:
        for size in SIZES:
            yield Case(name, METHODS[name], *size)
    if "lora" in names:
        middle = SIZES[1]
        yield Case("lora, checkpointing", METHODS["lora"], *middle, compute=(("checkpointing", True),))
        yield Case("lora, padded", METHODS["lora"], *middle, compute=(("packing", False),))
        yield Case("lora, float32", METHODS["lora"], *middle, compute=(("precision", "float32"),))
        yield Case("lora, micro batch 2", METHODS["lora"], *middle, micro_batch=2)


def write_rows(case: Case, folder: Path) -> list[dict[str, Any]]:
    """Rows of random tokens that begin differently, as the trainer reads them; the training rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tunewright.artifacts import IGNORED, TOKEN_SCHEMA

    drawn, asked = random.Random(0), case.length - case.labelled
    rows = [
        {
            "row_id": str(number),
            "cluster": number,
            "input_ids": (ids := [10 + number, *(drawn.randrange(10, 900) for _ in range(case.length - 1))]),
            "labels": [IGNORED] * asked + ids[asked:],
            "prompt_length": asked,
            "reference": "",
        }
        for number in range(case.rows * STEPS)
    ]
    pq.write_table(pa.Table.from_pylist(rows, TOKEN_SCHEMA), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1], TOKEN_SCHEMA), folder / "validation.parquet")
    return rows


def compare(case: Case, weights: Path) -> dict[str, Any]:
    """Predicted and measured bytes of one case."""
    from tunewright.config import Compute, Method, Training
    from tunewright.cost_model import memory, shapes, work
    from tunewright.modeling import compute as speed
    from tunewright.modeling import micro_batching
    from tunewright.tasks.train.trainer import Job

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_rows(case, folder)
        method, compute = Method(**case.method), Compute(threads=1, **dict(case.compute))
        training = Training(batch=case.rows, max_steps=STEPS)
        job = Job(
            weights=weights,
            train=folder / "train.parquet",
            validation=folder / "validation.parquet",
            pad_token_id=0,
            stop_token_ids=(0,),
            reference="base",
            method=method,
            modules=_modules(weights, method),
            training=training,
            compute=compute,
            micro_batch=case.micro_batch or case.rows,
        )
        (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        measured = run(folder)
    device = speed.device_here()
    chosen = speed.choose(shapes.config_in(weights), method, training, compute, case.length, device)
    shape = shapes.shape_in(weights)
    a_group = micro_batching.group_cost(device.kind, compiled=chosen.compile)
    micro_batches = work.loads(rows[: case.rows], chosen.layout, job.micro_batch, compute.max_tokens, a_group)
    predicted = max(
        (memory.memory(shape, method, chosen, load, device.kind) for load in micro_batches), key=lambda m: m.peak
    )
    expected = predicted.peak - (predicted.runtime if device.kind == "cuda" else 0)
    return {
        "predicted_gb": round(expected / 1e9, 3),
        "measured_gb": round(measured / 1e9, 3),
        "error": round(expected / measured - 1, 3),
        "parts_mb": {name: round(value / 1e6) for name, value in predicted.parts.items()},
    }


def _modules(weights: Path, method: Any) -> tuple[str, ...]:
    """As many modules as spectrum trains, without its scan: the prediction knows their sizes only."""
    from tunewright.cost_model import learning, shapes

    if method.kind != "spectrum":
        return ()
    return tuple(sorted(matrix.path for matrix in learning.learning(shapes.shape_in(weights), method).matrices))


def run(folder: Path) -> int:
    """Trains the job in the folder, and returns its peak in bytes."""
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "tunewright.tasks.train.trainer", str(folder / "job.json")]
    with (folder / "trainer.log").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit((folder / "trainer.log").read_text(encoding="utf-8", errors="replace")[-2_000:])
    import torch

    if not torch.cuda.is_available():
        return usage.ru_maxrss * 1024
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(json.loads(line).get("memory_bytes", 0) for line in lines)


def random_model(folder: Path) -> Path:
    """A model of OTHER's shape with random weights, in bfloat16, and a tokenizer."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**OTHER)).to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "a": 1}, unk_token="<pad>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<pad>").save_pretrained(folder)
    return folder


def main() -> None:
    """Prints one line a case, and the largest error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="A folder with safetensors; the newest of the home by default")
    parser.add_argument("--cases", default=",".join(METHODS), help=f"Of {', '.join(METHODS)}")
    parser.add_argument("--only", choices=["base", "other"], help="Only the base, or only the random model")
    parser.add_argument("--parts", action="store_true", help="Show the prediction part by part")
    arguments = parser.parse_args()

    from tunewright import config

    config.quiet_libraries()
    home = config.home() / "artifacts" / "base"
    base = arguments.base or next(iter(sorted(home.glob("*/weights"), key=lambda f: f.stat().st_mtime)[-1:]), None)
    with tempfile.TemporaryDirectory() as name:
        models = {} if arguments.only == "other" or not base else {"base": base}
        if arguments.only != "base":
            models["other"] = random_model(Path(name))
        errors = [
            one(model, weights, case, arguments.parts)
            for model, weights in models.items()
            for case in cases(arguments.cases.split(","))
        ]
    print(f"largest error {max(map(abs, errors)):.1%} of {len(errors)} cases")


def one(model: str, weights: Path, case: Case, parts: bool) -> float:
    """Compares one case and prints it."""
    found = compare(case, weights)
    what = f"{model:<6}{case.name:<22}{case.rows} x {case.length}, {case.labelled} labelled"
    print(
        f"{what:<58}{found['predicted_gb']:>7} GB predicted {found['measured_gb']:>7} GB measured "
        f"{found['error']:>+8.1%}",
        found["parts_mb"] if parts else "",
        flush=True,
    )
    return found["error"]


if __name__ == "__main__":
    main()
