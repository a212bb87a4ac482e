"""Near ties: two next tokens so close that rounding alone says which of them is the likelier.

A number has 8 significant bits in bfloat16 and 11 in float16. How it is rounded hangs on what else is in the batch, on
the device and on the order of additions. Where two tokens are nearly tied, the same model may then say either of them,
and all of the answer behind it differs. In float32 this is so rare that no difference is accepted.

How far rounding moves a log-probability depends on the model, and grows with the length of the prompt: what NATS does
not explain is computed in both precisions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

NATS = {"float16": 0.02, "bfloat16": 0.1}  # by which rounding within the layers moves a log-probability, at least
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
    answer may begin a longer one of the other, or be a part of the same character. If none is tied by `bound`, the
    prompt is read in float32 too, and a tie may be as wide as rounding moves the likeliest token's lead in this answer.
    """
    import torch

    def text_of(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd")  # a part of a character

    special = tokenizer.all_special_ids
    texts = [text_of(answer[:end]) for end in range(len(answer) + 1)]
    shared = max(end for end, text in enumerate(texts) if other.startswith(text))

    def read() -> torch.Tensor:
        with torch.inference_mode():
            ids = torch.tensor([[*prompt, *answer[:shared]]], device=model.device)
            return model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].float()

    def goes_on(end: int, token: int) -> bool:
        if token in stop_ids:
            return texts[end] == other
        return token not in special and other.startswith(text_of([*answer[:end], token]))

    def is_tied(of_next: torch.Tensor, moved: float = 0.0) -> bool:
        for end in range(shared + 1):
            likeliest = of_next[end].max().item()
            tied = of_next[end] >= likeliest - max(moved, bound(precision, likeliest))
            if any(
                goes_on(end, token) for token in tied.nonzero()[:, 0].tolist() if [token] != [*answer[end : end + 1]]
            ):
                return True
        return False

    own = read()
    if is_tied(own) or precision not in NATS:
        return is_tied(own)
    with computed_in(model, getattr(torch, precision) if model.dtype == torch.float32 else torch.float32):
        other_precision = read()
    exact, rounded = (own, other_precision) if model.dtype == torch.float32 else (other_precision, own)
    leading = exact.topk(2).indices
    leads = [
        logits.gather(-1, leading) @ torch.tensor([1.0, -1.0], device=logits.device) for logits in (exact, rounded)
    ]
    return is_tied(exact, (leads[0] - leads[1]).abs().max().item())


@contextmanager
def computed_in(model: Any, dtype: "torch.dtype") -> Iterator[None]:
    """Has a model compute in another precision: each module has its parameters in it while it is called.

    So the memory of the largest module is needed, and not that of another model.
    """
    own: dict[Any, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}

    def convert(module: Any, *_: Any) -> None:
        floats = [each for each in module.parameters(recurse=False) if each.is_floating_point()]
        own[module] = [(each, each.data) for each in floats]
        for each in floats:
            each.data = each.data.to(dtype)

    def restore(module: Any, *_: Any) -> None:
        for each, data in own.pop(module):
            each.data = data

    modules = [each for each in model.modules() if any(True for _ in each.parameters(recurse=False))]
    hooks = [each.register_forward_pre_hook(convert) for each in modules]
    hooks += [each.register_forward_hook(restore, always_call=True) for each in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
