"""An exported folder as one commit in a repository of the Hugging Face Hub, with the user's own token.

Only this reaches the network. The token is read where huggingface_hub reads it, and is neither printed nor written.
"""

import fnmatch
import shlex
import sys
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunewright.accepted import shown
from tunewright.errors import ConfigError, TunewrightError, one_line
from tunewright.export.parity import NOTHING

if TYPE_CHECKING:
    from huggingface_hub import HfApi

SCHEME = "hub:"
# Files that programs load a model by: those of an earlier export would be loaded in place of, or with, the new ones.
LOADED = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.gguf", "Modelfile", "vllm.yaml"),
    *("adapter_config.json", "config.json", "generation_config.json", "chat_template.jinja", "tokenizer*", "base/*"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "spiece.model"),
)
LOGIN = "set HF_TOKEN, or log in with: hf auth login"
WRITING = "accepted: a token that may write there, from https://huggingface.co/settings/tokens"


class PushTarget(NamedTuple):
    """A repository to push to."""

    repository: str  # owner/name
    is_public: bool


class Pushed(NamedTuple):
    """Result of a push."""

    url: str  # of the commit
    is_public: bool
    removed: tuple[str, ...]  # files of an earlier model


def target(given: str, *, is_public: bool) -> PushTarget:
    """Return the repository that `--push` names. Raises ConfigError where it is none, or nothing could be sent."""
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    repository = given.removeprefix(SCHEME)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository = ""
    if not given.startswith(SCHEME) or repository.count("/") != 1:
        raise ConfigError(
            f"--push {shown(given)}: accepted: {SCHEME}OWNER/NAME, of letters, digits, dashes, underscores and dots"
        )
    if is_offline_mode():
        raise ConfigError(f"--push {given}: the environment has HF_HUB_OFFLINE=1, which forbids it; unset it")
    if not get_token():
        raise ConfigError(f"--push {given}: there is no token of the Hugging Face Hub; {LOGIN}")
    return PushTarget(repository, is_public)


def check_token(wanted: PushTarget, tell: Callable[[str], None]) -> None:
    """Asks the hub about the token before the work begins. Raises ConfigError where it is refused, or may only read.

    A hub that does not answer now is asked again after the export.
    """
    try:
        user = _api().whoami()
    except Exception as error:  # of many types, as of the connection
        status = _status(error)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise ConfigError(
                f"--push {SCHEME}{wanted.repository}: the hub refuses the token ({_reason(error)}); {LOGIN}; {NOTHING}"
            ) from error
        tell(f"the hub does not answer now ({_reason(error)}); it is asked again after the export")
        return
    if ((user.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise ConfigError(f"--push {SCHEME}{wanted.repository}: the token may only read; {WRITING}; {NOTHING}")


def push(folder: Path, wanted: PushTarget, message: str, tell: Callable[[str], None]) -> Pushed:
    """Makes an exported folder one commit of a repository, which is created where there is none.

    Raises TunewrightError, with the command that pushes the folder later, where the hub does not take it.
    """
    try:
        return _push(folder, wanted, message, tell)
    except TunewrightError:
        raise
    except Exception as error:  # of many types: of the hub, the connection, and the library that uploads
        raise _failure(folder, wanted, error) from error


def command(folder: Path, wanted: PushTarget) -> str:
    """The command of huggingface_hub that pushes an exported folder."""
    private = "" if wanted.is_public else " --private"
    return f"hf upload {wanted.repository} {shlex.quote(str(folder))} .{private}"


def _push(folder: Path, wanted: PushTarget, message: str, tell: Callable[[str], None]) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.utils import disable_progress_bars

    api, repository = _api(), wanted.repository
    if not sys.stderr.isatty():
        disable_progress_bars()
    api.create_repo(repository, private=not wanted.is_public, exist_ok=True)
    there = api.model_info(repository)
    is_public = not there.private
    if is_public and not wanted.is_public:
        raise TunewrightError(
            f"--push {SCHEME}{repository}: it exists and is public, and --public was not given; nothing was pushed; "
            f"make it private, or choose another, and push {folder} with: {command(folder, wanted)}"
        )
    tell(_caution(repository, wanted, is_public))
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    earlier = {each.rfilename for each in there.siblings or ()}
    removed = tuple(sorted(each for each in earlier - files.keys() if _is_loaded(each)))
    made = api.create_commit(
        repository,
        [
            *(CommitOperationAdd(name, path) for name, path in files.items()),
            *(CommitOperationDelete(name) for name in removed),
        ],
        commit_message=message,
        parent_commit=there.sha,
    )
    arrived = {each.rfilename for each in api.model_info(repository, revision=made.oid).siblings or ()}
    if missing := sorted(files.keys() - arrived):
        raise TunewrightError(
            f"--push {SCHEME}{repository}: the hub left out {', '.join(missing)}, which a .gitignore can ask for; "
            f"remove that, and push {folder} with: {command(folder, wanted)}"
        )
    return Pushed(str(made.commit_url), is_public, removed)


def _caution(repository: str, wanted: PushTarget, is_public: bool) -> str:
    if not is_public:
        kept = " (it was private before, and --public does not change that)" if wanted.is_public else ""
        return f"pushing to {repository}, which is private{kept}"
    return (
        f"pushing to {repository}, which is public: anyone can read the weights, which can repeat training rows, and "
        "the model card with names of source files, settings and scores; the licences of base and data apply"
    )


def _is_loaded(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in LOADED)


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(library_name="tunewright")


def _status(error: BaseException) -> int | None:
    """The status of the hub's answer, also where that is the cause of the error."""
    each: BaseException | None = error
    while each is not None:
        if (status := getattr(getattr(each, "response", None), "status_code", None)) is not None:
            return status
        each = each.__cause__
    return None


def _reason(error: BaseException) -> str:
    """Status and sentence of the hub's answer, or the type and message of any other error; never with the token."""
    from huggingface_hub import get_token

    said: Any = getattr(error, "server_message", None)
    status = _status(error)
    line = f"status {status}{f': {said}' if said else ''}" if status else one_line(error)
    line = " ".join(line.split())[:300]
    return line.replace(token, "***") if (token := get_token()) else line


def _failure(folder: Path, wanted: PushTarget, error: Exception) -> TunewrightError:
    """The error, with what to do: most likely the rights of the token, or a connection that may come back."""
    status, again = _status(error), f"{folder} is whole; push it with: {command(folder, wanted)}"
    what = {
        HTTPStatus.UNAUTHORIZED: f"the hub refuses the token; {LOGIN}",
        HTTPStatus.FORBIDDEN: f"the token has no right to write to {wanted.repository}; {WRITING}",
        HTTPStatus.PRECONDITION_FAILED: "somebody else pushed meanwhile",
    }.get(HTTPStatus(status) if status in {*HTTPStatus} else HTTPStatus.OK, "the hub did not take it")
    return TunewrightError(f"--push {SCHEME}{wanted.repository}: {what} ({_reason(error)}); {again}")
