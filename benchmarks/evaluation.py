"""Seconds to answer the demo's rows greedily: ours beside transformers' generate, with the same batch size.

The tuned model and the base, which is mostly wrong, answer them as they are; the base also behind the same few examples
(few_shot) and behind the training rows most like each (retrieval). Both sides are asked in one process, in float32,
with the model's weights merged, and have to give the same answers, token for token. What is compared is the time of the
processors, which other work on the machine disturbs less than a clock. It exits with 1 where an answer differs or a
ratio is under what is promised.

    .venv/bin/python benchmarks/evaluation.py            # needs an earlier `make demo`, whose model and rows it reads
    .venv/bin/python benchmarks/evaluation.py --home FOLDER --rows 40    # of another run: the newest one there
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunewright import config
from tunewright.artifacts import IGNORED, Adapter, Artifact, Base, Splits, Tokens
from tunewright.artifacts.payloads import Contract

PROMISED = {"tuned": 3.0, "base": 1.5, "few_shot": 8.0, "retrieval": 2.0}

Question = tuple[list[int], list[int]]  # the tokens of the prompt, and of the reference with the stop token


def newest(home: Path, stage: str, kind: type[Artifact]) -> Any:
    """The record of a stage's newest artifact."""
    found = sorted((home / "artifacts" / stage).glob("*/manifest.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise SystemExit(f"no artifact of {stage} in {home}: run `make demo` first")
    record = json.loads(found[-1].read_text(encoding="utf-8"))["record"]
    return kind.model_validate(record | {"folder": found[-1].parent})


def questions(name: str, options: argparse.Namespace, base: Base) -> list[Question]:
    """The rows of test and validation, test first, as the contender is asked them."""
    import pyarrow as pa

    from tunewright.tasks.prompt import Asking, nearest_examples, served
    from tunewright.tasks.prompt.shots import draw

    splits, tokens = newest(options.home, "split", Splits), newest(options.home, "render", Tokens)
    asking = Asking(base, splits, tokens, options.max_new_tokens)
    rows = pa.concat_tables([asking.test, asking.validation]).slice(0, options.rows)
    before: list[list[int]] = [[]] * len(rows)
    if name == "few_shot":
        before = [draw(asking.pool, 0, options.shots)] * len(rows)
    elif name == "retrieval":
        examples = asking.examples(range(len(asking.pool.rows)))
        before = nearest_examples(served(examples, asking.pool.opening, options.shots), rows)
    return [_question(row.tokens) for row in asking.ask(rows, before)]


def _question(row: Any) -> Question:
    answer = row.labels[row.prompt_length :]
    return row.input_ids[: row.prompt_length], [label for label in answer if label != IGNORED]


def ours(model: Any, asked: Sequence[Question], stops: Sequence[int], options: argparse.Namespace) -> list[list[int]]:
    """The tokens of each answer, drafted and verified."""
    from tunewright.generation import Answer, Greedy

    answers = [Answer(prompt, reference) for prompt, reference in asked]
    Greedy(model, stops=stops, max_new_tokens=options.max_new_tokens, batch=options.batch).answer(answers)
    return [answer.tokens for answer in answers]


def generate(
    model: Any, asked: Sequence[Question], stops: Sequence[int], options: argparse.Namespace
) -> list[list[int]]:
    """The tokens of each answer, by transformers' generate on batches of the rows in their order."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=options.max_new_tokens, eos_token_id=list(stops), pad_token_id=stops[0]
    )
    answers: list[list[int]] = []
    for start in range(0, len(asked), options.batch):
        prompts = [prompt for prompt, _ in asked[start : start + options.batch]]
        width = max(map(len, prompts))
        ids = torch.tensor([[stops[0]] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            whole = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        answers += [_until_stop(said, stops) for said in whole[:, width:].tolist()]
    return answers


def _until_stop(said: list[int], stops: Sequence[int]) -> list[int]:
    return said[: next((at for at, token in enumerate(said) if token in stops), len(said))]


def timed(answer: Callable[..., list[list[int]]], *given: Any) -> tuple[list[list[int]], float]:
    """The answers, and the processors' seconds that they took."""
    begun = time.process_time()
    return answer(*given), time.process_time() - begun


def compare(name: str, model: Any, asked: Sequence[Question], stops: Sequence[int], options: Any) -> dict[str, Any]:
    """Both sides on the same questions."""
    timed(ours, model, asked[:2], stops, options)  # warms up
    said, seconds = timed(ours, model, asked, stops, options)
    expected, theirs = timed(generate, model, asked, stops, options)
    references = [[token for token in reference if token not in stops] for _, reference in asked]
    return {
        "contender": name,
        "rows": len(asked),
        "prompt_tokens": round(sum(len(prompt) for prompt, _ in asked) / len(asked), 1),
        "exact_match": round(sum(map(list.__eq__, said, references)) / len(asked), 3),
        "differing_answers": sum(map(list.__ne__, said, expected)),
        "ours_seconds": round(seconds, 1),
        "generate_seconds": round(theirs, 1),
        "ratio": round(theirs / seconds, 2),
        "promised": PROMISED[name],
    }


def main() -> int:
    """Prints one JSON object a contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=config.home())
    parser.add_argument("--rows", type=int, default=200, help="of test and validation")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=list(PROMISED), nargs="*", help="some of the contenders")
    options = parser.parse_args()
    config.quiet_libraries()
    import torch

    from tunewright.modeling.models import load_model

    torch.set_num_threads(options.threads)
    base, adapter = newest(options.home, "base", Base), newest(options.home, "train", Adapter)
    stops = Contract.load(adapter).stop_token_ids
    holds = True
    for name in options.only or PROMISED:
        asked = questions(name, options, base)
        model = load_model(base, adapter.path("model") if name == "tuned" else None, dtype=torch.float32)
        model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        found = compare(name, model, asked, stops, options)
        print(json.dumps(found, indent=1), flush=True)
        holds &= not found["differing_answers"] and found["ratio"] >= found["promised"]
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
