"""The base model and its tokenizer, for every stage that touches them; tasks/base.py makes them an artifact."""

import json
import shlex
import shutil
import string
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from tunewright import compat, machine
from tunewright.artifacts import Base
from tunewright.config import as_called, or_meant
from tunewright.config.outside import without_secrets
from tunewright.errors import ConfigError
from tunewright.modeling import architecture, chat_templates, headers
from tunewright.modeling.compute import cpu_has_bfloat16
from tunewright.serving import load_weights, loaded_files, package_file, weights_digest
from tunewright.store.caching import digest_of

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = (".safetensors", ".safetensors.index.json", "adapter_config.json")
SPELLINGS = ("\n\n", " a  b\t", "\r\n", "7 + 12345 = 12352", "don't", "naïve Ærø", "東京 😀", "def f(x):\n    return x")
PLAIN = f"Hello world, 12 Fragen? {' '.join(string.ascii_letters)}"  # of which any tokenizer of texts knows something
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
WANTED = "tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
HUB_SECONDS = 10.0


def load_tokenizer(base: Base) -> Any:
    """The base's own tokenizer, fast and offline, with the template that was set in place of its own.

    Raises ConfigError where it cannot be loaded, knows no text, or has not the template's tokens.
    """
    from transformers import AutoTokenizer

    if said := headers.refused_tokenizer(base.weights / "tokenizer.json"):
        raise ConfigError(f"model.base={base.reference}: its tokenizer cannot be loaded: {said}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(base.weights, local_files_only=True, trust_remote_code=False)
        tokenizer(SPELLINGS[0], add_special_tokens=False)  # some of its settings are looked at only here
    except Exception as error:  # what tokenizers raises has no type of its own
        if getattr(error, "errno", None):  # such as a disk that does not answer
            raise
        said = f"its tokenizer cannot be loaded from {base.weights}: {_line(error)}"
        if not _has_tokenizer_files(base.weights):
            said = _no_tokenizer_files(base.weights)
        raise ConfigError(f"model.base={base.reference}: {said}") from error
    known = [id_ for id_ in _ids(tokenizer, PLAIN) if id_ != tokenizer.unk_token_id]
    if not any(tokenizer.decode([id_]).strip() for id_ in known):  # where files are missing, transformers makes such
        said = _no_tokenizer_files(base.weights)
        if _has_tokenizer_files(base.weights):
            again = f"copy its files ({WANTED}) again from the original model"
            said = f"the tokenizer in {base.weights} knows no text; {again}"
        raise ConfigError(f"model.base={base.reference}: {said}")
    if base.chat_template:
        if missing := chat_templates.missing(base.chat_template, tokenizer):  # a new token would know nothing
            fit = ", ".join(chat_templates.fitting(tokenizer)) or "none"
            raise ConfigError(
                f"model.chat_template: the tokenizer of model.base has no {', '.join(missing)}, which the template "
                f"writes; those whose tokens it has: {fit}"
            )
        tokenizer.chat_template = base.chat_template
        tokenizer.eos_token = chat_templates.stop_and_needs(base.chat_template)[0] or tokenizer.eos_token
    return tokenizer


def _has_tokenizer_files(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def _no_tokenizer_files(folder: Path) -> str:
    return f"{as_called(folder)} has no tokenizer files; copy them from the original model: {WANTED}"


def copy_tokenizer(weights: Path, folder: Path) -> None:
    """Copies all that decides how a base's tokenizer is loaded: its files and config.json, which names its class."""
    for file in loaded_files(weights):
        if not file.name.endswith(WEIGHTS):
            target = folder / file.relative_to(weights)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def check_served(base: Base, measured: Any, texts: Sequence[str]) -> None:
    """Raises ConfigError where the tokenizer that a registered version carries is not the one that is measured.

    Compares their classes, and the tokens of `texts`.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy_tokenizer(base.weights, Path(folder))
        served = load_tokenizer(base.model_copy(update={"folder": Path(folder), "location": Path()}))
    named = [type(tokenizer).__name__ for tokenizer in (measured, served)]
    differing = [text for text in (*SPELLINGS, *texts) if _ids(measured, text) != _ids(served, text)]
    if named[0] != named[1] or differing:
        example = f", with other tokens for {differing[0][:80]!r}" if differing else ""
        raise ConfigError(
            f"model.base={base.reference}: its tokenizer is a {named[0]}, but a {named[1]} when loaded without the "
            f"weights{example}, so a registered version would tokenize differently than when measured; set "
            f"tokenizer_class in its tokenizer_config.json to {named[0]}"
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def load_model(base: Base, model: Path | None = None, **options: Any) -> Any:
    """The base with the tuned weights of `model` on top, in eval mode; by default float32, and bfloat16 on a GPU."""
    import torch

    options.setdefault("dtype", torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    if model is not None and (model / "adapter_config.json").is_file():  # PEFT imports it
        compat.import_bitsandbytes()
    loaded = load_weights(base.weights, model, **options)
    return loaded.to(device_to_load())


def device_to_load() -> Literal["cuda", "cpu"]:
    """The device for a model; "cuda" is in this thread, from now on, the GPU that the flow run holds."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    shown = machine.shown_gpus(torch.cuda.device_count())
    torch.cuda.set_device(shown.index(machine.first_gpu() or shown[0]))
    return "cuda"


def merged(model: Any) -> Any:
    """The model with its adapter merged into it where it computes in float32: the same answers a third faster.

    In bfloat16 a small change of a weight would be rounded away, and with it what the training changed.
    """
    import torch

    return model.merge_and_unload() if model.dtype == torch.float32 and hasattr(model, "merge_and_unload") else model


def fastest_dtype() -> Any:
    """bfloat16 on a GPU and on a CPU that multiplies it fast, else float32: where nothing hangs on the last digits."""
    import torch

    return torch.bfloat16 if torch.cuda.is_available() or cpu_has_bfloat16() else torch.float32


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The texts that become control tokens wherever they stand, sorted."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added | set(tokenizer.all_special_tokens)))


def identity(reference: str) -> str:
    """Return the identity of a base: a package file's digest, a folder's digest, or the hub id itself."""
    require_there(reference)
    if reference.startswith("package:"):
        return digest_of(package_file(reference))
    folder = Path(reference).expanduser()
    if not folder.is_dir():
        return reference
    with _readable(folder):
        return weights_digest(folder)


def require_there(reference: str) -> None:
    """Raises ConfigError where a base is no file of a package, no folder that can be loaded and no name of a hub.

    No weight is read.
    """
    if reference.startswith("package:"):
        try:
            package_file(reference)
        except FileNotFoundError as error:
            raise ConfigError(f"model.base={error}") from error
        return
    folder = Path(reference).expanduser()
    if folder.is_dir():
        with _readable(folder):
            _require_loadable(folder)
        return
    if folder.is_file() and folder.suffix == ".gguf":
        raise ConfigError(f"model.base={without_secrets(reference)}: a GGUF file{_of_gguf(folder)}")
    if folder.is_file():
        its_folder = f", such as model.base={folder.parent}" if folder.suffix == ".safetensors" else ""
        raise ConfigError(
            f"model.base={without_secrets(reference)}: a file; accepted: the name of a folder with safetensors"
            f"{its_folder}, a hub id such as org/name, and package:NAME/FILE.gguf"
        )
    meant = or_meant(reference)
    if meant or reference.startswith((".", "/", "~")) or reference.count("/") != 1 or folder.parent.is_dir():
        raise ConfigError(
            f"model.base={without_secrets(reference)}: no such folder; accepted: a folder with safetensors, a hub "
            f"id such as org/name, and package:NAME/FILE.gguf{meant}"
        )


def look_up(reference: str, revision: str | None) -> None:
    """Asks the hub whether it has a base, unless one is here: for whoever plans runs, or makes some that start later.

    Raises ConfigError where it has not, or Unanswered where it cannot be asked now.
    """
    if reference.startswith("package:") or Path(reference).expanduser().is_dir():
        return
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import (
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] of the library it uses, another with each version
        OfflineModeIsEnabled,
    )

    try:
        if not isinstance(try_to_load_from_cache(reference, "config.json", revision=revision), str):
            model_info(reference, revision=revision, timeout=HUB_SECONDS)
    except (OfflineModeIsEnabled, HFValidationError) as error:
        raise is_nowhere(reference, error) from error
    except (OSError, HTTPError) as error:
        status = getattr(getattr(error, "response", None), "status_code", HTTPStatus.INTERNAL_SERVER_ERROR)
        kind = Unanswered if status >= HTTPStatus.INTERNAL_SERVER_ERROR else ConfigError
        raise is_nowhere(reference, error, kind) from error


class Unanswered(ConfigError):
    """The hub, which may have the base, cannot be reached now."""


def is_nowhere(reference: str, error: Exception, kind: type[ConfigError] = ConfigError) -> ConfigError:
    """The error where a base is neither a folder here nor to be had from the hub."""
    return kind(
        f"model.base={reference}: taken for a hub id, as there is no folder {Path(reference).parent.absolute()}; the "
        f"hub has no such model, requires a login, or cannot be reached ({type(error).__name__})"
    )


def folder_digest(folder: Path) -> str:
    """The digest of all that loading reads. Raises ConfigError where the folder holds no base that can be loaded."""
    _require_loadable(folder)
    return weights_digest(folder)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Raises ConfigError where a file of a base cannot be read."""
    try:
        yield
    except OSError as error:
        file, why = error.filename or "a file in it", error.strerror or _line(error)
        raise ConfigError(f"model.base={folder}: {file} cannot be read: {why}") from error


def _require_loadable(folder: Path) -> None:
    """Raises ConfigError where a folder holds no base that can be loaded."""
    _require_files(folder)
    try:
        _check_settings(folder)
        fields = json.loads((folder / "config.json").read_bytes())
        architecture.require(fields, str(folder))
        headers.check_config(fields, folder)
    except ValueError as error:
        raise ConfigError(f"model.base={folder}: {error}") from error


def _require_files(folder: Path) -> None:
    """Raises ConfigError where a folder has no config.json or no weights that can be loaded."""
    if not (folder / "config.json").is_file():
        one = next(iter(sorted(folder.glob("*.gguf"))), None)
        found = f"; it has a GGUF file{_of_gguf(one)}" if one else "; a folder saved by transformers has one"
        raise ConfigError(f"model.base={folder}: no config.json in it{found}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
        found = f"only {', '.join(pickled)}, which can run code when read{_conversion(folder)}" if pickled else "none"
        raise ConfigError(f"model.base={folder}: weights must be *.safetensors; there is {found}")


def _of_gguf(file: Path) -> str:
    """The command that makes a base of a GGUF file."""
    new = file.with_suffix("")
    command = f"tunewright convert {shlex.quote(str(as_called(file)))} {shlex.quote(str(as_called(new)))}"
    return f"; to convert it: {command}, then model.base={new}"


def _conversion(folder: Path) -> str:
    """The command that writes a base of pickles anew as safetensors: it reads them as data (torch's weights_only)."""
    old = str(as_called(folder))  # for a shell in the folder that the command was called in
    new = f"{old}-safetensors"
    script = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"M.from_pretrained({old!r}).save_pretrained({new!r}); "
        f"T.from_pretrained({old!r}).save_pretrained({new!r})"
    )
    return f"; to convert it without running any: python -c {shlex.quote(script)}, then model.base={folder}-safetensors"


def _check_settings(folder: Path) -> None:
    """Raises ValueError where a settings file of transformers is no JSON object, such as one that was cut."""
    for file in loaded_files(folder):
        if file.name in SETTINGS:
            try:
                settings = json.loads(file.read_bytes())
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file.name} is not complete JSON: {_line(error)}; copy it again") from error
            if not isinstance(settings, dict):
                raise ValueError(f"{file.name} is not a JSON object; copy it again")
