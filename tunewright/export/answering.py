"""The answers of an exported folder by transformers and PEFT alone, as a stranger loads it; and their probabilities.

The parity check runs this file in a process of its own, which imports nothing of the project: it reads a request as
JSON from stdin and writes its reply to a file. So this file imports nothing of the project either.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def answered(model: Any, prompt: list[int]) -> list[int]:
    """The tokens that a model answers to a prompt of token ids, by its own generation settings; a stop token is one."""
    import torch

    ids = torch.tensor([prompt], device=model.device)
    with torch.inference_mode():
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()


def log_probabilities(model: Any, prompt: list[int], answer: list[int]) -> list[tuple[float, float]]:
    """The log-probability of each token of an answer, and that of the likeliest token there, in nats."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer], device=model.device), use_cache=False).logits[0]
        of_answer = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
        own = of_answer.gather(1, torch.tensor(answer, device=model.device)[:, None])[:, 0]
        return list(zip(own.tolist(), of_answer.max(-1).values.tolist(), strict=True))


def first_difference(expected: list[int], got: list[int]) -> int:
    """The position at which two answers differ first; the end of the shorter one where that begins the longer."""
    pairs = enumerate(zip(expected, got, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(expected), len(got)))


def load(folder: Path, base: Path | None, dtype: str, gguf: Path | None) -> Any:
    """The model in an exported folder; of an adapter on its base; of a GGUF file with its weights in `dtype`."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    options: dict[str, Any] = {"local_files_only": True, "dtype": getattr(torch, dtype)}
    if gguf is not None:
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

    `gap` is by how much the first token that differs is likelier than the expected one, in nats.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
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
        probabilities = log_probabilities(model, ids, expected)
        at = first_difference(expected, answer)
        own, likeliest = probabilities[at] if at < len(expected) else (0.0, 0.0)
        mean = sum(own for own, _ in probabilities) / len(expected)
        rows.append({"prompt": ids, "answer": answer, "log_probability": mean, "gap": likeliest - own})
    project = sorted(name for name in sys.modules if name.partition(".")[0] == "tunewright")
    Path(request["reply"]).write_text(json.dumps({"rows": rows, "project": project}), encoding="utf-8")


if __name__ == "__main__":
    main()
