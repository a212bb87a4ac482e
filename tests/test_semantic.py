"""A prompt that says the same in other words goes only if a row that stays says it, by a cosine that is checked."""

import importlib.util
import json
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from tunewright.artifacts import ROW_SCHEMA, CheckedRows
from tunewright.config import Dedupe
from tunewright.errors import ConfigError
from tunewright.serving import LENGTH
from tunewright.similarity import semantic
from tunewright.similarity.embedding import load_model, model_identity
from tunewright.similarity.semantic import leaders
from tunewright.tasks.dedupe import REASONS, SEMANTIC, Repeats, dedupe, find_repeats

SYNONYMS = (("buy", "purchase"), ("card", "plastic"), ("lost", "mislaid"), ("phone", "mobile"), ("why", "wherefore"))
OTHERS = ("the", "my", "is", "late", "can", "cant", "not", "off", "on", "light", "turn", "1", "2", "say", "briefly")
WORDS = [*sum(SYNONYMS, ()), *OTHERS]


def vectors_of_words() -> np.ndarray:
    """Unit vectors; those of two synonyms have a cosine of about 0.99, those of others of about 0."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(WORDS) + 1, 64)).astype(np.float32)
    vectors[: 2 * len(SYNONYMS)] = vectors[: 2 * len(SYNONYMS)] * 0.1 + np.repeat(vectors[: len(SYNONYMS)], 2, axis=0)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def save_model(folder: Path, vectors: np.ndarray | None = None, **tensors: np.ndarray) -> str:
    """A model2vec folder with a token for each of WORDS and one for what is none of them."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*WORDS, "[UNK]"])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(
        {"embeddings": vectors_of_words() if vectors is None else vectors, **tensors}, folder / "model.safetensors"
    )
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


def chat(prompt: str, answer: str = "label") -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def found(
    conversations: list[list[dict[str, str]]], model: str, threshold: float = 0.95, share: float = 0.05
) -> Repeats:
    settings = Dedupe(near=False, semantic=threshold, semantic_model=model, boilerplate_share=share)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        pq.write_table(pa.Table.from_pylist([{"messages": turns} for turns in conversations], ROW_SCHEMA), file)
        return find_repeats(file, settings)[0]


def partners(prompts: list[str], model: str, threshold: float = 0.95) -> list[int]:
    return found([chat(prompt) for prompt in prompts], model, threshold).partner.tolist()


def cosine(one: str, other: str) -> float:
    """By the definition."""
    vectors = vectors_of_words().astype(np.float64)
    a, b = (np.mean([vectors[WORDS.index(word)] for word in text.split()], axis=0) for text in (one, other))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_prompt_in_other_words_goes_with_its_partner_reason_and_cosine(model: str) -> None:
    prompts = ["lost my card", "turn the light on", "mislaid my plastic"]
    repeats = found([chat(prompt) for prompt in prompts], model)
    assert repeats.partner.tolist() == [-1, -1, 0]
    assert [REASONS[reason] for reason in repeats.reason] == ["", "", "semantic_duplicate"]
    assert repeats.similarity[2] == pytest.approx(cosine(prompts[0], prompts[2]), abs=1e-4)
    assert partners(prompts, model, threshold=0.999) == [-1, -1, -1]


@pytest.mark.parametrize(
    "prompts",
    [
        ["can my card buy the phone", "cant my card buy the phone"],
        ["is my phone late", "is my phone not late"],
        ["turn the light on", "turn the light off"],
        ["buy card 1", "purchase card 2"],
    ],
)
def test_rows_that_differ_in_a_number_or_a_word_that_reverses_them_stay(prompts: list[str], model: str) -> None:
    assert partners(prompts, model, threshold=0.5) == [-1, -1]


def test_rows_that_differ_in_their_answer_stay(model: str) -> None:
    rows = [chat("lost my card", "card"), chat("lost my plastic", "phone"), chat("mislaid my card", "card\n")]
    assert found(rows, model).partner.tolist() == [-1, -1, 0]


def test_of_several_partners_the_most_alike_is_named(model: str) -> None:
    near, nearest, row = "lost my card", "lost my card the say", "mislaid my card the"
    assert partners([near, nearest, row], model, threshold=0.8) == [-1, -1, 1]
    assert partners([nearest, near, row], model, threshold=0.8) == [-1, -1, 0]


def test_a_row_that_a_removed_row_repeats_stays(model: str) -> None:
    rows = [chat("lost my card"), chat("lost my plastic"), chat("Lost my  plastic"), chat("mislaid my plastic")]
    repeats = found(rows, model)
    assert [REASONS[reason] for reason in repeats.reason] == ["", "", "exact_duplicate", "semantic_duplicate"]
    assert repeats.partner.tolist() == [-1, -1, 1, 1]


