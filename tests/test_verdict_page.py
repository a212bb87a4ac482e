"""The verdict page shows what was decided and on what, gives nothing away, and suggests nothing without a figure."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browsing import browser
from make_payloads import EXPECTATION, make_check_results, make_comparison, make_proof, make_training_summary

from tunewright.artifacts import (
    GENERAL_SCHEMA,
    TOKEN_SCHEMA,
    Adapter,
    Answers,
    Base,
    CheckedRows,
    General,
    Judged,
    Prompts,
    Rows,
    RunArtifacts,
    Splits,
    Tokens,
    UniqueRows,
    VerdictPage,
)
from tunewright.config import Gate, Guardrail
from tunewright.cost_model.money import Price
from tunewright.metrics import choose
from tunewright.metrics.catalogue import constant_answer
from tunewright.metrics.intervals import RAISE_LIMIT
from tunewright.reports.curves import TrainingWarning
from tunewright.reports.pages import exactly, interval, number
from tunewright.tasks.decide import decide
from tunewright.tasks.decide.reading import COMPARED, TRIED
from tunewright.tasks.evaluate import ANSWER_SCHEMA, scored
from tunewright.tasks.verdict_page import verdict_page
from tunewright.tasks.verdict_page.case import Case
from tunewright.tasks.verdict_page.drawing import panel, scale_of
from tunewright.tasks.verdict_page.wins import picked, shared_opening

Make = Callable[..., VerdictPage]
Said = Sequence[str]

LABELS = ("refund", "delivery", "invoice", "login")
RIGHT = [LABELS[at % 4] for at in range(80)]
LOSSES = [1.0, 0.8, 0.7, 0.62, 0.6, 0.6]
HOSTILE = "</pre><img src=x onerror=alert(1)><script>alert('x')</script>"


def wrong(references: Said, places: Sequence[int], said: str = "nonsense") -> list[str]:
    """The references, with something else at these places."""
    return [said if at in places else reference for at, reference in enumerate(references)]


@pytest.fixture
def make(tmp_path: Path, make_splits: Callable[..., Splits], tiny_base: Base) -> Make:
    """`make(candidate=answers, base=answers, references=...)` is the page on contenders that gave these answers."""

    def manifest(folder: Path, **files: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {"manifest": {"seconds": 2.0}, **files}.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return folder

    def suite(name: str, scores: Sequence[float], part: str) -> Path:
        folder = manifest(tmp_path / "forgetting" / name)
        of_task = {"metric": "general_tasks", "part": part, "prompt": "2 + 2?", "answer": f"{name} says"}
        rows = [of_task | {"row_id": str(at), "score": score} for at, score in enumerate(scores)]
        text = {"row_id": "t", "metric": "general_loss", "part": "German", "prompt": "Text", "answer": "", "score": 2.5}
        pq.write_table(pa.Table.from_pylist([*rows, text], GENERAL_SCHEMA), folder / "general.parquet")
        return folder

    def make(
        candidate: Said,
        base: Said,
        *,
        references: Said = RIGHT,
        questions: Said | None = None,
        trained: Said | None = None,
        taught: Said = ("a",),
        losses: Sequence[float] = LOSSES,
        gate: Gate = Gate(guardrails=()),  # noqa: B008 it is frozen
        metrics: tuple[str, ...] = ("auto",),
        price: Price | None = None,
        cut: Sequence[int] = (),
        num_tokens: int = 3,
        checks: dict[str, Any] | None = None,
        findings: dict[str, int] | None = None,
        quarantined: int = 0,
        chosen: dict[str, str] | None = None,
        judge: str = "",
        looks: tuple[str, ...] = (),
        others: dict[str, Said] | None = None,
        general: dict[str, Sequence[float]] | None = None,
        part: str = "arithmetic",
        max_steps: int | None = None,
        epochs: float | None = None,
        best: int | None = None,
        num_replay: int = 0,
    ) -> VerdictPage:
        asked = questions or [f"question number {at}" for at in range(len(references))]
        rows = [(f"q{at}", each) for at, each in enumerate(taught)]
        splits = make_splits(rows, [("v", "b")], list(zip(asked, references, strict=True)))
        manifest(splits.folder)
        make_proof().save(splits.folder)
        ids = pq.read_table(splits.path("test.parquet"))["row_id"].to_pylist()
        tokens = manifest(tmp_path / "tokens")
        seen = trained if trained is not None else [each for each in dict.fromkeys(references) for _ in range(20)]
        blank = {"row_id": "", "cluster": 0, "input_ids": [], "labels": [], "prompt_length": 0}
        table = pa.Table.from_pylist([blank | {"reference": each} for each in seen], TOKEN_SCHEMA)
        pq.write_table(table, tokens / "train.parquet")
        choice = choose(metrics, references, seen)

        def answers(name: str, said: Said) -> Answers:
            folder = manifest(tmp_path / name, seconds={"tokens": 30, "seconds": 1})
            rows = [
                {
                    "row_id": row,
                    "cluster": at,
                    "prompt": asked[at],
                    "reference": reference,
                    "answer": answer,
                    "stopped": name == "base" or at not in cut,
                    "num_tokens": num_tokens,
                    "nll": 1.0 if answer == reference else 6.0,
                    "num_reference_tokens": 3,
                }
                for at, (row, reference, answer) in enumerate(zip(ids, references, said, strict=False))
            ]
            written, scores = scored(pa.Table.from_pylist(rows, ANSWER_SCHEMA), choice)
            pq.write_table(written, folder / "answers.parquet")
            digest = hashlib.sha256((folder / "answers.parquet").read_bytes()).hexdigest()
            num_unanswered = len(ids) - len(rows) if name in ("few_shot", "retrieval") else 0
            return Answers(
                stage="evaluate",
                folder=folder,
                digest=digest,
                contender=name,
                num_rows=len(rows),
                num_unanswered=num_unanswered,
                num_prompt_tokens=9 * len(rows),
                alpha_share=0.1 if num_unanswered else 1.0,
                scores=scores,
                metric=choice.decides,
                measured=choice.says(),
            )

        given = tuple(
            answers(name, said) for name, said in {"base": base, **(others or {}), "candidate": candidate}.items()
        )
        suites = tuple(
            General(stage="forgetting", folder=suite(name, scores, part), contender=name, scores={})
            for name, scores in (general or {}).items()
        )
        verdict = decide.fn(answers=given, splits=splits, gate=gate, general=suites)
        train = manifest(tmp_path / "train", status={"max_steps": max_steps})
        make_training_summary(best_step=best or 10 * len(losses)).save(train)
        lines = [
            {"step": 10 * at, "planned": 10 * len(losses), "eval_loss": loss} for at, loss in enumerate(losses, start=1)
        ]
        steps = [
            {"step": at, "planned": 10 * len(losses), "loss": 1.0 / at, "tokens_per_second": 50.0, "seconds": 2.0}
            | {"memory_bytes": 3_000_000_000}
            | ({"epoch": epochs * at / (10 * len(losses))} if epochs else {})
            for at in range(1, 10 * len(losses) + 1)
        ]
        (train / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in steps + lines))
        found = make_check_results(**{"conflicting_prompts": 0, "expectations": []} | (checks or {}))
        found.save(manifest(tmp_path / "check"))
        num_rows = len(references) + 2
        run = RunArtifacts(
            name="triage",
            rows=Rows(
                stage="ingest",
                folder=manifest(tmp_path / "rows"),
                num_read=num_rows + quarantined,
                num_rows=num_rows + quarantined,
                num_quarantined=0,
                reasons={},
                detected={},
            ),
            checked=CheckedRows(
                stage="check",
                folder=tmp_path / "check",
                num_rows=num_rows,
                num_quarantined=quarantined,
                reasons={"empty_answer": quarantined} if quarantined else {},
                findings={"conflicting_answers": 2 * found.conflicting_prompts, **(findings or {})},
            ),
            unique=UniqueRows(
                stage="dedupe",
                folder=manifest(tmp_path / "unique"),
                num_rows=num_rows,
                num_removed=0,
                reasons={},
                boilerplate=(),
            ),
            splits=splits,
            tokens=Tokens(
                stage="render",
                folder=tokens,
                num_train=1,
                num_validation=1,
                num_test=len(references),
                num_quarantined=0,
                reasons={},
                num_trained_tokens=9,
                longest=9,
                num_replay=num_replay,
            ),
            base=tiny_base.model_copy(update={"folder": manifest(tmp_path / "base_artifact")}),
            adapter=Adapter(
                stage="train",
                folder=train,
                method="lora",
                steps=60,
                best_step=60,
                best_by="loss",
                best_value=0.6,
                best_validation_loss=0.6,
                stopped_early=False,
                train_seconds=9,
            ),
            answers=given,
            verdict=verdict,
            test_set_uses=3,
            warnings=looks,
            approval=False,
            general=suites,
            prompts=Prompts(
                stage="prompt",
                folder=manifest(tmp_path / "prompts"),
                chosen=chosen,
                num_shortened=dict.fromkeys(chosen, 1),
            )
            if chosen
            else None,
            judged=Judged(
                stage="judge",
                folder=manifest(tmp_path / "judge"),
                model=judge,
                num_rows=9,
                preferred={"base": (0.4, 0.5, 0.6)},
                agreement={"base": 1.0},
                unreadable={"base": 0.0},
            )
            if judge
            else None,
        )
        return verdict_page.fn(run=run, price=price, num_devices=2)

    return make


def page_of(made: VerdictPage) -> str:
    return made.path("report.html").read_text(encoding="utf-8")


class Read(HTMLParser):
    """Parser that keeps a page's tags and texts; raises if a closing tag does not match the last opened one."""

    VOID = ("meta", "input", "br", "line", "circle", "polyline", "rect")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [value for _, given in self.tags if (value := given.get(attribute))]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_with_a_price_the_page_says_what_each_stage_cost(make: Make) -> None:
    page = page_of(make(RIGHT, ["a"] * 80, price=Price(900.0, "cpu")))
    costs = re.findall(r'<td class="number">[^<]+</td><td class="number">([^<]+)</td><td class="soft said">', page)
    assert (costs[0], costs[6]) == ("0.50", "1.00")  # the seventh stage trained, on two devices
    total = re.search(r"in total, which cost ([\d.]+) at 900\.00 an hour of cpu\.", page)
    assert total
    assert float(total[1]) == pytest.approx(sum(map(float, costs)), abs=0.02)
    assert 'class="number">Cost<' not in page_of(make(RIGHT, ["a"] * 80))


