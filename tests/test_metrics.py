"""A metric says what a person would say who holds the answer beside its reference."""

import json
import math
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright import metrics
from tunewright.config import METRICS
from tunewright.errors import ConfigError
from tunewright.metrics import schemas
from tunewright.metrics.catalogue import CATALOGUE, PER_ROW
from tunewright.metrics.labels import Labels, closed_set
from tunewright.metrics.numbers import is_number, last_number
from tunewright.metrics.schemas import MOST_BYTES, Schema, json_schema, schema_valid
from tunewright.metrics.shape import FITTING
from tunewright.metrics.texts import tokens

NFC, NFD = "caf\u00e9", "cafe\u0301"
FENCED = '```json\n{"a": 1}\n```'


@pytest.mark.parametrize(
    ("name", "answer", "reference", "score"),
    [
        ("exact_match", " yes\n", "yes", 1.0),
        ("exact_match", NFD, NFC, 1.0),
        ("exact_match", "\ttotal = 0", "    total = 0", 0.0),  # an indentation
        ("exact_match", "total = 0", "    total = 0", 0.0),
        ("exact_match", "\n    total = 0\n", "    total = 0", 1.0),
        ("exact_match", "Yes", "yes", 0.0),
        ("exact_match", "yes.", "yes", 0.0),
        ("exact_match", "", "yes", 0.0),
        ("exact_match", "返品したい", "返品したい", 1.0),
        ("normalized_match", '"Yes  please."', "yes please", 1.0),
        ("normalized_match", "「はい。」", "はい", 1.0),
        ("normalized_match", "STRASSE", "straße", 1.0),
        ("normalized_match", "-5", "5", 0.0),
        ("normalized_match", "12.5", "125", 0.0),
        ("normalized_match", "...", "", 1.0),
        ("token_f1", "the red car", "the blue car", 2 / 3),
        ("token_f1", "car red the", "the red car", 1.0),
        ("token_f1", "a a a", "a", 0.5),
        ("token_f1", "12.50 euros", "12,50 euros", 0.75),
        ("token_f1", "犬が走る", "犬が走った", 6 / 9),
        ("token_f1", "", "car", 0.0),
        ("token_f1", NFD, NFC, 1.0),
        ("rouge_l", "police killed the gunman", "police kill the gunman", 0.75),  # Lin 2004, 3.1
        ("rouge_l", "the gunman kill police", "police kill the gunman", 0.5),
        ("rouge_l", "犬が走る", "犬が走った", 6 / 9),
        ("rouge_l", "る走が犬", "犬が走る", 1 / 4),
        ("rouge_l", "", "car", 0.0),
        ("bleu", "a b c d", "a b c e", (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4)),  # no 4-gram: half of one counts
        ("bleu", "the red", "the red car", math.exp(1 - 3 / 2)),  # brevity alone
        ("bleu", "犬", "犬", 1.0),
        ("bleu", "", "car", 0.0),
        ("chrf", "", "犬", 0.0),
        ("chrf", "xyz", "abc", 0.0),
        ("length_ratio", "abcdef", "abc", 2.0),
        ("length_ratio", "", "abc", 0.0),
        ("length_ratio", "abc", "", 3.0),
        ("length_ratio", " \n\t \u00a0" * 9, "abc", 0.0),  # as an empty answer, however many blanks
        ("length_ratio", " abc\n\n", "abc", 1.0),
        ("length_ratio", "abc", " \n", 3.0),
        ("length_ratio", "\n" * 9, " ", 1.0),
        ("json_field_f1", '{"b": [3.0, 2], "a": "x "}', '{"a": "x", "b": [2, 3]}', 1.0),
        ("json_field_f1", '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ("json_field_f1", '{"a": 1}', '{"a": 1, "b": {"c": 2, "d": 3}}', 0.5),
        ("json_field_f1", '{"a": 1, "a": 1}', '{"a": 1}', 0.0),
        ("json_field_f1", '{"s": [{"k": 1, "v": 2}]}', '{"s": [{"k": 1, "v": 3}]}', 0.0),
        ("json_field_f1", '{"s": [1, 1]}', '{"s": [1]}', 2 / 3),
        ("json_field_f1", '{"a": true}', '{"a": 1}', 0.0),
        ("json_field_f1", '{"a": "1"}', '{"a": 1}', 0.0),
        ("json_field_f1", '{"a/b": 1}', '{"a": {"b": 1}}', 0.0),
        ("json_field_f1", "{}", "{}", 1.0),
        ("json_field_f1", "{}", "[]", 0.0),
        ("json_field_f1", "{}", '{"a": 1}', 0.0),
        ("json_field_f1", '{"a": {}}', '{"a": []}', 0.0),
        ("json_field_f1", FENCED, '{"a": 1}', 0.0),
        ("json_field_f1", "[" * 900 + "]" * 900, "[" * 900 + "]" * 900, 1.0),
    ],
)  # fmt: skip
def test_an_answer_is_worth_so_much(name: str, answer: str, reference: str, score: float) -> None:
    assert metrics.row_score(name)(answer, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("मुझे पैसे वापस चाहिए।", ["मुझे", "पैसे", "वापस", "चाहिए", "।"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("نمی\u200cروند", ["نمی\u200cروند"]),
        ("מַה שְּׁלוֹמְךָ", 2),
        ("naïve 3.5", ["naïve", "3", ".", "5"]),
        ("ไม่ได้", 6),  # a character each, as Thai has no spaces
    ],
)
def test_vowel_signs_and_accents_are_part_of_their_word(text: str, wanted: list[str] | int) -> None:
    found = tokens(text)
    assert (found if isinstance(wanted, list) else len(found)) == wanted
    assert metrics.row_score("token_f1")("मुझे पैसे", "मेरा पता") == 0.0, "they share signs, and no word"


def test_chrf_orders_answers_in_any_script() -> None:
    chrf = metrics.row_score("chrf")
    assert 0 < chrf("猫が歩く", "犬が走る") < chrf("犬が走った", "犬が走る") < 1


TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["", " ", NFD, "a b", "犬が走る", "#### 1,234", "50%", '{"a": [1, {}]}', "[]", FENCED, "\u0e01\u0e32", "🙂🙂"]
)


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_a_score_is_in_its_range_and_an_answer_equal_to_the_reference_has_the_best(answer: str, reference: str) -> None:
    for name, score in PER_ROW.items():
        described = metrics.describe(name)
        assert described.low <= score(answer, reference) <= described.high
        if name in FITTING["tool calls"]:  # as for a reference without a call
            assert score(reference, reference) == (described.high if described.higher_is_better else described.low)
            continue
        means_something = not metrics.AnswerShape([reference]).misfit(name)
        best = 1.0 if name == "length_ratio" else described.high
        assert score(reference, reference) == (pytest.approx(best) if means_something else 0.0)


def subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """The longest common one, by the textbook's table."""
    row = [0] * (len(other) + 1)
    for mine in one:
        before, row = row, [0]
        for place, theirs in enumerate(other):
            row.append(before[place] + 1 if mine == theirs else max(before[place + 1], row[-1]))
    return row[-1]


@pytest.mark.parametrize("seed", range(5))
def test_rouge_l_is_of_the_longest_common_subsequence(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(40):
        one, other = (draw.choices("abcde", k=draw.randrange(1, 100)) for _ in range(2))
        expected = 2 * subsequence(one, other) / (len(one) + len(other))
        assert metrics.row_score("rouge_l")(" ".join(one), " ".join(other)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Natalia sold 48/2 = <<48/2=24>>24 clips.\n#### 72", 72),
        ("#### 42\nI checked it 3 times.", 42),
        ("#### 42\nHe has 3.\n#### 42\n####", 42),
        ("that is 500 + 1000 = 1500 ft.\n####", 1500),
        ("So it is $1,234.50.", 1234.5),
        ("1.234,50 €", 1234.5),
        ("1'234'567 Franken", 1234567),
        ("1\u202f234\u202f567", 1234567),
        ("12,5", 12.5),
        ("1.234", 1.234),
        ("0,125", 0.125),
        ("1,234", 1234),
        ("items 1,2,3", 3),
        ("half of it, \u00bd", 0.5),
        ("1\u00bd", 1.5),
        ("1 1/2 cups", 1.5),
        (r"\boxed{\frac{3}{4}}", 0.75),
        ("from 10-5", 5),
        ("it is (-5)", -5),
        ("it is \u22125", -5),
        ("-$3.50", -3.5),
        ("- 3 apples", 3),
        ("about 3e8 m/s", 3e8),
        (".5", 0.5),
        ("٤٢", 42),
        ("in version 5.", 5),
        ("5/0", None),
        ("none", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_the_last_number_is_read_as_a_person_reads_it(text: str, value: float | None) -> None:
    found = last_number(text)
    assert (found and float(found.value)) == value


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("I think it is 42.", "#### 42", 1.0),
        ("42.0", "42", 1.0),
        ("2/4", "0.5", 1.0),
        ("0.333", "1/3", 0.0),
        ("50%", "50", 1.0),
        ("50 %", "0.5", 1.0),
        ("50%", "0.5%", 0.0),
        ("#### 41 and not 42", "42", 0.0),
        ("no idea", "no idea", 0.0),
    ],
)
def test_a_numeric_answer_is_right_by_its_value(answer: str, reference: str, score: float) -> None:
    assert metrics.row_score("numeric")(answer, reference) == score


def test_every_number_is_read_as_it_was_written() -> None:
    for number in (7, 1234567, 0.25, -1234.5, 12.75):
        written = (f"{number}", f"{number:,}", f"x = {number}.", f"{number:,}".translate(str.maketrans(",.", ".,")))
        assert [float(found.value) for found in map(last_number, written) if found] == [number] * 4
    assert is_number("a\n#### $1,234 ") and is_number("-12 %") and not is_number("a 5") and not is_number("5 km")


@pytest.mark.parametrize("answer", ['{"a": [1, null]}', " [] \n", '{"a": {"b": 1}, "c": {"b": 1}}'])
def test_json_is_valid(answer: str) -> None:
    assert metrics.row_score("json_valid")(answer, "") == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        '{"a": 1, "a": 2}',
        '[{"a": {"b": 1, "b": 1}}]',
        '{"a": NaN}',
        "[-Infinity]",
        "3",
        '"text"',
        '{"a": 1} and more',
        FENCED,
        "{'a': 1}",
        "[" * 100_000,
        "[" + "1" * 10_000 + "]",
    ],
)
def test_json_is_not_valid(answer: str) -> None:
    assert metrics.row_score("json_valid")(answer, "") == 0.0


