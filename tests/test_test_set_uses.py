"""Looks at the test rows are counted by candidate, go on as the rows grow, and keep the number that they were given."""

import hashlib
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunewright.artifacts import Adapter, Answers, Verdict
from tunewright.config import Gate
from tunewright.errors import ConfigError
from tunewright.store import disk, test_set_uses
from tunewright.store.caching import digest_of

ROWS = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4_000)]
VERDICT = Verdict(
    decision="keep",
    because="worse",
    sentence="Not promoted.",
    metric="exact_match",
    differences={},
    intervals={},
    rows_needed=None,
)
PROMOTED = VERDICT.model_copy(update={"decision": "promote", "because": ""})


def adapter(digest: str) -> Adapter:
    return Adapter(
        digest=digest,
        method="lora",
        steps=1,
        best_step=1,
        best_by="loss",
        best_value=1.0,
        best_validation_loss=1.0,
        stopped_early=False,
        train_seconds=1.0,
    )


def answers_of(candidate: str, rows: list[str], tmp_path: Path) -> Answers:
    folder = tmp_path / f"{candidate}-{len(rows)}-{rows[0]}"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"row_id": rows}), folder / "answers.parquet")
    return Answers(folder=folder, contender="candidate", num_rows=len(rows), scores={})


def look(
    candidate: str,
    rows: list[str],
    tmp_path: Path,
    name: str = "triage",
    most: int = 20,
    *,
    rotate: bool = False,
    seed: int = 0,
    promoted: str = "",
) -> Verdict:
    answers = answers_of(candidate, rows, tmp_path)
    gate = Gate(max_test_set_uses=most, rotate=rotate)
    verdict = PROMOTED if candidate in promoted else VERDICT
    foreseen = test_set_uses.look_up(name, verdict, adapter(candidate), answers, gate, seed=seed)
    share = test_set_uses.alpha_share(name, adapter(candidate), answers)
    assert test_set_uses.begin(name, adapter(candidate), answers, seed=seed, recipe=candidate) == share
    ended = test_set_uses.end(name, verdict, adapter(candidate), answers, gate, seed=seed)
    assert ended == foreseen
    assert test_set_uses.alpha_share(name, adapter(candidate), answers) == share, "which is that of a run again"
    return ended


def spent(candidate: str, rows: list[str], tmp_path: Path, promoted: str = "") -> float:
    """The share of alpha of a use."""
    look(candidate, rows, tmp_path, promoted=promoted)
    return test_set_uses.alpha_share("triage", adapter(candidate), answers_of(candidate, rows, tmp_path))


def test_a_promotion_of_what_was_decided_otherwise_before_is_warned_of(tmp_path: Path) -> None:
    assert look("a", ROWS[:50], tmp_path).warnings == ()
    for _ in range(2):  # a run again says the same
        (warning,) = look("a", ROWS[:50], tmp_path, promoted="a").warnings
        assert warning.startswith(
            "this candidate was decided on before, on these test rows: not promoted: not better ("
        )
    assert look("a", ROWS[:50], tmp_path).warnings == (), "only a promotion has to be defended"
    assert look("b", ROWS[:50], tmp_path, promoted="b").warnings == ()


def test_the_same_candidate_again_is_no_use_and_keeps_its_number(tmp_path: Path) -> None:
    rows = ROWS[:50]
    assert [look(candidate, rows, tmp_path).test_set_uses for candidate in "abacb"] == [1, 2, 1, 3, 2]
    assert len(test_set_uses.file_of("triage").read_text().splitlines()) == 2 * 3  # a begin and an end each


def test_a_home_of_an_earlier_release_keeps_its_count(tmp_path: Path) -> None:
    look("a", ROWS[:50], tmp_path)
    ledger = test_set_uses.file_of("triage")
    before = ledger.parent.with_name("looks")
    ledger.parent.rename(before)
    assert look("b", ROWS[:50], tmp_path).test_set_uses == 2
    assert not before.exists() and test_set_uses.file_of("triage") == ledger


