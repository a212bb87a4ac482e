"""People compare answers without knowing whose they are, and what they choose is read back, kept and summed up."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from browsing import browser
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, Trace
from mlflow.genai import review_queues
from playwright.sync_api import expect
from registered import QUESTIONS, runs
from test_json import documented, faults
from typer.testing import CliRunner
from waiting import until

from tunewright.artifacts import Registered
from tunewright.cli.main import app
from tunewright.evidence.judgements import Judgement, _figures, krippendorff, summed_up
from tunewright.evidence.review import BlindPair, ReviewedVersion, read, write_csv
from tunewright.evidence.review_queue import QUESTION, _block
from tunewright.metrics.win_rate import Pair, mean_of_pairs

Review = Callable[..., dict[str, Any]]
Row = dict[str, str]

# 4 people, 12 units; nothing where a person judged none. Alpha is .743 (Krippendorff 2011, section C).
BY_FOUR = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


@pytest.fixture
def review(
    register_candidate: Callable[..., Registered], said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Review:
    """`review("write", ...)` is what the command prints of version 2; version 1 differs from it in one answer."""
    register_candidate()
    register_candidate(digest="b", challenged="1", champions=(*said[:2], "no"))
    monkeypatch.chdir(tmp_path)

    def call(command: str, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["review", command, "triage", *arguments, "--json"])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout.splitlines()[-1])

    return call


def rows_of(file: Path) -> list[Row]:
    with file.open(newline="", encoding="utf-8-sig") as opened:
        return list(csv.DictReader(opened))


def fill(rows: list[Row], file: Path, choose: Callable[[Row], str], delimiter: str = ",") -> str:
    """Writes the table with a choice in each row."""
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ["pair", "better", "comment"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows({"pair": row["pair"], "better": choose(row), "comment": "too short"} for row in rows)
    return str(file)


def question_in(prompt: str) -> str:
    """The question of a prompt as the candidate got it: the splits of these versions are in no home."""
    return prompt.partition("<|im_start|>user")[2].partition("<|im_end|>")[0].strip()


def own(row: Row, said: list[str]) -> str:
    """Whether A or B is the candidate's."""
    (choice,) = (name for name in "AB" if row[name] in said)
    return choice


def test_a_table_is_filled_in_by_two_people_and_comes_to_a_win_rate(
    review: Review, said: list[str], tmp_path: Path
) -> None:
    written = review("write", "--against", "base", "--output", "pairs.csv")
    assert (written["num_pairs"], written["num_equal"], written["against"]) == (3, 0, "base")
    rows = rows_of(tmp_path / "pairs.csv")
    assert {question_in(row["conversation"]) for row in rows} == {*QUESTIONS}
    assert {row["reference"] for row in rows} == {"yes"}
    assert all("" in (row["A"], row["B"]) for row in rows)

    others = {"A": "b", "B": "a"}
    ann = fill(rows, tmp_path / "ann.csv", lambda row: own(row, said))
    first = review("record", ann, "--by", "Ann")["opponents"]
    assert [first[0][name] for name in ("num_pairs", "num_people", "agreement", "alpha")] == [3, 1, None, None]
    assert tuple(first[0]["preferred"]) == mean_of_pairs([1.0, 1.0, 1.0], [3, 4, 5])

    bob = fill(rows, tmp_path / "bob.csv", lambda row: others[own(row, said)] if row is rows[0] else "Tie", ";")
    (both,) = review("record", bob, "--by", "Bob")["opponents"]
    assert (both["num_pairs"], both["num_people"], both["num_shared"], both["agreement"]) == (3, 2, 3, 0.0)
    assert both["preferred"][1] == pytest.approx((0.5 + 0.75 + 0.75) / 3)
    assert [(each["by"], each["comment"]) for each in both["lost"]] == [("Bob", "too short")]

    again = fill(rows[1:2], tmp_path / "again.csv", lambda row: own(row, said))
    (now,) = review("record", again, "--by", "Bob")["opponents"]
    assert now["preferred"][1] == pytest.approx((0.5 + 1 + 0.75) / 3), "one choice is replaced, two stay"
    assert now["agreement"] == pytest.approx(1 / 3)
    shown = review("show")
    assert shown["opponents"] == [now]
    for heading, printed in {"review write": written, "review": shown}.items():
        keys, seen = documented()[heading], set[str]()
        assert [*faults(printed, "", keys, seen)] == []
        assert keys.keys() == seen
    run = runs()[0]
    assert run.data.metrics["people/base/preferred"] == now["preferred"][1]
    assert run.data.metrics["people/base/num_pairs"] == 3


