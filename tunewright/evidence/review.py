"""Blind review: people say which of two answers to a test row is better, and are not told whose answers they are.

Whether the candidate's answer is A or B is fixed by a hash for each pair, so that a file of choices can be read with
nothing but the evidence of the version.
"""

import csv
import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.accepted import shown
from tunewright.artifacts import Artifact
from tunewright.config import Registry
from tunewright.errors import ConfigError
from tunewright.evidence import judgements
from tunewright.evidence.bundle import RUN, EvidenceBundle, answers_in, of_version
from tunewright.evidence.judgements import Better, HumanPreference, Judgement
from tunewright.metrics.win_rate import CANDIDATE, Pair, RowPrompt, pairs, questions_of
from tunewright.registry import release
from tunewright.store import manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient

ID_DIGITS = 16
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # begins a cell that a spreadsheet computes
COLUMNS = ("pair", "conversation", "reference", "A", "B", "better", "comment")
NEEDED = {"pair", "better"}
CHOICES = {"a": "A", "b": "B", "tie": "tie"}


class BlindPair(NamedTuple):
    """A pair whose answers are called A and B."""

    id: str
    pair: Pair
    is_swapped: bool  # A is the opponent's

    @property
    def answers(self) -> tuple[str, str]:
        """A and B."""
        own, other = self.pair.candidates, self.pair.opponents
        return (other, own) if self.is_swapped else (own, other)

    def better(self, choice: str) -> Better:
        """Whose answer A, B or tie is."""
        return "tie" if choice == "tie" else "candidate" if (choice == "A") != self.is_swapped else "opponent"


@dataclass(frozen=True, kw_only=True)
class ReviewedVersion:
    """A version, and the pairs of answers that its verdict was decided on."""

    name: str
    number: str
    run_id: str
    pairs: Mapping[str, BlindPair]  # by id; those with equal answers are left out
    num_equal: Mapping[str, int]  # opponent -> number of rows where both answers are the same
    judge: str  # the judge's model; empty where none was asked
    judged: Mapping[tuple[str, str], float]  # (row_id, opponent) -> the candidate's score by the judge

    @property
    def clusters(self) -> dict[str, int]:
        """The cluster of each row of the pairs."""
        return {each.pair.row_id: each.pair.cluster for each in self.pairs.values()}

    @property
    def usual_opponent(self) -> str:
        """The champion, or the base where there was none."""
        return "champion" if "champion" in self.num_equal else "base"

    def pairs_with(self, opponent: str, num_pairs: int) -> list[BlindPair]:
        """The first pairs with one opponent, at least one. Raises ConfigError where there is none."""
        if opponent not in self.num_equal:
            raise ConfigError(f"--against {shown(opponent)}: accepted: {', '.join(self.num_equal)}")
        found = [each for each in self.pairs.values() if each.pair.opponent == opponent][:num_pairs]
        if not found:
            raise ConfigError(f"--against {opponent}: all its answers are the same as the candidate's")
        return found


def look_up(client: "MlflowClient", registry: Registry, version_number: str | None) -> ReviewedVersion:
    """A version with its pairs. Raises ConfigError where there is none, TunewrightError as `of_version` does."""
    version = release.chosen(client, registry, version_number)
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        evidence = of_version(client, version, local)
        stages = {each.name: each for each in evidence.stages}
        tables = answers_in(evidence, local)
        judge = stages.get("judge")
        kept = local / judge.place("judged.parquet") if judge else None
        judged = pq.read_table(kept).to_pylist() if kept and kept.is_file() else []
    blind: dict[str, BlindPair] = {}
    num_equal = dict.fromkeys((name for name in tables if name != CANDIDATE), 0)
    for pair in pairs(tables, _questions(evidence, tables[CANDIDATE])):
        if pair.is_equal:
            num_equal[pair.opponent] += 1
        else:
            each = _blind(evidence.identity, pair)
            blind[each.id] = each
    return ReviewedVersion(
        name=version.name,
        number=str(version.version),
        run_id=version.tags[RUN],
        pairs=blind,
        num_equal=num_equal,
        judge=judge.record["model"] if judge and judged else "",
        judged={(row["row_id"], row["opponent"]): row["score"] for row in judged},
    )


