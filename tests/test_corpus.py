import importlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NUM_ROWS = 3_000


@pytest.fixture(scope="module")
def corpus() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module("corpus")


@pytest.fixture(scope="module")
def plants(corpus: ModuleType) -> ModuleType:
    return importlib.import_module("plants")


@pytest.fixture(scope="module")
def made(corpus: ModuleType) -> list[tuple[Any, Any]]:
    return list(corpus.make(NUM_ROWS, 0))


@pytest.fixture(scope="module")
def planted(made: list[tuple[Any, Any]]) -> dict[str, list[tuple[Any, Any]]]:
    """kind -> (the row, the row it was made from)."""
    found = defaultdict(list)
    for line, (row, plant) in enumerate(made, 1):
        if plant:
            assert plant.line == line
            assert plant.partner < line
            found[plant.kind].append((row, made[plant.partner - 1][0]))
    return found


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold().replace("'", ""))


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def test_the_same_seed_gives_the_same_rows_and_another_one_others(corpus: ModuleType) -> None:
    one, again, other = (list(corpus.make(300, seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other


def test_lines_and_truth_are_written_side_by_side(
    corpus: ModuleType, made: list[tuple[Any, Any]], tmp_path: Path
) -> None:
    truth = corpus.write(tmp_path / "rows.jsonl", NUM_ROWS, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    plants = [json.loads(line) for line in truth.read_text(encoding="utf-8").splitlines()]
    assert rows == [row.record() for row, _ in made]
    assert plants == [vars(plant) for _, plant in made if plant]
    assert 0.05 < len(plants) / NUM_ROWS < 0.09
    assert {"messages", "instruction"} <= {key for row in rows for key in row}


def test_every_kind_is_planted(planted: dict[str, list[tuple[Any, Any]]], plants: ModuleType) -> None:
    assert set(planted) == {*plants.DUPLICATES, *plants.LOOKALIKES}
    assert min(map(len, planted.values())) > 10


def test_a_duplicate_keeps_its_numbers_and_its_answer(
    planted: dict[str, list[tuple[Any, Any]]], plants: ModuleType
) -> None:
    for kind in plants.DUPLICATES:
        for row, partner in planted[kind]:
            assert numbers(row.prompt) == numbers(partner.prompt)
            assert (row.answer, row.earlier, row.instruction) == (partner.answer, partner.earlier, partner.instruction)


def test_a_format_edit_changes_no_word(planted: dict[str, list[tuple[Any, Any]]]) -> None:
    assert all(words(row.prompt) == words(partner.prompt) for row, partner in planted["format"])
    assert any(row.prompt != partner.prompt for row, partner in planted["format"])


def test_an_edit_changes_as_many_words_as_it_says(planted: dict[str, list[tuple[Any, Any]]]) -> None:
    for kind, share in (("edit_5", 0.05), ("edit_10", 0.1)):
        for row, partner in planted[kind]:
            before = partner.prompt.split()
            if len(before) > 1:
                lost = (Counter(before) - Counter(row.prompt.split())).total()
                new = (Counter(row.prompt.split()) - Counter(before)).total()
                assert 0 < max(lost, new) <= round(share * len(before))


def test_a_truncated_row_is_the_beginning_of_another(planted: dict[str, list[tuple[Any, Any]]]) -> None:
    for row, partner in planted["truncation"]:
        assert partner.prompt.split()[: len(row.prompt.split())] == row.prompt.split() or " " not in partner.prompt
        assert 0.84 < len(row.prompt) / len(partner.prompt) < 1 or partner.prompt.startswith(row.prompt)


def test_a_lookalike_differs_in_just_what_its_kind_says(planted: dict[str, list[tuple[Any, Any]]]) -> None:
    for row, partner in planted["other_number"]:
        assert re.sub(r"\d+", "0", row.prompt) == re.sub(r"\d+", "0", partner.prompt)
        assert sum(a != b for a, b in zip(numbers(row.prompt), numbers(partner.prompt), strict=True)) == 1
    for row, partner in planted["other_slot"]:
        assert row.prompt.replace(row.slot, "") == partner.prompt.replace(partner.slot, "")
        assert row.slot in row.answer
    assert all(row.prompt == partner.prompt != row.answer for row, partner in planted["other_answer"])
    assert all(row.answer != partner.answer for row, partner in planted["other_answer"])


def test_text_without_spaces_is_edited_too(plants: ModuleType) -> None:
    text = "昨日アカイで新しい荷物を送りましたが書類はまだ届いていません倉庫の機械を確認しました"
    edited = plants.edited(text, 0.1, "電池の計画を変更しました", Random(0))
    assert edited != text
    assert len(set(text) & set(edited)) > 0.8 * len(set(text))


def test_more_rows_bring_more_words(made: list[tuple[Any, Any]]) -> None:
    few, many = ({word for row, _ in part for word in words(row.prompt)} for part in (made[: NUM_ROWS // 4], made))
    assert len(many) > 1.4 * len(few)


def test_rows_are_made_from_the_words_of_the_files_given(corpus: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "real.jsonl"
    texts = [
        "the quokka sleeps under a gum tree.",
        "a quokka eats leaves at night.",
        '{"skipped": "json inside a text"}',
    ]
    file.write_text("".join(json.dumps({"input": text}) + "\n" for text in texts), encoding="utf-8")
    said = " ".join(row.prompt for row, _ in corpus.make(200, 0, [file]))
    assert "quokka" in said
    assert "skipped" not in said
