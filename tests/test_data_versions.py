"""Each data know the version before them, the same one whenever they come again, and no accepted version is lost."""

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tunewright.artifacts import ASSIGNMENTS_FILE, ASSIGNMENTS_SCHEMA, CheckedRows, Rows, Splits, UniqueRows
from tunewright.artifacts.placement import SPLITS
from tunewright.config import Split
from tunewright.errors import ConfigError, TunewrightError
from tunewright.similarity.prompts import read_boilerplate, write_boilerplate
from tunewright.store import data_history
from tunewright.store.caching import cached
from tunewright.store.data_history import SCHEMA, Replaced, Version, file_of, folder_of, history, place, read, trained
from tunewright.store.data_versions import Before, accept, before
from tunewright.store.lineage import splits as numbers_of
from tunewright.tasks.split.columns import earlier_splits

SPLIT = Split()


@cached()
def ingest(folder: Path, ids: tuple[str, ...]) -> Rows:
    pq.write_table(pa.table({"row_id": pa.array(ids, pa.string())}), folder / "rows.parquet")
    return Rows(num_read=len(ids) + 1, num_rows=len(ids), num_quarantined=1, reasons={}, detected={})


@cached()
def check(folder: Path, rows: Rows) -> CheckedRows:
    shutil.copy(rows.path("rows.parquet"), folder)
    (folder / "profile.json").write_text(rows.digest)
    return CheckedRows(num_rows=rows.num_rows, num_quarantined=0, reasons={}, findings={})


@cached()
def dedupe(folder: Path, rows: CheckedRows) -> UniqueRows:
    (folder / "rows.parquet").write_text(rows.digest)
    write_boilerplate(folder, 0.05, {1: 10}, {1: "thank you!"})
    return UniqueRows(num_rows=rows.num_rows, num_removed=0, reasons={}, boilerplate=())


@cached()
def split(folder: Path, rows: UniqueRows, settings: Split, ids: Sequence[str] = "") -> Splits:
    """More of a, b, c are test rows by a higher threshold, with a quarantined duplicate; x is gone, y quarantined."""
    (folder / "train.parquet").write_text(f"{rows.digest} {settings.threshold}")
    tested = "abc"[: round(10 * settings.threshold) - 6]
    splits = {row_id: "test" if row_id in tested else "train" for row_id in ids}
    memory = [{"row_id": row_id, "side": split, "because": "drawn"} for row_id, split in splits.items()]
    memory += [{"row_id": row_id, "side": "train", "because": "repeats_test_row"} for row_id in ids if row_id in tested]
    gone = {"row_id": "x", "side": "train", "because": "gone"}
    aside = {"row_id": "y", "side": None, "because": "bridges_splits"}
    pq.write_table(pa.Table.from_pylist([*memory, gone, aside], ASSIGNMENTS_SCHEMA), folder / ASSIGNMENTS_FILE)
    return Splits(
        num_train=rows.num_rows,
        num_validation=0,
        num_test=0,
        num_clusters=1,
        largest_similarity=0.0,
        random_leak_share=0.0,
    )


def run(ids: str, settings: Split = SPLIT, name: str = "triage", keep: int = 30) -> tuple[Before, Version]:
    """Run the data stages on rows with these ids, one letter each; return the state before and the accepted version."""
    rows = ingest(tuple(ids))
    found = before(name, rows, settings)
    checked = check(rows)
    unique = dedupe(checked)
    accepted = accept(found, rows, checked, unique, split(unique, settings, ids), keep=keep)
    assert accepted
    return found, accepted


def test_a_sample_is_held_against_the_version_before_it_and_becomes_none() -> None:
    run("abc")
    rows = ingest(("a",))
    found = before("triage", rows, SPLIT, is_sample=True)
    assert found.number is None
    checked = check(rows)
    unique = dedupe(checked)
    assert accept(found, rows, checked, unique, split(unique, SPLIT)) is None
    assert found.parent == history("triage", SPLIT.seed, SPLIT.by)[-1].rows.digest
    assert len(history("triage", SPLIT.seed, SPLIT.by)) == 1


def digests(found: Before) -> tuple[str, str]:
    assert found.checked
    assert found.splits
    return found.checked.digest, found.splits.digest


def test_the_first_data_have_nothing_before_them_and_the_next_have_the_first() -> None:
    nothing, first = run("abc")
    assert (nothing.number, nothing.parent, nothing.checked, nothing.splits) == (1, "", None, None)
    found, second = run("abcd")
    assert (found.number, found.parent, found.checked_number) == (2, first.rows.digest, 1)
    assert digests(found) == (first.checked.digest, first.splits.digest)
    assert [v.number for v in history("triage", 0, "cluster")] == [1, 2]
    assert second.parent == first.rows.digest