def _blind(identity: str, pair: Pair) -> BlindPair:
    digest = hashlib.sha256(f"{identity} {pair.opponent} {pair.row_id}".encode()).hexdigest()
    return BlindPair(digest[:ID_DIGITS], pair, int(digest[-1], 16) % 2 == 1)


def _questions(evidence: EvidenceBundle, answers: pa.Table) -> dict[str, RowPrompt]:
    """Return what the rows ask: from the test rows if this home has them, else the prompts that the candidate got."""
    split = next(each for each in evidence.stages if each.stage == "split")
    try:
        record = manifest.read(Artifact, "split", split.key).record
    except manifest.Damaged:
        record = None
    if record and record.digest == split.digest:
        return questions_of(pq.read_table(record.path("test.parquet")))
    columns = (answers[name].to_pylist() for name in ("row_id", "cluster", "prompt"))
    return {row_id: RowPrompt(cluster, prompt) for row_id, cluster, prompt in zip(*columns, strict=True)}


def write_csv(file: Path, asked: Sequence[BlindPair]) -> None:
    """Write the pairs as a table in which the column `better` is to be filled in."""
    with file.open("w", newline="", encoding="utf-8-sig") as opened:  # by whose mark spreadsheets know UTF-8
        writer = csv.writer(opened)
        writer.writerow(COLUMNS)
        for each in asked:
            texts = each.pair.conversation, each.pair.reference, *each.answers
            writer.writerow((each.id, *map(_no_formula, texts), "", ""))


def _no_formula(text: str) -> str:
    """A text as a spreadsheet shows it: behind an apostrophe if it would be computed."""
    return f"'{text}" if text.startswith(FORMULA) else text


def read(file: Path, version: ReviewedVersion, by: str) -> tuple[list[Judgement], int]:
    """The judgements in a table that was filled in, and the number of pairs in it that have none.

    Raises ConfigError, naming the line, where one cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{file}: {reason}; accepted: the CSV file that the page saves, or a filled-in one") from None
    header = text.partition("\n")[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    if missing := NEEDED - {*(rows.fieldnames or ())}:
        raise ConfigError(
            f"{file}: no column {shown(min(missing))}; accepted: pair, better, and comment if there is one"
        )
    found: dict[str, Judgement] = {}
    num_open = 0
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    end = rows.line_num
    for row in rows:
        where, said = f"{file} line {end + 1}", (row["better"] or "").strip()  # where the record begins
        end = rows.line_num
        asked = version.pairs.get((row["pair"] or "").strip())
        if asked is None:
            other = f"no pair of version {version.number} of {version.name}"
            raise ConfigError(
                f"{where}: pair {shown(row['pair'])} is {other}; give the --version that it was written for"
            )
        if asked.id in found:
            raise ConfigError(f"{where}: pair {asked.id} is judged twice; accepted: each pair once in a file")
        if not said:
            num_open += 1
            continue
        if (choice := CHOICES.get(said.casefold())) is None:
            raise ConfigError(f"{where}: better={shown(said)}; accepted: A, B, tie, or nothing")
        found[asked.id] = Judgement(
            row_id=asked.pair.row_id,
            opponent=asked.pair.opponent,
            better=asked.better(choice),
            by=by,
            comment=" ".join((row.get("comment") or "").split()),
            at=now,
        )
    if not found:
        raise ConfigError(f"{file}: no pair is judged; fill in the column better: A, B or tie")
    return list(found.values()), num_open


def summed_up(client: "MlflowClient", version: ReviewedVersion, every: Sequence[Judgement]) -> list[HumanPreference]:
    """Sum up what all people say of a version, and log it to the version's run."""
    people = judgements.summed_up(every, version.clusters, version.judged)
    judgements.log(client, version.run_id, people, len(every))
    return people