NESTED = '{"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}'


def test_a_schema_is_satisfied_or_not() -> None:
    schema = Schema('{"type": "object", "required": ["a"], "properties": {"a": {"enum": ["x", "y"]}}}')
    assert [schema.valid(text) for text in ('{"a": "x"}', '{"a": "z"}', "{}", '{"a": "x"} ok')] == [1, 0, 0, 0]
    assert [Schema(NESTED).valid(text) for text in ("[[], []]", "[[1]]", "[" * 900 + "]" * 900)] == [1, 0, 0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", " is not JSON: "),
        ("[1]", " is not a JSON Schema: not an object"),
        ('{"type": "objekt"}', r" is not a JSON Schema: \$.type: 'objekt' is not one of \['array', "),
        ('{"properties": {"a": {"$ref": "https://example.com/a.json"}}}', " refers to https://example.com/a.json,"),
        ('{"$ref": "#/$defs/b", "$defs": {"a": {}}}', r" refers to /\$defs/b, which is not in the file"),
        ('{"items": {"$dynamicRef": "https://example.com/a.json"}}', " refers to https://example.com/a.json,"),
        ('{"allOf": [{"$ref": "file:///etc/passwd"}]}', " refers to file:///etc/passwd,"),
        ('{"$ref": "#/x/y", "x": {"y": {"$dynamicRef": "file:///etc/passwd"}}}', " refers to file:///etc/passwd,"),
        ('{"pattern": "("}', r" is not a JSON Schema: \$.pattern: '\(' is not a 'regex'"),
        ('{"not":' * 5_000 + "{}" + "}" * 5_000, " is (not JSON|nested too deep)"),
        ("\xff", " 'utf-8' codec can't decode"),
    ],
)  # fmt: skip
def test_what_is_no_schema_is_said_with_its_file_and_nothing_is_fetched(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "schema.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=f"^evaluation.json_schema={file}{said}"):
        json_schema(str(file))
    assert json_schema(None) == ""


def test_a_schema_that_is_not_there_is_looked_for_beside_it(tmp_path: Path) -> None:
    (tmp_path / "triage.schema.json").write_text("{}")
    said = rf"no such file in {tmp_path}; did you mean triage.schema.json\? accepted: a file with a JSON Schema$"
    with pytest.raises(ConfigError, match=said):
        json_schema(str(tmp_path / "triage.schem.json"))


def test_a_schema_is_a_file_of_some_megabytes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(ConfigError, match=f"^evaluation.json_schema={file} is not a regular file; accepted"):
            json_schema(file)
    with (tmp_path / "terabyte").open("wb") as opened:
        opened.truncate(2**40)
    with pytest.raises(ConfigError, match=f"terabyte is larger than {MOST_BYTES:,} bytes"):
        json_schema(str(tmp_path / "terabyte"))


def test_answers_are_checked_by_a_schema_row_by_row() -> None:
    answers = [f'{{"a": "{number}"}}' for number in range(250)]
    table = pa.table({"answer": answers, "reference": answers})
    shape = metrics.AnswerShape(answers, schema='{"properties": {"a": {"pattern": "^[0-9]?[05]$"}}}')
    share, rows = metrics.measure("schema_valid", table, shape)
    assert (share, rows) == (0.08, [float(number < 100 and number % 5 == 0) for number in range(250)])
    assert shape.misfit("schema_valid").startswith("230 of 250 references do not satisfy evaluation.json_schema")


def test_a_pattern_that_never_ends_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "SECONDS", 1)
    answers = ["{}"] * 150 + ['{"a": "%s!"}' % ("a" * 60)]
    with pytest.raises(
        ConfigError, match=r"^evaluation\.json_schema: to check answers 101 to 151 of 151 takes more than"
    ):
        schema_valid('{"properties": {"a": {"pattern": "^(a+)+$"}}}', answers)