def test_the_champion_is_compared_by_default_and_equal_answers_are_left_out(
    review: Review, said: list[str], tmp_path: Path
) -> None:
    written = review("write", "--output", "pairs.csv")
    assert (written["against"], written["num_pairs"], written["num_equal"]) == ("champion", 1, 2)
    (row,) = rows_of(tmp_path / "pairs.csv")
    assert {row["A"], row["B"]} == {said[2], "no"}
    review("write", "--output", "again.csv", "--overwrite")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "pairs.csv").read_bytes()
    assert review("show")["opponents"] == []


def test_answers_that_are_all_the_same_leave_nothing_to_choose(
    register_candidate: Callable[..., Registered], said: list[str], home: Path
) -> None:
    register_candidate()
    register_candidate(digest="b", challenged="1", champions=tuple(said))
    done = CliRunner().invoke(app, ["review", "write", "triage", "--json"])
    assert json.loads(done.stdout)["error"] == "--against champion: all its answers are the same as the candidate's"


def test_a_person_chooses_in_the_browser_and_saves_a_table_that_can_be_recorded(
    review: Review, said: list[str], tmp_path: Path
) -> None:
    review("write", "--against", "base")
    page_file = tmp_path / "triage-2-review.html"
    assert "candidate" not in page_file.read_text(), "nothing says whose answers they are"
    review("write", "--against", "base", "--output", "pairs.csv")
    rows = rows_of(tmp_path / "pairs.csv")
    with browser() as chromium:
        page = chromium.new_page()
        refused: list[str] = []
        page.on("console", lambda said: refused.append(said.text))
        page.goto(page_file.as_uri())
        for row in rows:
            expect(page.locator("#asked pre")).to_have_text(row["conversation"])
            expect(page.locator(".answer pre").nth(0)).to_have_text(row["A"])
            expect(page.locator(".answer pre").nth(1)).to_have_text(row["B"])
            if row is rows[0]:
                page.locator("#comment").fill('a "b", c')
                page.get_by_text(f"{own(row, said)} is better").click()
            else:
                page.keyboard.press("t")
        expect(page.locator("#place")).to_have_text("Pair 3 of 3; 3 chosen")

        def reloaded() -> str | None:
            page.reload()
            return page.locator("#place").text_content()

        until(lambda: reloaded() == "Pair 1 of 3; 3 chosen")  # a busy browser lays the choices down a little later
        with page.expect_download() as saving:
            page.get_by_text("Save choices").click()
        assert saving.value.suggested_filename == "triage-2-review.csv"
        saving.value.save_as(tmp_path / "saved.csv")
        assert refused == []
    (found,) = review("record", str(tmp_path / "saved.csv"), "--by", "Ann")["opponents"]
    assert found["preferred"][1] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert rows_of(tmp_path / "saved.csv")[0]["comment"] == 'a "b", c'


