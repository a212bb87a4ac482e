"""Computes with a tiny model of a base's class in each way that the project has, and compares with the plainest one.

The plainest way reads one row alone, without padding, cache or adapter. A way counts as right where its loss and
gradients, or its answers, are those of the plainest one within rounding.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from tunewright import compat
from tunewright.artifacts import IGNORED
from tunewright.errors import one_line
from tunewright.generation import Greedy
from tunewright.generation.drafts import Draft, Drafts
from tunewright.generation.rows import Answer
from tunewright.modeling.architecture import Architecture, Decoding
from tunewright.modeling.architecture.tiny import ROW, VOCABULARY
from tunewright.modeling.batches import ATTENTION, Batch, answer_loss, packed, padded
from tunewright.modeling.methods.modules import linear_modules
from tunewright.serving import as_stored

# Relative differences that rounding explains, in float32: a hundredth of what a wrong way was ever seen to make.
LOSS, GRADIENT, LOGIT = 1e-5, 2e-4, 1e-3
PREFIX, NEW_TOKENS = 12, 6
LARGEST = 40_000_000  # weights of a tiny model
STOP, NEVER = VOCABULARY - 1, -1  # the one is in no row, the other is no token
Row = dict[str, list[int]]


class Computed(NamedTuple):
    """The loss of some rows, and its gradient in all weights."""

    loss: float
    gradient: torch.Tensor


def checked(fields: dict[str, Any]) -> Architecture:
    """Probe a tiny model of these fields. Raises whatever error its class raises in the plain way."""
    kind = fields["model_type"]
    with _quiet_and_seeded():
        model = _build(fields)
        stored = [parameter.detach().clone() for parameter in model.parameters()]
        attention = "sdpa" if _supports(model, "sdpa") else "eager"
        expected, unreached = _plainest(model), _unreached(model)
        if _sees_ahead(model):
            return Architecture(refused=f"model_type {kind} lets a token attend to later tokens")
        if wrong := _difference(_in_one_batch(model, lambda rows: padded(rows, 0)), expected):
            raise ValueError(f"padding changes the result: {wrong}")
        try:
            pads_left = _pads_left(model)
        except Exception as error:  # what a class raises whose generate does not work is anything
            return Architecture(refused=f"model_type {kind} cannot generate ({one_line(error)})")
        packing, shared_prefix = (
            _fault(model, expected, lambda rows, share=share: packed(rows, share=share)) for share in (False, True)
        )
        _supports(model, attention)
        decoding: Decoding = "library"
        if attention == "sdpa" and _answers_rightly(model, "shared"):  # the fastest
            decoding = "shared"
        elif _answers_rightly(model, "copied"):
            decoding = "copied"
        found = Architecture(
            attention=attention,
            packing=packing,
            shared_prefix=shared_prefix,
            decoding=decoding,
            pads_left=pads_left,
            unreached=unreached,
        )
        if not all(map(torch.equal, model.parameters(), stored)):
            return Architecture(
                refused=f"model_type {kind} changes its weights during generation, so another model would be saved"
            )
        return found


@contextmanager
def _quiet_and_seeded() -> Iterator[None]:
    """Draws the same weights each time, of nobody else's random numbers, whatever mode of torch's is on outside, and
    keeps a library's warnings to itself.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    modes = (torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]))
    try:
        with ExitStack() as stack:
            for mode in (*modes, warnings.catch_warnings(), torch.autocast("cpu", enabled=False)):
                stack.enter_context(mode)
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        logging.set_verbosity(verbosity)


def _build(fields: dict[str, Any]) -> Any:
    """The model of a config.json's fields, with random weights in float32, in eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    lively: dict[str, Any] = {
        name: 0.2 for name in ("initializer_range", "init_std") if name in fields
    }  # far from all being alike
    config = AutoConfig.for_model(**(fields | lively))
    with torch.device("meta"):
        size = AutoModelForCausalLM.from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"a tiny model of its kind would have {size:,} weights")
    return as_stored(AutoModelForCausalLM.from_config(config, dtype=torch.float32)).eval()


def _rows() -> list[Row]:
    """Rows of several lengths that begin alike; labelled are the last half of each."""
    seeded = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, VOCABULARY - 1, (3, ROW), generator=seeded).tolist()
    made = []
    for length, ids in zip((ROW, ROW - 7, ROW - 16), drawn, strict=True):
        ids = drawn[0][:PREFIX] + ids[PREFIX:length]
        half = PREFIX + (length - PREFIX) // 2
        made.append({"input_ids": ids, "labels": [IGNORED] * half + ids[half:]})
    return made


def _supports(model: Any, attention: str) -> bool:
    """Whether the class computes by the attention of this name; it does then from here on."""
    try:
        model.set_attn_implementation(attention)
    except (ValueError, ImportError):
        return False
    return compat.attention_of(model) == attention


def _plainest(model: Any) -> Computed:
    """One row after another, alone, by torch's own loss."""
    made = _rows()
    num_items = sum(label != IGNORED for row in made for label in row["labels"])
    model.zero_grad()
    total = torch.zeros(())
    for row in made:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        loss = functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum") / num_items
        loss.backward()
        total += loss.detach()
    return Computed(total.item(), _gradient(model))


def _in_one_batch(model: Any, lay: Callable[[list[Row]], Batch]) -> Computed:
    """All rows at once, as the trainer computes them."""
    model.zero_grad()
    loss = answer_loss(model, lay(_rows()))
    loss.backward()
    return Computed(loss.item(), _gradient(model))