def test_each_pipeline_and_each_test_set_has_a_count_of_its_own(tmp_path: Path) -> None:
    assert [look(candidate, ROWS[:50], tmp_path).test_set_uses for candidate in "ab"] == [1, 2]
    assert look("c", ROWS[:50], tmp_path, name="other").test_set_uses == 1
    assert look("c", ROWS[50:90], tmp_path).test_set_uses == 1
    assert look("d", ROWS[:50][::-1], tmp_path).test_set_uses == 3  # the order of the rows is none of its matter


def test_all_uses_of_a_test_set_together_spend_no_more_than_alpha(tmp_path: Path) -> None:
    assert [spent(each, ROWS[:50], tmp_path) for each in "abcd"] == [1 / 2, 1 / 6, 1 / 12, 1 / 20]
    assert spent("e", ROWS[50:90], tmp_path) == 1 / 2, "another test set starts anew"


def test_a_use_that_promoted_hands_on_what_it_spent(tmp_path: Path) -> None:
    shares = [spent(each, ROWS[:50], tmp_path, promoted="ac") for each in "abcd"]
    assert shares == [1 / 2, 1 / 6 + 1 / 2, 1 / 12, 1 / 20 + 1 / 12]
    assert spent("e", ROWS[25:75], tmp_path, promoted="e") == 1 / (3 * 4), "half of it was seen by each of four"
    assert spent("f", ROWS[50:100], tmp_path) == 1 / 2 + (1 / 12) / 2, "half of it was seen by e"


def test_a_use_that_is_being_decided_is_counted_by_another_run(tmp_path: Path) -> None:
    look("a", ROWS[:50], tmp_path)
    answers = answers_of("a", ROWS[:50], tmp_path)
    shares = [test_set_uses.begin("triage", adapter(each), answers, seed=0, recipe=each) for each in "bcbc"]
    assert shares == [1 / 6, 1 / 12, 1 / 6, 1 / 12]


def test_a_use_from_before_alpha_was_spent_keeps_all_of_it(tmp_path: Path) -> None:
    look("a", ROWS[:50], tmp_path)
    file = test_set_uses.file_of("triage")
    begin, end = test_set_uses.read(file)
    file.write_text(end.model_copy(update={"alpha_share": None, "sample": begin.sample}).model_dump_json() + "\n")
    assert spent("a", ROWS[:50], tmp_path) == 1.0
    assert spent("b", ROWS[:50], tmp_path) == 1 / 6


def test_a_test_set_that_grows_is_no_new_one(tmp_path: Path) -> None:
    assert [look(str(number), ROWS[: 200 + number], tmp_path).test_set_uses for number in range(12)] == [*range(1, 13)]
    assert (
        look("new", ROWS[:50] + ROWS[300:350], tmp_path).test_set_uses == 1 + 6
    )  # half of it was seen by each of twelve
    assert look("0", ROWS[:200], tmp_path).test_set_uses == 1


def test_a_candidate_that_is_decided_on_again_with_more_rows_spends_more(tmp_path: Path) -> None:
    shares = [spent("a", ROWS[: 200 + number], tmp_path) for number in range(4)]
    assert shares == [1 / 2, 1 / 6, 1 / 12, 1 / 20]
    assert spent("b", ROWS[:203], tmp_path) == 1 / 30, "each of the four was a test"
    assert spent("a", ROWS[:200], tmp_path) == 1 / 2, "a run again"
    assert spent("a", ROWS[300:400], tmp_path) == 1 / 2, "of other rows"


def test_of_many_rows_a_sample_tells_what_was_seen(tmp_path: Path) -> None:
    looks = [look(str(number), ROWS[:3_000], tmp_path).test_set_uses for number in range(20)]
    assert looks == [*range(1, 21)]
    assert look("new", ROWS[1_500:4_000], tmp_path).test_set_uses == pytest.approx(1 + 20 * 0.6, abs=2)
    assert look("other", ROWS[3_000:], tmp_path).test_set_uses == 2  # of which the one before saw all
    assert max(map(len, test_set_uses.file_of("triage").read_text().splitlines())) < 20_000