LABELS = Labels(["card_arrival", "Refund", "refund (late)", "yes", "YES", '{"a": 1, "b": "C"}', '{"a": 1, "b": "c"}'])


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("card_arrival", "card_arrival"),
        ('"Card_Arrival".', "card_arrival"),
        ("refund", "Refund"),
        ("refund (late)", "refund (late)"),
        ("yes", "yes"),
        ("YES", "YES"),
        ("Yes", None),  # either
        ('{"b":"C","a":1}', '{"a": 1, "b": "C"}'),
        ("I would say card_arrival", None),
        ("", None),
    ],
)
def test_an_answer_is_a_label_but_for_case_and_signs_around_it(answer: str, label: str | None) -> None:
    assert LABELS.read(answer) == label
    assert LABELS.unparseable(answer) == (label is None)
    assert LABELS.accuracy(answer, "card_arrival") == (label == "card_arrival")


def test_macro_f1_is_scikit_learns_over_the_references_labels() -> None:
    f1_score: Any = pytest.importorskip("sklearn.metrics").f1_score
    draw = random.Random(0)
    for _ in range(3):
        wanted, said = (draw.choices(pool, k=60) for pool in ("aaab", "abc?"))
        expected = f1_score(wanted, said, labels=["a", "b"], average="macro", zero_division=0)
        assert Labels("abc").macro_f1(said, wanted) == pytest.approx(expected)
        assert Labels("abc").macro_f1(wanted, wanted) == 1.0