def test_what_was_left_out_of_the_comparison_comes_from_the_version_before(home: Path) -> None:
    nothing, first = run("abc")
    assert nothing.unique is None
    shutil.rmtree(home / "artifacts")
    found, _ = run("abcd")
    assert found.unique and found.unique.digest == first.unique.digest
    assert read_boilerplate(found.unique.folder).tolist() == [1]
    assert run("abcd", Split(sticky=False))[0].unique is None


def test_a_version_from_before_boilerplate_was_kept_keeps_its_splits(home: Path) -> None:
    _, first = run("abc")
    folder = folder_of("triage", first)
    (folder / "boilerplate.json").unlink()
    data_history.write(file_of("triage"), [first.model_copy(update={"assignments": data_history.digest(folder)})])
    shutil.rmtree(home / "artifacts")
    found, _ = run("abcd")
    assert found.splits and found.unique is None


def test_data_that_come_again_have_the_same_version_before_them_as_the_first_time() -> None:
    accepted = {ids: run(ids) for ids in ("ab", "abc", "abcd")}
    for ids, (found, version) in accepted.items():
        assert run(ids) == (found, version)
    assert len(history("triage", 0, "cluster")) == 3


def test_the_newest_version_is_what_its_data_came_to_last_and_an_older_one_stays() -> None:
    _, old = run("ab")
    _, new = run("abc")
    _, again = run("abc", Split(threshold=0.9))
    assert again.splits != new.splits
    assert (again.number, again.parent, again.added) == (new.number, new.parent, new.added)
    assert history("triage", 0, "cluster") == [old, again]
    assert run("ab", Split(threshold=0.9))[1] == old, "the splits of the newest version stand on it"
    assert history("triage", 0, "cluster") == [old, again]


def test_splits_that_a_trial_gives_the_newest_version_are_counted_and_said_and_can_be_put_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tunewright"), "propagate", True)
    monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__NAME", "brave-fox")
    run("ab")
    _, first = run("abcd")
    assert first.replaced == () == run("abcd")[1].replaced
    assert not caplog.messages
    _, trial = run("abcd", Split(threshold=0.8))
    when = f"{first.accepted[:10]} {first.accepted[11:16]}"
    assert caplog.messages == [
        "version 2 of the data of triage was split anew: 2 of 4 rows are in another split than when it was accepted on "
        f"{when} by run brave-fox; later data keep the new splits, unless a run with the earlier settings "
        "restores the old ones"
    ]
    replaced = Replaced(accepted=first.accepted, run="brave-fox", moved=2, known=4, splits=first.splits.digest)
    assert trial.replaced == (replaced,)
    assert not trial.is_back(0)
    rows = ingest(tuple("abcde"))
    found = before("triage", rows, SPLIT).splits
    assert found
    assert found.digest == trial.splits.digest, "the next data follow it"

    caplog.set_level(logging.INFO, "tunewright")
    again = run("abcd")[1]
    back = f"version 2 of the data of triage has its first accepted splits again, on {when} by run brave"
    assert again.splits == first.splits
    assert caplog.messages[1].startswith(back)
    assert [(once.moved, again.is_back(at)) for at, once in enumerate(again.replaced)] == [(2, False), (2, True)]