def test_what_the_model_cannot_read_is_not_compared(model: str) -> None:
    assert partners(["lost my card", "lost my wallet", "lost my wallet now", "", "?"], model) == [-1] * 5
    assert partners(["lost my card 12", "the lost my card 12"], model, threshold=0.8) == [-1, 0]
    assert partners(["12121212", "the 12121212"], model, threshold=0.8) == [-1, -1]


def test_what_all_rows_say_makes_none_alike(model: str) -> None:
    said = [f"{a} {b} {c}" for a, b, c in combinations(["light", "turn", "is", "late", "the", "say"], 3)]
    told = [chat(f"say briefly why my phone can buy the card\n{text}") for text in said]
    alike = found([chat(text) for text in said], model, threshold=0.8)
    assert found(told, model, threshold=0.8).partner.tolist() == alike.partner.tolist()
    assert (found(told, model, threshold=0.8, share=1.0).reason == SEMANTIC).any()


@given(st.lists(st.tuples(st.lists(st.sampled_from(WORDS), max_size=5), st.sampled_from("ab")), max_size=30))
@examples(max_examples=60, deadline=None)
def test_every_partner_stays_and_no_two_that_stay_are_alike(drawn: list[tuple[list[str], str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder, "model"))
        rows = [chat(" ".join(said), answer) for said, answer in drawn]
        repeats = found(rows, model, threshold=0.9) if rows else Repeats(*[np.zeros(0, np.int64)] * 3)
    gone = np.flatnonzero(~repeats.stays)
    assert repeats.stays[repeats.partner[gone]].all()
    assert (repeats.partner[gone] < gone).all()
    for row in np.flatnonzero(repeats.reason == SEMANTIC):
        one, other = (rows[i][0]["content"] for i in (row, repeats.partner[row]))
        assert repeats.similarity[row] == pytest.approx(cosine(one, other), abs=1e-4)
        assert repeats.similarity[row] >= 0.9
        assert rows[row][-1] == rows[repeats.partner[row]][-1]


def crowd(num_rows: int, seed: int = 0) -> np.ndarray:
    """Vectors (num_rows, 32) as embed makes them, half of them close to an earlier one."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(num_rows, 32))
    for row in range(num_rows // 2, num_rows):
        vectors[row] = vectors[rng.integers(row)] + 0.1 * rng.normal(size=32)
    vectors = vectors[rng.permutation(num_rows)]
    return np.rint(LENGTH * vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.int16)


def by_definition(vectors: np.ndarray, kinds: np.ndarray, settled: np.ndarray, threshold: float) -> list[int]:
    exact = vectors.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    leader: list[int] = []
    for row in range(len(exact)):
        staying = [i for i in range(row) if leader[i] < 0 and kinds[i] == kinds[row] and not settled[row]]
        best = max(staying, key=lambda i: (exact[i] @ exact[row], -i), default=-1)
        leader.append(best if best >= 0 and exact[best] @ exact[row] >= threshold else -1)
    return leader


@pytest.mark.parametrize("num_kinds", [1, 3, 20])
@pytest.mark.parametrize("block", [7, 64, 2048])
def test_leaders_are_those_of_the_definition_whatever_the_blocks(
    num_kinds: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(semantic, "BLOCK", block)
    monkeypatch.setattr(semantic, "CELL_ROWS", 40)
    rng = np.random.default_rng(num_kinds)
    vectors, kinds, settled = crowd(300), crowd(300)[:, :num_kinds].argmax(axis=1), rng.random(300) < 0.1
    leader, cosines = leaders(vectors, kinds, settled, 0.8)
    assert leader.tolist() == by_definition(vectors, kinds, settled, 0.8)
    assert (leader >= 0).sum() > 20
    assert (cosines[leader >= 0] >= 0.8).all()


def test_in_a_large_kind_few_are_missed_and_none_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "BLOCK", 30)
    monkeypatch.setattr(semantic, "CELL_ROWS", 30)
    vectors, kinds, settled = crowd(1_000), np.zeros(1_000, np.int64), np.zeros(1_000, np.bool_)
    leader, cosines = leaders(vectors, kinds, settled, 0.9)
    expected = np.array(by_definition(vectors, kinds, settled, 0.9))
    gone = np.flatnonzero(leader >= 0)
    assert ((leader >= 0) & (expected >= 0)).sum() > 0.95 * (expected >= 0).sum() > 200
    assert (leader[leader[gone]] == -1).all()
    exact = vectors.astype(np.float64)
    true = (exact[gone] * exact[leader[gone]]).sum(axis=1) / np.linalg.norm(exact[gone], axis=1)
    assert np.allclose(cosines[gone], true / np.linalg.norm(exact[leader[gone]], axis=1))


def test_which_cells_a_row_is_compared_with_depends_on_no_other_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "CELL_ROWS", 20)
    vectors = crowd(2_000)
    cells = semantic._centers(vectors)
    home, asked = semantic._cells(vectors, *cells)
    assert (asked.sum(axis=1) == semantic.PROBES).all()
    assert asked[np.arange(2_000), home].all()
    for row in range(0, 2_000, 100):
        alone = semantic._cells(vectors[row : row + 1], *cells)
        assert alone[0] == home[row]
        assert (alone[1] == asked[row]).all()


def test_equal_vectors_have_a_cosine_of_exactly_one() -> None:
    vectors = np.repeat(crowd(50), 2, axis=0)
    leader, cosines = leaders(vectors, np.repeat(np.arange(50), 2), np.zeros(100, np.bool_), 1.0)
    assert leader.tolist() == [row - 1 if row % 2 else -1 for row in range(100)]
    assert set(cosines[1::2]) == {1.0}


def test_a_text_is_the_weighed_mean_of_its_tokens_vectors(tmp_path: Path) -> None:
    few = np.eye(4, 6, dtype=np.float32)
    weights = np.linspace(0.5, 2, len(WORDS) + 1).astype(np.float32)
    mapping = np.arange(len(WORDS) + 1) % 4
    model = load_model(save_model(tmp_path / "few", few, weights=weights, mapping=mapping))
    said = ["buy", "light", "light"]
    expected = np.mean([weights[WORDS.index(word)] * few[mapping[WORDS.index(word)]] for word in said], axis=0)
    assert np.allclose(model.embed([" ".join(said)])[0] / LENGTH, expected / np.linalg.norm(expected), atol=1e-4)
    assert model.embed([]).shape == (0, 6)


def test_the_stage_counts_semantic_duplicates_and_its_key_has_the_model(
    tmp_path: Path, write_rows: Any, model: str
) -> None:
    write_rows(tmp_path / "checked" / "rows.parquet", [chat("lost my card"), chat("mislaid my card")])
    rows = CheckedRows(folder=tmp_path / "checked", digest="x", num_rows=2, num_quarantined=0, reasons={}, findings={})
    chosen = Dedupe(semantic=0.9, semantic_model=model)
    unique = dedupe.fn(rows, chosen, model_identity(chosen))
    assert (unique.num_rows, unique.reasons) == (1, {"semantic_duplicate": 1})
    removed = pq.read_table(unique.path("removed.parquet")).to_pylist()
    assert [(row["line"], row["partner_line"], row["reason"]) for row in removed] == [(2, 1, "semantic_duplicate")]
    altered = Dedupe(semantic=0.9, semantic_model=save_model(tmp_path / "altered", vectors_of_words() + 1))
    assert dedupe.fn(rows, chosen, model_identity(altered)).key != unique.key


def test_with_semantic_off_no_model_is_read() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        pq.write_table(pa.Table.from_pylist([{"messages": chat("lost my card")}], ROW_SCHEMA), file)
        assert find_repeats(file, Dedupe(near=False, semantic_model="/nowhere"))[0].stays.all()
    assert model_identity(Dedupe(semantic_model="/nowhere")) == ""


def test_a_model_that_is_not_there_or_not_one_is_an_error_that_says_what_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wordllama is not installed: pip install 'tunewright\[semantic\]'"):
        model_identity(Dedupe(semantic=0.95))
    with pytest.raises(ConfigError, match=r"org/model has no model\.safetensors and no tokenizer\.json; accepted:"):
        load_model("org/model")
    folder = Path(save_model(tmp_path / "broken"))
    save_file({"layers": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"model\.safetensors has layers, and not embeddings or embedding\.weight; accepted:"
    ):
        load_model(str(folder))
    save_file({"embeddings": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=rf"{len(WORDS) + 1} tokens, but vectors for 2"):
        load_model(str(folder))
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        load_model(str(folder))
    save_model(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        load_model(str(folder))


@pytest.mark.skipif(importlib.util.find_spec("wordllama") is None, reason="needs the extra semantic")
def test_wordllama_sees_paraphrases_and_no_letters() -> None:
    prompts = [
        "Can I exchange currencies with the app?",
        "Is it possible to exchange currencies on the app?",
        "Can I get a second card with the app?",
        "ฉันจะยกเลิกคำสั่งซื้อได้อย่างไร",
        "ทำไมบัตรของฉันใช้ในต่างประเทศไม่ได้",
    ]
    assert partners(prompts, "package:wordllama", threshold=0.8) == [-1, 0, -1, -1, -1]