@pytest.mark.parametrize(
    ("answers", "references", "labels"),
    [
        (["a"] * 5 + ["b"] * 5, ["a"], ("a", "b")),
        (["a"] * 5 + [" b\n"] * 5, ["b", "c"] * 1 + ["a"] * 18, ("a", "b", "c")),  # one label that was never trained
        (["a"] * 10, ["a"], ()),  # nothing to choose from
        (["a"] * 3 + ["b"] * 2, ["a"], ()),  # not several times each
        (
            [f"label {i % 5}" for i in range(40)] + ["new 1", "new 2"],
            ["label 1"],
            (*(f"label {i}" for i in range(5)), "new 1", "new 2"),
        ),
        (
            [f"label {i % 5}" for i in range(40)] + ["new 1", "new 2", "new 3"],
            ["label 1"],
            (),
        ),  # and the next one is new
        ([f"label {i % 151:03}" for i in range(537)], ["label 001"], (*(f"label {i:03}" for i in range(151)),)),
        (["I do not know"] * 80 + [f"text {i}" for i in range(10)], ["I do not know"], ()),
        ([f"text {i % 1001}" for i in range(9000)], ["text 1"], ()),
        (["a"] * 5 + ["b"] * 5, ["a", "c"], ()),
    ],
)
def test_a_closed_set_has_few_answers_each_given_several_times(
    answers: list[str], references: list[str], labels: tuple[str, ...]
) -> None:
    assert closed_set(answers, references) == labels


