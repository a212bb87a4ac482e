"""Near ties: two next tokens so close that rounding alone says which of them is the likelier.

A number has 8 significant bits in bfloat16 and 11 in float16. How it is rounded hangs on what else is in the batch, on
the device and on the order of additions. Where two tokens are nearly tied, the same model may then say either of them,
and all of the answer behind it differs. In float32 this is so rare that no difference is accepted.
"""

from collections.abc import Sequence
from typing import Any

NATS = {"float16": 0.02, "bfloat16": 0.1}  # by which rounding within the layers moves a log-probability
EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # from 1 to the next number
ROUNDINGS = 2  # of the likeliest logit, which is a number of this precision too


def bound(precision: str, logit: float) -> float:
    """Return by how many nats the likeliest token, with this logit, may lead a nearly tied one; 0 in float32."""
    if precision not in NATS:
        return 0.0
    return max(NATS[precision], ROUNDINGS * EPSILON[precision] * abs(logit))


def explains(
    model: Any,
    tokenizer: Any,
    prompt: Sequence[int],
    answer: Sequence[int],
    other: str,
    *,
    stop_ids: Sequence[int],
    precision: str,
) -> bool:
    """Whether a near tie explains why a model's answer to a prompt, both token ids, differs from another answer's text.

    What both texts begin with is read again. At one of its tokens or right behind it, another token that is nearly tied
    with the likeliest has to go on as the other answer does, or to end it; not only behind it, since a token of one
    answer may begin a longer one of the other, or be a part of the same character.
    """
    import torch

    def text_of(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")  # a part of a character

    special = tokenizer.all_special_ids
    texts = [text_of(answer[:end]) for end in range(len(answer) + 1)]
    shared = max(end for end, text in enumerate(texts) if other.startswith(text))
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *answer[:shared]]], device=model.device)
        of_next = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()

    def goes_on(end: int, token: int) -> bool:
        if token in stop_ids:
            return texts[end] == other
        return token not in special and other.startswith(text_of([*answer[:end], token]))

    for end in range(shared + 1):
        likeliest = of_next[end].max().item()
        tied = (of_next[end] >= likeliest - bound(precision, likeliest)).nonzero()[:, 0].tolist()
        if any(goes_on(end, token) for token in tied if [token] != [*answer[end : end + 1]]):
            return True
    return False
