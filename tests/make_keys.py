"""Keys to sign with, made for one test."""

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def write_keys(folder: Path) -> tuple[Path, Path]:
    """The files of a new private key and of its public key."""
    folder.mkdir(exist_ok=True)
    made = ec.generate_private_key(ec.SECP256R1())
    public = folder / "public.pem"
    public.write_bytes(
        made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return write_private(folder / "private.pem", made), public


def write_private(file: Path, made: Any, password: bytes | None = None) -> Path:
    """Write a private key as PEM, encrypted where there is a password."""
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    file.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    return file