OPEN = [f"answer {i}" for i in range(50)]


@pytest.mark.parametrize(
    ("references", "answers", "says", "decides"),
    [
        (["a", "b"], ["a", "b"] * 9, "2 labels", "exact_match"),
        (["1", "2"], ["1", "2"] * 9, "2 labels", "exact_match"),
        (['{"a": 1}', "{}"], ['{"a": 1}', "{}"] * 9, "2 labels, all JSON", "exact_match"),
        (['{"a": 1}', "[2]"], OPEN, "JSON", "json_field_f1"),
        (["5 + 5\n#### 10", "#### -1.5"], OPEN, "numbers", "numeric"),
        (["Paris", "Rome"], OPEN, "short texts (median 1 words and signs)", "token_f1"),
        (["Paris", "on Monday morning"], OPEN, "short texts (median 3 words and signs)", "token_f1"),
        (
            ["犬が走る" * 9, "a b"] * 3 + ["c " * 30] * 9,
            OPEN,
            "long texts (median 30 words and signs, more than 12)",
            "chrf",
        ),
    ],
)
def test_the_metrics_that_fit_go_by_what_the_references_are(
    references: list[str], answers: list[str], says: str, decides: str
) -> None:
    choice = metrics.choose(["auto"], references, answers)
    assert (choice.shape.says(), choice.decides) == (says, decides)
    assert choice.names[-3:] == ("perplexity", "stopped", "length_ratio")
    assert choice.left_out == {}
    assert f"the references are {says}: measured are {', '.join(choice.names)}" == choice.says()


def test_a_few_references_that_are_no_json_are_faults_of_theirs() -> None:
    json_like, broken = ['{"a": 1}'] * 19, ['{"a": ']
    choice = metrics.choose(["auto"], json_like + broken)
    assert (choice.shape.kinds, choice.decides) == (["JSON"], "json_field_f1")
    assert choice.shape.faults() == ["1 of 20 references are not JSON, such as '{\"a\":'"]
    assert "; 1 of 20 references are not JSON, such as" in choice.says()
    assert metrics.choose(["auto"], json_like[1:] + broken).shape.kinds == ["short texts"], "more than 5 %"
    assert metrics.choose(["auto"], json_like + broken * 2).decides == "token_f1"
    numbers = metrics.choose(["auto"], ["4"] * 38 + ["many", "few"])
    assert (numbers.decides, numbers.shape.faults()) == (
        "numeric",
        ["2 of 40 references have no number, such as 'many'"],
    )
    schema = json.dumps({"type": "object", "required": ["a"]})
    checked = metrics.choose(["auto"], ['{"a": 1}'] * 19 + ['{"b": 1}'], schema=schema)
    assert "schema_valid" in checked.names
    assert checked.shape.faults() == ["1 of 20 references do not satisfy evaluation.json_schema, such as '{\"b\": 1}'"]


