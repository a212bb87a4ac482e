"""The static model by which texts are compared for what they say: where its two files lie, and what identifies them."""

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

from tunewright.config import Dedupe, or_meant
from tunewright.errors import ConfigError
from tunewright.serving import STATIC_MODEL, StaticModel
from tunewright.store.caching import digest_of

WORDLLAMA = "package:wordllama"
ACCEPTED = f"accepted: {WORDLLAMA} and a model2vec folder with model.safetensors and tokenizer.json"


def model_identity(settings: Dedupe) -> str:
    """Return the digests of the model's files and the tokenizers' version, which fix the vectors; "" without semantic.

    Raises ConfigError where the model is not there.
    """
    return "" if settings.semantic is None else identity(settings.semantic_model)


def identity(reference: str) -> str:
    """The same of a model. Raises ConfigError where it is not there."""
    weights, tokenizer = _files(reference)
    return f"{digest_of(weights)} {digest_of(tokenizer)} tokenizers {importlib.metadata.version('tokenizers')}"


def identity_if_installed(reference: str) -> str:
    """The same, and "" where it is the package's and that is not installed."""
    absent = reference == WORDLLAMA and importlib.util.find_spec("wordllama") is None
    return "" if absent else identity(reference)


def load_model(reference: str) -> StaticModel:
    """The model of dedupe.semantic_model. Raises ConfigError where it is not there or cannot be read."""
    weights, vocabulary = _files(reference)
    try:
        return StaticModel.load(weights, vocabulary)
    except ValueError as error:
        raise ConfigError(f"dedupe.semantic_model={reference}: {error}; {ACCEPTED}") from error


def copy(reference: str, folder: Path) -> None:
    """Copies a model's two files, under the names that model2vec gives them."""
    folder.mkdir()
    for file, name in zip(_files(reference), STATIC_MODEL, strict=True):
        shutil.copyfile(file, folder / name)


def _files(reference: str) -> tuple[Path, Path]:
    """The files with the vectors and with the tokenizer."""
    if reference == WORDLLAMA:
        spec = importlib.util.find_spec("wordllama")
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"dedupe.semantic_model={reference}: wordllama is not installed: pip install 'tunewright[semantic]'; "
                f"{ACCEPTED}"
            )
        folder = Path(spec.submodule_search_locations[0])
        files = (
            folder / "weights" / "l2_supercat_256.safetensors",
            folder / "tokenizers" / "l2_supercat_tokenizer_config.json",
        )
    else:
        folder = Path(reference).expanduser()
        files = (folder / STATIC_MODEL[0], folder / STATIC_MODEL[1])
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        lacking, meant = " and no ".join(missing), or_meant(reference)
        raise ConfigError(f"dedupe.semantic_model={reference}: {folder} has no {lacking}; {ACCEPTED}{meant}")
    return files
