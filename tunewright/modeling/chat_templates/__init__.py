"""Chat templates for bases that bring none: by name from this folder, or from a file.

A template may begin with a comment that names the token which ends an answer and others that it writes as one token:
{#- stop: <|im_end|> needs: <|im_start|> -#}. Without one it ends answers with the tokenizer's own eos_token.
"""

import re
from pathlib import Path
from typing import Any

from tunewright.errors import ConfigError

FOLDER = Path(__file__).parent
ENDING = ".jinja"
WITH_TOOLS = ("hermes",)  # those that write tools and calls
HEADER = re.compile(r"\s*\{#-?\s*stop:\s*(\S+)(?:\s+needs:\s*(.*?))?\s*-?#\}")
MOST_BYTES = 200_000


def names() -> list[str]:
    """The templates that are here, sorted."""
    return sorted(file.stem for file in FOLDER.glob(f"*{ENDING}"))


def text(template: str | None) -> str:
    """Return the text of model.chat_template: one of this folder's names or a file; "" for none.

    Raises ConfigError where it is neither.
    """
    if template is None:
        return ""
    if template in names():
        return (FOLDER / f"{template}{ENDING}").read_text(encoding="utf-8")
    try:
        file = Path(template).expanduser()
        if file.is_file():  # no pipe or device, which may never end
            with file.open("rb") as opened:
                read = opened.read(MOST_BYTES + 1)
            if len(read) <= MOST_BYTES:
                return read.decode("utf-8")
            why = f"it has more than {MOST_BYTES} bytes"
        else:
            why = "there is no such file"
    except (OSError, UnicodeDecodeError, RuntimeError) as error:  # the last of a ~user who is not here
        why = str(error)
    raise ConfigError(f"model.chat_template={template}: {why}; accepted: {', '.join(names())}, or a Jinja file")


def stop_and_needs(template: str) -> tuple[str, list[str]]:
    """The token that ends an answer, empty for the tokenizer's own, and all that have to be tokens."""
    found = HEADER.match(template)
    if not found:
        return "", []
    return found[1], [found[1], *(found[2] or "").split()]


def missing(template: str, tokenizer: Any) -> list[str]:
    """The tokens that a template writes and the tokenizer does not have as one."""
    known = tokenizer.get_vocab()
    lacks_eos = [] if tokenizer.eos_token or stop_and_needs(template)[0] else ["eos_token"]
    return [token for token in stop_and_needs(template)[1] if token not in known] + lacks_eos


def fitting(tokenizer: Any) -> list[str]:
    """The names of this folder's templates whose tokens the tokenizer has."""
    return [name for name in names() if not missing(text(name), tokenizer)]
