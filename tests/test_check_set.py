"""A set is held against its own balance, and against the version before."""

import html
import re

import pyarrow as pa
import pytest
from checked import GERMAN, SPECIAL, only, results, turns
from conftest import MakeRows

from tunewright.artifacts import ROW_SCHEMA, Rows
from tunewright.config import Checks
from tunewright.errors import DataError
from tunewright.tasks.check import check
from tunewright.tasks.check.results import _without_value


def labelled(shares: dict[str, int], source: str = "a") -> pa.Table:
    rows = [
        {
            "row_id": f"{label} {n}",
            "source": source,
            "file": "d.jsonl",
            "line": n,
            "messages": turns("user", f"Is {label} number {n} what you look for?", "assistant", label),
        }
        for label, number in shares.items()
        for n in range(number)
    ]
    return pa.Table.from_pylist(rows, ROW_SCHEMA)


def both(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables)


@pytest.mark.parametrize(
    ("table", "name", "said"),
    [
        (
            labelled({"yes": 90, "no": 10}),
            "label_balance",
            "one of the answers has 90.0 % of the rows, over max_share=0.8",
        ),
        (
            labelled({"yes": 60, "no": 60, "so": 3}),
            "label_balance",
            "the rarest answer (so) has fewer than min_rows=10 rows: 3",
        ),
        (
            labelled({"yes": 60, "no": 60, "a{b}": 3, "d": 4, "c": 4, "e\\x1b": 2, "f": 9}),
            "label_balance",
            "5 answers (e\\x1b, a{b}, c and 2 more) have fewer than min_rows=10 rows, the rarest 2",
        ),
        (
            both(labelled({"yes": 95}), labelled({"no": 5}, "b")),
            "source_balance",
            "one of several sources has 95.0 % of the rows, over max_share=0.9",
        ),
        (
            both(labelled({"yes": 30}), labelled({"yes": 10})),
            "duplicate_rows",
            "25.0 % of the rows equal an earlier one, over max_share=0.2",
        ),
    ],
)
def test_a_set_out_of_balance_is_a_finding_and_stops_where_that_is_critical(
    make_rows: MakeRows, table: pa.Table, name: str, said: str
) -> None:
    rows = make_rows(table=table)
    checked = check.fn(rows, only(name), SPECIAL)
    assert checked.findings[name] == 1
    assert checked.num_quarantined == 0
    page = checked.path("report.html").read_text()
    assert said in page
    assert (
        "Findings of the whole data set have no rows: they quarantine nothing. With severity critical the run" in page
    )
    assert "Rows of these findings were kept." not in page
    with pytest.raises(DataError) as caught:
        check.fn(rows, only(name, severity="critical"), SPECIAL)
    assert str(caught.value).startswith(f"{name}: {said}; see ")


def test_many_labels_are_checked_as_evaluate_takes_them_for_labels(make_rows: MakeRows) -> None:
    labels = {f"queue {n}": 10 for n in range(145)} | {f"rare queue {n}": 2 for n in range(31)}
    first = check.fn(make_rows(table=labelled(labels)), only("label_balance"), SPECIAL)
    assert first.findings["label_balance"] == 1
    drifted = labelled({name: 40 if number == 2 else 2 for name, number in labels.items()})
    assert "label_drift" in check.fn(make_rows(table=drifted), only("label_drift"), SPECIAL, (), first).findings


