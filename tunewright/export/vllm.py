"""vLLM's configuration for an exported folder, by which it prompts, stops and answers as the version does.

vLLM is none of this project's requirements, and was not run by it.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from tunewright.export.weights import ADAPTER, BASE

FILE = "vllm.yaml"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that it takes as the largest of its adapters
TOOL_PARSERS = {  # what a chat template writes calls with -> vLLM's parser of these, the most particular first
    "<function=": "qwen3_coder",
    "<arg_key>": "glm45",
    "<tool_call>": "hermes",
    "[TOOL_CALLS]": "mistral",
    "<|python_tag|>": "llama3_json",
}
MERGED_ONLY = ("use_dora", "modules_to_save", "trainable_token_indices")  # of adapters, which it does not load


def loads_adapter(tuned: Path) -> bool:
    """Whether a version has an adapter that vLLM loads on its base."""
    file = tuned / ADAPTER[0]
    return file.is_file() and not any(json.loads(file.read_bytes()).get(name) for name in MERGED_ONLY)


def configuration(name: str, folder: Path, dtype: str, within: str | None = None) -> dict[str, Any]:
    """Return vLLM's options for an exported folder; `within` is how vLLM is told of it, by default its whole path."""
    place = str(folder) if within is None else within
    common = {
        "dtype": dtype,
        "tokenizer": place,
        "chat-template": f"{place}/chat_template.jinja",
        "generation-config": place,  # the stop tokens and the limit of the answer's
        "override-generation-config": '{"temperature": 0}',  # it samples by default
        **_tools(folder / "chat_template.jinja"),
    }
    if not (folder / ADAPTER[0]).is_file():
        return {"model": place, "served-model-name": name} | common
    adapter = json.loads((folder / ADAPTER[0]).read_bytes())
    base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    rank = max(adapter["r"], *(adapter.get("rank_pattern") or {}).values(), 0)
    model = {"model": f"{place}/{BASE}" if base == BASE else base} | ({"revision": revision} if revision else {})
    return (
        model
        | {"served-model-name": f"{name}-base"}  # the base answers, too, and not under the name of the version
        | common
        | {
            "enable-lora": True,
            "lora-modules": [f"{name}={place}"],
            "max-lora-rank": next((each for each in RANKS if each >= rank), rank),
        }
    )


def _tools(template: Path) -> dict[str, Any]:
    """The options that let vLLM read calls out of answers; none where the template writes no form that it parses."""
    text = template.read_text(encoding="utf-8") if template.is_file() else ""
    parser = next((name for mark, name in TOOL_PARSERS.items() if mark in text), None)
    return {"enable-auto-tool-choice": True, "tool-call-parser": parser} if parser else {}


def command(settings: dict[str, Any], file: str) -> list[str]:
    """The command line for a configuration that is kept in a file."""
    return ["vllm", "serve", str(settings["model"]), "--config", file]


def write(folder: Path, name: str, dtype: str) -> str:
    """Write the configuration into an exported folder, and return the command line that starts vLLM there."""
    import yaml

    settings = configuration(name, folder, dtype, within=".")
    (folder / FILE).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return shlex.join(command(settings, FILE))
