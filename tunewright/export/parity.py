"""The proof that an exported folder is the registered version: both answer the rows of the rehearsal.

The folder is loaded by transformers and PEFT in a process of its own (answering.py), the version by this project. The
greedy tokens must be the same, and the mean log-probability of the version's answer may differ by a bound. In bfloat16
and float16 an answer may differ from a near tie on (near_ties.py). Of quantized weights answers may differ anywhere:
they are counted, and the bound on the log-probability holds.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

from tunewright.errors import TunewrightError
from tunewright.export import answering, weights
from tunewright.machine import busy_in_words
from tunewright.modeling import near_ties
from tunewright.registry.rehearsal import RehearsalRow
from tunewright.serving import TRAINED, ServedChat, load_weights

NOTHING = "nothing was exported"
ANSWER_SECONDS, CHECK_SECONDS = 10.0, 30.0  # between two lines of how far the answers and the check are
QUANTIZED = {"q8_0": 0.1, "q6_k": 0.2, "q5_k_m": 0.3, "q4_k_m": 0.5}  # nats per token
# Nats per token, of the lower of both precisions.
BOUNDS = {"float32": 1e-3} | near_ties.NATS | QUANTIZED


class ExpectedAnswer(NamedTuple):
    """Answer of the registered version to a row."""

    row: RehearsalRow
    prompt: list[int]
    answer: list[int]
    log_probability: float


class Parity(BaseModel, frozen=True):
    """How an exported folder answered beside the registered version."""

    rows: int
    same: int  # rows with the same tokens
    near_ties: int  # rows that differ from a near tie on
    others: int = 0  # rows with other tokens, of quantized weights
    largest_difference: float  # of the mean log-probability of an answer, in nats per token
    bound: float  # on it


def expected(
    loaded: ServedChat,
    rows: Sequence[RehearsalRow],
    prompts: list[list[int]],
    most: int,
    tell: Callable[[str], None] = lambda _: None,
) -> list[ExpectedAnswer]:
    """Answer each row with the registered version, one at a time; `tell` gets how far it is now and then."""
    started = said = time.monotonic()
    loaded.model.generation_config = weights.generation_settings(loaded, most)
    found: list[ExpectedAnswer] = []
    for row, prompt in zip(rows, prompts, strict=True):
        answer = answering.answered(loaded.model, prompt)
        probabilities = [score.log_probability for score in answering.scored(loaded.model, prompt, answer)]
        found.append(ExpectedAnswer(row, prompt, answer, sum(probabilities) / len(probabilities)))
        now = time.monotonic()
        if now - said >= ANSWER_SECONDS and len(found) < len(rows):
            said = now
            tell(f"{len(found)} of {len(rows)} test rows answered in {now - started:,.0f} s{busy_in_words()}")
    return found


def require_effect(name: str, loaded: ServedChat, tuned: Path, prompts: list[list[int]]) -> None:
    """Raises TunewrightError where what was trained leaves the base as it is."""
    import torch

    model, fault = loaded.model, ""
    if weights.is_adapter(model):
        with torch.inference_mode(), model.disable_adapter():
            base = [_logits(model, prompt) for prompt in prompts]
        with torch.inference_mode():
            tuned_logits = (_logits(model, prompt) for prompt in prompts)
            if all(map(torch.equal, base, tuned_logits)):
                fault = f"its adapter changes nothing: every logit of {len(prompts)} prompts equals the base's"
    elif (tuned / TRAINED).is_file():
        from safetensors.torch import load_file

        base = load_weights(loaded.base, None, dtype=torch.float32).state_dict()
        if all(torch.equal(base[key], value.float()) for key, value in load_file(tuned / TRAINED).items()):
            fault = f"{TRAINED} changes nothing: every tensor in it equals the base's"
    if fault:
        raise TunewrightError(f"{name}: {fault}; {NOTHING}")


def _logits(model: Any, prompt: list[int]) -> Any:
    import torch

    return model(input_ids=torch.tensor([prompt], device=model.device), use_cache=False).logits


def check(
    folder: Path,
    base: Path | None,
    dtype: str,
    version: Sequence[ExpectedAnswer],
    loaded: ServedChat,
    gguf: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Compares the answers of an exported folder with those of the registered version.

    Of a GGUF file, `folder` has the tokenizer and the generation settings alone that it was made with.
    Raises TunewrightError, with the row and the first difference, where they are not the same.
    """
    precision = max((dtype, loaded.precision or dtype), key=lambda each: BOUNDS[each])
    bound = BOUNDS[precision]
    others: list[str] = []
    tied = 0
    largest, farthest = 0.0, ""
    for each, got in zip(version, _answers(folder, base, dtype, version, gguf, tell), strict=True):
        row = f"row {each.row.row_id[:12]}"
        if got["prompt"] != each.prompt:
            raise TunewrightError(
                f"{row}: the prompt has other tokens: {_first_difference(loaded, each.prompt, got['prompt'])}; "
                f"{NOTHING}"
            )
        is_other = got["answer"] != each.answer
        if is_other and precision in near_ties.NATS and got["gap"] <= near_ties.bound(precision, got["logit"]):
            tied += 1
        elif is_other:
            others.append(f"{row}: {_first_difference(loaded, each.answer, got['answer'])}")
        difference = abs(got["log_probability"] - each.log_probability)
        difference = math.inf if math.isnan(difference) else difference
        if difference > largest:
            largest, farthest = difference, row
    is_rounded = base is None and gguf is None and dtype != "float32"
    end = (
        f"merging rounds the weights to {dtype}, so export it with --dtype float32; {NOTHING}"
        if is_rounded
        else NOTHING
    )
    if others and precision not in QUANTIZED:
        raise TunewrightError(
            f"the exported model is not the registered version: {len(others)} of {len(version)} test rows get another "
            f"answer; {others[0]}; {end}"
        )
    if largest > bound:
        raise TunewrightError(
            f"the exported model is not the registered version: {farthest}: the mean log-probability of the expected "
            f"answer differs by {largest:.2g} nats/token; accepted in {precision}: {bound:g}; {end}"
        )
    return Parity(
        rows=len(version),
        same=len(version) - tied - len(others),
        near_ties=tied,
        others=len(others),
        largest_difference=largest,
        bound=bound,
    )