def test_the_page_says_what_an_answer_of_each_contender_costs(make: Make) -> None:
    row = r"<tr><td>candidate</td>(?:<td class=\"number\">([^<]*)</td>)+</tr>"
    page = page_of(make(RIGHT, ["a"] * 80, price=Price(900.0, "cpu")))
    found = re.search(row, page)
    assert found, "a row of numbers alone"
    read, written, seconds, thousand = re.findall(r'number">([^<]*)<', found[0])
    assert (read, written) == ("9", "3")
    assert float(thousand) == pytest.approx(1000 * float(seconds) * 2 * 900 / 3600, rel=0.1)  # of two devices
    assert ">Price of 1,000<" not in page_of(make(RIGHT, ["a"] * 80))


def test_the_page_says_the_verdict_and_loads_nothing(make: Make) -> None:
    page = page_of(make(wrong(RIGHT, range(8)), wrong(RIGHT, range(60)), gate=Gate()))
    read = Read(page)
    assert "exact match .90 is +.65" in read.text.lower()
    assert "default-src 'none'" in page
    assert not {"script", "img", "link", "iframe"} & {tag for tag, _ in read.tags}
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", page)
    assert "82 rows read = 82 kept + 0 quarantined + 0 duplicates." in read.text
    assert "60 steps, 6,000 tokens, at most 3 GB" in read.text
    assert "3 decisions that used these test rows so far" in read.text


