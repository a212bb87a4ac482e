"""Every file of a version is verified before it is loaded, and the code that loads it is the project's own."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from registered import aliases, versions

from tunewright import serving
from tunewright.artifacts import Base, Registered
from tunewright.config import Registry
from tunewright.errors import TunewrightError
from tunewright.machine import bounded
from tunewright.registry import files, rehearsal, release
from tunewright.registry.tracking import connected
from tunewright.registry.versions import champion
from tunewright.store.cache_key import hash_of
from tunewright.store.manifest import digest_of
from tunewright.tasks.base import base as load_base

REGISTRY = Registry(name="triage")
STAGING = Registry(name="triage", alias="staging")
Make = Callable[..., Registered]


@pytest.fixture
def store(register_candidate: Make, home: Path) -> Path:
    """The folder of a version in MLflow's artifact store; the version is the champion."""
    register_candidate()
    (code,) = (home / "mlartifacts").rglob("serving.py")
    return code.parent


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The copies that a rehearsal would load; nothing is loaded."""
    found: list[Path] = []
    monkeypatch.setattr(rehearsal, "_rehearse", lambda version, copy, asked: found.append(copy) or 0)
    return found


def promote() -> None:
    release.promote(STAGING, "1", by="ann", why="for the pilot")


def look_up_champion(base: Base) -> Path:
    found = champion(REGISTRY, "another", base, load_base.fn)
    assert found
    assert found.model
    return found.model


@contextmanager
def changed(file: Path, content: bytes | None) -> Iterator[None]:
    """A file with other content, or none, and then as it was before."""
    before = file.read_bytes() if file.exists() else None
    for now in (content, before):
        file.unlink(missing_ok=True)
        if now is not None:
            file.write_bytes(now)
        if now is content:
            yield


def flipped(file: Path) -> bytes:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def refused(what: Callable[[], object], name: str, fault: str, loaded: list[Path]) -> None:
    with pytest.raises(TunewrightError) as caught:
        what()
    assert str(caught.value).startswith(f"models:/triage/1: {name} {fault}"), caught.value
    assert "\n" not in str(caught.value)
    assert "--refresh register" in str(caught.value)
    assert loaded == []
    assert aliases() == {"champion": "1"}


def test_a_byte_changed_in_any_file_of_a_version_is_found_before_it_is_loaded(
    store: Path, home: Path, tiny_base: Base, loaded: list[Path]
) -> None:
    (asked,) = (home / "mlartifacts").rglob("rehearsal.json")
    names = sorted(name for name in serving.files_in(store) if not name.startswith(serving.BESIDE))
    assert {"MLmodel", "serving.py", "digests.json", "artifacts/base.json", "artifacts/tokenizer/tokenizer.json"} < {
        *names
    }
    assert "artifacts/model/adapter_model.safetensors" in names
    for name in names:
        for content, fault in ((flipped(store / name), "was altered"), (None, "is missing")):
            with changed(store / name, content):
                refused(promote, name, fault, loaded)
                refused(lambda: look_up_champion(tiny_base), name, fault, loaded)
    with changed(asked, flipped(asked)):
        refused(promote, rehearsal.FILE, "was altered", loaded)
    look_up_champion(tiny_base)
    promote()
    assert len(loaded) == 1


@pytest.mark.parametrize(
    "name", ["sitecustomize.py", "artifacts/model/model.safetensors", "artifacts/tokenizer/added_tokens.json"]
)
def test_a_file_that_was_added_to_a_version_is_found(
    store: Path, tiny_base: Base, loaded: list[Path], name: str
) -> None:
    with changed(store / name, b"{}"):
        refused(promote, name, "was added", loaded)
        refused(lambda: look_up_champion(tiny_base), name, "was added", loaded)
    (store / "registered_model_meta").write_text("MLflow's own")
    promote()


def test_a_copy_of_the_champion_that_was_altered_is_fetched_anew(store: Path, home: Path, tiny_base: Base) -> None:
    look_up_champion(tiny_base)
    (copy,) = (home / "champions").iterdir()
    weights = copy / "artifacts" / "model" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(flipped(weights))
    look_up_champion(tiny_base)
    assert weights.read_bytes() == whole
    assert not weights.samefile(store / "artifacts" / "model" / "adapter_model.safetensors")


def test_of_two_that_fetch_a_champion_at_once_the_second_takes_the_copy_of_the_first(
    store: Path, home: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = files.fetch

    def fetch_behind_another(*args: Any) -> Path:
        monkeypatch.setattr(files, "fetch", fetch)
        look_up_champion(tiny_base)  # a process that was faster
        return fetch(*args)

    monkeypatch.setattr(files, "fetch", fetch_behind_another)
    copy = look_up_champion(tiny_base)
    assert [*(home / "champions").iterdir()] == [copy.parents[1]]


def test_the_champion_of_a_home_that_is_only_read_is_copied_elsewhere(
    store: Path, home: Path, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def refuse(path: Path, *args: Any, **options: Any) -> None:
        if path.is_relative_to(home):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    copy = look_up_champion(tiny_base)
    assert not copy.is_relative_to(home)
    weights = store / "artifacts" / "model" / "adapter_model.safetensors"
    assert (copy / weights.name).read_bytes() == weights.read_bytes()


def set_tag(name: str, value: str) -> None:
    with connected(REGISTRY) as client:
        client.set_model_version_tag("triage", "1", name, value)


def plant(store: Path, marker: Path) -> None:
    """Attack an MLflow server without credentials: replace the code, and make digests and tag match."""
    with (store / "serving.py").open("a") as code:
        code.write(f"\nopen({str(marker)!r}, 'w').close()\n")
    (store / "digests.json").unlink()
    shutil.rmtree(store / "reports")
    set_tag(files.FILES, files.seal(store))


def test_a_tag_that_was_changed_with_the_files_is_found_where_the_version_was_registered(
    store: Path, register_candidate: Make, tiny_base: Base, loaded: list[Path], tmp_path: Path
) -> None:
    plant(store, tmp_path / "it_ran")
    for what in (promote, lambda: look_up_champion(tiny_base)):
        with pytest.raises(
            TunewrightError, match=r"^models:/triage/1: its tag digest.files in MLflow is [0-9a-f]{12}, "
        ):
            what()
    assert loaded == []
    with connected(REGISTRY) as client:
        client.delete_model_version_tag("triage", "1", files.FILES)
    with pytest.raises(TunewrightError, match=r"its tag digest.files in MLflow is gone, and this machine registered"):
        promote()
    assert aliases() == {"champion": "1"}
    shutil.rmtree(register_candidate().folder)  # as with --refresh register
    register_candidate()
    promote()


def test_code_in_the_store_is_never_run_here_even_where_nothing_tells_that_it_was_altered(
    store: Path, home: Path, tiny_base: Base, tmp_path: Path
) -> None:
    plant(store, tmp_path / "it_ran")
    shutil.rmtree(home / "registered")
    promote()
    look_up_champion(tiny_base)
    assert aliases() == {"champion": "1", "staging": "1"}
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    ("template", "limit"),
    [
        ("{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3, "2 s of processor time"),
        ("{% set a = 'a' * 3000000000 %}", "500 MB of memory"),
    ],
)
def test_a_template_without_end_in_a_version_of_a_stranger_is_one_line(
    store: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, limit: str
) -> None:
    defaults = bounded.call.__kwdefaults__
    assert defaults
    monkeypatch.setitem(defaults, "seconds", 2.0)  # in place of ten
    file = store / "artifacts" / "contract.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    plant(store, tmp_path / "it_ran")
    shutil.rmtree(home / "registered")
    said = rf"^models:/triage/1: its chat template for 3 conversations takes more than {limit}; the alias did not move$"
    with pytest.raises(TunewrightError, match=said):
        promote()
    assert aliases() == {"champion": "1"}


def test_a_version_that_mlflow_serves_verifies_its_own_files(store: Path) -> None:
    from mlflow.pyfunc import load_model

    load_model(str(store))
    weights, added = (store / "artifacts" / name for name in ("model/adapter_model.safetensors", "model/config.json"))
    for file, content, fault in (
        (weights, flipped(weights), "artifacts/model/adapter_model.safetensors was altered"),
        (weights, None, "artifacts/model/adapter_model.safetensors is missing"),
        (added, b"{}", "artifacts/model/config.json was added"),
        (store / serving.DIGESTS, None, "digests.json is missing"),
    ):
        with changed(file, content), pytest.raises(ValueError, match=rf"^{store}: {fault}"):
            load_model(str(store))


def test_registering_again_uploads_what_was_altered_and_leaves_nothing_that_was_added(
    store: Path, register_candidate: Make, tiny_base: Base
) -> None:
    before = versions()[0].tags[files.FILES]
    weights = store / "artifacts" / "model" / "adapter_model.safetensors"
    weights.write_bytes(flipped(weights))
    (store / "artifacts" / "model" / "model.safetensors").write_bytes(b"{}")
    shutil.rmtree(register_candidate().folder)  # a hit of the store's: as with --refresh register
    register_candidate()
    assert len(versions()) == 1
    assert versions()[0].tags[files.FILES] != before
    look_up_champion(tiny_base)
    promote()


def old(version: Any, digest: str) -> None:
    """Makes a version one that was registered before digests were kept: with that of its weights alone."""
    with connected(REGISTRY) as client:
        for name in (files.FILES, files.REHEARSAL):
            client.delete_model_version_tag("triage", version.version, name)
        client.set_model_version_tag("triage", version.version, files.WEIGHTS, digest)


def test_of_a_version_from_before_there_were_digests_the_weights_are_verified_and_it_is_said(
    store: Path, home: Path, tiny_base: Base, loaded: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    names = ["contract.json", *(f"model/{name}" for name in serving.files_in(store / "artifacts" / "model"))]
    digest = hash_of({name: digest_of(store / "artifacts" / name) for name in names})
    old(versions()[0], digest)
    shutil.rmtree(home / "registered")
    with caplog.at_level(logging.WARNING, "tunewright"):
        promote()
        look_up_champion(tiny_base)
    assert "models:/triage/1 has no tag digest.files" in caplog.text
    assert len(loaded) == 1
    shutil.rmtree(home / "champions")
    weights = store / "artifacts" / "model" / "adapter_model.safetensors"
    with changed(weights, flipped(weights)), pytest.raises(TunewrightError, match=r"artifacts/model or .* was altered"):
        look_up_champion(tiny_base)
    with connected(REGISTRY) as client:
        client.delete_model_version_tag("triage", "1", files.WEIGHTS)
    with pytest.raises(TunewrightError, match=r"models:/triage/1 has neither the tag digest.files nor model_digest"):
        look_up_champion(tiny_base)


def test_a_rehearsal_from_before_asks_for_as_many_tokens_as_the_model_says(store: Path, home: Path) -> None:
    (asked,) = (home / "mlartifacts").rglob("rehearsal.json")
    rows = json.loads(asked.read_text())
    assert rows.pop("max_new_tokens") == 6
    asked.write_text(json.dumps(rows))
    set_tag(files.REHEARSAL, "")
    shutil.rmtree(home / "registered")
    promote()
    asked.write_text('{"rows": [{}]}')
    with pytest.raises(TunewrightError, match=r"answers/rehearsal.json was altered"):
        release.promote(REGISTRY.model_copy(update={"alias": "other"}), "1", by="ann", why="once more")
