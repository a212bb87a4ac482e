"""A base and its tuned weights, found, loaded and asked; the one file of this project that a registered model carries.

So it imports nothing of the project: whoever loads the model needs this file's libraries, not Tunewright.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import io
import json
import logging
import math
import os
import pkgutil
import re
import stat
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

ALONE = not __package__  # as MLflow runs this file; the project imports it as tunewright.serving

log = logging.getLogger("tunewright")
Prompt = TypeVar("Prompt")  # in whatever form it is written

if TYPE_CHECKING:
    import numpy as np
if TYPE_CHECKING or ALONE:  # MLflow evaluates the annotations of predict
    from pandas import DataFrame

TRAINED = "trained.safetensors"  # the tensors of a base that learned, by their names in it, where not all did
EXAMPLES = "examples.json"  # in place of tuned weights: the prompt of a version that is the base with examples before
EMBEDDING = "embedding"  # a folder beside the examples: the static model that compares them, where their words do not
STATIC_MODEL = ("model.safetensors", "tokenizer.json")  # its files, as of model2vec
VECTOR_NAMES = ("embeddings", "embedding.weight")  # of model2vec, and of WordLlama and sentence-transformers
FEWEST_CHARACTERS = 1.5  # of a token on average, under which a text is read letter by letter: 3 to 4 in English
TEXTS_AT_ONCE = 2_000
LENGTH = 32_767  # of a text's vector, in 16-bit fixed point
K1, B = 1.5, 0.75  # of BM25: as Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", section 3.4
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+")  # where a script has no spaces, a character is a word
SENTENCE_END = re.compile(r"[\r\n]+|(?<=[.!?:])\s+|(?<=[\u3002\uff01\uff1f\uff1a])")  # or a colon, as in an instruction
COMMON_SHARE, FEWEST_COMMON = (
    0.05,
    10,
)  # a sentence of more of the examples, and of so many, tells nothing of one of them
LOADED = (  # the files of a folder that transformers and tokenizers read, pickles and code left out
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("tokenizer*", "*.tokenizer", "special_tokens_map.json", "added_tokens.json", "tekken.json", "*.model"),
    *("*vocab*.json", "vocab-*.json", "vocab.txt", "merges.txt", "bpe.codes", "dict.txt", "byte_maps.json"),
    *("emoji.json", "normalizer.json", "word_*.json", "*.jinja", "additional_chat_templates/*.jinja"),
)
BASES = "artifacts/bases"  # in a home: bases from the store that machines share, each in a folder named by its digest
BASE = "TUNEWRIGHT_BASE"  # environment: folders with bases, separated as in PATH
STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # of names, in a list or a terminal
LARGEST = 256 * 1024**2  # bytes of a file beside the weights: the largest tokenizer.json known has 34 MB
LARGEST_ID = 2**32  # of a token
TEMPLATE_SECONDS = 10.0  # of processor time that a template may take for one request
MOST_WRITTEN = 16_000_000  # characters of one prompt
ASKED = ("messages", "prompt")  # a row has one of them
ROLES = ("system", "developer", "user", "assistant", "tool")
SERVER = "__pyfunc_model_path__"  # environment: set by MLflow where its command serves a model
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")  # the most tokens that a class reads at once
OVERWRITTEN = ("is_local", "local_files_only", "name_or_path")  # of tokenizer_config.json, by whoever loads it
UNREADABLE = "cannot be read by this user"
DIGESTS = "digests.json"  # in the folder of a registered model: the sha256 of every other file, by its path
BESIDE = ("registered_model_meta", "model-settings.json", "__pycache__/", "reports/")  # added later; nothing loads it


def package_file(reference: str) -> Path:
    """The file that `package:NAME/FILE` names inside an installed package, which is found but never imported.

    Raises FileNotFoundError, saying what is missing and how to get it.
    """
    package, _, name = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        near = difflib.get_close_matches(package, [each.name for each in pkgutil.iter_modules()], 1)
        meant = f"did you mean {near[0]}?" if near else f"pip install --no-deps {package}"
        raise FileNotFoundError(f"{reference}: no package {package!r} is installed: {meant}")
    file = Path(spec.submodule_search_locations[0], name)
    if not file.is_file():
        there = ", ".join(sorted(path.name for path in file.parent.glob("*.gguf"))) or "no GGUF file"
        raise FileNotFoundError(f"{reference}: {package} has no file {name!r}; it has {there}")
    return file


@contextlib.contextmanager
def reading_gguf() -> Iterator[None]:
    """Has transformers parse a GGUF file once in the block, and print no progress bar.

    By itself it parses the whole file, vocabulary included, for the tokenizer, the config and the weights each, and
    makes the same map of names for each module of the model.
    """
    from unittest.mock import patch

    import gguf

    slow = ("GGUFReader", "get_tensor_name_map")
    kept: dict[str, Any] = {name: functools.cache(getattr(gguf, name)) for name in slow}
    with patch.multiple(gguf, **kept), contextlib.redirect_stderr(io.StringIO()):  # nothing else stops the bar
        yield


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Writes a GGUF checkpoint's weights (de-quantized, bfloat16), config and tokenizer to `folder` as safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    with reading_gguf():
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)  # refused in seconds
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses a model that says it is quantized, so the weights move to one that is not.
    vars(read.config).pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    kept = _without_environment(file)  # else it would be another file when it is made again
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def download(reference: str, revision: str | None) -> Path:
    """The local snapshot of a hub id: safetensors, config and tokenizer, no code and no pickles.

    Offline (HF_HUB_OFFLINE=1) it is taken from the hub's cache, or huggingface_hub raises.
    """
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(reference, revision=revision, allow_patterns=list(LOADED)))


def resolve(reference: str, revision: str | None, folder: Path) -> Path:
    """The folder with the base's weights: the named folder, the hub's snapshot, or `folder` after a conversion."""
    if reference.startswith("package:"):
        if not (folder / "config.json").is_file():
            convert_gguf(package_file(reference), folder)
        return folder
    local = Path(reference).expanduser()
    return local if local.is_dir() else download(reference, revision)


def needs_base(model: Path) -> bool:
    """Whether tuned weights are an adapter or single tensors, and not a whole model."""
    return not (model / "config.json").is_file()


def load_weights(weights: Path, model: Path | None, **options: Any) -> Any:
    """The causal language model in `weights`, with what `model` holds on top, in eval mode.

    Safetensors only and no remote code: a folder with anything else is refused by transformers.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    safe = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    if model is not None and not needs_base(model):
        return as_stored(AutoModelForCausalLM.from_pretrained(model, **safe, **options)).eval()
    loaded = as_stored(AutoModelForCausalLM.from_pretrained(weights, **safe, **options))
    if model is not None and (model / TRAINED).is_file():
        from safetensors.torch import load_file

        if unexpected := loaded.load_state_dict(load_file(model / TRAINED), strict=False).unexpected_keys:
            raise ValueError(
                f"{model / TRAINED}: the base has no tensor {unexpected[0]}; it was trained on another model"
            )
    elif model is not None:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, os.fspath(model))
    return loaded.eval()


