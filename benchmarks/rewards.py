"""Right answers to held-out sums before and after training on rewards (GRPO), in several seeds.

For each seed a tiny model with new weights is trained on references (SFT) until it answers some of the rows, then on
rewards from there, and both answer the test rows greedily. The rows are sums of four numbers, other ones for each seed.
All three stages are those of a run.

    .venv/bin/python benchmarks/rewards.py
"""

import argparse
import datetime
import json
import os
import random
import statistics
import sys
import tempfile
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

from tunewright.artifacts import Adapter, Base, Contender, Tokens
from tunewright.config import Compute, Evaluation, Grpo, Method, Model, Training

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
ROWS = {"train": 800, "validation": 100, "test": 300}
GRPO = Grpo(rewards={"exact_match": 1}, group=16, batch=32, max_new_tokens=8, learning_rate=0.0003)
SFT = Training(learning_rate=0.002, batch=32, patience=None)
FULL, ONE_THREAD = Method(kind="full"), Compute(threads=1)


def compare(seed: int, sft_steps: int, steps: int) -> tuple[float, float]:
    """The share of right answers to the test rows after SFT, and after training on rewards from there."""
    from tunewright.tasks.reinforce import reinforce
    from tunewright.tasks.train.stage import train

    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNEWRIGHT_HOME"] = str(Path(folder, "home"))
        base, tokens = prepared(Path(folder), seed)
        sft = SFT.model_copy(update={"max_steps": sft_steps, "evaluate_every": 20, "seed": seed})
        grpo = GRPO.model_copy(update={"max_steps": steps})
        first = train.fn(tokens, base, FULL, sft, ONE_THREAD)
        second = reinforce.fn(tokens, base, FULL, grpo, grpo.schedule(sft), ONE_THREAD, begins_as=first)
        return right(tokens, base, first), right(tokens, base, second)


def prepared(folder: Path, seed: int) -> tuple[Base, Tokens]:
    """A tiny base with new weights, and the rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunewright.tasks.render import render

    tests: Any = import_module("conftest")
    tokenizer = tests.tiny_tokenizer()
    tokenizer.save_pretrained(folder / "base")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    base = tests.base_in(folder / "base", "sums")
    sums = random.Random(seed).sample([*product(range(1, 10), repeat=4)], sum(ROWS.values()))
    rows = [[" + ".join(map(str, numbers)), " ".join(str(sum(numbers)))] for numbers in sums]
    ends = [ROWS["train"], ROWS["train"] + ROWS["validation"]]
    splits = tests.write_splits(folder, rows[: ends[0]], rows[ends[0] : ends[1]], rows[ends[1] :])
    return base, render.fn(splits, base, Model(base="sums", max_length=128))


def right(tokens: Tokens, base: Base, adapter: Adapter) -> float:
    """The share of test rows that are answered right."""
    from tunewright.tasks.evaluate import evaluate

    tuned = Contender(name="candidate", base=base, model=adapter.path("model"), model_digest=adapter.digest)
    return evaluate.fn(tuned, tokens, Evaluation(metrics=("exact_match",), max_new_tokens=8)).scores["exact_match"]


def main() -> None:
    """Prints one line a seed, and all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--sft-steps", type=int, default=180)
    parser.add_argument("--steps", type=int, default=120, help="of training on rewards")
    options = parser.parse_args()
    found = []
    for seed in range(options.seeds):
        before, after = compare(seed, options.sft_steps, options.steps)
        found.append((before, after))
        print(f"seed {seed}: {before:.3f} after SFT, {after:.3f} after training on rewards", flush=True)
    gains = [after - before for before, after in found]
    print(
        json.dumps(
            {
                "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "test_rows": ROWS["test"],
                "better": sum(gain > 0 for gain in gains),
                "seeds": len(gains),
                "mean_before": round(statistics.fmean(before for before, _ in found), 3),
                "mean_after": round(statistics.fmean(after for _, after in found), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
