"""Texts as vectors by a static model: the mean of their tokens' vectors, which texts that say the same have in common.

A model is a tokenizer and a vector for each token (model2vec; WordLlama). Its two files are read as they are, so that
neither library is needed, no code of theirs is run and nothing is downloaded.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.config import Dedupe, or_meant
from tunewright.errors import ConfigError
from tunewright.store.caching import digest_of

WORDLLAMA = "package:wordllama"
ACCEPTED = f"accepted: {WORDLLAMA} and a model2vec folder with model.safetensors and tokenizer.json"
VECTOR_NAMES = ("embeddings", "embedding.weight")  # of model2vec, and of WordLlama and sentence-transformers
FEWEST_CHARACTERS = 1.5  # of a token on average, under which a text is read letter by letter: 3 to 4 in English
TEXTS_AT_ONCE = 2_000
LENGTH = 32_767  # of a vector in 16-bit fixed point


@dataclass(frozen=True)
class StaticModel:
    """A tokenizer, and of each token the place of its vector and its weight."""

    tokenizer: Any
    unknown: int  # the token that stands for what the tokenizer does not know, or -1
    vectors: np.ndarray  # (vectors, dimensions) float32
    places: np.ndarray  # (tokens,)
    weights: np.ndarray  # (tokens,) float32

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, dimensions) int16 of length LENGTH, or 0 for a text that the model cannot read.

        That is one with a word that it has no token for, or in a script that it knows by letters or bytes only: the
        mean of letters is about the same whatever they say.
        """
        parts = [self._embed(texts[i : i + TEXTS_AT_ONCE]) for i in range(0, len(texts), TEXTS_AT_ONCE)]
        return np.concatenate([np.empty((0, self.vectors.shape[1]), np.int16), *parts])

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
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
    from safetensors import SafetensorError
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    weights, vocabulary = _files(reference)
    try:
        tensors = load_file(weights)
    except SafetensorError as error:
        raise ConfigError(f"dedupe.semantic_model={reference}: {weights.name} cannot be read: {error}") from error
    try:
        tokenizer = Tokenizer.from_file(str(vocabulary))
    except Exception as error:  # tokenizers raises no narrower one
        raise ConfigError(f"dedupe.semantic_model={reference}: {vocabulary.name} cannot be read: {error}") from error
    named = [name for name in VECTOR_NAMES if name in tensors]
    if not named:
        raise ConfigError(
            f"dedupe.semantic_model={reference}: {weights.name} has {', '.join(sorted(tensors))}; {ACCEPTED}"
        )
    vectors = tensors[named[0]].astype(np.float32)
    places = tensors.get("mapping", np.arange(len(vectors)))
    if tokenizer.get_vocab_size() > len(places):
        raise ConfigError(
            f"dedupe.semantic_model={reference}: {tokenizer.get_vocab_size()} tokens, but vectors for {len(places)}"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if hasattr(tokenizer.model, "unk_token"):  # WordPiece, BPE, WordLevel
        unknown = tokenizer.token_to_id(tokenizer.model.unk_token or "")
    else:
        unknown = json.loads(tokenizer.to_str())["model"].get("unk_id")  # Unigram
    weighed = tensors.get("weights", np.ones(len(places))).astype(np.float32)
    return StaticModel(tokenizer, -1 if unknown is None else unknown, vectors, places, weighed)


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
        files = (folder / "model.safetensors", folder / "tokenizer.json")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        lacking, meant = " and no ".join(missing), or_meant(reference)
        raise ConfigError(f"dedupe.semantic_model={reference}: {folder} has no {lacking}; {ACCEPTED}{meant}")
    return files