def test_a_label_in_an_unusual_spelling_is_a_finding_with_its_usual_form(make_rows: MakeRows) -> None:
    usual = labelled({"claims/theft": 30, "sea/rollover": 30, "air/delay": 30})
    rows = make_rows(table=both(usual, labelled({"CLAIMS/THEFT": 2, "sea/rollover  ": 1})))
    checked = check.fn(rows, Checks(), SPECIAL)
    assert checked.findings["label_spelling"] == 3
    assert checked.num_quarantined == 0
    page = html.unescape(checked.path("report.html").read_text())
    assert "'CLAIMS/THEFT', usually 'claims/theft'" in page
    assert "'sea/rollover' with other white space" in page
    spanish = labelled({"averi\u0301a": 2, "averia": 3, "si": 30, "s\u00ed": 30})
    refused = check.fn(rows, only("label_spelling", severity="warning"), SPECIAL)
    assert refused.reasons == {"label_spelling": 3}
    accents = make_rows(table=both(labelled({"aver\u00eda": 30}), spanish))
    page = html.unescape(check.fn(accents, only("label_spelling"), SPECIAL).path("report.html").read_text())
    assert "'averia', usually 'aver\u00eda'" in page
    assert "'aver\u00eda' in another Unicode normal form (data.repair=[nfc] makes them one)" in page
    assert "usually 's" not in page, "both are frequent"
    typed = {"activate_my_card": 30, "order_cards": 30, "level_b": 30, "card": 30}
    wrong = {
        "activate_my_carw": 1,
        "activate_ym_card": 1,
        "actvate_my_card": 1,
        "order_cradss": 1,
        "level_a": 1,
        "cart": 1,
    }
    typos = make_rows(table=labelled(typed | wrong | {"activaate_my_card": 1, "order_crads": 2}))
    checked = check.fn(typos, only("label_spelling"), SPECIAL)
    page = html.unescape(checked.path("report.html").read_text())
    for label, meant in (("carw", "card"), ("actvate", "activate"), ("activaate", "activate"), ("crads", "cards")):
        assert re.search(rf"'\w*{label}\w*', perhaps '\w*{meant}\w*'", page), label
    assert checked.findings["label_spelling"] == 5
    free = make_rows(table=labelled({f"answer {n}": 1 for n in range(50)} | {"Answer 1": 1}))
    assert "label_spelling" not in check.fn(free, Checks(), SPECIAL).findings


def test_a_balanced_set_passes(make_rows: MakeRows) -> None:
    table = both(labelled({"yes": 30, "no": 30}), labelled({"so": 30}, "b"))
    assert check.fn(make_rows(table=table), Checks(), SPECIAL).findings == {}


DRIFT = {"length_drift", "language_drift", "source_drift", "label_drift", "rows_changed"}


def test_the_same_rows_have_not_drifted_from_the_version_before(make_rows: MakeRows) -> None:
    rows = make_rows(table=labelled({"yes": 60, "no": 60}))
    first = check.fn(rows, only(*DRIFT), SPECIAL)
    again = check.fn(rows, only(*DRIFT), SPECIAL, (), first)
    assert not DRIFT & again.findings.keys()
    since = results(again)["since"]
    assert (since["before"], since["added"], since["removed"]) == (120, 0, 0)
    assert {measure["psi"] for measure in since["drift"].values()} == {0.0}
    assert results(first)["since"] is None


def test_what_drifted_from_the_version_before_is_found(make_rows: MakeRows) -> None:
    first = check.fn(make_rows(table=labelled({"yes": 100, "no": 100})), only(*DRIFT), SPECIAL)
    german = [
        {
            "row_id": f"{n}",
            "source": "b",
            "file": "d.jsonl",
            "line": n,
            "messages": turns("user", f"{GERMAN[0]} {n} " * 9, "assistant", f"{GERMAN[1]} " * (1 + n % 2)),
        }
        for n in range(200)
    ]
    second = check.fn(make_rows(table=pa.Table.from_pylist(german, ROW_SCHEMA)), only(*DRIFT), SPECIAL, (), first, 3)
    assert second.findings.keys() >= DRIFT
    since = results(second)["since"]
    assert (since["before"], since["added"], since["removed"]) == (200, 200, 200)
    assert (since["version"], since["number"]) == (first.key, 3)
    page = second.path("report.html").read_text()
    assert f"Compared with version 3 of the data (check artifact {first.key[:8]})." in page
    assert first.key not in page
    compared = page.partition("PSI by chance, up to")[2].partition("</table>")[0]
    cells = [
        cell for cell in re.findall(r'<td class="number">(.*?)</td>', compared) if not re.fullmatch(r"\d+\.\d\d", cell)
    ]
    units = ["characters"] * 4 + ["language"] * 4 + ["source"] * 2 + ["labels"] * 2
    assert [cell.partition(" ")[2] for cell in cells] == units