def test_the_head_of_the_rows_fits_where_a_contender_has_a_long_name(make: Make) -> None:
    made = make(RIGHT, wrong(RIGHT, range(9)), others={"retrieval prompt (110 of 146 rows)": wrong(RIGHT, range(5))})
    with browser() as chromium:
        for width in (1400, 1100, 700):
            page = chromium.new_page(viewport={"width": width, "height": 900})
            page.goto(made.path("report.html").as_uri())
            head = page.locator(".row.head")
            assert "retrieval prompt (110 of 146 rows)" in (head.text_content() or "")
            assert head.evaluate("head => head.scrollWidth <= head.clientWidth"), width


def test_every_link_of_the_page_leads_somewhere_on_it(make: Make) -> None:
    cases = [
        make(wrong(RIGHT, range(10)), wrong(RIGHT, range(12)), others={"retrieval": RIGHT}, looks=("seen; do",)),
        make(RIGHT, [*RIGHT[:-1], "x"], metrics=("exact_match", "perplexity"), gate=Gate(metric="perplexity")),
    ]
    for made in cases:
        read = Read(page_of(made))
        ids = read.values("id")
        assert len(ids) == len({*ids})
        targets = [*(href.removeprefix("#") for href in read.values("href")), *read.values("for")]
        assert {*targets} <= {*ids}


def test_answers_that_are_no_label_are_shown_and_further_pairs_are_counted_truthfully(make: Make) -> None:
    invented = [f"made up {at}" for at in range(23)]
    page = Read(page_of(make(["write to jane.miller@acme-bank.de", *invented, *RIGHT[24:]], RIGHT))).text
    assert "made up 1 (no label)" in page
    assert "jane.miller" not in page
    said = "Not listed: 4 more pairs of reference and answer, none more frequent than those listed."
    assert said in page
    once = Read(page_of(make([*invented[:2], *RIGHT[2:]], RIGHT))).text
    assert "Not listed" not in once


def test_labels_with_too_few_rows_have_no_slices_and_the_page_says_why(make: Make) -> None:
    many = [f"queue {at % 40}" for at in range(80)]
    sources = [f"{'long ' * (at % 3 * 9)}question {at}" for at in range(80)]
    page = Read(page_of(make(wrong(many, range(10)), wrong(many, range(60)), references=many, questions=sources))).text
    said = "There are none by label: 80 test rows have 40 labels, fewer than 5 rows per label on average."
    assert said in page
    few = Read(page_of(make(wrong(RIGHT, range(10)), wrong(RIGHT, range(60)), questions=sources))).text
    assert "none by label" not in few


def test_a_suggestion_names_a_check_as_it_is_written(make: Make) -> None:
    failed = EXPECTATION | {"name": "label_balance", "fault": "one answer is rare", "of_set": True, "failed": 1}
    read = Read(page_of(make(RIGHT, wrong(RIGHT, range(40)), checks={"expectations": [failed]})))
    assert "Check label_balance: one answer is rare" in read.text
    assert "Label_balance" not in read.text


def test_a_rare_label_that_may_be_misspelt_is_not_to_get_more_rows_first(make: Make) -> None:
    failed = EXPECTATION | {"name": "label_balance", "fault": "one answer is rare", "of_set": True, "failed": 1}
    checks = {"expectations": [failed]}
    read = Read(page_of(make(RIGHT, wrong(RIGHT, range(40)), checks=checks, findings={"label_spelling": 1})))
    assert "Correct the spelling of labels; then add training rows for rare answers" in read.text
    assert "check label_spelling: 1 row with a label in another spelling" in read.text


def test_pairs_that_length_tells_apart_have_an_advice_of_their_own(make: Make) -> None:
    failed = EXPECTATION | {"name": "length_bias", "fault": "the chosen answer is longer", "of_set": True, "failed": 1}
    read = Read(page_of(make(RIGHT, wrong(RIGHT, range(40)), checks={"expectations": [failed]})))
    assert "Add pairs whose chosen and rejected answers are about as long" in read.text
    assert "Check that the data changed as intended" not in read.text


def test_no_text_of_rows_answers_or_settings_becomes_markup(make: Make) -> None:
    references = wrong(RIGHT, range(20), HOSTILE)
    made = make(
        wrong(references, range(30), f"{HOSTILE} too"),
        wrong(references, range(50), f"{HOSTILE} as well"),
        references=references,
        questions=[f"{HOSTILE} {at}" for at in range(80)],
        chosen={"few_shot": HOSTILE},
        looks=(f"{HOSTILE}; {HOSTILE}",),
        judge=HOSTILE,
        checks={"expectations": [EXPECTATION | {"name": HOSTILE, "fault": HOSTILE, "of_set": True}]},
    )
    read = Read(page_of(made))
    assert not {"script", "img"} & {tag for tag, _ in read.tags}
    assert read.text.count("<script>alert('x')</script>") > 100


def test_equal_inputs_make_equal_bytes(make: Make, home: Path) -> None:
    made = make(wrong(RIGHT, range(10)), wrong(RIGHT, range(40)))
    first = page_of(made)
    shutil.rmtree(home / "artifacts" / "verdict_page")
    again = make(wrong(RIGHT, range(10)), wrong(RIGHT, range(40)))
    assert (page_of(again), again.digest) == (first, made.digest)


def test_a_page_on_many_long_rows_stays_small(make: Make) -> None:
    references = [f"{at} {'<&> ' * 5_000}" for at in range(300)]
    other = [f"{'&<' * 5_000} {at}" for at in range(300)]
    made = make(
        [*references[:150], *other[150:]],
        [*other[:250], *references[250:]],
        references=references,
        trained=["x"],
        questions=[f"{at} {'é<' * 9_000}" for at in range(300)],
        metrics=("exact_match",),
    )
    assert made.path("report.html").stat().st_size < 1_000_000
    assert 20 <= made.num_rows <= 100


def test_secrets_and_personal_data_of_rows_are_not_shown(make: Make) -> None:
    asked = [f"write to jane.doe{at}@gmail.com, please" for at in range(80)]
    read = Read(page_of(make(wrong(RIGHT, range(10), "ask jane@gmail.com"), wrong(RIGHT, range(40)), questions=asked)))
    assert "gmail.com" not in read.text.replace("g….com", "")
    assert "not shown, it holds: e-mail address" in read.text