def test_labels_that_only_some_of_the_rows_have_are_told_apart() -> None:
    trained = ["a", "b", "c"] * 9
    assert metrics.choose(["auto"], ["a"] * 9 + ["b"], trained).shape.says() == "3 labels, 2 of them in the test rows"
    choice = metrics.choose(["auto"], ["a"] * 19 + ["d"] + ["b"] * 20, trained)
    said = "1 of 40 references has a label that no training row has, such as 'd'"
    assert choice.says().startswith(f"the references are 4 labels, 3 of them in the test rows; {said}: measured are ")
    assert choice.shape.untrained() == said
    assert choice.shape.faults() == []
    two = metrics.choose(["auto"], ["a"] * 38 + ["d", "e"], trained).shape.untrained()
    assert two == "2 of 40 references have one of 2 labels that no training row has, such as 'd'"


def test_a_reference_that_is_a_trained_label_but_for_its_case_is_that_label() -> None:
    choice = metrics.choose(["auto"], ["theft"] * 19 + ["Theft"] + ["fire"] * 20, ["theft", "fire"] * 9)
    assert choice.shape.labels == ("fire", "theft")
    assert choice.shape.untrained() == ""
    labels = Labels(choice.shape.labels)
    assert labels.macro_f1(["theft", "theft", "fire"], ["Theft", "theft", "fire"]) == 1.0
    assert labels.accuracy("theft", "Theft") == 1.0
    told_apart = metrics.choose(["auto"], ["theft"] * 20, ["theft", "Theft"] * 9)
    assert told_apart.shape.labels == ("Theft", "theft"), "training rows have both"


def test_named_metrics_are_taken_as_they_are_but_for_those_that_mean_nothing() -> None:
    choice = metrics.choose(["bleu", "json_valid", "auto"], ["no JSON"] * 2 + ['{"a": 1}'])
    assert choice.names[0] == "bleu"
    assert choice.decides == "token_f1", "auto fits better than what happens to stand first"
    assert choice.left_out == {"json_valid": "2 of 3 references are not JSON, such as 'no JSON'"}
    assert metrics.choose(["macro_f1", "bleu"], ["a"], ["a", "b"] * 9).decides == "bleu"
    assert metrics.choose(["auto"], ["{}"], OPEN, '{"required": ["a"]}').left_out["schema_valid"].startswith("1 of 1 ")
    with pytest.raises(
        ConfigError, match=r"evaluation.metrics=accuracy is not meaningful: .* not a closed set of labels"
    ):
        metrics.choose(["accuracy"], ["a"])


def test_personal_data_of_a_reference_are_not_repeated() -> None:
    choice = metrics.choose(["auto", "json_valid"], ["write to jane.doe@gmail.com", "yes"])
    assert "jane.doe" not in choice.says()


def table(answers: Sequence[str], references: Sequence[str], nlls: Sequence[float], lengths: Sequence[int]) -> pa.Table:
    columns = {"answer": answers, "reference": references, "nll": nlls, "num_reference_tokens": lengths}
    return pa.table({**columns, "stopped": [answer != "" for answer in answers]})


@pytest.mark.parametrize(
    ("name", "score", "rows"),
    [
        ("exact_match", 2 / 3, [1.0, 0.0, 1.0]),
        ("accuracy", 2 / 3, [1.0, 0.0, 1.0]),
        ("unparseable", 1 / 3, [0.0, 1.0, 0.0]),
        ("macro_f1", 2 / 3, None),
        ("perplexity", math.exp(2), [1.0, 3.0, 1.0]),
        ("stopped", 2 / 3, [1.0, 0.0, 1.0]),
        ("length_ratio", 4 / 8, [1.0, 0.0, 1.0]),
    ],
)
def test_a_metric_gives_the_score_of_all_rows_and_of_each(name: str, score: float, rows: list[float] | None) -> None:
    answers = table(["a", "", "abc"], ["a", "bbbb", "abc"], [1.0, 6.0, 1.0], [1, 2, 1])
    shape = metrics.AnswerShape(answers.column("reference").to_pylist(), ("a", "abc", "bbbb"))
    assert metrics.measure(name, answers, shape) == (pytest.approx(score), rows)


