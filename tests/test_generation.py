"""Answers are those of plain greedy decoding, whatever the model and however they were drafted, in far fewer passes."""

import random
from typing import Any

import pytest
import torch
from decoded import generated, likelihood
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from tunewright.generation import Answer, Greedy, decoding, states
from tunewright.generation import rows as generation_rows
from tunewright.generation.drafts import Draft, Drafts
from tunewright.generation.rows import PrefixGroup, batches, grouped
from tunewright.generation.states import CachedBatch
from tunewright.modeling import architecture

STOPS = [2, 3]
SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # far from a tie
}


def llama() -> Any:
    """Attends to what is shared by our own attention."""
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def gpt2() -> Any:
    """Each row has a copy of what is shared."""
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.6}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=2))


def sliding() -> Any:
    """Forgets what is eight tokens back."""
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8))


def mamba() -> Any:
    """Keeps no token, but a state that sums up."""
    sizes = {"vocab_size": 50, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "initializer_range": 0.3}
    return MambaForCausalLM(MambaConfig(**sizes, eos_token_id=2))


def adapted() -> Any:
    """The llama with an adapter that is not merged."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(llama(), LoraConfig(target_modules="all-linear", init_lora_weights=False))


@pytest.mark.parametrize(
    ("make", "seed"),
    [*((llama, seed) for seed in range(12)), (gpt2, 0), (gpt2, 1), (sliding, 0), (mamba, 0), (adapted, 0)],
)
def test_answers_are_those_of_plain_greedy_decoding(make: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = make().eval()
    max_new_tokens, batch = draw.choice([1, 3, 15, 40]), draw.choice([1, 3, 20])
    monkeypatch.setattr(decoding, "SCORED", draw.choice([1, 700, 2**26]))
    monkeypatch.setattr(decoding, "READ", draw.choice([1, 30, 2**13]))
    monkeypatch.setattr(states, "SCORES", draw.choice([1, 2**11, 2**25]))
    monkeypatch.setattr(generation_rows, "WORTH", draw.choice([3, 512]))
    prefix = [draw.randrange(4, 50) for _ in range(draw.choice([0, 1, 9]))]
    inner = [[], [5] * 4, [5] * 4 + [6] * 3]  # prompts share more in groups, and in groups of these
    rows, expected = [], []
    for number in range(11):
        prompt = prefix + inner[number % 3] + [draw.randrange(4, 50) for _ in range(draw.randrange(1, 15))]
        said = generated(model, prompt, STOPS, max_new_tokens)
        text = [token for token in said if token not in STOPS]
        agreed = (len(text), draw.randrange(len(text) + 1), 0)[number % 3]
        other = [draw.randrange(4, 50) for _ in range(0 if number % 3 == 0 else draw.randrange(4))]
        rest = text[agreed + 1 :] if draw.random() < 0.5 else []  # the reference realigns
        rows.append(Answer(prompt, [*text[:agreed], *other, *rest, said[-1] if said[-1] in STOPS else 2]))
        expected.append((text, said[-1] in STOPS))
    seen: list[int] = []
    Greedy(model, stops=STOPS, max_new_tokens=max_new_tokens, batch=batch).answer(rows, on_progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(rows)
    assert [(row.tokens, row.stopped) for row in rows] == expected
    assert [row.nll for row in rows] == pytest.approx(
        [likelihood(model, r.prompt, r.reference) for r in rows], abs=1e-3
    )
    assert not any(row.states for row in rows)
    assert model.config._attn_implementation == make().config._attn_implementation


@pytest.mark.parametrize("make", [llama, gpt2])
def test_all_is_made_where_the_model_is_without_a_mode_that_acts_on_each_operation(make: Any) -> None:
    torch.manual_seed(1)
    model = make().eval()
    prompts = [[7, 8, 9, 10], [7, 8, 9, 11, 12], [7, 8, 9, 13]]
    rows = [Answer(prompt, [11, 2]) for prompt in prompts]
    defaults: set[str] = set()
    model.register_forward_pre_hook(lambda *_: defaults.add(torch.empty(0).device.type))
    with torch.device("meta"):
        Greedy(model, stops=STOPS, max_new_tokens=12, batch=2).answer(rows)
    assert defaults == {"meta"}
    assert [row.tokens for row in rows] == [
        [token for token in generated(model, prompt, STOPS, 12) if token not in STOPS] for prompt in prompts
    ]


@pytest.fixture
def model() -> Any:
    torch.manual_seed(1)
    model = llama().eval()
    architecture.of(model.config)  # before a test counts passes
    return model


@pytest.fixture
def read(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each pass through the model."""
    passes: list[int] = []
    logits = Greedy._logits

    def counted(self: Greedy, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(ids.numel())
        return logits(self, ids, *rest)

    monkeypatch.setattr(Greedy, "_logits", counted)
    return passes


def test_an_answer_that_is_its_reference_takes_one_pass_and_what_prompts_share_is_read_once(
    model: Any, read: list[int]
) -> None:
    prefix = [7, 8, 9] * 20
    prompts = [[*prefix, 10 + number] for number in range(6)]
    said = [generated(model, prompt, STOPS, 12) for prompt in prompts]
    rows = [Answer(prompt, some) for prompt, some in zip(prompts, said, strict=True)]
    Greedy(model, stops=STOPS, max_new_tokens=12, batch=6).answer(rows)
    longest = max(map(len, said))
    assert read == [len(prefix), 6 * longest]  # the last token of a reference is only predicted


def test_an_answer_that_realigns_with_its_reference_takes_few_passes(model: Any, read: list[int]) -> None:
    prompt = [7, 8, 9]
    said = generated(model, prompt, [], 40)
    wrong = [*said[:5], *[49 if said[5] != 49 else 48] * 3, *said[6:]]
    row = Answer(prompt, [*wrong, 2])
    Greedy(model, stops=[], max_new_tokens=40, batch=1).answer([row])
    assert row.tokens == said
    assert len(read) < 17  # of 34 tokens that follow the difference


def test_an_answer_that_was_given_before_takes_few_passes(model: Any, read: list[int]) -> None:
    greedy = Greedy(model, stops=[], max_new_tokens=40, batch=1)
    rows = [Answer([7, 8, 9], [11, 2]) for _ in range(2)]
    greedy.answer(rows[:1])
    first = len(read)
    greedy.answer(rows[1:])
    assert rows[0].tokens == rows[1].tokens
    assert len(read) - first < first / 2


def test_what_wrong_drafts_leave_behind_is_cleared(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "ROOM", 4)
    widths: list[int] = []
    logits = Greedy._logits

    def measured(self: Greedy, ids: torch.Tensor, there: torch.Tensor, batch: CachedBatch, keep: Any) -> torch.Tensor:
        widths.append(batch.mask.shape[1] - int(batch.mask.sum(1).max()))
        return logits(self, ids, there, batch, keep)

    monkeypatch.setattr(Greedy, "_logits", measured)
    monkeypatch.setattr(Greedy, "_drafts", lambda self, rows: [Draft([49] * 16, (2, "prompt"))] * len(rows))
    row = Answer([7, 8, 9], [11, 2])
    Greedy(model, stops=[], max_new_tokens=40, batch=1).answer([row])
    assert row.tokens == generated(model, [7, 8, 9], [], 40)
    assert max(widths) <= 3 + 40 + 4 + 16


def test_without_generating_an_answer_ends_where_it_differs(model: Any, read: list[int]) -> None:
    said = generated(model, [7, 8, 9], [], 10)
    row = Answer([7, 8, 9], [*said[:4], 49 if said[4] != 49 else 48, 2])
    Greedy(model, stops=[2], max_new_tokens=10, batch=1).answer([row], generate=False)
    assert (row.tokens, row.stopped, row.states) == (said[:5], False, [])
    assert len(read) == 2  # the prompt but for its last token, and the rest


def test_out_of_memory_in_the_middle_halves_the_batch_and_begins_anew(
    model: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [Answer([7, 8, 9 + number], [11, 2]) for number in range(5)]
    generate, failures = Greedy._generate, iter([torch.OutOfMemoryError()])

    def cramped(self: Greedy, rows: list[Answer], fewest: int) -> list[Answer]:
        for failure in failures:
            raise failure
        return generate(self, rows, fewest)

    monkeypatch.setattr(Greedy, "_generate", cramped)
    Greedy(model, stops=STOPS, max_new_tokens=9, batch=4).answer(rows)
    assert [row.tokens for row in rows] == [
        [token for token in generated(model, row.prompt, STOPS, 9) if token not in STOPS] for row in rows
    ]
    assert "retrying with 2 rows at a time instead of 4" in caplog.text


def test_states_take_no_more_than_they_may(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    make = CachedBatch.__init__

    def measured(self: CachedBatch, rows: Any, shared: Any, *, device: torch.device) -> None:
        widths.append(len(rows))
        make(self, rows, shared, device=device)

    monkeypatch.setattr(CachedBatch, "__init__", measured)
    bytes_per_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, size, of float32
    monkeypatch.setattr(decoding, "HELD", bytes_per_token * (5 + 1) * 3)
    rows = [Answer([7, 8, 9, *[20 + number] * 5], [11, 2]) for number in range(8)]
    Greedy(model, stops=STOPS, max_new_tokens=1, batch=8).answer(rows)
    assert sorted(widths) == [1, 2, 3, 3]


def test_rows_that_go_on_do_not_wait_for_a_batch_where_their_states_take_much(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    generate = Greedy._generate

    def measured(self: Greedy, rows: list[Answer], fewest: int) -> list[Answer]:
        waited.append(len(rows))
        return generate(self, rows, fewest)

    monkeypatch.setattr(Greedy, "_generate", measured)
    monkeypatch.setattr(decoding, "FEW", 3)
    rows = [Answer([7, 8, 9, *[20 + number] * 5], [11, 2]) for number in range(8)]
    said = [generated(model, row.prompt, STOPS, 9) for row in rows]
    bytes_per_token = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, size, of float32
    for held, first in ((2**29, 8), (bytes_per_token * (5 + 1) * 2, 4)):  # two rows are verified at once, then two
        monkeypatch.setattr(decoding, "HELD", held)
        Greedy(model, stops=STOPS, max_new_tokens=9, batch=8).answer(rows)
        assert waited[0] == first
        assert [row.tokens for row in rows] == [[token for token in each if token not in STOPS] for each in said]
        waited.clear()


def test_rows_are_cut_into_the_batches_that_compute_the_least() -> None:
    rows = [Answer([5] * length, [2]) for length in (9, 40, 10, 41, 8, 90, 8)]
    cut = {"prefix": 0, "most_tokens": None}
    assert [len(rows) for rows in batches(rows, 4, overhead=10, **cut)] == [1, 2, 4]
    assert [len(rows) for rows in batches(rows, 4, overhead=1_000, **cut)] in ([4, 3], [3, 4])
    few = batches(rows, 3, overhead=1_000, prefix=0, most_tokens=80)
    assert [[len(row.prompt) for row in some] for some in few] == [[90], [41], [40, 10], [9, 8, 8]]


def test_the_draft_follows_the_reference_then_earlier_answers_then_the_prompt() -> None:
    drafts = Drafts()
    other = Answer([1, 2, 3, 4, 5, 6], [])
    drafts.remember(other, [10, 11, 12, 13, 14])
    row = Answer([30, 31, 32, 33, 34, 35], [20, 21, 22, 23, 2], tokens=[9, 20, 21])
    assert drafts.draft(row) == ([22, 23, 2], (2, "reference"))
    row.tokens = [10, 11, 12]
    assert drafts.draft(row) == ([13, 14], (3, "answers"))
    row.tokens = [30, 31, 32]
    assert drafts.draft(row) == ([33, 34, 35], (3, "prompt"))
    row.tokens = [40, 41]
    assert drafts.draft(row).tokens == []


def test_drafts_of_a_kind_that_fails_are_trusted_less() -> None:
    drafts = Drafts()
    good, bad = Draft([1, 2, 3], (6, "answers")), Draft([1, 2, 3], (2, "prompt"))
    before = drafts.chance(good)
    drafts.tried(good, 3, 3)
    drafts.tried(bad, 3, 0)
    assert drafts.chance(bad) < before < drafts.chance(good)


def test_prompts_are_grouped_where_it_saves_more_than_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(group: PrefixGroup) -> Any:
        return group.length, sorted(row.prompt[-1] for row in group.rows), [shape(inner) for inner in group.inner]

    monkeypatch.setattr(generation_rows, "WORTH", 100)
    one, two = [1] * 10, [2] * 60
    rows = [
        *(Answer([*one, *two, 3, 100 + n], []) for n in range(3)),
        *(Answer([*one, 4, 200 + n], []) for n in range(3)),
        Answer([*one], []),
    ]
    assert shape(grouped(rows)) == (9, [1, 200, 201, 202], [(71, [100, 101, 102], [])])
    monkeypatch.setattr(generation_rows, "WORTH", 1_000)
    assert shape(grouped(rows))[2] == []


def test_prompts_that_each_begin_the_next_are_grouped_without_end() -> None:
    rows = [Answer([5] * length, []) for length in range(1, 3_000)]
    group = grouped(rows)
    depth, num_rows = 0, 0
    while group:
        depth, num_rows = depth + 1, num_rows + len(group.rows)
        assert len(group.inner) <= 1
        group = group.inner[0] if group.inner else None
    assert num_rows == len(rows)
    assert depth <= generation_rows.DEEPEST + 1
