"""Rows a second of a training run: ours, TRL as its quick start has it, and TRL tuned by its own documentation.

Three real trainers in a process each train the same model on the same rows, batch and adapter. They take turns of a few
steps, so that a busy machine slows all; a ratio is the median over turns. Then all are evaluated by the same code.

    .venv/bin/python benchmarks/training.py            # needs an earlier `make demo`, whose base and rows it reads
    .venv/bin/python benchmarks/training.py --tokens RENDER_FOLDER ... --weights FOLDER
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIDES = ("ours", "trl", "trl_tuned")
COLUMNS = ["input_ids", "labels", "prompt_length"]


def newest(home: Path, stage: str) -> Path:
    """The folder of a stage's newest artifact."""
    found = sorted((home / "artifacts" / stage).glob("*/manifest.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise SystemExit(f"no artifact of {stage} in {home}: run `make demo` first")
    return found[-1].parent


def compare(tokens: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Lets the sides take turns on the rows of a render artifact."""
    command = [sys.executable, __file__, "--tokens", str(tokens), "--weights", str(options.weights)]
    command += [
        f"--{name}={getattr(options, name)}" for name in ("batch", "steps", "turns", "rows", "threads", "evaluated")
    ]
    seconds, results = take_turns(command, SIDES, options.turns)
    rate = {side: options.batch * options.steps / statistics.median(taken) for side, taken in seconds.items()}
    return {
        "rows": tokens.name,
        "load": os.getloadavg()[0],
        "steps": options.steps * (options.turns + 1),
        "rows_per_second": {side: round(value, 2) for side, value in rate.items()},
        "ratio": {
            side: round(statistics.median(b / a for a, b in zip(seconds["ours"], seconds[side], strict=True)), 2)
            for side in SIDES[1:]
        },
        "validation_loss": {side: round(result["loss"], 4) for side, result in results.items()},
        "process_seconds_a_step": {side: round(result["cpu_seconds"], 2) for side, result in results.items()},
    }


def take_turns(
    command: Sequence[str], sides: Sequence[str], turns: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, Any]]]:
    """Has a process of each side train turn by turn: the seconds of each turn, and what each side says at its end."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "PYTHONPATH": str(Path(__file__).parents[1])}
    processes = {
        side: subprocess.Popen(
            [*command, "--side", side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for side in sides
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(turns + 1):
        for side, process in processes.items():
            elapsed = _ask(side, process)["seconds"]
            if turn:  # the first warms up
                seconds[side].append(elapsed)
    results = {side: _ask(side, process) for side, process in processes.items()}
    for process in processes.values():
        process.wait()
    return seconds, results


def _ask(side: str, process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdin and process.stdout
    with contextlib.suppress(BrokenPipeError):  # it has ended, which is said below
        process.stdin.write("go\n")
        process.stdin.flush()
    for line in process.stdout:
        if line.startswith('{"'):  # the trainers print too
            return json.loads(line)
    raise SystemExit(f"{side} ended with {process.wait()}; -9 is want of memory, of which a lower --batch takes less")


def turns_of(options: argparse.Namespace) -> Any:
    """A callback that waits for its turn, trains `steps` steps, and says how long they took."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        cpu_seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % options.steps == 0:
                if not sys.stdin.readline():
                    sys.exit("the benchmark that asks is gone")
                self.began, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % options.steps == 0:
                self.cpu_seconds = (time.process_time() - self.cpu) / options.steps
                print(json.dumps({"seconds": time.perf_counter() - self.began}), flush=True)

    return Turns()


def run_side(options: argparse.Namespace) -> None:
    """One side's process: trains turn by turn, then evaluates."""
    import pyarrow.parquet as pq
    import torch
    from transformers import set_seed

    torch.set_num_threads(options.threads)
    set_seed(0)
    side = {
        name: pq.read_table(options.tokens[0] / f"{name}.parquet", columns=COLUMNS).to_pylist()
        for name in ("train", "validation")
    }
    rows = side["train"][: options.rows]
    turns = turns_of(options)
    trainer = our_trainer(rows, options) if options.side == "ours" else trl_trainer(rows, options)
    trainer.add_callback(turns)
    trainer.train()
    sys.stdin.readline()
    loss = validation_loss(trainer.model, side["validation"][: options.evaluated])
    print(json.dumps({"loss": loss, "cpu_seconds": turns.cpu_seconds}), flush=True)


def arguments_of_all(options: argparse.Namespace) -> dict[str, Any]:
    """Return the training arguments common to all trainers."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": options.batch,
        "max_steps": options.steps * (options.turns + 1),
        "learning_rate": 2e-4,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        "use_cpu": True,
    }


def our_trainer(rows: Sequence[Any], options: argparse.Namespace) -> Any:
    """Return the trainer that the train stage creates with its defaults."""
    import datasets
    from transformers import AutoConfig, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig

    from tunewright.config import Compute, Method, Training
    from tunewright.modeling import compute, methods
    from tunewright.modeling.batches import Collator
    from tunewright.tasks.train.trainer.answer_trainer import AnswerTrainer
    from tunewright.tasks.train.trainer.preparing import prepare

    config = AutoConfig.from_pretrained(options.weights)
    longest = max(len(row["input_ids"]) for row in rows)
    chosen = compute.choose(config, Method(), Training(), Compute(), longest, compute.device_here())
    model = methods.load_trainable(options.weights, Method(), chosen)
    prepare(model, chosen)
    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    return AnswerTrainer(
        model=model,
        args=SFTConfig(
            **arguments_of_all(options),
            bf16=chosen.precision == "bfloat16",
            gradient_checkpointing=chosen.checkpointing,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
        ),
        train_dataset=datasets.Dataset.from_list([{name: row[name] for name in COLUMNS[:2]} for row in rows]),
        processing_class=tokenizer,
        data_collator=Collator(chosen.layout, tokenizer.pad_token_id, options.batch),
    )


def trl_trainer(rows: Sequence[Any], options: argparse.Namespace) -> Any:
    """SFTTrainer on the same texts. Its documentation's ways to train faster that a CPU has: bfloat16 weights, no
    gradient checkpointing, batches of like length; padding-free batches and packing need FlashAttention, Liger a GPU.
    """
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    texts = [
        {
            "prompt": tokenizer.decode(row["input_ids"][: row["prompt_length"]]),
            "completion": tokenizer.decode(row["input_ids"][row["prompt_length"] :]).rstrip("\n"),
        }
        for row in rows
    ]
    tuned: dict[str, Any] = {}
    if options.side == "trl_tuned":
        tuned = {
            "model_init_kwargs": {"dtype": "bfloat16"},
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
        }
    return SFTTrainer(
        model=str(options.weights),
        args=SFTConfig(**arguments_of_all(options), **tuned),
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


def validation_loss(model: Any, rows: Sequence[Any]) -> float:
    """The mean over all labels, in nats per token, of padded rows: the same code for all sides."""
    import torch

    from tunewright.modeling.batches import answer_loss, num_labels, padded

    model.eval()
    model.set_attn_implementation("sdpa")
    total, num_items = 0.0, 0
    for start in range(0, len(rows), 16):
        batch = padded(rows[start : start + 16], 0)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            total += answer_loss(model, batch, 1).item()
        num_items += num_labels(batch)
    return total / num_items


def main() -> None:
    """Prints one JSON object for each folder of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("TUNEWRIGHT_HOME") or ".tunewright"))
    parser.add_argument("--tokens", type=Path, nargs="*", help="folders of render's artifacts; the newest by default")
    parser.add_argument("--weights", type=Path, help="the base model; the newest artifact's by default")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="steps of one turn")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2_000, help="training rows to draw from")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--evaluated", type=int, default=200, help="validation rows")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.tokens = options.tokens or [newest(options.home, "render")]
    options.weights = options.weights or newest(options.home, "base") / "weights"
    from tunewright import config

    config.quiet_libraries()
    if options.side:
        run_side(options)
        return
    for tokens in options.tokens:
        print(json.dumps(compare(tokens, options), indent=1), flush=True)


if __name__ == "__main__":
    main()
