"""Blind review on MLflow's pages: each pair is a trace in a review queue, which asks people whose answer is better."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tunewright.errors import ConfigError
from tunewright.evidence.judgements import Judgement
from tunewright.evidence.review import CHOICES, BlindPair, ReviewedVersion
from tunewright.registry.tracking import ui

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Trace

QUESTION = "better answer"
PAIR, REVIEWED = "tunewright.pair", "tunewright.reviewed"  # tags of a trace: its pair, and the run of its version
SHOWN = 80  # last characters of the conversation in the list of pairs
WIDTH = 76  # characters of a line on the page
PAGE = 500  # traces that MLflow hands out at once


def put(client: "MlflowClient", uri: str, version: ReviewedVersion, asked: Sequence[BlindPair]) -> str:
    """Puts pairs into the version's review queue, and returns the address of its page.

    Pairs that are in the queue stay there, with what people said of them.
    """
    from mlflow.genai import review_queues

    experiment_id = client.get_run(version.run_id).info.experiment_id
    there = _traces(client, version, experiment_id)
    for each in asked:
        if each.id not in there:
            _trace(client, each, version, experiment_id)
    traces = _traces(client, version, experiment_id)
    queue_id = _queue(f"{version.name} version {version.number}", experiment_id)
    review_queues.add_items_to_review_queue(queue_id, item_ids=[traces[each.id].info.trace_id for each in asked])
    return f"{ui(uri, experiment_id)}/review-queue?selectedQueueId={queue_id}"


def collect(client: "MlflowClient", version: ReviewedVersion) -> dict[str, list[Judgement]]:
    """The choices that people made on MLflow's pages, by their names there. Raises ConfigError where nobody has."""
    experiment_id = client.get_run(version.run_id).info.experiment_id
    found: dict[str, list[Judgement]] = {}
    for pair, trace in _traces(client, version, experiment_id).items():
        if asked := version.pairs.get(pair):
            for each in _chosen(asked, trace):
                found.setdefault(each.by, []).append(each)
    if not found:
        raise ConfigError(
            f"nobody has chosen in MLflow's review queue of version {version.number} of {version.name} yet; put pairs "
            f"there first: tunewright review queue {version.name} --version {version.number}"
        )
    return found


def _chosen(asked: BlindPair, trace: "Trace") -> Iterator[Judgement]:
    """The newest choice of each person."""
    from mlflow.entities import Feedback

    newest = {
        each.source.source_id or "": each
        for each in sorted(trace.info.assessments, key=lambda each: each.last_update_time_ms or 0)
        if isinstance(each, Feedback) and each.name == QUESTION and each.source.source_type == "HUMAN" and each.valid
    }
    for by, each in newest.items():
        if choice := CHOICES.get(str(each.value).casefold()):
            at = datetime.fromtimestamp((each.last_update_time_ms or 0) / 1000, UTC).isoformat(timespec="seconds")
            yield Judgement(
                row_id=asked.pair.row_id,
                opponent=asked.pair.opponent,
                better=asked.better(choice),
                by=by,
                comment=" ".join((each.rationale or "").split()),
                at=at,
            )


def _traces(client: "MlflowClient", version: ReviewedVersion, experiment_id: str) -> "dict[str, Trace]":
    """The traces of the version's pairs, by the pair."""
    found: dict[str, Trace] = {}
    token: str | None = None
    while token != "":
        page = client.search_traces(
            locations=[experiment_id],
            filter_string=f"tags.`{REVIEWED}` = '{version.run_id}'",
            max_results=PAGE,
            page_token=token,
            include_spans=False,
            flush=True,
        )
        found |= {trace.info.tags[PAIR]: trace for trace in page}
        token = page.token or ""
    return found


def _trace(client: "MlflowClient", pair: BlindPair, version: ReviewedVersion, experiment_id: str) -> None:
    """Writes a pair as a trace, which says no more of whose the answers are than the page of `review write`."""
    first, second = pair.answers
    parts = {"Conversation": pair.pair.conversation, "A": first, "B": second, "Reference": pair.pair.reference}
    text = "\n\n".join(f"**{name}**\n\n{_block(part)}" for name, part in parts.items())
    line = " ".join(pair.pair.conversation.split())  # many begin alike, with an instruction
    ends = line if len(line) <= SHOWN else f"… {line[2 - SHOWN :]}"
    span = client.start_trace(
        f"pair {pair.id}",
        inputs={"messages": [{"role": "user", "content": ends}]},
        tags={PAIR: pair.id, REVIEWED: version.run_id},
        experiment_id=experiment_id,
    )
    client.end_trace(span.trace_id, outputs={"messages": [{"role": "assistant", "content": text}]})


def _block(text: str) -> str:
    """A text as it is, in a block of Markdown that no text ends; lines that are too long for the page are wrapped."""
    fence = "~" * (1 + max((len(run) for run in re.findall("~+", text)), default=2))
    wrapped = [textwrap.wrap(line, WIDTH, replace_whitespace=False, drop_whitespace=False) for line in text.split("\n")]
    return "\n".join((fence, *(part for parts in wrapped for part in parts or [""]), fence))


def _queue(name: str, experiment_id: str) -> str:
    """The id of the review queue of this name, which is made now if there is none."""
    from mlflow.genai import review_queues

    token: str | None = None
    while token != "":
        page = review_queues.list_review_queues(experiment_id=experiment_id, page_token=token)
        if there := next((each for each in page if each.name == name), None):
            return there.queue_id
        token = page.token or ""
    asked = {"schema_ids": [_question(experiment_id)], "experiment_id": experiment_id}
    return review_queues.create_review_queue(name, queue_type="custom", **asked).queue_id


def _question(experiment_id: str) -> str:
    """The id of the question that the page asks, which is made now if there is none."""
    from mlflow.genai import label_schemas

    there = label_schemas.list_label_schemas(experiment_id, max_results=1_000)
    schema = next((each for each in there if each.name == QUESTION), None) or label_schemas.create_label_schema(
        QUESTION,
        type="feedback",
        input=label_schemas.InputCategorical(options=[*CHOICES.values()]),
        instruction="Which of the two answers to the last message is better?",
        enable_comment=True,
        experiment_id=experiment_id,
    )
    return str(schema.schema_id)