def test_an_answer_that_repeats_a_secret_of_its_prompt_is_not_shown(make: Make) -> None:
    asked = [f"my refund password: x7Kq{at}pw" for at in range(10, 90)]
    said = [f"x7Kq{at}pw" if at < 20 else right for at, right in enumerate(RIGHT, start=10)]
    read = Read(page_of(make(said, wrong(RIGHT, range(40)), questions=asked)))
    assert "x7Kq" not in read.text
    assert "(not shown, it repeats a secret)" in read.text


@pytest.mark.parametrize("metric", ["exact_match", "perplexity"])
def test_wins_and_losses_are_those_of_the_decision_whichever_direction_is_better(make: Make, metric: str) -> None:
    gate = Gate(metric=metric, guardrails=())  # pyright: ignore[reportArgumentType]
    made = make(wrong(RIGHT, range(12)), wrong(RIGHT, range(6, 40)), gate=gate)
    read = Read(page_of(made))
    details = [(given["class"] or "").split() for tag, given in read.tags if tag == "details"]
    rows = [classes for classes in details if "row" in classes]
    assert [sum(f"{kind}0" in row for row in rows) for kind in ("lost", "tied", "won")] == [6, 46, 28]
    assert "Candidate against Lost Tied Won base 6 46 28 " in read.text
    assert "lost0" in rows[0]


def test_rows_of_every_outcome_beside_every_opponent_are_picked_losses_first() -> None:
    hard, easy = np.zeros(1_000), np.ones(1_000)
    hard[[3, 5]], hard[7] = (-1.0, -0.5), 1.0
    easy[900], easy[901] = -1.0, 0.0
    chosen = picked({"champion": hard, "base": easy}, np.linspace(1, 0, 1_000), 20)
    assert len(chosen) == 20
    assert chosen[:3] == [3, 5, 7]
    assert {900, 901} <= {*chosen}
    assert picked({"base": np.zeros(5)}, np.array([1.0, 0, 1, 0, 1]), 3) == [1, 3, 0], "of ties the wrong ones first"


def test_what_all_questions_begin_with_is_told_once_and_ends_with_a_word() -> None:
    assert shared_opening([f"Triage the customer's message: {at}" for at in ("where", "when")]) == (
        "Triage the customer's message: "
    )
    assert shared_opening(["where is it", "where was it"]) == ""
    assert shared_opening(["one alone, however long that may be"]) == ""


def test_intervals_lie_where_their_values_are() -> None:
    drawn = panel(
        "",
        [
            make_comparison(difference=(-0.1, 0.2, 0.5), threshold=0.05, finding="unclear"),
            make_comparison(difference=(0.6, 0.7, 0.9), threshold=0.05, finding="above"),
        ],
    )
    (first, second), scale = drawn.intervals, scale_of([-0.1, 0.9])
    assert (
        0
        < first.low
        < (drawn.zero or 0)
        < (first.threshold or 0)
        < first.mean
        < first.high
        < second.low
        < second.high
        < 100
    )
    assert first.mean - first.low == pytest.approx(first.high - first.mean, abs=0.02)
    assert second.high == pytest.approx(scale.at(0.9))
    assert (first.said, first.finding) == ("+.20 [-.10, .50]", "not enough evidence that it is better by more than .05")
    guardrail = make_comparison(difference=(-0.04, 0.2, 0.5), threshold=-0.05, finding="above", power=0.823, effect=0)
    (held,) = panel("", [guardrail]).intervals
    assert held.finding == "at least as good (tolerance .05); 82 % power if nothing got worse"
    hopeless = guardrail.model_copy(update={"opponent_mean": 0.0})
    said = "at least as good (tolerance .05); it cannot be worse than the base, which has the worst score"
    assert panel("", [hopeless]).intervals[0].finding == said
    better = make_comparison(difference=(0.1, 0.2, 0.5), threshold=-0.05, finding="above", power=0.003, effect=0)
    assert panel("", [better]).intervals[0].finding == "at least as good (tolerance .05)"
    unclear = make_comparison(difference=(-0.1, 0.0, 0.1), threshold=-0.05, finding="unclear")
    assert panel("", [unclear]).intervals[0].finding == "may be more than .05 worse"
    beyond = make_comparison(difference=(-0.2, -0.1, -0.06), threshold=-0.05, finding="unclear")
    assert panel("", [beyond]).intervals[0].finding == "more than .05 worse, but not shown among several guardrails"
    assert [at for at, _ in drawn.ticks] == sorted(at for at, _ in drawn.ticks)
    assert scale_of([0.0, 0.0]).at(0.0) == 50
    assert [number(value) for value in (0.84, -0.051, 1, 12.34, 4_321)] == [".84", "-.05", "1.00", "12.3", "4,321"]
    assert [number(value) for value in (0.475, -0.475, 0.995, 1 - 1e-12)] == [".48", "-.48", ".995", "1.00"]
    assert [number(value) for value in (12, 100.5, 999.6, 999.97, -1_234.5)] == [
        "12",
        "100.5",
        "999.6",
        "1,000",
        "-1,235",
    ]
    assert [exactly(value) for value in (0.02, 0.005, 0.5, 12.25)] == [".02", ".005", ".50", "12.25"]


def test_no_bound_is_rounded_onto_a_threshold_or_past_it() -> None:
    assert interval((0.0204, 0.05, 0.1), signed=True) == "+.05 [.02, .10]"
    assert interval((0.0204, 0.05, 0.1), signed=True, threshold=0.02) == "+.0500 [.0204, .1000]"
    assert interval((-0.004, 0.1, 0.3), signed=True) == "+.100 [-.004, .300]"
    assert interval((100.5, 110.0, 120.0), signed=False, threshold=100) == "110 [100.5, 120]"
    assert interval((99.96, 110.0, 120.0), signed=False, threshold=100) == "110 [99.96, 120]"


def test_other_methods_stand_beside_what_decided(make: Make) -> None:
    made = make(wrong(RIGHT, range(10)), wrong(RIGHT, range(40)), others={"retrieval": wrong(RIGHT, range(5, 20))})
    cells = Read(page_of(made)).text.partition("by other methods")[2].partition("The bootstrap is")[0].split()
    assert "30 : 0" in " ".join(cells)
    assert "9.3e-10" in cells  # 1 / 2^30
    assert "5 : 10" not in " ".join(cells)
    assert "10 : 5" in " ".join(cells)