def test_splits_that_stay_are_nothing_to_say_of_and_splits_that_are_gone_are(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tunewright"), "propagate", True)
    _, first = run("cd")
    _, other = run("cd", Split(threshold=0.7))  # which tests a alone
    assert other.splits != first.splits
    assert [replaced.moved for replaced in other.replaced] == [0]
    assert not caplog.messages
    shutil.rmtree(folder_of("triage", other))
    _, last = run("cd", Split(threshold=0.8))
    assert [replaced.moved for replaced in last.replaced] == [0, None]
    assert "the splits that were accepted on" in caplog.messages[-1]
    assert "are gone, so the number of moved rows is unknown" in caplog.messages[-1]


def test_splits_that_were_altered_are_as_gone_and_are_never_read(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow's reader with filters waits without end at some altered bytes of a Parquet file's metadata."""
    monkeypatch.setattr(logging.getLogger("tunewright"), "propagate", True)
    _, first = run("cd")
    file = folder_of("triage", first) / ASSIGNMENTS_FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    table = pq.read_table

    def untouched(source: Path, **options: Any) -> pa.Table:
        assert source != file
        return table(source, **options)

    monkeypatch.setattr(pq, "read_table", untouched)
    monkeypatch.setattr(ds, "dataset", pytest.fail)
    _, other = run("cd", Split(threshold=0.7))
    assert [replaced.moved for replaced in other.replaced] == [None]
    assert "are gone, so the number of moved rows is unknown" in caplog.messages[-1]
    assert numbers_of("id", "triage", [first]) == [{"version": 1, "split": None, "because": None}]


def test_records_of_a_version_whose_splits_were_altered_are_not_counted() -> None:
    _, first = run("abc")
    found = before("triage", rows := ingest(tuple("abcd")), SPLIT)
    file = folder_of("triage", first) / ASSIGNMENTS_FILE
    file.write_bytes(file.read_bytes()[:-50])
    checked = check(rows)
    unique = dedupe(checked)
    accepted = accept(found, rows, checked, unique, split(unique, SPLIT, "abcd"))
    assert accepted
    assert (accepted.added, accepted.removed) == (None, None)


def test_another_seed_another_rule_and_another_pipeline_have_histories_of_their_own() -> None:
    run("ab")
    for settings, name in ((Split(seed=1), "triage"), (Split(by="time"), "triage"), (Split(), "other")):
        found, version = run("abc", settings, name)
        assert (found.number, found.splits, version.parent) == (1, None, "")
    assert len(history("triage", 0, "cluster")) == 1
    assert len(file_of("triage").read_text().splitlines()) == 3


def test_a_version_counts_the_rows_that_came_and_went() -> None:
    assert (run("abc")[1].added, history("triage", 0, "cluster")[0].removed) == (3, 0)
    _, second = run("bcde")
    assert (second.added, second.removed) == (2, 1)
    assert (second.counts["read"], second.counts["rows"], second.counts["train"]) == (5, 4, 4)
    shutil.rmtree(folder_of("triage", second))
    _, third = run("a")
    assert (third.added, third.removed) == (None, None), "nobody knows any more"


def test_a_run_that_another_one_overtook_is_not_accepted() -> None:
    run("ab")
    rows = ingest(tuple("abc"))
    found = before("triage", rows, SPLIT)
    run("abd")
    checked = check(rows)
    unique = dedupe(checked)
    with pytest.raises(TunewrightError, match=r"accepted version 2 .* was based on version 1; run again"):
        accept(found, rows, checked, unique, split(unique, SPLIT))
    assert len(history("triage", 0, "cluster")) == 2
    assert run("abc")[0].number == 3


@pytest.mark.parametrize("how", ["gone", "altered", "another"])
def test_a_version_whose_splits_are_not_known_stops_the_next_run_unless_it_splits_anew(how: str, home: Path) -> None:
    _, first = run("ab")
    folder = folder_of("triage", first)
    shutil.rmtree(home / "artifacts")
    if how == "gone":
        shutil.rmtree(folder)
    elif how == "altered":
        (folder / ASSIGNMENTS_FILE).write_bytes((folder / ASSIGNMENTS_FILE).read_bytes()[::-1])
    else:
        line = file_of("triage").read_text()
        file_of("triage").write_text(line.replace(first.assignments, "0" * 64))
    rows = ingest(tuple("abc"))
    with pytest.raises(
        ConfigError, match=r"^split.sticky=true: .*/versions/splits/triage/.*backup.*split.sticky=false"
    ) as e:
        before("triage", rows, SPLIT)
    assert str(file_of("triage")) in str(e.value)
    anew = before("triage", rows, Split(sticky=False))
    assert (anew.splits, anew.checked) == (None, None)


def test_all_artifacts_can_be_deleted(home: Path) -> None:
    _, first = run("abbc")
    found, second = run("abcd")
    shutil.rmtree(home / "artifacts")
    assert run("abcd") == (found, second)
    shutil.rmtree(home / "artifacts")
    assert found.splits
    table = earlier_splits(pa.array(["b"]), found.splits)
    assert SPLITS[table[0][0]] == "train"
    assert sorted(table[1]["row_id"].to_pylist()) == ["a", "c", "x"]
    _, third = run("bcde")
    assert (third.added, third.removed, third.parent) == (1, 1, second.rows.digest)
    assert (second.added, second.removed) == (1, 1), "b was there twice"
    assert first.replaced == second.replaced == third.replaced == ()


def test_what_is_kept_of_a_version_is_small_and_has_no_texts(home: Path) -> None:
    ids = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20_000)]
    rows = ingest(tuple(ids))
    checked = check(rows)
    unique = dedupe(checked)
    accepted = accept(before("triage", rows, SPLIT), rows, checked, unique, split(unique, SPLIT, ids))
    assert accepted
    file = folder_of("triage", accepted) / ASSIGNMENTS_FILE
    assert file.stat().st_size / len(ids) < 36
    assert {*pq.read_schema(file).names} == {"row_id", "side", "because", "records", "checked", "placed"}
    assert "thank you" in unique.path("boilerplate.json").read_text()
    assert "thank you" not in file.with_name("boilerplate.json").read_text()


def test_splits_that_were_damaged_are_kept_anew_from_artifacts_that_are_whole(home: Path) -> None:
    _, first = run("ab")
    shutil.rmtree(home / "versions" / "splits")
    assert run("ab")[1] == first
    shutil.rmtree(home / "artifacts")
    assert run("abc")[0].splits


def test_of_versions_beyond_the_limit_a_line_stays_and_their_rows_keep_the_splits_of_the_newest(home: Path) -> None:
    first = [run("abcd"[:number], keep=2)[1] for number in (1, 2, 3, 4)]
    assert {path.name for path in place("triage").iterdir()} == {folder_of("triage", each).name for each in first[2:]}
    shutil.rmtree(home / "artifacts")
    found, again = run("ab", keep=2)
    assert again == first[1]
    assert found.splits
    assert found.splits.digest == first[3].splits.digest
    assert len(history("triage", 0, "cluster")) == 4


def test_a_home_that_begins_to_share_a_store_takes_its_splits_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run("abcd")
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "store"))
    _, first = run("abcd")
    shutil.rmtree(tmp_path / "store" / "content")  # what a lifecycle rule may delete
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "another machine"))
    found, second = run("abcde")
    assert found.splits and data_history.kept("triage", first)
    assert (second.number, second.parent) == (2, first.rows.digest)


def test_nothing_is_made_in_looking(home: Path) -> None:
    rows = ingest(("a",))
    before("triage", rows, SPLIT)
    assert not (home / "versions").exists()


def test_a_line_that_is_no_version_is_named() -> None:
    run("ab")
    with file_of("triage").open("a") as file:
        file.write('{"number": 2}\n')
    with pytest.raises(ConfigError, match=r"triage.jsonl line 2: .*number.* is not a data version"):
        run("abc")


def test_runs_at_once_lose_no_version() -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda seed: run("abc", Split(seed=seed)), range(10)))
    seeds = {version.seed for version in read(file_of("triage"))}
    assert seeds == set(range(10))


def test_a_failed_write_leaves_the_ledger_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    run("ab")
    as_it_was = file_of("triage").read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        rows = ingest(tuple("abc"))
        checked = check(rows)
        unique = dedupe(checked)
        splits = split(unique, SPLIT)
        found = before("triage", rows, SPLIT)
        patch.setattr(os, "fsync", full)
        accept(found, rows, checked, unique, splits)
    assert file_of("triage").read_text() == as_it_was


ACCEPTING = """
import itertools
from tunewright.config import Split
from test_data_versions import run
for seed in itertools.count():
    run("abc", Split(seed=seed))
"""


@pytest.fixture
def accepting() -> Iterator[subprocess.Popen[bytes]]:
    """A process that accepts one version after the other until it is killed."""
    paths = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))
    process = subprocess.Popen([sys.executable, "-c", ACCEPTING], env=os.environ | {"PYTHONPATH": paths})
    yield process
    process.kill()
    process.wait()


def test_a_killed_run_leaves_every_accepted_version_readable(accepting: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while not file_of("triage").exists() or len(file_of("triage").read_text().splitlines()) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    accepting.send_signal(signal.SIGKILL)
    accepting.wait()
    there = read(file_of("triage"))
    assert [version.seed for version in there] == list(range(len(there)))
    assert run("abc", Split(seed=10**6))[1].number == 1
    assert len(read(file_of("triage"))) == len(there) + 1


@pytest.fixture
def splits() -> Path:
    """The file with the assignments of a version of two rows, of which one trains."""
    file = place("tiny") / "d-1" / ASSIGNMENTS_FILE
    file.parent.mkdir(parents=True)
    columns = [["r1", "r2"], ["train", "test"], [None, "quarantined"], [1, 2], [True, True], [True, False]]
    pq.write_table(pa.table(columns, schema=SCHEMA), file, compression="zstd")
    return file


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"])
def test_assignments_that_cannot_be_read_are_one_line(splits: Path, content: bytes) -> None:
    assert trained("tiny", "d") == {"r1"}
    splits.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^{splits}: was altered and cannot be read \([^\n]*; restore versions/"):
        trained("tiny", "d")


def test_a_byte_changed_in_assignments_never_keeps_a_run_waiting(splits: Path) -> None:
    whole = splits.read_bytes()  # pyarrow's reader with filters waits without end where byte 583 is another
    for at in range(0, len(whole), 11):
        splits.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(ConfigError):
            trained("tiny", "d")
