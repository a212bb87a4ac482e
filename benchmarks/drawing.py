"""Answers a second of training on rewards (GRPO): ours, TRL's trainer with its defaults, and tuned to this machine.

Three real trainers in a process each train the same adapter of the same model on the same prompts, with the same reward
(chrF with the reference) and the same number of answers to each prompt, and take turns of a few steps, as in
benchmarks/training.py. The sides draw other answers, so their lengths are printed beside: where they differ much, so do
the tokens that were computed.

    .venv/bin/tunewright run deployments/demo.yaml --until render
    .venv/bin/python benchmarks/drawing.py
"""

import argparse
import datetime
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from training import arguments_of_all, newest, take_turns, turns_of

SIDES = ("ours", "trl", "trl_tuned")  # tuned: in ours' precision, without gradient checkpointing
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
LENGTHS = {"ours": "answer_tokens", "trl": "completions/mean_length", "trl_tuned": "completions/mean_length"}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Lets the sides take turns."""
    names = ("tokens", "weights", "prompts", "group", "longest", "steps", "turns", "rows", "threads")
    command = [sys.executable, __file__, *(f"--{name}={getattr(options, name)}" for name in names)]
    seconds, ends = take_turns(command, SIDES, options.turns)
    answers = options.prompts * options.group * options.steps
    ours = seconds["ours"]
    return {
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "load": os.getloadavg()[0],
        "answers_per_second": {side: round(answers / statistics.median(taken), 2) for side, taken in seconds.items()},
        "ratio": {
            side: round(statistics.median(b / a for a, b in zip(ours, seconds[side], strict=True)), 2)
            for side in SIDES[1:]
        },
        "tokens_of_an_answer": {side: round(end["tokens"], 1) for side, end in ends.items()},
    }


def run_side(options: argparse.Namespace) -> None:
    """One side's process: trains turn by turn; then the mean length of its answers."""
    import torch
    from transformers import set_seed

    torch.set_num_threads(options.threads)
    set_seed(0)
    trainer = our_trainer(options) if options.side == "ours" else trl_trainer(options)
    trainer.add_callback(turns_of(options))
    trainer.train()
    sys.stdin.readline()
    lengths = [line[LENGTHS[options.side]] for line in trainer.state.log_history if LENGTHS[options.side] in line]
    print(json.dumps({"tokens": statistics.fmean(lengths)}), flush=True)


def our_trainer(options: argparse.Namespace) -> Any:
    """The trainer that the stage reinforce creates with its defaults."""
    import datasets
    from transformers import AutoConfig, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig

    from tunewright.artifacts.payloads import Contract
    from tunewright.config import Compute, Grpo, Method, Training
    from tunewright.metrics.rewards import Rewards
    from tunewright.modeling import compute, methods
    from tunewright.modeling.groups import DrawnCollator
    from tunewright.modeling.objectives import RewardObjective
    from tunewright.tasks.train.trainer.drawing import Drawing, RewardTrainer
    from tunewright.tasks.train.trainer.preparing import prepare
    from tunewright.tasks.train.trainer.rows import prompts_in
    from tunewright.tasks.train.trainer.watch import Watch

    grpo = Grpo(rewards={"chrf": 1}, group=options.group, batch=options.prompts, max_new_tokens=options.longest)
    answers = options.prompts * options.group
    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    drawing = Drawing(
        grpo,
        Rewards(grpo.rewards, ""),
        [
            prompts_in(options.tokens / "train.parquet")[: options.rows],
            prompts_in(options.tokens / "train.parquet")[:1],
        ],
        tokenizer=tokenizer,
        stops=Contract.load_from(options.tokens).stop_token_ids,
        seed=0,
        batch=answers,
    )
    config = AutoConfig.from_pretrained(options.weights)
    chosen = compute.choose(config, Method(), Training(), Compute(), drawing.longest, compute.device_here())
    model = methods.load_trainable(options.weights, Method(), chosen)
    prepare(model, chosen)
    given = argparse.Namespace(**vars(options) | {"batch": options.prompts})
    return RewardTrainer(
        drawing=drawing,
        collator=DrawnCollator(chosen.layout, tokenizer.pad_token_id, answers),
        folder=Path(arguments_of_all(given)["output_dir"]),
        training=Training(),
        planned=options.steps * (options.turns + 1),
        measures_start=False,
        objective=RewardObjective(grpo),
        watch=Watch((), "grpo"),
        is_interrupted=lambda: False,
        scores=None,
        model=model,
        args=SFTConfig(
            **arguments_of_all(given),
            bf16=chosen.precision == "bfloat16",
            gradient_checkpointing=chosen.checkpointing,
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            logging_steps=1,
        ),
        train_dataset=datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in drawing.train]),
        eval_dataset=datasets.Dataset.from_list([{"input_ids": row["input_ids"]} for row in drawing.validation]),
        processing_class=tokenizer,
    )


def trl_trainer(options: argparse.Namespace) -> Any:
    """TRL's GRPOTrainer on the same prompts, with its defaults or tuned."""
    import datasets
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    from tunewright.metrics.catalogue import PER_ROW
    from tunewright.modeling.compute import device_here

    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    columns = ["input_ids", "prompt_length", "reference"]
    rows = pq.read_table(options.tokens / "train.parquet", columns=columns).to_pylist()[: options.rows]
    texts = [
        {"prompt": tokenizer.decode(row["input_ids"][: row["prompt_length"]]), "reference": row["reference"]}
        for row in rows
    ]

    def reward(completions: Any, reference: Any, **_: Any) -> list[float | None]:
        return [PER_ROW["chrf"](said, right) for said, right in zip(completions, reference, strict=True)]

    tuned: dict[str, Any] = {"bf16": device_here().has_bfloat16, "gradient_checkpointing": False}
    given = argparse.Namespace(**vars(options) | {"batch": options.prompts * options.group})
    return GRPOTrainer(
        model=str(options.weights),
        reward_funcs=reward,
        args=GRPOConfig(
            **arguments_of_all(given),
            num_generations=options.group,
            max_completion_length=options.longest,
            logging_steps=1,
            **(tuned if options.side == "trl_tuned" else {}),
        ),
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
    parser.add_argument("--prompts", type=int, default=2, help="of a step")
    parser.add_argument("--group", type=int, default=8, help="answers to each")
    parser.add_argument("--longest", type=int, default=32, help="tokens of an answer, at most")
    parser.add_argument("--steps", type=int, default=1, help="of a turn")
    parser.add_argument("--turns", type=int, default=4, help="that are measured")
    parser.add_argument("--rows", type=int, default=200, help="prompts, at most")
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
