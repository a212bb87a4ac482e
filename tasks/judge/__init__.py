"""A second opinion: another model says, row by row, whether the candidate's answer or another's is better.

Each pair is asked about twice, with the answers in either order, and counts only where both replies agree: judges
prefer what stands first, and what is longer (Zheng et al. 2023, "Judging LLM-as-a-Judge"). They can be talked into an
opinion by the texts that they judge, which is one reason more why the gate does not look at it: it is shown beside the
verdict.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright import config
from tunewright.artifacts import Answers, Judged, Splits
from tunewright.json_api import KeptReplies
from tunewright.metrics.win_rate import Pair, mean_of_pairs, pairs, questions_of
from tunewright.reports.progress import Countdown
from tunewright.store.cache_key import hash_of
from tunewright.store.stage import stage
from tunewright.tasks.judge.asking import SYSTEM, JudgeClient, Reply

JUDGED_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("cluster", pa.int64()),
        ("opponent", pa.string()),
        ("first", pa.string()),  # what was said with the candidate's answer as A: A, B, tie or unreadable; null: equal
        ("second", pa.string()),  # and with it as B
        ("score", pa.float64()),  # 1 for the candidate, 0 for the opponent, 0.5 where they tie or the replies disagree
    ]
)

Said = tuple[Reply, Reply]  # with the candidate as A, and as B


def score(said: Said) -> float:
    """Return the candidate's score from two replies: 1 if both prefer it, 0 if both the opponent, else 0.5."""
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get(said, 0.5)


def agree(said: Said) -> bool:
    """Whether two replies say the same of the answers, whatever their order."""
    return said in {("A", "B"), ("B", "A"), ("tie", "tie")}


def replies(judge: JudgeClient, asked: Sequence[Pair], kept: KeptReplies[Said]) -> dict[Pair, Said]:
    """Prompt the judge with each pair in both orders, but for those whose replies are kept."""
    keys = {pair: _key(pair) for pair in asked}

    def ask(pair: Pair) -> Said:
        texts = pair.conversation, pair.reference
        return (
            judge.better(*texts, pair.candidates, pair.opponents),
            judge.better(*texts, pair.opponents, pair.candidates),
        )

    new = kept.new({key: pair for pair, key in keys.items()})
    kept.ask(new, ask, Countdown(len(new), "judged pairs", "judge-progress").tell)
    return {pair: kept.replies[key] for pair, key in keys.items()}


def _key(pair: Pair) -> str:
    """The hash of all that the judge is asked about a pair: of the texts, whatever row and opponent they are of."""
    return hash_of([SYSTEM, pair.conversation, pair.reference, pair.candidates, pair.opponents])


def opinion(judged: pa.Table, opponent: str) -> dict[str, Any]:
    """Summarize the replies about one opponent.

    preferred: low, mean and high of the share of rows in which the candidate is preferred; ties count half. agreement,
    unreadable: the share of the judged pairs in which both replies agree, and in which one contains no judgement.
    """
    rows = [row for row in judged.to_pylist() if row["opponent"] == opponent]
    said = [(row["first"], row["second"]) for row in rows if row["first"]]
    return {
        "preferred": mean_of_pairs(*([row[name] for row in rows] for name in ("score", "cluster"))),
        "agreement": sum(agree(each) for each in said) / len(said) if said else 1.0,
        "unreadable": sum("unreadable" in each for each in said) / max(1, len(said)),
        "num_asked": len(said),
    }


@stage("by {model}", libraries=("pyarrow",))
def judge(folder: Path, answers: tuple[Answers, ...], splits: Splits, url: str, model: str, rows: int) -> Judged:
    """Let the model `model` at `url` compare the candidate's answers with those of each other contender.

    Its replies lie in <home>/judge_replies, so that none is paid for twice: other metrics or more rows are other
    answers to this stage, but the same pairs. Raises ApiError if it does not answer, ConfigError if it refuses the
    requests.
    """
    columns = ["row_id", "answer", "reference"]
    tables = {each.contender: pq.read_table(each.path("answers.parquet"), columns=columns) for each in answers}
    judged_rows = pc.field("row_id").isin(sorted(tables["candidate"]["row_id"].to_pylist())[:rows])
    few = {name: table.filter(judged_rows) for name, table in tables.items()}
    every = list(pairs(few, questions_of(pq.read_table(splits.path("test.parquet"), filters=judged_rows))))
    file = config.home() / "judge_replies" / f"{hash_of([url, model])[:20]}.jsonl"
    asked = [pair for pair in every if not pair.is_equal]
    kept = KeptReplies[Said](file, lambda both: (both[0], both[1]))
    said = replies(JudgeClient(url, model, config.judge_key(url)), asked, kept)
    lines = [(*pair[:3], *said.get(pair, (None, None)), score(said[pair]) if pair in said else 0.5) for pair in every]
    judged = pa.Table.from_pylist([dict(zip(JUDGED_SCHEMA.names, line, strict=True)) for line in lines], JUDGED_SCHEMA)
    pq.write_table(judged, folder / "judged.parquet")
    opinions = {each.contender: opinion(judged, each.contender) for each in answers if each.contender != "candidate"}
    shown = {"model": model, "url": url, "opponents": opinions}
    (folder / "judged.json").write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    preferred, agreement, unreadable = (
        {who: each[name] for who, each in opinions.items()} for name in ("preferred", "agreement", "unreadable")
    )
    num_rows = len(every) // len(opinions)
    return Judged(model=model, num_rows=num_rows, preferred=preferred, agreement=agreement, unreadable=unreadable)
