"""The signature of an exported folder: model.sig by OpenSSF model-signing, whose own program accepts it as well."""

import ast
import contextlib
from pathlib import Path
from typing import Any

from model_signing import hashing, manifest, signing, verifying

from tunewright.config import signing_password
from tunewright.errors import ConfigError, TunewrightError

FILE = "model.sig"
PASSWORD = "TUNEWRIGHT_SIGNING_PASSWORD"  # noqa: S105 the name of the variable
MISMATCH = "Signature mismatch: "  # begins the library's list of what differs
ACCEPTED = "accepted: a PEM file with {} key on the curve P-256, P-384 or P-521"


class _Renamed(hashing.Config):
    """The hashes of a folder under the name that it will have, which the signature tells a reader."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.set_ignored_paths(paths=[FILE])
        self._name = name

    def hash(self, model_path: Any, *, files_to_hash: Any = None) -> manifest.Manifest:
        found = super().hash(model_path, files_to_hash=files_to_hash)
        kind = manifest.SerializationType.from_args(found.serialization_type)
        items = [kind.new_item(each.identifier, each.digest) for each in found.resource_descriptors()]
        return manifest.Manifest(self._name, items, kind)


def signer(key: Path) -> signing.Config:
    """The signer with a private key. Raises ConfigError where the key cannot be read, or is of another kind."""
    password: Any = (signing_password() or "").encode() or None  # the library says text, and needs bytes
    try:
        return signing.Config().use_elliptic_key_signer(private_key=key, password=password)
    except OSError as error:
        raise ConfigError(f"--sign-with {key}: cannot be read: {error.strerror}") from error
    except TypeError as error:
        said = f"is not encrypted: unset {PASSWORD}" if password else f"is encrypted: set {PASSWORD} to its password"
        raise ConfigError(f"--sign-with {key}: {said}") from error
    except (ValueError, AttributeError) as error:  # the latter of a key on no curve, such as RSA
        if password and "password" in str(error):
            raise ConfigError(f"--sign-with {key}: {PASSWORD} is not its password") from error
        raise ConfigError(f"--sign-with {key}: refused; {ACCEPTED.format('a private')}") from error


def sign(made: Path, name: str, config: signing.Config) -> None:
    """Sign all files of a folder, which will have this name; git's own are left out, as the library does."""
    config.set_hashing_config(_Renamed(name)).sign(made, made / FILE)


def fault(folder: Path, key: Path) -> str:
    """The fault of a folder's signature, or of the files that it covers; empty if all is as signed with this key.

    Raises ConfigError where the key cannot be read, or is of another kind, TunewrightError where nothing is signed.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; accepted with --public-key: a folder that was exported")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)
    except OSError as error:
        raise ConfigError(f"--public-key {key}: cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"--public-key {key}: refused; {ACCEPTED.format('a public')}") from error
    if not (folder / FILE).is_file():
        raise TunewrightError(f"{folder}: not signed, or its signature was removed: there is no {FILE}")
    try:
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[FILE])).verify(folder, folder / FILE)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except Exception as error:  # whatever the library makes of a forged signature is a fault of it
        if type(error) is ValueError:
            return _plainly(str(error))
        return f"{FILE} was altered, or is no signature ({type(error).__name__})"
    return ""


def _plainly(said: str) -> str:
    """The library's message without its digests, which it shows as the bytes of Python."""
    with contextlib.suppress(ValueError, SyntaxError):  # should it come to say it otherwise
        if said.startswith(MISMATCH):
            each = ast.literal_eval(said.removeprefix(MISMATCH))
            return "; ".join(difference.partition(": Expected ")[0] for difference in each)
    return said