def test_blanks_add_nothing_to_the_length_of_all_answers() -> None:
    answers = table([" " * 50, "abc\n\n\n"], ["abc", "abc "], [1.0, 1.0], [1, 1])
    assert metrics.measure("length_ratio", answers) == (0.5, [0.0, 1.0])


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_is_described_and_has_no_score_of_no_rows(name: str) -> None:
    assert list(CATALOGUE) == [*METRICS]
    with pytest.raises(ValueError, match="no answers to score"):
        metrics.measure(name, table([], [], [], []), metrics.AnswerShape([], ("a", "b"), schema="{}"))


HEAD = """
import datasets
import evaluate

FEATURES = datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")})

class Own(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(description="", citation="", features=FEATURES)
"""
POLITE = """
    in_words, higher_is_better, high = "impoliteness", False, 2.0
    def _compute(self, predictions, references):
        return {"rows": [2.0 * ("please" not in text) for text in predictions]}
"""


def computed(returned: str) -> str:
    return f"\n    def _compute(self, predictions, references):\n        return {returned}\n"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`write(name, source)` is a module of the team's."""
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, source: (tmp_path / f"{name}.py").write_text(source)


def test_a_class_of_the_teams_scores_each_row_and_says_what_it_is(write: Any) -> None:
    write("team_polite", HEAD + POLITE)
    (name, before), *others = metrics.own_metrics(["chrf", "team_polite:Own", "auto"])
    assert others == []
    described = metrics.describe(name)
    assert (described.in_words, described.higher_is_better, described.high) == ("impoliteness", False, 2.0)
    answers = table(["please", "now"], ["", ""], [1.0, 1.0], [1, 1])
    assert metrics.measure(name, answers) == (1.0, [0.0, 2.0])
    assert metrics.choose([name, "macro_f1"], ["a"], ["a", "b"] * 9).decides == name
    write("team_polite", HEAD + POLITE + "# more\n")
    assert metrics.own_metrics([name])[0] == (name, before), "a comment is the same code"
    write("team_polite", HEAD + POLITE + "MORE = 1\n")
    assert metrics.own_metrics([name])[0] != (name, before), "an edit is another input"


@pytest.mark.parametrize(
    ("name", "source", "said"),
    [
        ("no_team:Own", "", ": there is no module no_team; accepted: module:Class beside the deployment file"),
        ("team_a:Own", "1 / 0", " cannot be imported: ZeroDivisionError: division by zero"),
        ("team_b:Owm", HEAD, ": team_b has no Owm; did you mean team_b:Own? accepted: an evaluate.Metric whose"),
        ("team_c:FEATURES", HEAD, " is not an evaluate.Metric; accepted: an evaluate.Metric whose compute("),
        ("team_d:Own", HEAD, " does not score made-up texts: NotImplementedError:"),
        ("team_e:Own", HEAD + "\n    def __init__(self):\n        pass\n", " cannot be created: TypeError: "),
        ("team_f:Own", HEAD + computed('{"f": 0.5}'), " gives no rows; the paired decision needs a score per row;"),
        ("team_g:Own", HEAD + computed('{"rows": [1.0]}'), " gives 1 rows for 4 answers; accepted: "),
        ("team_h:Own", HEAD + computed('{"rows": ["a"] * 4}'), " gives rows that are not numbers; accepted: "),
        ("team_i:Own", HEAD + computed('{"rows": [float("nan")] * 4}'), " gives a row nan; accepted: finite numbers"),
        ("team_j:Own", HEAD + computed('{"rows": [1.0, 0, 7, 0]}'), " gives a row 7; accepted: finite numbers from 0"),
    ],
)  # fmt: skip
def test_a_class_that_cannot_be_used_is_told_in_one_line(write: Any, name: str, source: str, said: str) -> None:
    if source:
        write(name.partition(":")[0], source)
    with pytest.raises(ConfigError) as error:
        metrics.own_metrics([name])
    assert str(error.value).startswith(f"evaluation.metrics={name}{said}")
    with pytest.raises(ConfigError) as error:
        metrics.own_metrics([name], "gate.metric")
    assert str(error.value).startswith(f"gate.metric={name}{said}")
    assert "\n" not in str(error.value)