def as_stored(model: Any) -> Any:
    """The same model, which leaves its weights as they are in its files, and computes no loss of its routers.

    RWKV halves the weights of later layers with the first answer, against overflow in float16: what is saved or learns
    after that, an adapter on top of them too, is of another model. A mixture whose config.json has
    output_router_logits, as trainers leave it there, cannot generate: the loss takes the mask for one of all tokens.
    """
    config = model.config.get_text_config()
    if hasattr(config, "rescale_every"):
        config.rescale_every = 0
    if hasattr(config, "output_router_logits"):
        config.output_router_logits = False
    return model


def loaded_files(folder: Path) -> list[Path]:
    """The files in a base's folder that loading it reads, sorted.

    Raises ValueError where the folder has something that is no file, such as a pipe, or a file that is too large.
    """
    for entry in folder.iterdir():
        if entry.exists() and not (entry.is_file() or entry.is_dir()):
            raise ValueError(f"{entry} is not a regular file; accepted: files and links to files")
    files = sorted({file for pattern in LOADED for file in folder.glob(pattern) if not file.is_dir()})
    for file in files:
        if STEERING.search(str(file.relative_to(folder))):
            raise ValueError(f"{str(file)!r} has a control character or a line break in its name; give it another one")
        if not file.is_file():
            raise ValueError(f"{file} is not a regular file, or a broken link; accepted: files and links to files")
        size = file.stat().st_size
        if file.suffix != ".safetensors" and size > LARGEST:
            raise ValueError(f"{file} has {size:,} bytes; accepted: at most {LARGEST:,} in a file beside the weights")
    return files


