"""The base as an artifact: a folder of safetensors, converted once if it is a GGUF file, and its special tokens."""

import logging
from pathlib import Path

from tunewright.artifacts import Base
from tunewright.errors import ConfigError
from tunewright.modeling.models import folder_digest, is_nowhere, load_tokenizer, special_tokens
from tunewright.serving import resolve, weights_digest
from tunewright.store.stage import stage

log = logging.getLogger("tunewright")


def _lost(base: Base) -> str:
    """Describe what is missing or changed of a base whose weights are elsewhere, as in the hub's cache; "" if nothing.

    The content of the weights is not read, so that an unchanged run stays fast.
    """
    if not base.weights.is_dir():
        return f"{base.weights} is gone"
    try:
        is_same = not base.location.is_absolute() or weights_digest(base.weights, quick=True) == base.quick_digest
    except ValueError as error:
        return str(error)
    return "" if is_same else f"{base.weights} was changed"


@stage("{reference}", libraries=("transformers", "gguf"), lost=_lost, unkeyed=("here",))
def base(
    folder: Path, reference: str, revision: str | None, identity: str, chat_template: str = "", here: str = ""
) -> Base:
    """The base as a folder of safetensors; converted once if it is a GGUF file. `chat_template` is the text of one.

    `here` is a folder with the base where this machine has it elsewhere than at `reference`.
    """
    log.info("  reading %s", reference)
    try:
        weights = resolve(here or reference, revision, folder / "weights")
    except OSError as error:
        if reference.startswith("package:") or error.errno:  # such as a full disk
            raise
        raise is_nowhere(reference, error) from error
    if not any(weights.glob("*.safetensors")):
        raise ConfigError(f"model.base={reference}: {weights} has no *.safetensors")
    digest = folder_digest(weights)
    (folder / "base.txt").write_text(f"{reference}\n{digest}\n", encoding="utf-8")
    location = weights.relative_to(folder) if weights.is_relative_to(folder) else weights.absolute()
    made = Base(
        reference=reference,
        revision=revision,
        location=location,
        weights_digest=digest,
        quick_digest=weights_digest(weights, quick=True),
        chat_template=chat_template,
    )
    if chat_template:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    tokenizer = load_tokenizer(made.model_copy(update={"folder": folder}))
    return made.model_copy(update={"special_tokens": special_tokens(tokenizer)})
