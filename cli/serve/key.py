"""The API key of the endpoint: never on a command line, where every user of the machine could read it."""

import os
import secrets
from pathlib import Path

from tunewright import config
from tunewright.errors import ConfigError

VARIABLE = "TUNEWRIGHT_API_KEY"
FILE = "api_key"
BYTES = 24
SHORTEST = 16  # characters


def file() -> Path:
    """The file of the key that was drawn for this home, which its owner alone can read."""
    return config.home() / FILE


def is_given() -> bool:
    """Whether the environment has the key."""
    return bool(os.environ.get(VARIABLE))


def api_key() -> str:
    """The key of the environment, or that of the home, which is drawn at the first call. Raises ConfigError."""
    if given := os.environ.get(VARIABLE, ""):
        if len(given) < SHORTEST or not given.isascii() or not given.isprintable() or " " in given:
            raise ConfigError(f"{VARIABLE}: accepted: at least {SHORTEST} ASCII characters without spaces")
        return given
    config.make_home()
    try:
        return file().read_text(encoding="utf-8").strip() or _draw()
    except FileNotFoundError:
        return _draw()


def _draw() -> str:
    key = f"sk-{secrets.token_urlsafe(BYTES)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(file(), flags, 0o600), "w", encoding="utf-8") as opened:
        os.fchmod(opened.fileno(), 0o600)
        opened.write(f"{key}\n")
    return key