def test_over_gate_looks_there_is_a_warning_that_says_how_to_take_other_rows(tmp_path: Path) -> None:
    assert look("a", ROWS[:50], tmp_path, most=1).warnings == ()
    (warning,) = look("b", ROWS[:50], tmp_path, most=1).warnings
    assert warning.startswith(
        "this is test-set use 2 of these 50 test rows (gate.max_test_set_uses=1), and after so many "
    )
    assert "add new rows in a source with use_as: test, or set gate.rotate=true to draw others" in warning
    (warning,) = look("b", ROWS[:50], tmp_path, most=1, rotate=True).warnings
    assert warning.startswith(
        "this is test-set use 2 of these 50 test rows (gate.max_test_set_uses=1), and after so many "
    )
    assert "gate.rotate draws other test rows for the next candidate" in warning
    assert "use_as: test" not in warning, "which gate.rotate refuses"


def test_rows_that_another_seed_drew_are_counted(tmp_path: Path) -> None:
    look("a", ROWS[:40], tmp_path)
    look("b", ROWS[30:60], tmp_path)
    (warning,) = look("c", ROWS[20:70], tmp_path, seed=1).warnings
    assert warning.startswith("40 of these 50 test rows were used before, as test rows of another split.seed; ")
    assert look("d", ROWS[20:70], tmp_path, seed=1).warnings == (warning,)
    assert look("e", ROWS[100:150], tmp_path, seed=2).warnings == ()
    look("f", ROWS[100:130], tmp_path, seed=3)
    assert look("e", ROWS[100:150], tmp_path, seed=2).warnings == (), "what came later changes nothing"


def test_of_many_rows_that_another_seed_drew_a_sample_tells(tmp_path: Path) -> None:
    look("a", ROWS[:1_500], tmp_path)
    look("b", ROWS[1_000:2_500], tmp_path)
    (warning,) = look("c", ROWS[2_000:], tmp_path, seed=1).warnings
    seen = re.match(r"about (\d+) of these 2,000 test rows were", warning)
    assert seen and int(seen[1]) == pytest.approx(500, abs=100)


def test_a_look_leaves_the_verdict_and_what_has_read_it_unchanged(tmp_path: Path) -> None:
    seen = look("a", ROWS[:50], tmp_path)
    assert seen.model_copy(update={"test_set_uses": 0}) == VERDICT
    before = digest_of(test_set_uses.file_of("triage"))
    look("a", ROWS[:50], tmp_path)
    assert digest_of(test_set_uses.file_of("triage")) == before


@pytest.mark.parametrize("damage", [b"\xf5", b"[" * 9_000, b"{}", b"\0"])
def test_a_damaged_line_is_one_line_of_an_error(tmp_path: Path, damage: bytes) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(damage + b"\n")
    with pytest.raises(ConfigError, match=r"^\S+a.jsonl line 1: \".{1,80}\" is no test-set use; fix the line.*$"):
        test_set_uses.read(file)


def test_a_name_with_a_line_separator_is_read_as_it_was_written(tmp_path: Path) -> None:
    look = test_set_uses.TestSetUse(candidate="c", test="t", decided="2026", run="a\u2028b\x85c", verdict="keep")
    disk.append(tmp_path / "a.jsonl", look)
    assert test_set_uses.read(tmp_path / "a.jsonl") == [look]


def test_a_line_that_is_no_look_is_said_with_its_place(tmp_path: Path) -> None:
    look("a", ROWS[:50], tmp_path)
    with test_set_uses.file_of("triage").open("a") as file:
        file.write('{"candidate": "b"}\n')
    with pytest.raises(ConfigError, match=r"triage.jsonl line 3: .* is no test-set use; fix the line"):
        look("b", ROWS[:50], tmp_path)
