"""Pairs a second of preference training by DPO: ours, TRL's DPOTrainer with its defaults, and tuned to this machine.

Three real trainers in a process each train the same adapter of the same model on the same pairs, and take turns of a
few steps, as in benchmarks/training.py. TRL computes the reference in each step; ours does once before the first, and
that time is counted as for one epoch: for each pair of a step, its share.

    .venv/bin/tunewright run deployments/preferences.yaml --until render
    .venv/bin/python benchmarks/preferences.py
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from training import arguments_of_all, newest, take_turns, turns_of

SIDES = ("ours", "trl", "trl_tuned")  # tuned: in ours' precision, without gradient checkpointing
COLUMNS = ["input_ids", "labels", "prompt_length", "rejected_ids"]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def pairs_of(tokens: Path, number: int) -> list[dict[str, Any]]:
    """The first pairs of a render artifact."""
    rows = pq.read_table(tokens / "train.parquet", columns=COLUMNS).to_pylist()
    return [row for row in rows if row["rejected_ids"] is not None][:number]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Lets the sides take turns."""
    names = ("tokens", "weights", "batch", "steps", "turns", "rows", "threads")
    command = [sys.executable, __file__, *(f"--{name}={getattr(options, name)}" for name in names)]
    seconds, ends = take_turns(command, SIDES, options.turns)
    reference = ends["ours"]["reference_seconds_a_pair"] * options.batch * options.steps
    ours = [taken + reference for taken in seconds["ours"]]
    return {
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load": os.getloadavg()[0],
        "pairs_per_second": {
            side: round(options.batch * options.steps / statistics.median(taken), 2)
            for side, taken in (seconds | {"ours": ours}).items()
        },
        "ratio": {side: _ratio(ours, seconds[side]) for side in SIDES[1:]},
        "ratio_without_reference": {side: _ratio(seconds["ours"], seconds[side]) for side in SIDES[1:]},
        "loss": {side: round(end["loss"], 4) for side, end in ends.items()},
    }


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(b / a for a, b in zip(ours, theirs, strict=True)), 2)


def run_side(options: argparse.Namespace) -> None:
    """One side's process: trains turn by turn; then its mean loss in the last turn."""
    import torch
    from transformers import set_seed

    torch.set_num_threads(options.threads)
    set_seed(0)
    pairs = pairs_of(options.tokens, options.rows)
    reference = 0.0
    if options.side == "ours":
        trainer, reference = our_trainer(pairs, options)
    else:
        trainer = trl_trainer(pairs, options)
    trainer.add_callback(turns_of(options))
    trainer.train()
    sys.stdin.readline()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    end = {"loss": statistics.fmean(losses[-options.steps :]), "reference_seconds_a_pair": reference}
    print(json.dumps(end), flush=True)


def our_trainer(pairs: list[dict[str, Any]], options: argparse.Namespace) -> tuple[Any, float]:
    """The trainer that the stage prefer creates with its defaults, and the seconds of the reference for each pair."""
    import datasets
    from transformers import AutoConfig, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig

    from tunewright.config import Compute, Method, Preference, Training
    from tunewright.modeling import compute, methods
    from tunewright.modeling.objectives import PairObjective
    from tunewright.modeling.preferences import PairCollator
    from tunewright.tasks.train.trainer import reference
    from tunewright.tasks.train.trainer.observed import AnswerTrainer
    from tunewright.tasks.train.trainer.preparing import prepare

    config = AutoConfig.from_pretrained(options.weights)
    longest = max(len(pair["input_ids"]) + len(pair["rejected_ids"]) for pair in pairs)
    chosen = compute.choose(config, Method(), Training(), Compute(), longest, compute.device_here())
    model = methods.load_trainable(options.weights, Method(), chosen)
    prepare(model, chosen)
    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    collator = PairCollator(chosen.layout, tokenizer.pad_token_id, options.batch)
    rows = datasets.Dataset.from_list(pairs)
    trainer = AnswerTrainer(
        model=model,
        objective=PairObjective(Preference(method="dpo")),
        args=SFTConfig(
            **arguments_of_all(options),
            bf16=chosen.precision == "bfloat16",
            gradient_checkpointing=chosen.checkpointing,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            logging_steps=1,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=collator,
    )
    began = time.perf_counter()
    folder = Path(str(trainer.args.output_dir))
    (trainer.train_dataset,) = reference.added(folder, trainer, collator, [rows], lambda: None)
    return trainer, (time.perf_counter() - began) / len(pairs)


def trl_trainer(pairs: list[dict[str, Any]], options: argparse.Namespace) -> Any:
    """DPOTrainer on the same texts, with its defaults or tuned."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from tunewright.modeling.pairs import answers_of

    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    texts = []
    for pair in pairs:
        chosen, rejected = map(tokenizer.decode, answers_of(pair))
        prompt = tokenizer.decode(pair["input_ids"][: pair["prompt_length"]])
        # It adds the stop token itself.
        ends = {"chosen": chosen, "rejected": rejected}
        texts.append({"prompt": prompt} | {name: text.removesuffix(tokenizer.eos_token) for name, text in ends.items()})
    from tunewright.modeling.compute import device_here

    tuned: dict[str, Any] = {"bf16": device_here().has_bfloat16, "gradient_checkpointing": False}
    return DPOTrainer(
        model=str(options.weights),
        args=DPOConfig(**arguments_of_all(options), logging_steps=1, **(tuned if options.side == "trl_tuned" else {})),
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA),
    )


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    home = Path(os.environ.get("TUNEWRIGHT_HOME") or ".tunewright")
    parser.add_argument("--home", type=Path, default=home)
    parser.add_argument("--tokens", type=Path, help="folder of a render artifact; the newest of the home")
    parser.add_argument("--weights", type=Path, help="folder of the base's weights; the newest of the home")
    parser.add_argument("--batch", type=int, default=8, help="pairs of a step")
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--turns", type=int, default=6, help="that are measured")
    parser.add_argument("--rows", type=int, default=240, help="pairs, at most")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2)))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.tokens = options.tokens or newest(options.home, "render")
    options.weights = options.weights or newest(options.home, "base") / "weights"
    if options.side:
        run_side(options)
    else:
        print(json.dumps(compare(options), indent=1))


if __name__ == "__main__":
    main()
