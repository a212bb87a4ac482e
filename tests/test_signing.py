"""A signed folder is accepted by the plain library, and whatever was changed in it since is found."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import exporting
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from exporting import refused
from make_keys import write_keys, write_private
from typer.testing import CliRunner

from tunewright.cli.main import app
from tunewright.export import signing

# Of a digest with both of Python's quotes, which the library's message then escapes.
QUOTED = next(text for text in map(str.encode, map(str, range(10_000))) if {34, 39} <= {*hashlib.sha256(text).digest()})
PASSWORD = "TUNEWRIGHT_SIGNING_PASSWORD"


@pytest.fixture
def signed(tmp_path: Path, key: tuple[Path, Path]) -> Path:
    """A folder that was signed under the name that it got afterwards, as an export is."""
    made = tmp_path / ".unfinished"
    (made / "base").mkdir(parents=True)
    (made / "weights.bin").write_bytes(bytes(1000))
    (made / "base" / "config.json").write_text("{}")
    signing.sign(made, "ours", signing.signer(key[0]))
    return made.rename(tmp_path / "ours")


def verified(folder: Path, public: Path, *options: str) -> tuple[int, str]:
    """The exit code of `tunewright verify`, and what it says."""
    result = CliRunner().invoke(app, ["verify", str(folder), "--public-key", str(public), *options])
    return result.exit_code, " ".join(result.output.split())


def accepted_by_the_library(folder: Path, public: Path) -> bool:
    program = [str(Path(sys.executable).with_name("model_signing")), "verify", "key", str(folder)]
    options = ["--signature", str(folder / "model.sig"), "--public_key", str(public)]
    return subprocess.run([*program, *options], capture_output=True).returncode == 0


def test_a_signed_folder_is_accepted_by_the_program_of_the_library(signed: Path, key: tuple[Path, Path]) -> None:
    assert accepted_by_the_library(signed, key[1])
    assert verified(signed, key[1]) == (0, f"Verified: {signed} is what was signed with the key of {key[1]}")
    envelope = json.loads((signed / "model.sig").read_text())["dsseEnvelope"]
    assert json.loads(base64.b64decode(envelope["payload"]))["subject"][0]["name"] == "ours"
    (signed / "weights.bin").write_bytes(b"\1" + bytes(999))
    assert not accepted_by_the_library(signed, key[1])


def forge(folder: Path) -> None:
    """Has the signature list another digest than was signed."""
    file = folder / "model.sig"
    content = json.loads(file.read_text())
    envelope = content["dsseEnvelope"]
    statement = base64.b64decode(envelope["payload"]).replace(b"weights.bin", b"weights.bim")
    envelope["payload"] = base64.b64encode(statement).decode()
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "weights.bin").write_bytes(b"\1" + bytes(999)), "Hash mismatch for 'weights.bin'"),
        (lambda folder: (folder / "weights.bin").write_bytes(QUOTED), "is not what was signed: Hash mismatch for 'w"),
        (lambda folder: (folder / "base" / "more.json").write_text("{}"), "Extra files found in model 'ours': base/m"),
        (lambda folder: (folder / "base" / "config.json").unlink(), "Missing files in model 'ours': base/config.json"),
        (lambda folder: (folder / "linked").symlink_to("/etc/hostname"), "is a symlink"),
        (forge, "model.sig was altered, or is no signature (InvalidSignature)"),
        (lambda folder: (folder / "model.sig").write_text("{"), "model.sig was altered, or is no signature ("),
    ],
    ids=["byte", "quotes", "added", "removed", "link", "forged", "damaged"],
)
def test_what_was_changed_since_is_named(
    change: Callable[[Path], object], said: str, signed: Path, key: tuple[Path, Path]
) -> None:
    change(signed)
    code, line = verified(signed, key[1])
    assert (code, line.startswith(f"Altered: {signed} is not what was signed: ")) == (1, True)
    assert said in line
    assert "Digest(" not in line


def test_a_signature_of_another_key_and_a_removed_one_are_found(signed: Path, key: tuple[Path, Path]) -> None:
    _, other = write_keys(signed.parent / "other")
    code, line = verified(signed, other)
    assert code == 1
    assert "public key hash in the signature's verification material does not match" in line
    (signed / "model.sig").unlink()
    said = f"error: {signed}: not signed, or its signature was removed: there is no model.sig"
    assert verified(signed, key[1]) == (1, said)


def test_a_public_key_that_cannot_be_used_is_refused(signed: Path, key: tuple[Path, Path]) -> None:
    private, public = key
    accepted = "refused; accepted: a PEM file with a public key on the curve P-256, P-384 or P-521"
    assert verified(signed, private) == (2, f"error: --public-key {private}: {accepted}")
    gone = signed / "none.pem"
    assert verified(signed, gone) == (2, f"error: --public-key {gone}: cannot be read: No such file or directory")
    said = "error: --public-key: checks a folder; leave --version, --alias and --tracking-uri out"
    assert verified(signed, public, "--version", "1") == (2, said)
    nowhere = signed / "none"
    said = f"error: {nowhere}: no such folder; accepted with --public-key: a folder that was exported"
    assert verified(nowhere, public) == (2, said)


def test_an_encrypted_key_signs_with_its_password_alone(
    tmp_path: Path, key: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = write_private(tmp_path / "locked.pem", ec.generate_private_key(ec.SECP384R1()), b"secret")
    (made := tmp_path / "made").mkdir()
    with monkeypatch.context() as patched:
        patched.setenv(PASSWORD, "secret")
        signing.sign(made, "made", signing.signer(locked))
    assert (made / "model.sig").is_file()
    for private, password, said in (
        (locked, None, f"is encrypted: set {PASSWORD} to its password"),
        (locked, "wrong", f"{PASSWORD} is not its password"),
        (key[0], "secret", f"is not encrypted: unset {PASSWORD}"),
    ):
        with monkeypatch.context() as patched:
            if password:
                patched.setenv(PASSWORD, password)
            result = exporting.export(tmp_path / "out", "--to", "merged", "--sign-with", str(private))
            assert refused(result, tmp_path / "out", code=2) == f"error: --sign-with {private}: {said}"


def test_a_private_key_that_cannot_be_used_is_refused_before_anything_is_done(
    tmp_path: Path, key: tuple[Path, Path]
) -> None:
    accepted = "refused; accepted: a PEM file with a private key on the curve P-256, P-384 or P-521"
    of_rsa = write_private(tmp_path / "rsa.pem", rsa.generate_private_key(65537, 2048))
    of_bitcoin = write_private(tmp_path / "k1.pem", ec.generate_private_key(ec.SECP256K1()))
    for file, said in (
        (tmp_path / "none.pem", "cannot be read: No such file or directory"),
        (tmp_path, "cannot be read: Is a directory"),
        *((file, accepted) for file in (of_rsa, of_bitcoin, key[1], Path(__file__))),
    ):
        result = exporting.export(tmp_path / "out", "--to", "merged", "--sign-with", str(file))
        assert refused(result, tmp_path / "out", code=2) == f"error: --sign-with {file}: {said}"


def test_a_folder_that_was_exported_and_signed_is_not_signed_again(signed: Path, key: tuple[Path, Path]) -> None:
    before = (signed / "model.sig").read_bytes()
    result = exporting.export(signed, "--to", "merged", "--sign-with", str(key[0]))
    assert result.exit_code == 2
    assert "is not empty" in result.output
    assert (signed / "model.sig").read_bytes() == before