def test_the_figures_at_the_top_are_of_what_the_sentence_says_decided_or_was_the_closest(make: Make) -> None:
    few_shot = wrong(RIGHT, range(9))
    shown = Read(page_of(make(RIGHT, wrong(RIGHT, range(40)), others={"few_shot": few_shot}))).text
    assert "the few-shot prompt (+.11 [.04, .19], the closest), on 80 test rows." in shown.replace(
        "\N{NO-BREAK SPACE}", " "
    )
    assert "1.00 exact match, candidate .89 few-shot prompt, the closest +.11 difference to it" in shown
    kept = Read(page_of(make(RIGHT, RIGHT, others={"few_shot": wrong(RIGHT, range(9))}))).text
    assert "1.00 exact match, candidate 1.00 base, the deciding comparison +.00 difference to it" in kept


def test_two_intervals_of_a_tie_are_explained_where_they_differ(make: Make) -> None:
    tied = Read(page_of(make(RIGHT, RIGHT, others={"few_shot": RIGHT}))).text
    said = "All rows tie in several comparisons, and their intervals differ"
    assert "base +.00 [-.0" in tied
    assert "few-shot prompt +.00 [.00, .00]" in tied
    assert said in tied
    assert said not in Read(page_of(make(RIGHT, wrong(RIGHT, range(40))))).text


def test_the_page_links_to_the_run_where_up_serves_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = "http://127.0.0.1:4200/v2/runs/flow-run/1"
    assert "; run <a" not in page_of(make(RIGHT, wrong(RIGHT, range(40))))  # its server ends with it
    monkeypatch.setattr("tunewright.tasks.verdict_page._run", lambda: ("demo <1>", run))
    assert f'; run <a href="{run}">demo &lt;1&gt;</a>' in page_of(make(RIGHT, wrong(RIGHT, range(41))))