def _fault(model: Any, expected: Computed, lay: Callable[[list[Row]], Batch]) -> str:
    """Why rows may not lie so under our attention; empty if they may."""
    if not _supports(model, ATTENTION):
        return f"models of type {model.config.model_type} have their own attention"
    try:
        return _difference(_in_one_batch(model, lay), expected)
    except Exception as error:  # what a class raises for arguments that it does not know is anything
        said = one_line(error)[:80]
        return f"models of type {model.config.model_type} fail this way ({said})"


def _unreached(model: Any) -> tuple[str, ...]:
    """The linear modules of the layers that are not called, or return more than a tensor, by their names."""
    linear, called = linear_modules(model), dict[str, bool]()
    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: called.update({name: torch.is_tensor(output)}))
        for name, module in linear.items()
    ]
    with torch.inference_mode():
        model(input_ids=torch.tensor([_rows()[0]["input_ids"]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return tuple(sorted({name.rpartition(".")[2] for name in linear if not called.get(name)}))


def _difference(found: Computed, expected: Computed) -> str:
    """Describe how a way differs from the plainest one; empty where it does not."""
    loss = abs(found.loss - expected.loss) / abs(expected.loss)
    gradient = (found.gradient - expected.gradient).norm().item() / (expected.gradient.norm().item() or 1.0)
    if loss <= LOSS and gradient <= GRADIENT:
        return ""
    return (
        f"a tiny model of this type gets other gradients this way, by {100 * max(gradient, loss):.2f} % of their size"
    )


def _sees_ahead(model: Any) -> bool:
    """Whether a token's prediction changes with the tokens behind it."""
    ids = torch.tensor([_rows()[0]["input_ids"]])
    with torch.inference_mode():
        whole, part = (
            model(input_ids=some, use_cache=False).logits[0, : ROW // 2] for some in (ids, ids[:, : ROW // 2])
        )
    return not _is_close(whole, part)


def _answers_rightly(model: Any, way: Decoding) -> bool:
    """Whether decoding several rows in this way, misled by each draft, gives what the plainest way says is likeliest
    after each token, as high a score for it, and the likelihood of each reference.
    """
    asked = [Answer(row["input_ids"][:-4], [*row["input_ids"][-4:], STOP]) for row in _rows()]
    greedy = _Misled(model, stops=[NEVER], max_new_tokens=NEW_TOKENS, batch=len(asked), way=way)
    try:
        greedy.answer(asked)
    except Exception:  # what a class raises for a cache or arguments that it does not know is anything
        return False
    heights = list[float]()
    for row in asked:
        logits = _logits_after(model, row.prompt, row.tokens)
        chosen = logits.gather(1, torch.tensor(row.tokens)[:, None]).squeeze(1)
        expected = _logits_after(model, row.prompt, row.reference)
        nll = functional.cross_entropy(expected, torch.tensor(row.reference), reduction="sum").item()
        are_likeliest = (logits.amax(1) - chosen <= LOGIT * logits.std()).all()
        if not are_likeliest or abs(nll - row.nll) > LOSS * abs(nll):
            return False
        heights += logits.amax(1).tolist()
    found = torch.cat(greedy.heights).tolist()  # of all tokens but those that the references' passes said
    return all(any(abs(height - one) <= LOGIT * abs(height) for one in heights) for height in found)


class _Misled(Greedy):
    """Greedy whose drafts are wrong, so that what was read of them has to be forgotten; it keeps the logits of what it
    says next.
    """

    def __init__(self, model: Any, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.drafts = _Misleading()
        self.heights: list[torch.Tensor] = []

    def _logits(self, ids: torch.Tensor, present: torch.Tensor, batch: Any, keep: Any) -> torch.Tensor:
        logits = super()._logits(ids, present, batch, keep)
        if isinstance(keep, int) and keep == ids.shape[1]:
            self.heights.append(logits[:, 0].amax(1))
        return logits


class _Misleading(Drafts):
    def draft(self, row: Answer) -> Draft:
        return Draft([STOP - 1] * 3, (1, "wrong"))

    def chance(self, draft: Draft) -> float:
        return 0.99


def _pads_left(model: Any) -> bool:
    """Whether generate answers rows of several lengths at once, padded on the left, as it does each alone.

    Raises what it raises for one row alone.
    """
    prompts = [row["input_ids"] for row in _rows()]
    alone = [_generated(model, [prompt]) for prompt in prompts]
    try:
        together = _generated(model, prompts)
    except Exception:  # what a class raises that does not generate in batches is anything
        return False
    return all(_is_close(together[at], logits[0]) for at, logits in enumerate(alone))


def _generated(model: Any, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits [rows, tokens, vocabulary] of what generate answers to prompts, padded on the left."""
    from transformers import GenerationConfig

    settings = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=NEVER, pad_token_id=0, output_logits=True
    )
    settings.return_dict_in_generate = True
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + [*prompt] for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model.generation_config = GenerationConfig()
    return torch.stack(model.generate(input_ids=ids, attention_mask=mask, generation_config=settings).logits, dim=1)


def _logits_after(model: Any, prompt: Sequence[int], said: Sequence[int]) -> torch.Tensor:
    """The plainest way's logits [tokens, vocabulary] that predict each token of what was said."""
    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([[*prompt, *said]]), use_cache=False).logits
    return whole[0, len(prompt) - 1 : -1]


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (one - other).abs().max().item() <= LOGIT * other.std().item()


def _gradient(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