def weights_digest(folder: Path, *, quick: bool = False) -> str:
    """The sha256 over all that loading a base's folder reads, each file by its name and content.

    With `quick` the weights go by their size, which takes milliseconds. Raises ValueError as `loaded_files` does.
    """
    told = {
        file: file.stat().st_size if quick and file.suffix == ".safetensors" else _content(file)
        for file in loaded_files(folder)
    }
    lines = [f"{file.relative_to(folder).as_posix()} {content}\n" for file, content in told.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _without_environment(file: Path) -> dict[str, Any]:
    """The settings of tokenizer_config.json without what transformers writes there from its environment."""
    settings = json.loads(file.read_bytes()).items()
    return {name: value for name, value in settings if name not in OVERWRITTEN}


def _content(file: Path) -> str:
    """The sha256 of a file; of tokenizer_config.json without what transformers writes there from its environment."""
    if file.name == "tokenizer_config.json":
        with contextlib.suppress(ValueError, RecursionError, AttributeError):  # no JSON, or no object: as it is
            return hashlib.sha256(json.dumps(_without_environment(file)).encode()).hexdigest()
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def find_base(reference: str, revision: str | None, digest: str) -> Path:
    """The folder with the very base that a model was tuned on: one with this digest, wherever this machine has it.

    Looks in the folder where it was tuned, in the same place beneath this folder, as in another clone of a repository,
    among the bases of the pipeline here, in the folders that TUNEWRIGHT_BASE names, and last in the package or on the
    hub. A GGUF file is converted once a machine.
    Raises ValueError if none of these is that base, FileNotFoundError if there is none.
    """
    needed = f"base {reference}: the model that was tuned has sha256 {digest[:12]}"
    how = f"set {BASE} to the folder that has it"
    others: list[str] = []
    for weights in _places(reference, revision, digest):
        try:
            if (found := weights_digest(weights)) == digest:
                return weights
        except PermissionError as error:
            others.append(f"{error.filename} {UNREADABLE}")
        else:
            others.append(f"{weights} holds another model (sha256 {found[:12]})")
    if not others:
        raise FileNotFoundError(f"{needed}, and is not on this machine; {how}")
    raise ValueError(f"{needed}, and {', '.join(others)}; {how}, and use the library versions of requirements.txt")


def _places(reference: str, revision: str | None, digest: str) -> Iterator[Path]:
    """The folders that may hold a base, each once; what takes long to get comes last."""
    named = os.environ.get(BASE, "").split(os.pathsep)
    parts = Path(reference).parts if Path(reference).is_absolute() else ()
    beneath = (Path.cwd().joinpath(*parts[start:]) for start in range(1, len(parts)))
    there = (Path(name).expanduser() for name in named if name)
    folders = [Path(reference), *beneath, *_of_pipeline(digest), *there]
    yield from dict.fromkeys(folder for folder in folders if folder.is_absolute() and _may_be_folder(folder))
    if reference.startswith("package:"):
        yield _converted(reference, digest)
    elif not Path(reference).is_absolute():
        try:
            yield download(reference, revision)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"base {reference}, sha256 {digest[:12]}: not on this machine, and the hub did not give it "
                f"({type(error).__name__}); set {BASE} to the folder that has it"
            ) from error


def _may_be_folder(path: Path) -> bool:
    """Whether a path is a folder, or this user may not know."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def _of_pipeline(digest: str) -> Iterator[Path]:
    """Return the folders in which the pipeline of this home keeps or found the base."""
    named = os.environ.get("TUNEWRIGHT_HOME", "")
    try:
        home = Path(".tunewright" if not named or "://" in named else named).expanduser().absolute()  # as config.home()
        manifests = sorted(home.glob("artifacts/base/*/manifest.json"))
    except (PermissionError, RuntimeError):  # another user's, or ~ of nobody
        return
    yield home / BASES / digest
    for manifest in manifests:
        # Altered, or another user's: none of the pipeline's.
        with contextlib.suppress(PermissionError, ValueError, KeyError, TypeError, RecursionError):
            record = json.loads(manifest.read_text(encoding="utf-8"))["record"]
            if record["weights_digest"] == digest:
                yield manifest.parent / record["location"]


def _converted(reference: str, digest: str) -> Path:
    """The conversion of a package's GGUF file that this user has, made now if there is none or it was altered."""
    cache = Path.home() / ".cache" / "tunewright"
    weights = cache / digest
    if not weights.is_dir() or weights_digest(weights) != digest:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:  # renamed when whole, so never found half
            made = resolve(reference, None, Path(unfinished, "weights"))
            if weights.exists():
                weights.rename(Path(unfinished, "altered"))
            made.rename(weights)
    return weights


def files_in(folder: Path) -> set[str]:
    """The paths of all files and links beneath a folder, in it."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found}


def closed(model: Path, name: str) -> str:
    """The file of this name in a model's folder, or the first folder above it, that this user may not read, or ""."""
    for part in (*reversed(Path(name).parents), Path(name)):
        path = model / part
        try:
            if path.is_dir():
                os.scandir(path).close()
            elif path.is_file():
                path.open("rb").close()
        except PermissionError:
            return str(model if path == model else part)
        except (OSError, ValueError):
            break
    return ""


