"""The answers of an exported folder by transformers and PEFT alone, as a stranger loads it; and their probabilities.

The parity check runs this file in a process of its own, which imports nothing of the project: it reads a request as
JSON from stdin and writes its reply to a file. So this file imports nothing of the project either.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple


def answered(model: Any, prompt: list[int]) -> list[int]:
    """The tokens that a model answers to a prompt of token ids, by its own generation settings; a stop token is one."""
    import torch

    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()


class TokenScore(NamedTuple):
    """A token of an answer beside the likeliest one at its place."""

    log_probability: float  # in nats
    gap: float  # by how much the likeliest token is likelier, in nats
    logit: float  # of the likeliest token


def scored(model: Any, prompt: list[int], answer: list[int]) -> list[TokenScore]:
    """The score of each token of an answer to a prompt of token ids."""
    import torch

    with torch.inference_mode():
        whole = model(input_ids=torch.tensor([prompt + answer], device=model.device), use_cache=False).logits[0]
        logits = whole[len(prompt) - 1 : -1].float()
        log_probabilities = logits.log_softmax(-1)
        own = log_probabilities.gather(1, torch.tensor(answer, device=model.device)[:, None])[:, 0]
        gaps, likeliest = log_probabilities.max(-1).values - own, logits.max(-1).values
        return [*map(TokenScore, own.tolist(), gaps.tolist(), likeliest.tolist())]


def first_difference(expected: list[int], got: list[int]) -> int:
    """The position at which two answers differ first; the end of the shorter one where that begins the longer."""
    pairs = enumerate(zip(expected, got, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(expected), len(got)))


def read_all_sizes() -> None:
    """Have transformers read those sizes of a Qwen3 from a GGUF file for which it takes a published model's."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    GGUF_CONFIG_MAPPING["qwen3"]["attention.key_length"] = "head_dim"
    GGUF_CONFIG_MAPPING["qwen3_moe"]["expert_feed_forward_length"] = "moe_intermediate_size"


def load(folder: Path, base: Path | None, dtype: str, gguf: Path | None) -> Any:
    """The model in an exported folder; of an adapter on its base; of a GGUF file with its weights in `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    options: dict[str, Any] = {"local_files_only": True, "dtype": getattr(torch, dtype)}
    if gguf is not None:
        read_all_sizes()
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar for GGUF cannot be switched off
            model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, **options)
        model.generation_config = GenerationConfig.from_pretrained(folder)
    elif base is None:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **options), str(folder))
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def main() -> None:
    """Answers the conversations of a request, and gives the mean log-probability of each answer that is expected.

    `gap` and `logit` are those of the first token that differs.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_warning()  # with its report of the tensors that it could not load
    request = json.load(sys.stdin)
    folder, base, gguf = Path(request["folder"]), request["base"], request["gguf"]
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = load(folder, Path(base) if base else None, request["dtype"], Path(gguf) if gguf else None)
    rows: list[dict[str, Any]] = []
    for row in request["rows"]:
        options = {"tools": row["tools"], "add_generation_prompt": True, "return_dict": True}
        prompt = tokenizer.apply_chat_template(row["messages"], **options)
        ids = list(prompt["input_ids"])
        expected, answer = row["answer"], answered(model, ids)
        scores = scored(model, ids, expected)
        at = first_difference(expected, answer)
        first = scores[at] if at < len(expected) else TokenScore(0.0, 0.0, 0.0)
        mean = sum(score.log_probability for score in scores) / len(expected)
        rows.append({"prompt": ids, "answer": answer, "log_probability": mean, "gap": first.gap, "logit": first.logit})
    project = sorted(name for name in sys.modules if name.partition(".")[0] == "tunewright")
    Path(request["reply"]).write_text(json.dumps({"rows": rows, "project": project}), encoding="utf-8")


if __name__ == "__main__":
    main()
