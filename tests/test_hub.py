"""An exported folder becomes one commit of a repository, with a token that nobody sees; or it stays to push again."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import exporting
import huggingface_hub
import pytest
from hub import LARGE, READER, WRITER, LocalHub, Repository, digest, local_hub
from huggingface_hub import ModelCard
from servers import TUNEWRIGHT, free_port

from tunewright.artifacts import Registered
from tunewright.errors import ConfigError, TunewrightError
from tunewright.export import hub
from tunewright.export.hub import PushTarget

TINY = PushTarget("me/tiny", is_public=False)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """The hub that huggingface_hub talks to, with the token of a writer."""
    with local_hub() as found:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", found.address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported folder, as far as a push reads it."""
    made = tmp_path / "my folder"
    (made / "base").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md", "base/config.json"):
        (made / name).write_text(f"# {name}\n")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def silent(_: str) -> None:
    """Nobody reads it."""


def test_an_export_is_pushed_by_the_command_as_one_private_commit_and_no_output_has_the_token(
    register_candidate: Callable[..., Registered], tmp_path: Path
) -> None:
    register_candidate()
    with local_hub() as service:
        own = {"HF_ENDPOINT": service.address, "HF_TOKEN": WRITER}  # and so by the newer storage, hf_xet
        own |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment = {name: value for name, value in (os.environ | own).items() if name != "HF_HUB_OFFLINE"}
        command = [*TUNEWRIGHT, "export", "triage", "out", "--to", "vllm", "--push", "hub:me/tiny", "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    repository = service.repositories["me/tiny"]
    assert repository.private
    expected = {
        name: digest(content).encode() if name.endswith(LARGE) else content
        for name, content in contents(tmp_path / "out").items()
    }
    assert repository.files == expected | {".gitattributes": repository.files[".gitattributes"]}
    assert service.num_parts
    assert not [asked for asked in service.asked if "telemetry" in asked or "agent" in asked]
    (commit,) = repository.commits
    assert commit["summary"] == "triage, version 1: vllm in float32, exported by Tunewright"
    assert ModelCard(repository.files["README.md"].decode()).data.to_dict()["library_name"] == "peft"
    found = json.loads(done.stdout.splitlines()[-1])["pushed"]
    url = f"{service.address}/me/tiny/commit/{repository.sha}"
    assert found == {"url": url, "is_public": False, "removed": []}
    assert "pushing to me/tiny, which is private" in done.stderr
    assert WRITER not in done.stdout + done.stderr
    assert not any(WRITER.encode() in content for content in contents(tmp_path).values())


def test_a_later_push_is_a_commit_on_top_without_files_that_an_earlier_model_was_loaded_by(
    service: LocalHub, folder: Path
) -> None:
    old = {"model.safetensors": b"old", "config.json": b"old", "README.md": b"old", "notes/mine.md": b"mine"}
    service.repositories["me/tiny"] = Repository(private=True, files=dict(old), commits=[{}])
    pushed = hub.push(folder, TINY, "again", silent)
    assert pushed.removed == ("config.json", "model.safetensors")
    assert service.repositories["me/tiny"].files == contents(folder) | {"notes/mine.md": b"mine"}
    assert len(service.repositories["me/tiny"].commits) == 2
    hub.push(folder, TINY, "the same", silent)
    assert service.repositories["me/tiny"].files == contents(folder) | {"notes/mine.md": b"mine"}


def test_what_becomes_public_is_said_and_only_made_public_where_that_is_asked(service: LocalHub, folder: Path) -> None:
    said: list[str] = []
    assert hub.push(folder, TINY._replace(is_public=True), "public", said.append).is_public
    assert not service.repositories["me/tiny"].private
    (line,) = said
    assert line.startswith(
        "pushing to me/tiny, which is public: anyone can read the weights, which can repeat training"
    )
    before = [*service.repositories["me/tiny"].commits]
    with pytest.raises(
        TunewrightError, match=r"hub:me/tiny: it exists and is public, and --public was not given; nothi"
    ):
        hub.push(folder, TINY, "private", silent)
    assert service.repositories["me/tiny"].commits == before
    service.repositories["me/other"] = Repository(private=True)
    said.clear()
    assert not hub.push(folder, PushTarget("me/other", is_public=True), "public", said.append).is_public
    assert said == ["pushing to me/other, which is private (it was private before, and --public does not change that)"]


@pytest.mark.parametrize(
    ("word", "refusal", "error"),
    [
        ("create", (401, "Invalid token"), "the hub refuses the token; set HF_TOKEN, or log in with: hf auth login ("),
        ("create", (403, "No rights"), "the token has no right to write to me/tiny; accepted: a token that may write"),
        ("commit", (500, "Out of order"), "the hub did not take it (status 500: Out of order)"),
        ("commit", (412, "Other"), "somebody else pushed meanwhile (status 412: Other)"),
        ("large", (403, f"{WRITER} is refused"), "the token has no right to write to me/tiny; accepted: a token that"),
    ],
)
def test_what_the_hub_refuses_stays_here_with_the_command_to_push_it(
    word: str, refusal: tuple[int, str], error: str, service: LocalHub, folder: Path
) -> None:
    service.refusals[word] = refusal
    before = contents(folder)
    with pytest.raises(TunewrightError) as caught:
        hub.push(folder, TINY, "refused", silent)
    said = str(caught.value)
    assert said.startswith(f"--push hub:me/tiny: {error}")
    assert said.endswith(f"; {folder} is whole; push it with: hf upload me/tiny '{folder}' . --private")
    assert WRITER not in said
    assert contents(folder) == before
    assert not any(repository.commits for repository in service.repositories.values())


def test_the_command_that_is_printed_pushes_the_folder_later(service: LocalHub, folder: Path) -> None:
    program = Path(sys.executable).with_name("hf")
    own = {"HF_ENDPOINT": service.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    line = hub.command(folder, TINY).replace("hf", shlex.quote(str(program)), 1)
    done = subprocess.run(line, shell=True, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    repository = service.repositories["me/tiny"]
    assert repository.private
    assert repository.files == contents(folder) | {".gitattributes": repository.files[".gitattributes"]}


def test_files_that_a_repository_ignores_are_missed(service: LocalHub, folder: Path) -> None:
    service.repositories["me/tiny"] = Repository(private=True, ignored=(".safetensors",))
    with pytest.raises(
        TunewrightError, match=r"the hub left out adapter_model\.safetensors, which a \.gitignore can a"
    ):
        hub.push(folder, TINY, "ignored", silent)


def test_a_hub_that_is_away_delays_nothing_and_keeps_the_folder(
    folder: Path, service: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    said: list[str] = []
    hub.check_token(TINY, said.append)
    (line,) = said
    assert line.startswith("the hub does not answer now (ConnectError: ")
    assert line.endswith("); it is asked again after the export")
    with pytest.raises(
        TunewrightError, match=r"the hub did not take it \(ConnectError: .*\); .* is whole; push it with: hf"
    ):
        hub.push(folder, TINY, "away", silent)


@pytest.mark.parametrize(
    ("token", "error"),
    [
        (READER, "--push hub:me/tiny: the token may only read; accepted: a token that may write there, from https://"),
        ("hf_wrong", "--push hub:me/tiny: the hub refuses the token (status 401"),
    ],
)
def test_a_token_without_the_right_to_write_is_refused_before_the_work(
    token: str, error: str, service: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError) as caught:
        hub.check_token(TINY, silent)
    assert str(caught.value).startswith(error)
    assert str(caught.value).endswith("; nothing was exported")
    assert token not in str(caught.value)
    assert service.repositories == {}


@pytest.mark.parametrize(
    ("given", "changed", "error"),
    [
        ("me/tiny", {}, '--push "me/tiny": accepted: hub:OWNER/NAME, of letters, digits, dashes, underscores and dots'),
        ("hub:tiny", {}, '--push "hub:tiny": accepted: hub:OWNER/NAME'),
        ("hub:me/ti ny", {}, '--push "hub:me/ti ny": accepted: hub:OWNER/NAME'),
        ("hub:me/tiny/main", {}, '--push "hub:me/tiny/main": accepted: hub:OWNER/NAME'),
        ("hub:me/tiny", {"HF_HUB_OFFLINE": True}, "--push hub:me/tiny: the environment has HF_HUB_OFFLINE=1, which"),
        (
            "hub:me/tiny",
            {"HF_TOKEN": ""},
            "--push hub:me/tiny: there is no token of the Hugging Face Hub; set HF_TOKEN",
        ),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_asked(
    given: str,
    changed: dict[str, Any],
    error: str,
    service: LocalHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in changed.items():
        if name == "HF_TOKEN":
            monkeypatch.setenv(name, value)
            monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
        else:
            monkeypatch.setattr(huggingface_hub.constants, name, value)
    line = exporting.refused(exporting.export(tmp_path / "out", "--to", "merged", "--push", given), tmp_path / "out", 2)
    assert line.startswith(f"error: {error}")
    assert service.asked == []


def test_public_without_a_push_says_nothing_and_is_refused(tmp_path: Path) -> None:
    line = exporting.refused(exporting.export(tmp_path / "out", "--to", "merged", "--public"), tmp_path / "out", 2)
    assert line == "error: --public: accepted only with --push, as it says who may read what is pushed"