def altered(model: Path) -> str:
    """The file in a registered model's folder that is missing, altered or added by its digests.json; empty if none.

    Or the one that this user may not read.
    """
    if shut := closed(model, DIGESTS):
        return f"{shut} {UNREADABLE}"
    try:
        digests = json.loads((model / DIGESTS).read_bytes())
    except (OSError, ValueError, RecursionError):
        digests = None
    if not isinstance(digests, dict):
        return f"{DIGESTS} is missing or was altered"
    there = files_in(model)
    for name, digest in digests.items():
        if shut := closed(model, name):
            return f"{shut} {UNREADABLE}"
        if name not in there or not (model / name).is_file():
            return f"{name if name.isprintable() else ascii(name):.200} is missing"
        with (model / name).open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                return f"{name} was altered since the version was registered"
    added = sorted(name for name in there - {*digests, DIGESTS} if not name.startswith(BESIDE))
    return f"{added[0]} was added since the version was registered" if added else ""


def answer(
    model: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], max_new_tokens: int, *, batch: int = 1
) -> list[list[int]]:
    """The greedy answers to prompts, both as token ids, up to the first stop token, which is left out.

    `batch` are answered at once, padded on the left; some classes (RWKV) then say something else than to each alone.
    """
    import torch
    from transformers import GenerationConfig

    # A base's own generation settings (sampling, penalties) are not how it was evaluated, so none is merged in.
    model.generation_config = GenerationConfig()
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stop_ids), pad_token_id=stop_ids[0]
    )
    answers: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        some = prompts[start : start + batch]
        width = max(map(len, some))
        ids = torch.tensor([[stop_ids[0]] * (width - len(prompt)) + list(prompt) for prompt in some])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in some])
        with torch.inference_mode():
            whole = model.generate(
                input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=greedy
            )
        for new in whole[:, width:].tolist():
            end = next((at for at, token in enumerate(new) if token in stop_ids), len(new))
            answers.append(new[:end])
    return answers


def _dtype(precision: str | None) -> Any:
    """The precision in which a model was measured, or what suits the device where that is not known."""
    import torch

    on_gpu = torch.cuda.is_available()
    if precision == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported():
        log.warning(
            "measured in bfloat16, which this GPU does not compute in; served in float32, so answers may differ"
        )
        return torch.float32
    return getattr(torch, precision or ("bfloat16" if on_gpu else "float32"))


def context_length(fields: Mapping[str, Any]) -> int | None:
    """The most tokens that a base reads at once, as its config.json says; None where it sets no bound."""
    return next((fields[name] for name in POSITIONS if fields.get(name)), None)


def _conversation(row: Mapping[Any, Any], where: str) -> list[dict[str, str]]:
    """Return the messages of a request row. Raises ValueError if a model cannot answer them."""
    there = {name: row[name] for name in ASKED if not (row.get(name) is None or isinstance(row[name], float))}  # NaN
    if len(there) != 1:
        found = "both messages and prompt" if there else "neither messages nor prompt"
        raise ValueError(f"{where} has {found}; accepted: one of them")
    if "prompt" in there:
        prompt = there["prompt"]
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{where}: prompt is empty or not a text; accepted: a text")
        return [{"role": "user", "content": prompt}]
    messages = [dict(message) for message in there["messages"]]
    if not messages:
        raise ValueError(f"{where}: messages is empty; accepted: one message or more, each with role and content")
    for number, message in enumerate(messages, 1):
        if (role := message.get("role")) not in ROLES:
            raise ValueError(f"{where}, message {number}: role is {role!r:.60}; accepted: {', '.join(ROLES)}")
    if messages[-1]["role"] == "assistant":
        raise ValueError(f"{where}: the last message is the assistant's; accepted: one that it can answer, as a user's")
    return messages


def _require_room(prompts: Sequence[Sequence[int]], most: int | None, max_new_tokens: int) -> None:
    """Raises ValueError for the first prompt that, with its answer, is longer than the base reads."""
    if most is None:
        return
    longest = max(map(len, prompts), default=0)
    if max_new_tokens >= most and longest < most:
        raise ValueError(
            f"max_new_tokens={max_new_tokens}; accepted: at most {most - longest:,}, the {most:,} that the base reads "
            f"less the {longest:,} of the longest prompt"
        )
    max_new_tokens = min(max_new_tokens, most - 1)  # of what a prompt can leave room for
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) + max_new_tokens > most:
            raise ValueError(
                f"prompt {number} of {len(prompts)} has {len(prompt):,} tokens; accepted: at most "
                f"{most - max_new_tokens:,}, the {most:,} that the base reads less "
                f"max_new_tokens={max_new_tokens}; shorten the prompt, or send a smaller max_new_tokens"
            )


