"""Near ties: which other answer rounding explains, by a model whose logits are given."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tunewright.modeling import near_ties

SPECIAL, STOP, A, B, C, AB, HALF, OTHER_HALF = range(8)
TEXTS = {SPECIAL: "", STOP: "", A: "a", B: "b", C: "c", AB: "ab", HALF: "\ufffd", OTHER_HALF: "\ufffd"}
PROMPT = [C, C]


class Tokenizer:
    """A tokenizer of eight tokens; two are parts of a character."""

    all_special_ids = (SPECIAL, STOP)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(TEXTS[id_] for id_ in ids)


@dataclass
class Model:
    """Says after a token which tokens have which logits, the same after those not named; all others have -50."""

    after: dict[int, dict[int, float]]  # by the token
    logits: dict[int, float]
    device: str = "cpu"
    read: list[list[int]] = field(default_factory=list)  # token ids
    dtype: torch.dtype = torch.bfloat16

    def modules(self) -> list[torch.nn.Module]:
        return []

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.read += input_ids.tolist()
        ((*tokens,),) = input_ids.tolist()
        found = [self.after.get(token, self.logits) for token in tokens]
        return SimpleNamespace(logits=torch.tensor([[[each.get(token, -50.0) for token in TEXTS] for each in found]]))


def explained(
    answer: list[int],
    other: str,
    logits: dict[int, float],
    precision: str = "bfloat16",
    after: dict[int, dict[int, float]] | None = None,
) -> list[int] | None:
    """The tokens that were read again, where near ties explain the other answer; else None."""
    model = Model(after or {}, logits)
    if not near_ties.explains(model, Tokenizer(), PROMPT, answer, other, stop_ids=[STOP], precision=precision):
        return None
    (read,) = model.read
    return read[len(PROMPT) :]


@pytest.mark.parametrize(
    ("answer", "other", "logits", "read"),
    [
        ([A, B], "acc", {B: 4.0, C: 3.95}, [A]),
        ([A, B], "acc", {B: 4.0, C: 3.8}, None),
        ([A, B], "acc", {B: 20.0, C: 19.75}, [A]),  # two numbers of bfloat16 away
        ([A, B], "acc", {B: 20.0, C: 19.5}, None),
        ([A, B], "acc", {B: 4.0, AB: 3.99}, None),  # what is tied does not go on as the other does
        ([A, C], "abab", {A: 4.0, AB: 3.95}, [A]),  # a longer token in place of the one that begins it
        ([A], "ab", {STOP: 4.0, B: 3.95}, [A]),  # it goes on
        ([A, B], "a", {B: 4.0, STOP: 3.95}, [A]),  # it ends
        ([A, B], "ac", {B: 4.0, STOP: 3.95}, None),
        ([A, B], "ac", {B: 4.0, SPECIAL: 3.95}, None),
        ([A, B], "a\u00e9", {B: 4.0, HALF: 3.95}, [A]),
        ([C], "ab", {C: 4.0, AB: 3.95}, []),
        ([C], "ab", {C: 4.0, A: 3.95}, []),
        ([C], "", {C: 4.0, STOP: 3.95}, []),
        ([A], "aa", {A: 4.0}, [A]),  # cut at its limit, and the other has fewer tokens
    ],
)
def test_an_answer_may_differ_from_a_token_on_that_is_nearly_tied(
    answer: list[int], other: str, logits: dict[int, float], read: list[int] | None
) -> None:
    assert explained(answer, other, logits) == read


def test_characters_of_several_tokens_may_differ_in_any_of_these() -> None:
    for logit, read in ((3.95, [A, HALF]), (3.8, None)):
        after = {C: {A: 4.0}, A: {HALF: 4.0, OTHER_HALF: logit}, HALF: {C: 4.0}}
        assert explained([A, HALF, C], "a\u00e9", {}, after=after) == read


def test_float32_explains_nothing_and_float16_less_than_bfloat16() -> None:
    logits = {B: 20.0, C: 19.97}
    assert [explained([A, B], "ac", logits, each) for each in ("float32", "float16", "bfloat16")] == [None, [A], [A]]
    assert explained([A, B], "ac", {B: 20.0, C: 19.9}, "float16") is None
    assert near_ties.bound("float32", 20.0) == 0


class RoundedModel(torch.nn.Module):
    """Says these logits after any token, of which bfloat16 keeps multiples of two."""

    device = "cpu"

    def __init__(self, logits: dict[int, float], dtype: torch.dtype) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([logits.get(token, -50.0) for token in TEXTS]).to(dtype))
        self.large = torch.nn.Parameter(torch.tensor(256.0, dtype=dtype))

    @property
    def dtype(self) -> torch.dtype:
        return self.logits.dtype

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        rounded = self.logits + self.large - self.large
        return SimpleNamespace(logits=rounded.expand(1, input_ids.shape[1], -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tie_is_as_wide_as_rounding_moves_this_model(dtype: torch.dtype) -> None:
    def explained_by(logits: dict[int, float], precision: str = "bfloat16") -> bool:
        model = RoundedModel(logits, dtype)
        before = model.logits.clone()
        found = near_ties.explains(model, Tokenizer(), PROMPT, [A, B], "acc", stop_ids=[STOP], precision=precision)
        assert model.dtype == dtype and torch.equal(model.logits, before)
        assert not model._forward_hooks and not model._forward_pre_hooks
        return found

    assert explained_by({B: 5.125, C: 4.875})  # 6 and 4 in bfloat16
    assert not explained_by({B: 8.0, C: 4.0})
    assert not explained_by({B: 5.125, C: 4.875}, "float32")
