"""Pairs a second of preference training: ours, TRL's trainer with its defaults, and tuned to this machine.

Three real trainers in a process each train the same adapter of the same model on the same pairs, and take turns of a
few steps, as in benchmarks/training.py. TRL computes the reference in each step; ours does once before the first, and
that time is counted as for one epoch: for each pair of a step, its share. ORPO has none. With --method kto each pair is
a desirable and an undesirable answer, a row each; the two sides draw different mismatched answers, so that losses
differ a little.

    .venv/bin/tunewright run deployments/preferences.yaml --until render
    .venv/bin/python benchmarks/preferences.py --method dpo
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
COLUMNS = ["row_id", "input_ids", "labels", "prompt_length", "rejected_ids", "replay"]
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def pairs_of(tokens: Path, number: int) -> list[dict[str, Any]]:
    """The first pairs of a render artifact."""
    rows = pq.read_table(tokens / "train.parquet", columns=COLUMNS).to_pylist()
    return [row for row in rows if row["rejected_ids"] is not None][:number]


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of the training: pairs, or their answers with labels."""
    from tunewright.modeling.unpaired import labelled

    pairs = pairs_of(options.tokens, options.rows)
    return labelled(pairs, []) if options.method == "kto" else pairs


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Lets the sides take turns."""
    names = ("method", "tokens", "weights", "batch", "steps", "turns", "rows", "threads")
    command = [sys.executable, __file__, *(f"--{name}={getattr(options, name)}" for name in names)]
    seconds, ends = take_turns(command, SIDES, options.turns)
    reference = ends["ours"]["reference_seconds_a_row"] * options.batch * options.steps
    ours = [taken + reference for taken in seconds["ours"]]
    return {
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load": os.getloadavg()[0],
        "method": options.method,
        "rows_per_second": {
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
    rows = rows_of(options)
    reference = 0.0
    if options.side == "ours":
        trainer, reference = our_trainer(rows, options)
    else:
        trainer = trl_trainer(rows, options)
    trainer.add_callback(turns_of(options))
    trainer.train()
    sys.stdin.readline()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    end = {"loss": statistics.fmean(losses[-options.steps :]), "reference_seconds_a_row": reference}
    print(json.dumps(end), flush=True)


def our_trainer(rows: list[dict[str, Any]], options: argparse.Namespace) -> tuple[Any, float]:
    """The trainer that the stage prefer creates with its defaults, and the seconds of the reference for each row."""
    import datasets
    from transformers import AutoConfig, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig

    from tunewright.config import Compute, Method, Preference, Training
    from tunewright.modeling import compute, methods
    from tunewright.modeling.objectives import LabelObjective, PairObjective
    from tunewright.modeling.preferences import PairCollator
    from tunewright.modeling.unpaired import LabelledCollator
    from tunewright.tasks.train.trainer import reference
    from tunewright.tasks.train.trainer.answer_trainer import AnswerTrainer
    from tunewright.tasks.train.trainer.preparing import prepare

    config = AutoConfig.from_pretrained(options.weights)
    longest = max(len(row["input_ids"]) + len(row["rejected_ids"]) for row in rows)
    chosen = compute.choose(config, Method(), Training(), Compute(), longest, compute.device_here())
    model = methods.load_trainable(options.weights, Method(), chosen)
    prepare(model, chosen)
    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    laid: Any = (chosen.layout, tokenizer.pad_token_id, options.batch)
    of_pairs, of_answers = PairCollator(*laid), LabelledCollator(*laid)
    objective = LabelObjective if options.method == "kto" else PairObjective
    data_set, settings = datasets.Dataset.from_list(rows), Preference(method=options.method)
    trainer = AnswerTrainer(
        model=model,
        objective=objective(settings),
        args=SFTConfig(
            **arguments_of_all(options),
            bf16=chosen.precision == "bfloat16",
            gradient_checkpointing=chosen.checkpointing,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            logging_steps=1,
        ),
        train_dataset=data_set,
        processing_class=tokenizer,
        data_collator=of_answers if options.method == "kto" else of_pairs,
    )
    if not settings.needs_reference:
        return trainer, 0.0
    began = time.perf_counter()
    folder = Path(str(trainer.args.output_dir))
    (trainer.train_dataset,) = reference.added(folder, trainer, of_pairs, [data_set], lambda _: None)
    return trainer, (time.perf_counter() - began) / len(rows)


def trl_trainer(rows: list[dict[str, Any]], options: argparse.Namespace) -> Any:
    """TRL's trainer of the method on the same texts, with its defaults or tuned."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    from tunewright.modeling.compute import device_here
    from tunewright.modeling.pairs import answers_of

    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    texts = []
    for row in rows:
        # It adds the stop token itself.
        one, other = (tokenizer.decode(each).removesuffix(tokenizer.eos_token) for each in answers_of(row))
        answers = {"chosen": one, "rejected": other}
        if options.method == "kto":
            answers = {"completion": one, "label": row["desirable"]}
        texts.append({"prompt": tokenizer.decode(row["input_ids"][: row["prompt_length"]])} | answers)
    more: dict[str, Any] = {"train_sampling_strategy": "sequential"} if options.method == "kto" else {}
    if options.side == "trl_tuned":
        more |= {"bf16": device_here().has_bfloat16, "gradient_checkpointing": False}
    kinds: dict[str, tuple[Any, Any]] = {
        "dpo": (DPOTrainer, DPOConfig),
        "kto": (KTOTrainer, KTOConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
    }
    trainer_of, config_of = kinds[options.method]
    return trainer_of(
        model=str(options.weights),
        args=config_of(**arguments_of_all(options), logging_steps=1, **more),
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA),
    )


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("dpo", "kto", "orpo"), default="dpo")
    home = Path(os.environ.get("TUNEWRIGHT_HOME") or ".tunewright")
    parser.add_argument("--home", type=Path, default=home)
    parser.add_argument("--tokens", type=Path, help="folder of a render artifact; the newest of the home")
    parser.add_argument("--weights", type=Path, help="folder of the base's weights; the newest of the home")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
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