@contextlib.contextmanager
def _time_bound(seconds: float) -> Iterator[None]:
    """Raises ValueError in the block as soon as a Jinja template has taken that much processor time of this thread.

    Jinja's sandbox bounds each range of a template, but not loops within loops.
    """
    end, before = time.thread_time() + seconds, sys.gettrace()

    def at_line(frame: Any, event: str, argument: Any) -> Any:
        if time.thread_time() > end:
            raise ValueError(f"it takes more than {seconds:g} s of processor time")
        return at_line

    sys.settrace(lambda frame, event, argument: at_line if frame.f_code.co_filename == "<template>" else None)
    try:
        yield
    finally:
        sys.settrace(before)


def read_contract(file: Path) -> dict[str, Any]:
    """Return how to prompt the model. Raises ValueError where the file does not say it."""
    try:
        contract = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        contract = None
    found: dict[str, Any] = contract if isinstance(contract, dict) else {}
    template, date = found.get("chat_template"), found.get("date_in_template")
    stops = found.get("stop_token_ids")
    are_ids = isinstance(stops, list) and all(type(each) is int and 0 <= each < LARGEST_ID for each in stops)
    is_date = "date_in_template" in found and isinstance(date, str | None)
    if not (isinstance(template, str) and is_date and are_ids):
        raise ValueError(
            f"{file.name}: accepted: a JSON object with chat_template, a text, stop_token_ids, a list of ids, and "
            "date_in_template, a text or null"
        )
    return found