def _first_difference(loaded: ServedChat, expected: list[int], got: list[int]) -> str:
    """Where two lists of tokens differ first, with both tokens."""
    at = answering.first_difference(expected, got)
    said = (repr(loaded.tokenizer.decode([ids[at]])) if at < len(ids) else "the end" for ids in (expected, got))
    return "first difference at token {}: expected {}, got {}".format(at + 1, *said)


def _answers(
    folder: Path,
    base: Path | None,
    dtype: str,
    version: Sequence[ExpectedAnswer],
    gguf: Path | None,
    tell: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The replies of a process without the project. Raises TunewrightError where it cannot load the folder."""
    rows = [{"messages": each.row.messages, "tools": each.row.tools or None, "answer": each.answer} for each in version]
    with tempfile.TemporaryDirectory() as place:
        reply = Path(place, "reply.json")
        request = {
            "folder": str(folder),
            "base": base and str(base),
            "gguf": gguf and str(gguf),
            "dtype": "float32" if gguf else dtype,
            "reply": str(reply),
            "rows": rows,
        }
        code, errors = _run(json.dumps(request), place, tell)
        if code or not reply.is_file():
            why = _why(errors) or f"exit code {code}"
            raise TunewrightError(f"transformers cannot load or ask what was exported: {why}; {NOTHING}")
        replied = json.loads(reply.read_bytes())
    if replied["project"]:
        raise TunewrightError(f"the parity check imported {replied['project'][0]}, which a stranger does not have")
    return replied["rows"]


def _why(errors: str) -> str:
    """The first tensor that transformers reports as not loadable, with the reason; else the last line of the errors."""
    if tensor := re.search(r"^(.*\S) +\| (?:MISMATCH|CONVERSION) +\| (.*\S)", errors, re.MULTILINE):
        return f"{tensor[1]}: {tensor[2][:500]}"
    return "".join(errors.strip().splitlines()[-1:])[:500]


def _run(request: str, place: str, tell: Callable[[str], None]) -> tuple[int, str]:
    """The exit code and stderr of answering.py, whose process ends with the block; `tell` gets that it still runs."""
    started = time.monotonic()
    given: str | None = request
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", answering.__file__]
    with subprocess.Popen(command, **pipes, text=True, cwd=place, env=environment) as process:
        while True:
            try:
                errors = process.communicate(given, CHECK_SECONDS)[1]
                return process.returncode, errors
            except subprocess.TimeoutExpired:
                given = None  # it has the whole of it, or goes on to get it
                tell(f"still comparing after {time.monotonic() - started:,.0f} s{busy_in_words()}")
            except BaseException:  # such as Ctrl-C
                process.kill()
                raise