def test_a_prompt_that_was_ended_has_its_rows_beside_each_of_its_figures(make: Make) -> None:
    retrieval = wrong(RIGHT, range(60))[: len(RIGHT) // 2]
    read = Read(page_of(make(wrong(RIGHT, range(8)), wrong(RIGHT, range(60)), others={"retrieval": retrieval})))
    part = f"{len(retrieval)} of {len(RIGHT)}"
    said = read.text
    assert f"The retrieval prompt was ended when its comparison was settled: it answered {part} test rows" in said
    assert said.count(f"retrieval prompt ({part} rows)") >= 5  # differences, methods, scores twice, wins
    assert "not answered" in said
    assert f"{len(retrieval)} answers" in said


def test_contenders_are_described_and_what_cannot_be_compared_is_left_out(make: Make) -> None:
    chosen = {"few_shot": "8 shots, the best of 4 draws"}
    prompted = make(RIGHT, wrong(RIGHT, range(40)), chosen=chosen, others={"few_shot": wrong(RIGHT, range(9))})
    shown = Read(page_of(prompted))
    assert "Few-shot prompt: 8 shots, the best of 4 draws; in 1 prompt fewer examples fitted." in shown.text
    assert "length_ratio is the length of all answers over that of all references." in shown.text
    assert {"intervals", "rows"} <= {*shown.values("id")}
    invalid = make(RIGHT, RIGHT[:-1])
    shown = Read(page_of(invalid))
    assert "Base and candidate differ in 1 row," in shown.text
    assert not {"intervals", "rows"} & {*shown.values("id")}
    assert invalid.num_rows == 0


def test_what_only_the_base_can_still_do_is_counted_and_shown(make: Make) -> None:
    suites = {"base": [1.0, 1.0, 1.0, 0.0], "candidate": [1.0, 0.0, 0.0, 1.0]}
    read = Read(page_of(make(RIGHT, wrong(RIGHT, range(60)), general=suites)))
    assert "The candidate is worse than the base on 2 tasks and better on 1." in read.text
    assert "arithmetic 4 .75 .50" in read.text
    assert "German 1 2.50 2.50" in read.text
    assert "2 of 2 tasks where the base is better task 2 + 2? base base says candidate candidate says" in read.text
    assert "forgetting" not in Read(page_of(make(RIGHT, wrong(RIGHT, range(60))))).values("id")


def test_a_part_in_which_no_row_differs_has_no_interval_of_no_width(make: Make) -> None:
    parts = page_of(make(wrong(RIGHT, [3]), wrong(RIGHT, [3, 5]))).partition('id="parts"')[2]
    assert re.search(r"\+\.00 \[-\.\d\d, \.\d\d\]", parts)
    assert ".00 [.00, .00]" not in parts


def test_where_nothing_stands_out_nothing_is_suggested(make: Make) -> None:
    made = make(wrong(RIGHT, [3]), wrong(RIGHT, range(60)))
    assert made.suggestions == ()
    assert "No finding in the curves" in page_of(made)


FIELDS = [json.dumps({"intent": label, "language": "en"}) for label in RIGHT]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"candidate": wrong(RIGHT, range(10)), "base": wrong(RIGHT, range(5, 17))},
            r"test rows.*: against the base: \+\.03 \[-.*; smallest detectable gain with 80 test rows: \.\d\d \(80 %",
        ),
        (
            {"candidate": wrong(RIGHT, range(0, 24, 4), "delivery"), "base": wrong(RIGHT, range(60))},
            "6 of 6 wrong answers are “delivery” instead of “refund”; these have 20 and 20 training rows",
        ),
        (
            {
                "references": FIELDS,
                "candidate": wrong(FIELDS, range(8), json.dumps({"intent": "other", "language": " en"})),
                "base": wrong(FIELDS, range(70)),
            },
            "the field intent: of 8 wrong answers, intent is wrong in 8, language in 0",
        ),
        (
            {"candidate": [*(each.upper() for each in RIGHT[:9]), *RIGHT[9:]], "base": wrong(RIGHT, range(70))},
            "9 of 9 wrong answers differ from the reference only in case, spaces and punctuation",
        ),
        (
            {"candidate": wrong(RIGHT, range(9)), "base": wrong(RIGHT, range(70))},
            "9 of the candidate's 80 answers are not valid labels",
        ),
        (
            {"candidate": wrong(RIGHT, range(9)), "base": wrong(RIGHT, range(70)), "cut": range(5)},
            "learns to stop: 5 of 80 answers went on beyond their references up to the limit",
        ),
        (
            {
                "candidate": wrong(RIGHT, range(9)),
                "base": wrong(RIGHT, range(70)),
                "cut": range(5),
                "num_tokens": 2,
            },
            "^Raise evaluation.max_new_tokens first: .*: 5 of 80 answers ran to the limit of 2 tokens, and 5 of these",
        ),
        (
            {
                "references": [*RIGHT[:76], "rare", "rare", "rare", "rare"],
                "candidate": wrong([*RIGHT[:76], *["rare"] * 4], range(76, 80), "refund"),
                "base": wrong(RIGHT, range(70)),
                "trained": [*(each for each in LABELS for _ in range(40)), *["rare"] * 4],
            },
            "in 4 of 4 wrong answers the reference has fewer than 10 training rows, as do 5 % of the test rows",
        ),
        (
            {
                "candidate": ["refund"] * 80,
                "base": ["login"] * 80,
                "taught": ["refund", "login"],
            },
            r"that your reference answers match their prompts; if they do, try another training\.learning_rate: exact "
            r"match: \.25, and \.25 by the majority-class baseline",
        ),
        (
            {
                "candidate": wrong(RIGHT, range(58)),
                "base": ["login"] * 80,
                "taught": ["refund", "login"],
                "losses": [1.0, 0.82, 0.8],
            },
            r"Train longer, and check that .*: exact match: \.28, and \.25 by the majority-class baseline",
        ),
        (
            {
                "candidate": wrong(RIGHT, range(58)),
                "base": ["login"] * 80,
                "taught": ["refund", "login"],
                "losses": [1.0, 0.8, 0.8],
            },
            r"First check that .*; if they do, try another training\.learning_rate: exact match: \.28, and \.25 by the "
            r"majority-class baseline",
        ),
        (
            {"candidate": wrong(RIGHT, range(60)), "base": wrong(RIGHT, range(1, 61))},
            "more training.epochs: 98 % of the candidate's answers are identical to the base's",
        ),
        (
            {"candidate": wrong(RIGHT, range(60)), "base": wrong(RIGHT, range(1, 61)), "max_steps": 60},
            "more training.max_steps: 98 % of the candidate's answers are identical to the base's",
        ),
        (
            {
                "candidate": wrong(RIGHT, range(30)),
                "base": wrong(RIGHT, range(60)),
                "others": {"retrieval": wrong(RIGHT, range(4))},
            },
            r"Serve the base with the retrieval prompt: method\.kind=retrieval registers it, .*: its exact match is "
            r"\.950, the candidate's \.625",
        ),
        (
            {
                "candidate": wrong(RIGHT, range(30)),
                "base": wrong(RIGHT, range(60)),
                "others": {"few_shot": wrong(RIGHT, range(4))},
            },
            r"Serve the base with the few-shot prompt: method\.kind=few_shot registers it: its exact match is \.950",
        ),
        (
            {
                "candidate": wrong(RIGHT, range(8)),
                "base": wrong(RIGHT, range(60), "delivery"),
                "gate": Gate(guardrails=(Guardrail(metric="unparseable", margin=0.01),)),
            },
            r"Train more gently: a lower training\.learning_rate or fewer training\.epochs\W.*"
            r"share of invalid labels against the base: -\.10 .*, "
            r"allowed: at most \.01 worse",
        ),
        (
            {"candidate": RIGHT, "base": wrong(RIGHT, range(40)), "losses": [1.0, 0.8, 0.5, 0.4, 0.3, 0.2]},
            "still falling at the end: the validation loss was 0.3 one evaluation before the end and 0.2 at the end",
        ),
        (
            {
                "candidate": wrong(RIGHT, range(0, 80, 4)),
                "base": wrong(RIGHT, range(80)),
                "questions": [
                    f"{'short' if at % 4 == 0 else f'a question that is rather long, {at}'} {at}" for at in range(80)
                ],
            },
            r"of this kind: (prompt length|label) .*exact match is \.0\d on its .* test rows and \.75 on all",
        ),
        (
            {"candidate": RIGHT, "base": wrong(RIGHT, range(40)), "checks": {"conflicting_prompts": 7}},
            "7 prompts have more than one answer, in 14 rows",
        ),
        (
            {"candidate": RIGHT, "base": wrong(RIGHT, range(40)), "quarantined": 30},
            "30 of 112 records are quarantined, 30 of them for empty_answer",
        ),
        (
            {"candidate": RIGHT, "base": wrong(RIGHT, range(40)), "looks": ("this is look 21; take another test set",)},
            "Take another test set: this is look 21",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
def test_a_suggestion_names_the_figure_that_it_stands_on(make: Make, given: dict[str, Any], said: str) -> None:
    made = make(**given)
    assert any(re.search(said, each) for each in made.suggestions), made.suggestions
    shown = json.loads(made.path("suggestions.json").read_text(encoding="utf-8"))
    text = Read(page_of(made)).text
    assert all(f"{each['advice']}." in text for each in shown)


def test_the_deciding_difference_has_the_same_digits_in_the_sentence_the_tile_and_the_chart(make: Make) -> None:
    text = Read(page_of(make(wrong(RIGHT, range(30)), wrong(RIGHT, range(27))))).text
    (said,) = {*re.findall(r"-\.038 \[[^]]+]", text)}
    assert text.count(said) == 3, "the sentence, the chart and the table"
    assert ".625 exact match, candidate .663 base" in text
    assert "-.038 difference to it" in text


def test_answers_that_were_all_cut_off_are_not_called_unreadable(make: Make) -> None:
    limited = "5 of 80 answers ran to the limit of 2 tokens, and 5 of these have longer references"
    warned = f"{limited}; {RAISE_LIMIT}"  # by decide
    made = make(wrong(RIGHT, range(5)), wrong(RIGHT, range(70)), cut=range(5), num_tokens=2, looks=(warned,))
    assert not [each for each in made.suggestions if "valid labels" in each]
    page = Read(page_of(made)).text
    assert f"{limited}." in page
    assert page.count("aise evaluation.max_new_tokens") == 1, "the same advice stands once"


def test_where_a_contender_answers_as_the_references_do_these_are_not_doubted(make: Make) -> None:
    given: dict[str, Any] = {"candidate": ["refund"] * 80, "base": ["login"] * 80, "taught": ["refund", "login"]}
    (doubted,) = (each for each in make(**given).suggestions if "check that your reference answers" in each)
    assert doubted.startswith("First check")
    made = make(**given, others={"retrieval": wrong(RIGHT, range(4))})
    assert not [each for each in made.suggestions if "reference answers" in each]
    assert [each for each in made.suggestions if each.startswith("Serve the base with the retrieval prompt")]


def test_of_rows_that_all_have_one_answer_the_advice_is_to_add_others(make: Make) -> None:
    found = make(["refund"] * 80, ["login"] * 80, references=["refund"] * 80, taught=["refund"])
    assert found.suggestions[0] == "Add rows with other answers: one answer is right for every test row"


def test_the_baseline_of_always_the_same_answer_is_explained(make: Make) -> None:
    page = Read(page_of(make(["refund"] * 80, ["login"] * 80, taught=["refund", "login"]))).text
    assert len(re.findall(r"The references are \d labels: measured are exact_match, ", page)) == 1
    assert page.count("The majority-class baseline always gives the most frequent training answer, or the") == 1
    assert constant_answer("token_f1").startswith(
        "the training answer that scores best on training rows, as far as a sample of at most "
        f"{TRIED} training answers ({COMPARED} if they are long) shows, or "
    )


def test_no_rows_are_asked_for_where_a_prompt_is_ahead(make: Make) -> None:
    given: dict[str, Any] = {"candidate": wrong(RIGHT, range(30)), "base": wrong(RIGHT, range(5, 40))}
    assert [each for each in make(**given).suggestions if each.startswith("Add test rows")]
    ahead = make(**given, others={"retrieval": wrong(RIGHT, range(6, 32))})
    assert "would probably not help" in Read(page_of(ahead)).text
    assert not [each for each in ahead.suggestions if each.startswith("Add test rows")]


UNLEARNED = {
    "candidate": ["nonsense"] * 80,
    "base": ["login"] * 80,
    "taught": ["refund", "login"],
    "cut": range(16),
    "max_steps": 20,
    "gate": Gate(guardrails=(Guardrail(metric="stopped", margin=0.05),)),
}


def test_a_model_that_had_not_finished_learning_is_trained_longer_and_not_more_gently(
    make: Make,
) -> None:
    advice = [each.partition(": ")[0] for each in make(**UNLEARNED, losses=[2.0, 1.5]).suggestions]
    assert advice[0].startswith("Train longer")
    assert "Then check that your reference answers match their prompts" in advice
    assert not [each for each in advice if "gently" in each or each.startswith("First check")]


@pytest.mark.parametrize(
    ("losses", "first"),
    [
        ([2.0], "Train longer: more training.max_steps: training had only 10 steps"),
        (
            LOSSES,
            "Train longer so that the model learns to stop: 16 of 80 answers went on beyond their references "
            "up to the limit",
        ),
    ],
)
def test_a_training_that_was_obviously_too_short_is_the_first_advice(
    make: Make, losses: list[float], first: str
) -> None:
    advice = make(**UNLEARNED, losses=losses).suggestions
    assert advice[0].startswith(first)
    assert any(each.startswith("Then check that your reference answers") for each in advice), advice


def test_a_training_that_max_steps_cut_short_at_its_best_step_is_the_first_advice(make: Make) -> None:
    """With a loss that hardly fell at the end, as the schedule had taken the rate to 0 by then."""
    given = UNLEARNED | {"cut": (), "losses": [2.0, 1.2, 1.19, 1.18], "epochs": 0.9}
    first = "Train longer: more training.max_steps: training ended after 0.9 epochs, and the best step is the last"
    assert make(**given).suggestions[0] == first
    assert "60 steps (0.9 epochs), ended by training.max_steps ; best step 60" in Read(page_of(make(**given))).text


@pytest.mark.parametrize(("epochs", "is_advised"), [(0.9, True), (1.2, False)])
def test_a_promoted_candidate_whose_training_ended_within_its_first_epoch_is_told_to_train_longer_first(
    make: Make, epochs: float, is_advised: bool
) -> None:
    given = {"candidate": wrong(RIGHT, range(8)), "base": wrong(RIGHT, range(60)), "max_steps": 60}
    advice = make(**given, losses=[2.0, 1.5, 1.4, 1.3], epochs=epochs).suggestions
    first = (
        f"Train longer: more training.max_steps: training ended after {epochs} epochs, and the best step is the last"
    )
    assert (first in advice) == (advice[0] == first) == is_advised


def test_a_training_whose_best_step_is_near_its_end_was_cut_short_too(make: Make) -> None:
    given = UNLEARNED | {"cut": (), "losses": [2.0, 1.2, 1.1, 1.0], "epochs": 1.6, "best": 39}
    first = (
        "Train longer: more training.max_steps: training ended after 1.6 epochs, and the best step is 39, near the end"
    )
    assert make(**given).suggestions[0] == first


def test_a_training_that_was_cut_short_while_its_loss_fell_is_told_once_to_go_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = TrainingWarning("still falling at the end", 0, "it fell", "try more training.max_steps")
    monkeypatch.setattr(Case, "training_warnings", [falling])
    given = {"candidate": wrong(RIGHT, range(38)), "base": wrong(RIGHT, range(40)), "max_steps": 60}
    advice = make(**given, losses=[2.0, 1.5, 1.4, 1.3], epochs=0.9).suggestions
    assert [each.partition(": training")[0] for each in advice if "training.max_steps" in each] == [
        "Train longer: more training.max_steps"
    ]


@pytest.mark.parametrize("given", [{"epochs": 3.0}, {"epochs": 0.9, "max_steps": None}, {"epochs": 0.9, "best": 30}])
def test_a_training_of_full_length_or_past_its_best_step_is_not_cut_short(make: Make, given: dict[str, Any]) -> None:
    advice = make(**UNLEARNED | {"cut": (), "losses": [2.0, 1.2, 1.19, 1.18]} | given).suggestions
    assert not advice[0].startswith("Train longer: more"), advice


def test_a_guardrail_that_only_the_champion_keeps_better_is_no_sign_of_too_much_training(make: Make) -> None:
    gate = Gate(guardrails=(Guardrail(metric="unparseable", margin=0.05),))
    given = UNLEARNED | {"base": ["nothing"] * 80, "gate": gate, "max_steps": 5}
    advice = make(**given, losses=[2.0], others={"champion": RIGHT}).suggestions
    assert advice[0].startswith("Train longer")
    assert not [each for each in advice if "gently" in each or each.startswith("First check")]


@pytest.mark.parametrize(
    ("num_lost", "allowed"), [(20, 0.05), (3, 0.05), (3, 0.2)], ids=["is shown", "seems so", "keeps it open"]
)
def test_where_general_tasks_are_forgotten_nothing_advises_more_training(
    make: Make, num_lost: int, allowed: float
) -> None:
    """Also where the loss still fell as max_steps ended the training, and where too few tasks show it."""
    lost = [1.0] * (20 - num_lost) + [0.0] * num_lost
    given = {
        "losses": [2.0, 1.5, 1.0],
        "max_steps": 20,
        "epochs": 0.9,
        "general": {"base": [1.0] * 20, "candidate": lost},
    }
    gate = Gate(general_tasks=allowed, general_loss=None)
    page = make(wrong(RIGHT, range(8)), wrong(RIGHT, range(60)), gate=gate, **given)
    advice = page.suggestions
    warning = "The loss still falls; try more training.max_steps or a higher training.learning_rate"
    assert page.without_opposite(warning) == "The loss still falls"
    assert page.model_copy(update={"is_gentler": False}).without_opposite(warning) == warning
    assert re.match(
        r"Train more gently: a lower training\.learning_rate or fewer training\.max_steps; or add general rows, in a "
        r"source with use_as: replay, or by training\.keep_general=auto: share of general "
        r"tasks correct against the base: ",
        advice[0],
    ), advice
    assert not [each for each in advice if "rain longer" in each or "more training" in each or "higher" in each], advice


def test_a_training_with_general_rows_that_forgets_is_not_advised_to_add_what_it_has(make: Make) -> None:
    general = {"base": [1.0] * 20, "candidate": [0.0] * 20}
    candidate, base = wrong(RIGHT, range(8)), wrong(RIGHT, range(60))
    (first, *_) = make(candidate, base, general=general, num_replay=1, gate=Gate(general_tasks=0.1)).suggestions
    assert "; or more general rows, by a larger split.replay, or a larger training.kl_to_base: share of" in first
    assert "keep_general" not in first


@pytest.mark.parametrize("kind", ["divergence", "no learning"])
def test_a_training_that_failed_is_the_first_advice(make: Make, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    warning = TrainingWarning(kind, 1, "the loss says so", "try another training.learning_rate")
    monkeypatch.setattr(Case, "training_warnings", [warning])
    advice = make(**UNLEARNED, losses=[2.0, 1.5]).suggestions
    assert advice[0] == f"Try another training.learning_rate: {warning.short}: the loss says so"


def test_the_page_names_what_is_counted_and_which_way_is_better(make: Make) -> None:
    forgotten = {"base": [1.0] * 30, "candidate": [1.0] * 30}
    gate = Gate(guardrails=(Guardrail(metric="unparseable", margin=0.5), Guardrail(metric="stopped", margin=0.5)))
    text = Read(
        page_of(make(wrong(RIGHT, range(8)), wrong(RIGHT, range(60)), gate=gate, general=forgotten, part="harmful"))
    ).text
    assert "Guardrail: share of invalid labels, less is better; the candidate's gain over" in text
    assert "Guardrail: share of answers that end with the stop token; the candidate's gain over" in text
    assert "harmful requests refused 30 1.00 1.00" in text
    assert "LoRA on" in text and "95 % confidence" in text
    references = ['{"intent": "a"}'] * 40
    answers = ['{"intent": "b"}'] * 8 + ["nothing"] * 32
    text = Read(page_of(make(answers, references, references=references))).text
    assert "Wrong fields of the 8 wrong answers that are JSON objects: intent in 8." in text
    invented = ['{"intent": "a", "people": 2}'] * 8 + references[8:]
    text = Read(page_of(make(invented, references, references=references))).text
    assert "Wrong fields of the 8 wrong answers that are JSON objects: people in 8." in text
    assert "people nothing 2 8" in " ".join(text.split())


def opposite(suggestions: Sequence[str]) -> bool:
    return any("gently" in each for each in suggestions) and any("rain longer" in each for each in suggestions)


@pytest.mark.parametrize("losses", [LOSSES, [2.0, 1.5], [2.0, 1.2, 0.8], [1.0, 0.8, 0.9, 1.0, 1.1, 1.2]])
@pytest.mark.parametrize("metric", ["stopped", "unparseable"])
@pytest.mark.parametrize("num_wrong", [8, 80])
def test_no_page_advises_to_train_longer_and_more_gently(
    make: Make, losses: list[float], metric: str, num_wrong: int
) -> None:
    broken = Gate(guardrails=(Guardrail(metric=metric, margin=0.01),))
    given = UNLEARNED | {"candidate": wrong(RIGHT, range(80 - num_wrong, 80)), "gate": broken, "losses": losses}
    made = make(**given | {"base": wrong(RIGHT, range(60), "login")})
    assert not opposite(made.suggestions), made.suggestions


def test_answers_of_no_form_are_counted_among_those_that_ended(make: Make) -> None:
    made = make(**UNLEARNED)
    said = "None of the 64 answers that ended by themselves is a valid label (16 of 80 ran to the limit)"
    assert any(said in each for each in made.suggestions), made.suggestions
