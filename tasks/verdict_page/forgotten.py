"""What fine-tuning cost elsewhere: general tasks and texts part by part, and the tasks that the base does better."""

from typing import NamedTuple

from tunewright.metrics.general_tasks import tables as of_each
from tunewright.privacy.excerpts import ends
from tunewright.reports.figures import number
from tunewright.tasks.verdict_page.case import BASE, CANDIDATE, Case
from tunewright.tasks.verdict_page.drawing import words

LISTED = 10
TEXT_CHARS = 300


class GeneralResult(NamedTuple):
    """One kind of task or the texts of one language: how many, and what each contender made of them."""

    metric: str  # in words
    name: str
    num_items: int
    scores: list[str]


class LostTask(NamedTuple):
    """A task that the base does better than the candidate."""

    prompt: str
    base: str
    candidate: str


class Forgotten(NamedTuple):
    """What the contenders made of them."""

    contenders: list[str]
    parts: list[GeneralResult]
    lost: list[LostTask]  # the first of them
    num_lost: int
    num_gained: int


def forgotten(case: Case) -> Forgotten | None:
    """None where no contender did any."""
    tables = {name: table.to_pylist() for name, table in of_each(case.general).items()}
    if not {BASE, CANDIDATE} <= tables.keys():
        return None
    kinds = dict.fromkeys((row["metric"], row["part"]) for row in tables[CANDIDATE])
    parts = []
    for kind in kinds:
        scores = [[row["score"] for row in rows if (row["metric"], row["part"]) == kind] for rows in tables.values()]
        means = [number(sum(each) / len(each)) for each in scores]
        parts.append(GeneralResult(words(kind[0]), kind[1], len(scores[0]), means))
    pairs = [both for both in zip(tables[BASE], tables[CANDIDATE], strict=True) if both[0]["metric"] != "general_loss"]
    lost = [both for both in pairs if both[0]["score"] > both[1]["score"]]
    gained = sum(before["score"] < now["score"] for before, now in pairs)
    texts = [[before["prompt"], before["answer"], now["answer"]] for before, now in lost[:LISTED]]
    listed = [LostTask(*(ends(text, TEXT_CHARS) for text in each)) for each in texts]
    return Forgotten([*tables], parts, listed, len(lost), gained)
