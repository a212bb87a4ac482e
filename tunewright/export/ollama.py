"""The Modelfile with which Ollama answers as the version was measured: stop tokens, greedy decoding, and the prompt."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tunewright.serving import ServedChat

FILE = "Modelfile"
MOST_CONTEXT = 8192  # tokens that Ollama is told to keep memory for, at most
CHATML = """\
{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
CONVERSATIONS = (("user",), ("user", "assistant", "user"), ("user", "assistant", "user", "assistant", "user"))


class OllamaPrompt(NamedTuple):
    """Prompt of a Modelfile, as far as it was proven to be that of the version."""

    template: str | None  # Ollama's, in Go's language; None where Ollama is left to find one by the GGUF file
    system: str | None  # message that the version's chat template puts in front where a conversation has none


def prompt_of(loaded: ServedChat) -> OllamaPrompt:
    """ChatML where the version's chat template writes the same text for conversations of each shape; else nothing."""
    alone = _rendered(loaded, [{"role": "user", "content": "C0"}])
    body, begin, end = _chatml([{"role": "user", "content": "C0"}]), "<|im_start|>system\n", "<|im_end|>\n"
    front = alone.removesuffix(body) if alone is not None and alone.endswith(body) else None
    if front is None or (front and not (front.startswith(begin) and front.endswith(end))):
        return OllamaPrompt(None, None)
    system = front.removeprefix(begin).removesuffix(end) if front else None
    if system is not None and ('"""' in system or "<|im_" in system):
        return OllamaPrompt(None, None)
    for roles in CONVERSATIONS:
        said = [{"role": role, "content": f"C{at}: \u00e9 <b> {{{{ x }}}} 'q'"} for at, role in enumerate(roles)]
        own = [{"role": "system", "content": "S0"}, *said]
        implied = said if system is None else [{"role": "system", "content": system}, *said]
        if _rendered(loaded, said) != _chatml(implied) or _rendered(loaded, own) != _chatml(own):
            return OllamaPrompt(None, None)
    return OllamaPrompt(CHATML, system)


def _rendered(loaded: ServedChat, messages: list[dict[str, str]]) -> str | None:
    """The prompt by the version's chat template; None where that refuses the conversation."""
    from jinja2 import TemplateError

    tokenizer: Any = loaded.tokenizer
    try:
        return tokenizer.apply_chat_template(
            messages, chat_template=loaded.template, add_generation_prompt=True, tokenize=False
        )
    except (TemplateError, TypeError, ValueError):
        return None


def _chatml(messages: list[dict[str, str]]) -> str:
    """The text that Ollama writes by CHATML."""
    turns = (f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def modelfile(file: str, loaded: ServedChat, prompt: OllamaPrompt, most: int, context: int | None) -> str:
    """The text of the Modelfile for a GGUF file beside it."""
    return "\n".join(_lines(file, loaded, prompt, most, context)) + "\n"


def _lines(file: str, loaded: ServedChat, prompt: OllamaPrompt, most: int, context: int | None) -> Iterator[str]:
    tokenizer: Any = loaded.tokenizer
    yield f"FROM ./{file}"
    yield "PARAMETER temperature 0"
    yield "PARAMETER repeat_penalty 1"
    yield f"PARAMETER num_predict {most}"
    yield f"PARAMETER num_ctx {min(context or MOST_CONTEXT, MOST_CONTEXT)}"
    for number in loaded.contract["stop_token_ids"]:
        yield f'PARAMETER stop "{tokenizer.convert_ids_to_tokens(number)}"'
    if prompt.template is not None:
        yield f'TEMPLATE """{prompt.template}"""'
    if prompt.system is not None:
        yield f'SYSTEM """{prompt.system}"""'
