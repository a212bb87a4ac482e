"""A second opinion: another model says, row by row, whether the candidate's answer or another's is better.

Each pair is asked about twice, with the answers in either order, and counts only where both replies agree: judges
prefer what stands first, and what is longer (Zheng et al. 2023, "Judging LLM-as-a-Judge"). They can be talked into an
opinion by the texts that they judge, which is one reason more why the gate does not look at it: it is shown beside the
verdict.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright import config
from tunewright.artifacts import Answers, Judged, Splits
from tunewright.metrics.win_rate import Pair, pairs, preferred, questions_of
from tunewright.reports.progress import Countdown
from tunewright.store.cache_key import hash_of
from tunewright.store.stage import stage
from tunewright.tasks.judge.asking import SYSTEM, JudgeClient, Reply

AT_ONCE = 4  # pairs that are asked about

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


def replies(judge: JudgeClient, asked: Sequence[Pair], file: Path) -> dict[Pair, Said]:
    """Prompt the judge with each pair in both orders; `file` keeps a line per judged pair for later runs."""
    before, keys = _kept(file), {pair: _key(pair) for pair in asked}
    said = {pair: before[key] for pair, key in keys.items() if key in before}
    if len(said) == len(asked):
        return said

    def ask(pair: Pair) -> Said:
        texts = pair.conversation, pair.reference
        replied = (
            judge.better(*texts, pair.candidates, pair.opponents),
            judge.better(*texts, pair.opponents, pair.candidates),
        )
        with writing:  # here, so that what was replied while another request failed is kept too
            lines.write(json.dumps([keys[pair], *replied]) + "\n")
        return replied

    writing = Lock()
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with file.open("a", buffering=1, encoding="utf-8") as lines, ThreadPoolExecutor(AT_ONCE) as threads:
        lines.write("\n")  # behind half a line of a run that was killed
        countdown = Countdown(len(asked), "judged pairs", "judge-progress")
        waiting = {threads.submit(ask, pair): pair for pair in asked if pair not in said}
        try:
            for number, future in enumerate(as_completed(waiting), 1):
                said[waiting[future]] = future.result()
                countdown.tell(len(said), number / len(waiting))
        finally:
            threads.shutdown(cancel_futures=True)
    return said


def _key(pair: Pair) -> str:
    """The hash of all that the judge is asked about a pair: of the texts, whatever row and opponent they are of."""
    return hash_of([SYSTEM, pair.conversation, pair.reference, pair.candidates, pair.opponents])


def _kept(file: Path) -> dict[str, Said]:
    """The replies that earlier runs kept, by the pair; a line may be half of one, where a run was killed."""
    kept: dict[str, Said] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            key, first, second = json.loads(line)
        except (ValueError, TypeError):
            continue
        kept[key] = first, second
    return kept


def opinion(judged: pa.Table, opponent: str) -> dict[str, Any]:
    """Summarize the replies about one opponent.

    preferred: low, mean and high of the share of rows in which the candidate is preferred; ties count half. agreement,
    unreadable: the share of the judged pairs in which both replies agree, and in which one contains no judgement.
    """
    rows = [row for row in judged.to_pylist() if row["opponent"] == opponent]
    said = [(row["first"], row["second"]) for row in rows if row["first"]]
    return {
        "preferred": preferred(*([row[name] for row in rows] for name in ("score", "cluster"))),
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
    said = replies(JudgeClient(url, model, config.judge_key(url)), asked, file)
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
