"""General rows without a file of yours, with training.keep_general=auto: the base's own answers to prompts.jsonl.

A model that trains on its base's answers to general prompts, beside the rows of its task, forgets less (Huang et al.
2024, "Mitigating Catastrophic Forgetting in LLMs with Self-Synthesized Rehearsal", arXiv 2403.01244). They become
replay rows, of which split.replay limits the share, and which later stages treat like those of a source. An answer that
the base did not end by itself within MAX_NEW_TOKENS is left out, so that no row teaches it to break off.

The prompts were written for this project, in nine languages; none of them is in the suite that measures forgetting. The
base is asked GROUP of them at once, so that its answers do not depend on how many are asked.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import ROW_SCHEMA, Artifact, Base, Rehearsed, Rows
from tunewright.cost_model import on_devices
from tunewright.modeling.chat import Chat
from tunewright.modeling.models import fastest_dtype, load_model, load_tokenizer
from tunewright.reports.progress import Countdown
from tunewright.store.caching import cached
from tunewright.store.stage import stage
from tunewright.tools.conversation import identity_of

log = logging.getLogger("tunewright")

FILE = "package:tunewright/tasks/rehearse/prompts.jsonl"  # of the general rows, each with the line of its prompt
SOURCE = "answers of the base"
ANSWERS = "answers.jsonl"
MAX_NEW_TOKENS = 128
GROUP = 32
LIBRARIES = ("torch", "transformers", "tokenizers", "jinja2", "pyarrow")


class BaseAnswers(Artifact, frozen=True):
    """The base's answers to the first prompts: answers.jsonl, a line for each answer that it ended by itself."""

    num_prompts: int
    num_ended: int


@cache
def prompts() -> tuple[str, ...]:
    """All prompts, in the order of their file."""
    lines = Path(__file__).with_name("prompts.jsonl").read_text("utf-8").splitlines()
    return tuple(json.loads(line)["prompt"] for line in lines)


def room(num_own: float, share: float) -> int:
    """The number of answers, 1 to that of all prompts, that may train beside `num_own` rows to be a `share` of all."""
    most = len(prompts())
    return most if share == 1 else max(1, min(most, int(share * num_own / (1 - share))))


@cached(libraries=LIBRARIES)
def base_answers(folder: Path, base: Base, num_prompts: int) -> BaseAnswers:
    """The base's greedy answers to the first `num_prompts` prompts, a multiple of GROUP; empty ones are left out."""
    with on_devices():
        found = [*_answered(base, prompts()[:num_prompts])]
    lines = [json.dumps(each, ensure_ascii=False) + "\n" for each in found]
    (folder / ANSWERS).write_text("".join(lines), encoding="utf-8")
    return BaseAnswers(num_prompts=num_prompts, num_ended=len(found))


def _answered(base: Base, asked: Sequence[str]) -> Iterator[dict[str, str | int]]:
    """The line, the prompt and the answer of each prompt that gets one."""
    from tunewright.generation import Answer, Greedy

    model, chat = load_model(base, dtype=fastest_dtype()), Chat(load_tokenizer(base), base.weights)
    stops, countdown = sorted(chat.stops.values()), Countdown(len(asked), "general prompts", "rehearse-progress")
    answers = Answer.to_prompts(chat, asked)
    for start in range(0, len(answers), GROUP):
        greedy = Greedy(model, stops=stops, max_new_tokens=MAX_NEW_TOKENS, batch=GROUP)
        greedy.answer(
            answers[start : start + GROUP], on_progress=lambda done, before=start: countdown.tell(before + done)
        )
    for line, (prompt, answer) in enumerate(zip(asked, answers, strict=True), start=1):
        said = chat.tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
        if answer.stopped and said:
            yield {"line": line, "prompt": prompt, "answer": said}


def general_rows(answers: Sequence[dict[str, str | int]]) -> pa.Table:
    """The answers of answers.jsonl as replay rows (ROW_SCHEMA)."""
    rows = []
    for each in answers:
        asked = {"role": "user", "content": each["prompt"]}
        messages = [asked, {"role": "assistant", "content": each["answer"]}]
        placed = {"source": SOURCE, "file": FILE, "line": each["line"], "use_as": "replay"}
        rows.append({"row_id": identity_of(json.dumps(messages)), **placed, "messages": messages})
    return pa.Table.from_pylist(rows, ROW_SCHEMA)


def _write(folder: Path, rows: Rows, general: pa.Table) -> None:
    """Writes the tables of `rows`, with the general rows behind the others."""
    for name in ("quarantine.parquet", "held_out.parquet"):
        shutil.copyfile(rows.path(name), folder / name)
    with (
        pq.ParquetFile(rows.path("rows.parquet")) as own,
        pq.ParquetWriter(folder / "rows.parquet", own.schema_arrow, compression="zstd") as writer,
    ):
        for batch in own.iter_batches():
            writer.write_batch(batch)
        writer.write_table(general)


@stage("{base.reference}", libraries=LIBRARIES)
def rehearse(folder: Path, rows: Rows, base: Base, share: float, untrained: float) -> Rehearsed:
    """The rows, and behind them so many general ones as may be a `share` of the training rows, above 0 up to 1.

    `untrained` is the share of the rows that validate and test. Warns where the base ends none of its answers; then the
    run goes on without general rows.
    """
    most = room((1 - untrained) * rows.num_rows, share)
    made = base_answers.record(base, -(-most // GROUP) * GROUP)
    answers = [json.loads(line) for line in made.path(ANSWERS).read_text("utf-8").splitlines()][:most]
    log.info(
        "  the base ended %d of %d answers to general prompts, asked %d at a time: %d added, of at most %d "
        "(split.replay of the rows so far; split leaves out those beyond its share of what is left)",
        made.num_ended,
        made.num_prompts,
        GROUP,
        len(answers),
        most,
    )
    said = (
        f"training.keep_general=auto adds no general rows: the base ended none of {made.num_prompts} answers within "
        f"{MAX_NEW_TOKENS} tokens; add general rows of your own, in a source with use_as: replay"
    )
    warned = () if answers else (said,)
    for warning in warned:
        log.warning("rehearse: %s", warning)
    _write(folder, rows, general_rows(answers))
    kept = rows.model_dump(exclude={*Artifact.model_fields})
    more = {
        "num_rows": rows.num_rows + len(answers),
        "num_general": len(answers),
        "warned": warned,
    }
    if answers:
        more |= {"detected": {**rows.detected, FILE: SOURCE}, "given": {**rows.given, FILE: "replay"}}
    return Rehearsed.model_validate(kept | more)