UNREADABLE = {  # a table -> the error
    "id,better\n1,A\n": 'no column "pair"; accepted: pair, better, and comment if there is one',
    "": 'no column "better"',
    "pair,better\n0123,A\n": 'line 2: pair "0123" is no pair of version 2 of triage; give the --version',
    "pair,better\n{pair},C\n": 'line 2: better="C"; accepted: A, B, tie, or nothing',
    'pair,A,better\n{pair},"1\n2\n3",C\n': 'line 2: better="C"',
    "pair,better\n{pair},A\n{pair},B\n": "line 3: pair {pair} is judged twice",
    "pair,better\n{pair},\n": "no pair is judged; fill in the column better",
}
UNFIT = {  # options -> the error
    "write --against gpt": '--against "gpt": accepted: base, few_shot, champion',
    "write --output pairs.xlsx": "--output pairs.xlsx: accepted: a name that ends in .html or .csv",
    "write --output there.csv": "--output there.csv: exists; --overwrite replaces it",
    "record absent.csv": "absent.csv: No such file or directory; accepted: the CSV file",
    "record binary.csv": "binary.csv: it is not UTF-8 text",
    "record there.csv --by ": "--by",
    "show --version 7": 'version "7" of triage: no such version; accepted: 1, 2',
}


def test_what_cannot_be_read_is_one_error_and_nothing_is_recorded(review: Review, tmp_path: Path) -> None:
    review("write", "--against", "base", "--output", "there.csv")
    pair = rows_of(tmp_path / "there.csv")[0]["pair"]
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00pair")
    for text, fault in UNREADABLE.items():
        (tmp_path / "filled.csv").write_text(text.replace("{pair}", pair))
        found = review("record", "filled.csv", code=2)["error"]
        assert fault.replace("{pair}", pair) in found
        assert found.startswith("filled.csv")
    for call, fault in UNFIT.items():
        assert fault in review(*call.split(" "), code=2)["error"]
    assert review("show")["opponents"] == []
    (tmp_path / "filled.csv").write_text(f"pair,better\n{pair},A,more\n")
    assert len(review("record", "filled.csv")["opponents"]) == 1


def test_a_judge_is_measured_on_what_people_prefer() -> None:
    def said(row: str, better: str, by: str) -> Judgement:
        return Judgement.model_validate({"row_id": row, "opponent": "base", "better": better, "by": by, "at": "now"})

    judgements = [said("a", "candidate", "Ann"), said("b", "opponent", "Ann"), said("c", "tie", "Ann")]
    judgements += [said("a", "candidate", "Bob"), said("d", "candidate", "Bob"), said("e", "candidate", "Bob")]
    judged = {("a", "base"): 1.0, ("b", "base"): 1.0, ("c", "base"): 1.0, ("d", "base"): 0.5, ("a", "champion"): 0.0}
    (found,) = summed_up(judgements, {row: number for number, row in enumerate("abcde")}, judged)
    assert found.num_with_judge == 2, "not where either has no preference"
    assert found.judge_agrees == mean_of_pairs([1.0, 0.0], [0, 1])
    assert (found.num_pairs, found.num_people, found.num_shared, found.agreement) == (5, 2, 1, 1.0)
    assert "The judge wise prefers the same answer as they do in 50 % [3 %, 97 %] of the 2 in which" in found.says(
        "wise"
    )
    assert {"judge_agrees_low", "judge_agrees", "judge_agrees_high"} < {name for name, _ in _figures(found)}


def test_the_judges_agreement_counts_near_duplicates_once() -> None:
    said = [
        Judgement(row_id=row, opponent="base", better="candidate", by="Ann", at="now") for row in ("a", "b", "c", "d")
    ]
    judged = {(each.row_id, "base"): 1.0 for each in said}
    ((few,), (many,)) = (
        summed_up(said, clusters, judged)
        for clusters in (dict.fromkeys("abcd", 0), {row: number for number, row in enumerate("abcd")})
    )
    assert few.judge_agrees and many.judge_agrees
    assert few.judge_agrees[1:] == many.judge_agrees[1:] == (1.0, 1.0)
    assert few.judge_agrees[0] == pytest.approx(0.05), "of one cluster"
    assert many.judge_agrees[0] == pytest.approx(0.05 ** (1 / 4))


