"""The base with a team's documents: passages, which of them stand before a question, and the errors of wrong files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import MakeSplits, messages
from hypothesis import given
from hypothesis import strategies as st
from test_prompt import asked, texts, told

from tunewright.artifacts import Base, Prompts, Splits
from tunewright.config import Evaluation, Settings
from tunewright.errors import ConfigError
from tunewright.tasks import prompt as prompting
from tunewright.tasks.prompt import PromptScore
from tunewright.tasks.prompt.documents import PASSAGE, PassagePool, documents, passages, read
from tunewright.tools.conversation import Conversation

__all__ = ["asked"]

HANDBOOK = """# Deliveries

A parcel that is lost is sent again after nine days.

# Refunds

Money is paid back to the card within two weeks.

# Lamps

A broken lamp is mended in our workshop in Gera.
"""


@pytest.fixture
def handbook(tmp_path: Path) -> Path:
    file = tmp_path / "handbook.md"
    file.write_text(HANDBOOK)
    return file


@pytest.fixture
def splits(make_splits: MakeSplits) -> Splits:
    rows = [
        (f"{text} {n}?", text) for n in range(9) for text in ("parcel lost", "money back to my card", "lamp broken")
    ]
    return make_splits(rows[:15], rows[15:21], rows[21:])


def test_each_question_has_the_passage_that_is_about_it(
    splits: Splits, asked: Callable[..., Prompts], handbook: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def found(self: prompting.Asking, rows: Any, shots: list[list[int]], of: Any) -> PromptScore:
        assert isinstance(of, PassagePool) and {*rows["row_id"].to_pylist()} <= validation
        tried.append(len(shots[0]))
        return PromptScore(0.5, -float(len(shots[0])))  # the fewer passages the better

    validation = {*pq.read_table(splits.path("validation.parquet"))["row_id"].to_pylist()}
    monkeypatch.setattr(prompting.Asking, "found", found)
    made = asked(splits, contenders=("documents",), documents=documents([str(handbook)]))
    assert tried == [3, 1] and made.chosen == {
        "documents": "the most similar passage of 3 by BM25 (the best of 2 choices on 6 validation rows)"
    }
    about = {"parcel": "handbook.md 1", "money": "handbook.md 2", "lamp": "handbook.md 3"}
    test = pq.read_table(splits.path("test.parquet")).to_pylist()
    for row, text in zip(test, texts(tiny_base, made, "documents"), strict=True):
        question = row["messages"][0]["content"]
        assert told(made)["documents"]["shots"][row["row_id"]] == [about[question.split()[0]]]
        passage = HANDBOOK.split("\n\n# ")[[*about].index(question.split()[0])].removeprefix("# ").strip()
        assert text.endswith(f"{passage}\n\n---\n\n{question}<|im_end|>\n<|im_start|>assistant\n")
        assert text.count("Passages that may help:") == 1
    assert {row["reference"] for row in pq.read_table(made.path("documents.parquet")).to_pylist()} == {
        row["messages"][1]["content"] for row in test
    }


def test_another_text_is_another_prompt_and_another_place_is_not(
    splits: Splits, asked: Callable[..., Prompts], handbook: Path, tmp_path: Path
) -> None:
    def key(file: Path) -> str:
        return asked(splits, contenders=("documents",), documents=documents([str(file)])).key

    moved = tmp_path / "moved" / "handbook.md"
    moved.parent.mkdir()
    moved.write_text(HANDBOOK)
    assert key(moved) == key(handbook)
    moved.write_text(HANDBOOK.replace("nine", "ten"))
    assert key(moved) != key(handbook)


def test_passages_stand_before_the_last_question_and_tools_stay() -> None:
    held = PassagePool(["one", "two"], ["a 1", "a 2"])
    turns = messages(["first?", "yes", "second?"])
    before = held.before([1, 0], turns)
    assert [message["content"] for message in before[:2]] == ["first?", "yes"]
    assert before[2]["content"] == "Passages that may help:\n\n---\n\ntwo\n\n---\n\none\n\n---\n\nsecond?"
    assert held.before([], turns) == turns and held.ids([1]) == ["a 2"]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with_tools = held.before([0], Conversation(turns, tools))
    assert isinstance(with_tools, Conversation) and with_tools.tools == tools


def test_a_passage_begins_with_its_heading_and_long_paragraphs_are_divided_at_sentences() -> None:
    long = " ".join(f"This is sentence number {n}." for n in range(80))
    made = [*passages(f"intro\n\n# Title\n\n{long}\n\n## Next\ntext under it\n\nmore")]
    assert made[0] == "intro" and made[-1] == "## Next\n\ntext under it\n\nmore"
    assert len(made) > 3 and all(each.startswith("# Title\n\nThis is") for each in made[1:-1])
    assert " ".join(each.removeprefix("# Title\n\n").replace("\n\n", " ") for each in made[1:-1]) == long


@pytest.mark.parametrize("mark", ["।", "؟", "\u06d4", "။", "។", "።", "。"])
def test_long_paragraphs_are_divided_at_sentences_in_any_script(mark: str) -> None:
    sentence = f"{'क ख ग ' * 30}{mark}"
    made = [*passages(f"{sentence} " * 9)]
    assert len(made) > 1 and all(each.endswith(mark) for each in made)


def test_a_long_list_is_divided_at_lines_and_no_space_is_added() -> None:
    lines = [f"row {n}, value {n}" for n in range(200)]
    made = [*passages("\n".join(lines))]
    assert len(made) > 1 and [line for passage in made for line in passage.split("\n") if line] == lines
    assert [*passages("# 題\n\n" + "今日は。" * 240)] == ["\n\n".join(["# 題", "今日は。" * 124, "今日は。" * 116])]


def test_a_file_with_a_byte_order_mark_begins_with_its_heading(tmp_path: Path) -> None:
    file = tmp_path / "windows.md"
    file.write_bytes("# Title\r\n\r\nA text.\r\n\r\n# Next\r\n\r\nAnother.\r\n".encode("utf-8-sig"))
    assert read(documents([str(file)])).texts == ["# Title\n\nA text.", "# Next\n\nAnother."]


@given(st.text(alphabet="ab.。 \n", max_size=3_000))
def test_no_letter_is_lost_and_no_passage_is_too_long(text: str) -> None:
    made = [*passages(text)]
    assert [each for passage in made for each in passage if each in "ab"] == [each for each in text if each in "ab"]
    assert all(len(each) <= PASSAGE for each in made)


def test_wrong_files_are_named_with_what_is_accepted(tmp_path: Path, handbook: Path) -> None:
    def said(*patterns: str) -> str:
        with pytest.raises(ConfigError) as caught:
            documents(patterns)
        return str(caught.value).replace(str(tmp_path), "HERE")

    accepted = "accepted: text files, or globs such as docs/*.md"
    assert said(f"{tmp_path}/no.md") == f"evaluation.documents[0]=HERE/no.md: no such file; {accepted}"
    assert said(str(handbook), str(tmp_path)) == f"evaluation.documents[1]=HERE: a folder; {accepted}"
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n\xe2\xe3")
    pdf = "byte 9 is not UTF-8; accepted: text or Markdown in UTF-8, not PDF or Word"
    assert said(f"{tmp_path}/*.pdf") == f"evaluation.documents[0]=HERE/a.pdf: {pdf}"
    (tmp_path / "empty.md").write_text(" \n")
    assert said(f"{tmp_path}/empty.md").endswith("empty.md: the file is empty; accepted: text or Markdown in UTF-8")
    found = documents([f"{tmp_path}/h*.md", str(handbook)])
    assert [each.name for each in found] == ["handbook.md"], "equal files count once"
    handbook.write_text("other")
    with pytest.raises(ConfigError, match="changed while the run read it"):
        read(found)


def test_documents_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.md").open("wb") as file:
        file.truncate(1 << 43)  # a hole of 8 TB
    with pytest.raises(
        ConfigError, match=r"^evaluation\.documents: 8,796,093,022,208 bytes in 1 files; accepted: at most"
    ):
        documents([f"{tmp_path}/*.md"])


def test_documents_alone_are_a_contender() -> None:
    alone = Evaluation(contenders=(), documents=("a.md",), complete=True)
    assert json.loads(alone.model_dump_json())["documents"] == ["a.md"]
    given = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "b"}}
    with pytest.raises(ValueError, match="shots=4 has no effect"):
        Settings.model_validate(given | {"evaluation": {"contenders": (), "documents": ("a.md",), "shots": 4}})