@pytest.mark.parametrize(
    ("source", "globs", "drifted"),
    [
        ("may.jsonl", {"in/april.jsonl": "in/*.jsonl", "in/may.jsonl": "in/*.jsonl"}, False),
        ("may.jsonl", {}, True),  # the settings list it by itself
        ("chat", {"in/april.jsonl": "in/*.jsonl", "in/may.jsonl": "in/*.jsonl"}, True),  # as its rows say
    ],
)
def test_a_new_file_of_a_glob_is_no_drift(
    make_rows: MakeRows, source: str, globs: dict[str, str], drifted: bool
) -> None:
    def of(month: str, source: str) -> pa.Table:
        table = labelled({"yes": 60, "no": 60}, source)
        return table.set_column(table.schema.get_field_index("file"), "file", [[f"in/{month}.jsonl"] * 120])

    april = of("april", "april.jsonl")
    first = check.fn(make_rows(table=april).model_copy(update={"globs": globs}), only("source_drift"), SPECIAL)
    rows = make_rows(table=both(april, of("may", source))).model_copy(update={"globs": globs})
    assert ("source_drift" in check.fn(rows, only("source_drift"), SPECIAL, (), first).findings) == drifted


def test_another_name_of_an_only_file_is_no_drift(make_rows: MakeRows) -> None:
    def of(source: str, file: str) -> Rows:
        table = labelled({"yes": 60, "no": 60}, source)
        return make_rows(table=table.set_column(table.schema.get_field_index("file"), "file", [[file] * 120]))

    first = check.fn(of("a.jsonl", "in/a.jsonl"), only("source_drift"), SPECIAL)
    for source, has_drifted in (("b.jsonl", False), ("chat", True)):  # the second as its rows say
        found = check.fn(of(source, "in/b.jsonl"), only("source_drift"), SPECIAL, (), first).findings
        assert ("source_drift" in found) == has_drifted


def test_drift_stops_where_it_is_critical(make_rows: MakeRows) -> None:
    first = check.fn(make_rows(table=labelled({"yes": 100, "no": 100})), only(), SPECIAL)
    rows = make_rows(table=labelled({"yes": 180, "no": 20}))
    with pytest.raises(
        DataError, match=r"^label_drift: answers are not those of the last accepted version: .* over 0\.25"
    ):
        check.fn(rows, only("label_drift", severity="critical"), SPECIAL, (), first)
    check.fn(rows, only("label_drift", severity="critical", arguments={"max_psi": 9}), SPECIAL, (), first)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (
            "one of several sources has {value:.1%} of the rows, over max_share=0.9",
            "one of several sources has too large a share of the rows, over max_share=0.9",
        ),
        (
            "the rarest answer has fewer than min_rows=10 rows: {value:.0f}",
            "the rarest answer has fewer than min_rows=10 rows",
        ),
        (
            "an answer has {value} characters, more than max_answer_chars=9",
            "an answer has more than max_answer_chars=9 characters",
        ),
        (
            "the prompt has {value} different answers, more than max_answers=1",
            "the prompt has more than max_answers=1 different answers",
        ),
        (
            "sources changed: population stability index {value:.2f}, over 0.25",
            "sources changed: population stability index over 0.25",
        ),
        ("an answer is a refusal: {value}", "an answer is a refusal"),
    ],
)
def test_a_fault_that_no_value_belongs_to_is_a_sentence_without_one(fault: str, said: str) -> None:
    assert _without_value(fault) == said