def test_a_spreadsheet_computes_nothing_in_the_table(tmp_path: Path) -> None:
    pair = Pair("row", 0, "base", "-1 or\u2028 1?", "1", '=HYPERLINK("http://example.org")', "1")
    write_csv(tmp_path / "pairs.csv", [BlindPair("id", pair, is_swapped=False)])
    (row,) = rows_of(tmp_path / "pairs.csv")
    assert (row["conversation"], row["A"], row["B"]) == (
        "'-1 or\u2028 1?",
        """'=HYPERLINK("http://example.org")""",
        "1",
    )
    with (tmp_path / "filled.csv").open("w", newline="", encoding="utf-8") as filled:
        writer = csv.DictWriter(filled, row)
        writer.writeheader()
        writer.writerow(row | {"better": "A"})
    version = ReviewedVersion(
        name="triage",
        number="1",
        run_id="",
        pairs={"id": BlindPair("id", pair, is_swapped=False)},
        num_equal={"base": 0},
        judge="",
        judged={},
    )
    ((judgement,), num_open) = read(tmp_path / "filled.csv", version, "Ann")
    assert (judgement.better, num_open) == ("candidate", 0), "U+2028 in a text ends no line of the table"


def test_krippendorffs_alpha_is_that_of_his_example() -> None:
    units = [[each for each in unit if each != "."] for unit in zip(*BY_FOUR, strict=True)]
    assert krippendorff([unit for unit in units if len(unit) > 1]) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff([["a", "a"], ["a", "a"]]) is None
    assert krippendorff([]) is None


def test_people_choose_in_a_review_queue_of_mlflow(review: Review, said: list[str]) -> None:
    review("collect", code=2)
    put = review("queue", "--against", "base")
    assert review("queue", "--against", "base", "--pairs", "2")["output"] == put["output"], "the same queue"
    assert put["num_pairs"] == 3 and "/review-queue?selectedQueueId=" in put["output"]

    client, experiment = MlflowClient(), runs()[0].info.experiment_id
    (queue,) = review_queues.list_review_queues(experiment_id=experiment)
    assert queue.name == "triage version 2" and put["output"].endswith(queue.queue_id)
    items = review_queues.list_review_queue_items(queue.queue_id)
    traces = [client.get_trace(item.item_id) for item in items]
    asked = {question_in(trace.data.spans[0].inputs["messages"][0]["content"]) for trace in traces}
    assert asked == {*QUESTIONS}

    def choose(trace: Trace, by: str, value: str) -> None:
        source = AssessmentSource("HUMAN", by)
        mlflow.log_feedback(trace_id=trace.info.trace_id, name=QUESTION, value=value, source=source, rationale="short")

    for trace in traces:
        shown = trace.data.spans[0].outputs["messages"][0]["content"]
        parts = re.fullmatch(
            r"\*\*Conversation.*\*\*A\*\*\n\n(.*)\n\n\*\*B.*Reference\*\*\n\n~~~\nyes\n~~~", shown, re.DOTALL
        )
        assert parts
        choose(trace, "ann", "A" if parts[1] in map(_block, said) else "B")
    choose(traces[0], "bob", "A")
    choose(traces[0], "bob", "tie")
    mlflow.log_feedback(trace_id=traces[1].info.trace_id, name="tone", value="good")
    (found,) = review("collect")["opponents"]
    assert (found["num_pairs"], found["num_people"], found["num_shared"]) == (3, 2, 1)
    assert found["preferred"][1] == pytest.approx((1 + 1 + 0.75) / 3), "the newest choice of a person counts"
    assert review("show")["opponents"] == [found]


def test_an_answer_ends_no_block_of_the_page_and_its_long_lines_are_wrapped() -> None:
    assert _block("a\n~~~~\n\n  b") == "~~~~~\na\n~~~~\n\n  b\n~~~~~"
    first, line, rest, last = _block("word " * 20).split("\n")
    assert first == last == "~~~" and line + rest == "word " * 20 and len(line) <= 76