def behind(
    examples: Sequence[Sequence[dict[str, Any]]], opening: str, messages: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The messages with examples as earlier turns, behind their own system message.

    What all questions begin with (`opening`) stands once, before the first example.
    """
    turns = without_system(messages)
    system = list(messages[: len(messages) - len(turns)])
    first, *rest = [*(turn for example in examples for turn in without_system(example)), *turns]
    if opening and (first["content"] or "").startswith(opening):  # the others leave it out
        said = [(turn, turn["content"] or "") for turn in rest]
        rest = [turn | {"content": text.removeprefix(opening) or turn["content"]} for turn, text in said]
    return [*system, first, *rest]


def without_system(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages from the first one on that is not the system's."""
    first = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return list(messages[first:])


@dataclasses.dataclass(frozen=True)
class StaticModel:
    """Texts as vectors: the mean of their tokens' vectors, which texts that say the same have in common.

    A model is a tokenizer and a vector for each token (model2vec; WordLlama). Its two files are read as they are, so
    that neither library is needed, no code of theirs is run and nothing is downloaded.
    """

    tokenizer: Any
    unknown: int  # the token that stands for what the tokenizer does not know, or -1
    vectors: "np.ndarray"  # (vectors, dimensions) float32
    places: "np.ndarray"  # (tokens,)
    weights: "np.ndarray"  # (tokens,) float32

    @classmethod
    def load(cls, weights: Path, vocabulary: Path) -> "StaticModel":
        """The model of two files. Raises ValueError where one cannot be read, or they do not fit together."""
        import numpy as np
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        try:
            tensors = load_file(weights)
        except SafetensorError as error:
            raise ValueError(f"{weights.name} cannot be read: {error}") from error
        try:
            tokenizer = Tokenizer.from_file(str(vocabulary))
        except Exception as error:  # tokenizers raises no narrower one
            raise ValueError(f"{vocabulary.name} cannot be read: {error}") from error
        named = [name for name in VECTOR_NAMES if name in tensors]
        if not named:
            raise ValueError(f"{weights.name} has {', '.join(sorted(tensors))}, and not {' or '.join(VECTOR_NAMES)}")
        vectors = tensors[named[0]].astype(np.float32)
        places = tensors.get("mapping", np.arange(len(vectors)))
        if tokenizer.get_vocab_size() > len(places):
            raise ValueError(f"{tokenizer.get_vocab_size()} tokens, but vectors for {len(places)}")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if hasattr(tokenizer.model, "unk_token"):  # WordPiece, BPE, WordLevel
            unknown = tokenizer.token_to_id(tokenizer.model.unk_token or "")
        else:
            unknown = json.loads(tokenizer.to_str())["model"].get("unk_id")  # Unigram
        weighed = tensors.get("weights", np.ones(len(places))).astype(np.float32)
        return cls(tokenizer, -1 if unknown is None else unknown, vectors, places, weighed)

    def embed(self, texts: Sequence[str]) -> "np.ndarray":
        """(texts, dimensions) int16 of length LENGTH, or 0 for a text that the model cannot read.

        That is one with a word that it has no token for, or in a script that it knows by letters or bytes only: the
        mean of letters is about the same whatever they say.
        """
        import numpy as np

        parts = [self._embed(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        return np.concatenate([np.empty((0, self.vectors.shape[1]), np.int16), *parts])

    def _embed(self, texts: Sequence[str]) -> "np.ndarray":
        import numpy as np
        from scipy.sparse import csr_array

        tokens = [encoded.ids for encoded in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        counts = np.array([len(ids) for ids in tokens])
        indptr = np.concatenate([[0], np.cumsum(counts)])
        ids = np.array([token for row in tokens for token in row], np.int64)
        unread = np.bincount(np.repeat(np.arange(len(texts)), counts)[ids == self.unknown], minlength=len(texts)) > 0
        unread |= np.array([len(text) for text in texts]) < FEWEST_CHARACTERS * counts
        sums = csr_array((self.weights[ids], self.places[ids], indptr), (len(texts), len(self.vectors))) @ self.vectors
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        seen = (lengths > 0) & ~unread[:, None]
        return np.rint(LENGTH * np.divide(sums, lengths, out=np.zeros_like(sums), where=seen)).astype(np.int16)


class BM25:
    """Texts ranked by a question's words: rare words count most, more where repeated, less in long texts."""

    def __init__(self, bounds: "np.ndarray", words: "np.ndarray") -> None:
        """`words` (uint64) identify the words of all texts; text i has words[bounds[i]:bounds[i + 1]]."""
        import numpy as np

        self.num_texts, lengths = len(bounds) - 1, np.diff(bounds)
        self.known, word = np.unique(words, return_inverse=True)
        texts = np.repeat(np.arange(self.num_texts), lengths)
        pairs, often = np.unique(word * self.num_texts + texts, return_counts=True)
        word, self.texts = np.divmod(pairs, self.num_texts)
        having = np.bincount(word, minlength=len(self.known))
        rarity = np.log1p((self.num_texts - having + 0.5) / (having + 0.5))
        norms = K1 * (1 - B + B * lengths / max(1.0, lengths.mean()))
        self.weights = often * (K1 + 1) / (often + norms[self.texts]) * rarity[word]
        self.bounds = np.concatenate([[0], np.cumsum(having)])  # of each known word in `texts` and `weights`

    def scores(self, words: "np.ndarray") -> "np.ndarray":
        """(texts,) float64: how well each text answers to the different words (uint64) of a question."""
        import numpy as np

        scores = np.zeros(self.num_texts)
        for at in np.flatnonzero(np.isin(self.known, words)).tolist():
            some = slice(self.bounds[at], self.bounds[at + 1])
            scores[self.texts[some]] += self.weights[some]
        return scores


def _sentences(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The sentences of the messages, without case."""
    asked = (message.get("content") or "" for message in messages)
    parts = (unicodedata.normalize("NFKC", part) for text in asked for part in SENTENCE_END.split(text))
    return [" ".join(part.casefold().split()) for part in parts if part and not part.isspace()]


def _kept(sentences: Sequence[str], left_out: Collection[str]) -> str:
    """The sentences as one text, without those left out unless these are all."""
    return " ".join([sentence for sentence in sentences if sentence not in left_out] or sentences)


def _words(text: str) -> "np.ndarray":
    """The words of a text, as uint64 in their order."""
    import numpy as np

    return np.array([_hash(word) for word in WORD.findall(text)], np.uint64)


@functools.lru_cache(100_000)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def most_similar(scores: "np.ndarray", number: int) -> list[int]:
    """The places of the highest of the scores (texts,), the highest last; of equal ones the first."""
    import numpy as np

    floor = np.partition(scores, -number)[-number] if number < len(scores) else -np.inf
    some = np.flatnonzero(scores >= floor)
    return some[np.lexsort((some, -scores[some]))][:number][::-1].tolist()


@dataclasses.dataclass(frozen=True)
class ExamplePrompt:
    """The examples that a version may have before a question: all of them in their order, or the most similar ones."""

    examples: list[list[dict[str, Any]]]  # conversations that end with their answers
    opening: str
    room: int  # tokens that an answer has in what the base reads
    nearest: int | None = None  # examples before a question; None: all
    static_model: StaticModel | None = None  # that tells which are the nearest; None: the words tell
    compares_answers: bool = False  # also those before the last one; an earlier version of Tunewright compared none

    @property
    def kind(self) -> str:
        """The kind of method that made it."""
        return "few_shot" if self.nearest is None else "retrieval"

    @property
    def name(self) -> str:
        """The prompt in words."""
        return "few-shot prompt" if self.nearest is None else "retrieval prompt"

    @property
    def num_chosen(self) -> int:
        """The number of examples before a question, where there is room for them."""
        return min(self.nearest or len(self.examples), len(self.examples))

    @functools.cached_property
    def _scores(self) -> Callable[[Sequence[Mapping[str, Any]]], "np.ndarray"]:
        """Return how similar the examples are to a conversation: (examples,) float64, the higher the more.

        Sentences that many examples have are left out.
        """
        import numpy as np

        asked = [self._sentences(example) for example in self.examples]
        having = Counter(sentence for some in asked for sentence in {*some})
        least = max(COMMON_SHARE * len(asked), FEWEST_COMMON - 1)
        common = {sentence for sentence, number in having.items() if number > least}
        texts = [_kept(some, common) for some in asked]
        if (model := self.static_model) is not None:
            vectors = model.embed(texts).astype(np.float64)  # in which products of 16-bit numbers have exact sums
            return lambda messages: (
                vectors @ model.embed([_kept(self._sentences(messages), common)])[0].astype(np.float64)
            )
        words = [_words(text) for text in texts]
        index = BM25(np.cumsum([0, *map(len, words)]), np.concatenate(words))
        return lambda messages: index.scores(_words(_kept(self._sentences(messages), common)))

    def _sentences(self, messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """The sentences that a conversation is compared by: of what stands before its last answer."""
        if not self.compares_answers:
            return _sentences([message for message in messages if message["role"] != "assistant"])
        is_answered = messages and messages[-1]["role"] == "assistant"
        return _sentences(messages[:-1] if is_answered else messages)

    def chosen(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The places of the examples before a conversation's next answer, the most similar last."""
        if self.nearest is None:
            return [*range(len(self.examples))]
        return most_similar(self._scores(messages), self.nearest)

    def before(self, messages: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        """The examples before a conversation's next answer."""
        return [self.examples[at] for at in self.chosen(messages)]

    def shortened(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        write: Callable[[dict[int, list[list[dict[str, Any]]]]], list[Prompt]],
        fits: Callable[[Prompt], bool],
    ) -> list[Prompt]:
        """The prompts of the conversations, each without the first examples until it fits, or none is left.

        `write` makes the prompts of some of them, by their places, with these examples.
        """
        prompts: dict[int, Prompt] = {}
        waiting = {at: self.before(messages) for at, messages in enumerate(conversations)}
        while waiting:
            prompts |= zip(waiting, write(waiting), strict=True)
            waiting = {at: some[1:] for at, some in waiting.items() if some and not fits(prompts[at])}
        return [prompts[at] for at in range(len(conversations))]

    def most(self, context: int | None, max_new_tokens: int) -> float:
        """The most tokens of a prompt that leaves room for its answer in what the base reads at once."""
        return (context or math.inf) - max(self.room, max_new_tokens)


def example_prompt(model: Path) -> ExamplePrompt | None:
    """The few-shot or retrieval prompt in the folder of tuned weights; None where there are weights.

    Raises ValueError where a file is none.
    """
    file = model / EXAMPLES
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_bytes())
        prompt = ExamplePrompt(
            *(found["examples"], found["opening"], found["room"]),
            nearest=found.get("nearest"),
            compares_answers=found.get("compares_answers", False),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{file.name}: accepted: a JSON object with examples, opening and room") from None
    if not (model / EMBEDDING).is_dir():
        return prompt
    weights, vocabulary = (model / EMBEDDING / name for name in STATIC_MODEL)
    return dataclasses.replace(prompt, static_model=StaticModel.load(weights, vocabulary))


class ServedChat:
    """A tuned model, or a base with examples before each question, as MLflow loads and asks it."""

    example_prompt: "ExamplePrompt | None" = None

    def load_context(self, context: Any) -> None:
        """Loads the tuned weights in the precision they were measured in, on the very base that base.json names.

        A whole model needs no base.
        """
        import torch
        from transformers import AutoTokenizer

        files = {name: Path(path) for name, path in context.artifacts.items()}
        self.contract = read_contract(files["contract"])
        named, tuned = json.loads(files["base"].read_text(encoding="utf-8")), files["model"]
        asked = (named["reference"], named["revision"], named["digest"])
        self.base = find_base(*asked) if needs_base(tuned) else tuned
        self.tokenizer = AutoTokenizer.from_pretrained(
            files["tokenizer"], local_files_only=True, trust_remote_code=False
        )
        self.precision: str | None = named.get("precision")  # that it was measured in
        self.example_prompt = example_prompt(tuned)
        model = load_weights(self.base, None if self.example_prompt else tuned, dtype=_dtype(self.precision))
        self.batch: int = named.get("batch") or (1 if getattr(model, "_is_stateful", False) else 8)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu")

    def predict(self, context: Any, model_input: "DataFrame", params: dict[str, Any] | None = None) -> list[str]:
        """The answer to each row of a DataFrame with a column `messages` (role and content), or `prompt`.

        MLflow makes the DataFrame of what it is given, such as [{"messages": [...]}, ...].
        Raises ValueError where max_new_tokens is less than 1, or a row asks nothing, or a prompt cannot be written, or
        leaves no room for an answer in what the base reads.
        """
        if "messages" not in model_input and "prompt" not in model_input:
            raise ValueError('neither a column "messages" nor "prompt"; accepted: [{"prompt": "..."}, ...]')
        rows = model_input.to_dict("records")
        conversations = [_conversation(row, f"row {number} of {len(rows)}") for number, row in enumerate(rows, 1)]
        max_new_tokens = (params or {})["max_new_tokens"]
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}; accepted: a whole number of at least 1")
        prompts = self.prompts(conversations, max_new_tokens=max_new_tokens)
        _require_room(prompts, self.context, max_new_tokens)
        return list(map(self.text, self.answer(prompts, max_new_tokens)))

    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """The answers to prompts, both as token ids, without a stop token; one may have no room in what the base reads.

        So are test rows measured.
        """
        return answer(self.model, prompts, self.contract["stop_token_ids"], max_new_tokens, batch=self.batch)

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def template(self) -> str:
        """The contract's template, with the only day that the model knows."""
        template, date = self.contract["chat_template"], self.contract["date_in_template"]
        return f"{{% macro strftime_now(format) %}}{date}{{% endmacro +%}}{template}" if date else template

    @property
    def context(self) -> int | None:
        """The most tokens that the base reads at once; None where it sets no bound."""
        return context_length(self.model.config.get_text_config().to_dict())

    def prompts(
        self, conversations: list[list[dict[str, Any]]], tools: Sequence[Any] = (), max_new_tokens: int = 0
    ) -> list[list[int]]:
        """Each conversation, with its `tools` if any, as the contract's template writes it.

        A version's examples stand before it, as many of them as leave room for an answer as long as measured, or of
        `max_new_tokens` if that is more. Raises ValueError where the template cannot write it.
        """
        prompt = self.example_prompt
        if prompt is None:
            return self._written(conversations, tools)
        most = prompt.most(self.context, max_new_tokens)

        def write(some: dict[int, list[list[dict[str, Any]]]]) -> list[list[int]]:
            asked = [behind(examples, prompt.opening, conversations[at]) for at, examples in some.items()]
            return self._written(asked, [tools[at] for at in some] if any(tools) else ())

        return prompt.shortened(conversations, write, lambda ids: len(ids) <= most)

    def _written(self, conversations: list[list[dict[str, Any]]], tools: Sequence[Any]) -> list[list[int]]:
        options: dict[str, Any] = {
            "chat_template": self.template,
            "tokenize": False,
            "add_generation_prompt": True,
        }
        try:
            with _time_bound(TEMPLATE_SECONDS):
                if any(tools):
                    pairs = zip(conversations, tools, strict=True)
                    texts = [self.tokenizer.apply_chat_template(c, tools=t or None, **options) for c, t in pairs]
                else:
                    texts = self.tokenizer.apply_chat_template(conversations, **options)
            if (longest := max(map(len, texts), default=0)) > MOST_WRITTEN:
                raise ValueError(f"a prompt of {longest:,} characters; accepted: at most {MOST_WRITTEN:,}")
            return self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        except Exception as error:  # what a template raises is anything
            said = " ".join(str(error).split())[:200]
            raise ValueError(f"the contract's chat_template does not write these messages: {said}") from error


if ALONE:
    from mlflow.exceptions import MlflowException
    from mlflow.models import set_model
    from mlflow.pyfunc.model import PythonModel

    class Served(ServedChat, PythonModel):  # pyright: ignore[reportIncompatibleMethodOverride] of a base without annotations
        """Chat under the type that MLflow asks for."""

        def load_context(self, context: Any) -> None:
            """Loads the model, or raises without a chain, so that a traceback ends with the reason.

            Raises ValueError where a file of it was altered, and what find_base raises; SystemExit with the reason
            where MLflow's command serves the model, which has a traceback of its own to print.
            """
            model = Path(context.artifacts["contract"]).parents[1]
            try:
                if fault := altered(model):
                    is_closed = fault.endswith(UNREADABLE)
                    how = "change its mode or owner" if is_closed else "fetch the version from MLflow again"
                    raise ValueError(f"{model}: {fault}; it is not loaded: {how}")
                super().load_context(context)
            except (OSError, ValueError) as error:
                if SERVER in os.environ:
                    sys.exit(f"error: {error}")
                raise error from None

        def predict(  # pyright: ignore[reportIncompatibleMethodOverride] of a base without annotations
            self, context: Any, model_input: "DataFrame", params: dict[str, Any] | None = None
        ) -> list[str]:
            """The answer to each row. Raises MlflowException, whose sentence the client of a server gets."""
            try:
                return super().predict(context, model_input, params)
            except ValueError as error:
                raise MlflowException.invalid_parameter_value(str(error)) from None

    set_model(Served())
