"""Configuration from the environment, never from a deployment file: paths, keys, and switches of the libraries.

A relative path of a setting starts from the folder of the deployment file, wherever a command is called: a command
works there, and so does a worker's run, whose deployment begins there. What the environment names by a relative path,
and what is shown, stays relative to the folder that the command was called in.
"""

import atexit
import errno
import gc
import logging
import os
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from contextvars import ContextVar
from pathlib import Path

from tunewright.config import outside
from tunewright.config.settings import Settings
from tunewright.errors import ConfigError, TunewrightError
from tunewright.store.locks import try_lock

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}
MODEST = {
    "LRU_CACHE_CAPACITY": "128",  # oneDNN keeps a kernel for each length of a batch: of 1024, a gigabyte in time
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads beside another busy process can be ten times slower
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as nvidia-smi counts, and with it plan and the locks on devices
}
SERVER_NEEDS = 20_000_000  # bytes: its database takes 2 MB at first, and its log of what is written 4 MB
READ_ONLY_DATABASE = "attempt to write a readonly database"  # in sqlite's words
# Imports make millions of objects that stay: at Python's own 700, looking through them is an eighth of a small run.
RARE_COLLECTIONS = (20_000, 10, 10)
AMONG_LIBRARIES = r"(transformers|peft|trl|mlflow)\b"  # what they tell each other is of no use to who runs them
_CALLED_IN: ContextVar[Path | None] = ContextVar("called_in", default=None)


def home() -> Path:
    """The folder of artifacts, work in progress and the embedded MLflow database: TUNEWRIGHT_HOME or .tunewright.

    A URL in TUNEWRIGHT_HOME names the store that machines share, and the home of this one is .tunewright.
    """
    named = os.environ.get("TUNEWRIGHT_HOME", "")
    return _folder("TUNEWRIGHT_HOME", ".tunewright" if not named or "://" in named else named)


def store() -> tuple[str, str]:
    """The variable that names the store that machines share, and the folder or URL; two empty strings without a store.

    Raises ConfigError where TUNEWRIGHT_STORE and TUNEWRIGHT_HOME name two.
    """
    named, own = os.environ.get("TUNEWRIGHT_STORE", ""), os.environ.get("TUNEWRIGHT_HOME", "")
    if "://" not in own:
        at = str(_folder("TUNEWRIGHT_STORE", named)) if named.startswith("~") else named
        return ("TUNEWRIGHT_STORE", at) if at else ("", "")
    if named in {"", own}:
        return "TUNEWRIGHT_HOME", own
    raise ConfigError(
        f"TUNEWRIGHT_HOME={outside.without_credentials(own)} and "
        f"TUNEWRIGHT_STORE={outside.without_credentials(named)} name two stores; accepted: one store in "
        "TUNEWRIGHT_STORE, and a folder of this machine or nothing in TUNEWRIGHT_HOME"
    )


def of_home() -> dict[str, str]:
    """The variables by which a process that starts in any folder uses this home and its store."""
    variable, named = store()
    return {"TUNEWRIGHT_HOME": str(home())} | ({"TUNEWRIGHT_STORE": named} if variable else {})


def mlflow_database() -> Path:
    """Return where MLflow keeps runs and models, unless registry.tracking_uri names a server."""
    return home() / "mlflow.db"


def prefect_database() -> Path:
    """Return where Prefect keeps the runs, unless PREFECT_API_URL names a server."""
    return home() / "prefect.db"


def mlflow_artifacts() -> Path:
    """The folder of what MLflow keeps as files, beside its database."""
    return home() / "mlartifacts"


def device_locks() -> Path:
    """The folder of the locks on devices, one for all homes of a user: TUNEWRIGHT_LOCKS, or a temporary folder's."""
    named = os.environ.get("TUNEWRIGHT_LOCKS")
    shared = Path(tempfile.gettempdir()) / f"tunewright-{os.getuid()}"
    return _folder("TUNEWRIGHT_LOCKS", named) if named else shared


def _folder(variable: str, named: str) -> Path:
    """The whole path that a variable names, whose ~ no shell expands in quotes. Raises ConfigError for ~nobody."""
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"{variable}={named}: no user here is called so; accepted: a path, also from ~/") from None


def ray_address() -> str:
    """The Ray cluster of data.engine=ray: RAY_ADDRESS, or one that is started on this machine."""
    return os.environ.get("RAY_ADDRESS") or "local"


def rendezvous() -> str:
    """The address at which the machines of a training meet, HOST:PORT: TUNEWRIGHT_RENDEZVOUS, or none."""
    return os.environ.get("TUNEWRIGHT_RENDEZVOUS", "")


def gguf_converter() -> Path | None:
    """Folder or program of llama.cpp's converter: TUNEWRIGHT_GGUF_CONVERTER, or None for the installed one."""
    named = os.environ.get("TUNEWRIGHT_GGUF_CONVERTER")
    return _folder("TUNEWRIGHT_GGUF_CONVERTER", named) if named else None


def signing_password() -> str | None:
    """The password of an encrypted key that signs an export: TUNEWRIGHT_SIGNING_PASSWORD, or None."""
    return os.environ.get("TUNEWRIGHT_SIGNING_PASSWORD") or None


def judge_key(url: str) -> str:
    """The key of judge.url: TUNEWRIGHT_JUDGE_KEY, or none.

    Raises ConfigError where there is a key and TUNEWRIGHT_JUDGE_HOSTS does not name the host: settings may be those of
    whoever can fill in a form, who could have the key sent to a server of their own.
    """
    key = os.environ.get("TUNEWRIGHT_JUDGE_KEY", "")
    if key and not outside.is_listed(url, "TUNEWRIGHT_JUDGE_HOSTS"):
        raise ConfigError(
            f"judge.url={outside.without_secrets(url)}: TUNEWRIGHT_JUDGE_KEY is sent only to hosts that "
            "TUNEWRIGHT_JUDGE_HOSTS names, and it does not name this one; set both in the environment of the worker"
        )
    return key


def api_key(url: str) -> str:
    """The key of an API: that of its host in TUNEWRIGHT_API_KEYS, such as api.example.com=KEY; or none."""
    return outside.key_of(url, "TUNEWRIGHT_API_KEYS")


def make_home() -> None:
    """Makes the home folder, for its owner alone.

    Raises ConfigError where that cannot be, or nothing can be written or locked in it.
    """
    try:
        home().mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home()) as probe:
            try_lock(probe)
    except OSError as error:
        raise refused_home(error) from error


def require_room() -> None:
    """Raises TunewrightError where the home's disk has no room for the database of Prefect's server."""
    there = next(filter(os.path.exists, (home(), *home().parents)))
    free = shutil.disk_usage(there).free
    if free < SERVER_NEEDS:
        raise TunewrightError(
            f"TUNEWRIGHT_HOME={home()}: {free:,} bytes are free on its disk; needed: {SERVER_NEEDS:,} for Prefect's "
            "server alone; free some, or set TUNEWRIGHT_HOME to another disk"
        )


def require_no_other_home() -> None:
    """Raises ConfigError, as make_home does, where something is at the home's path that is no folder."""
    try:
        is_folder = stat.S_ISDIR(home().stat().st_mode)
    except FileNotFoundError:  # it is yet to be made
        return
    except OSError as error:
        raise refused_home(error) from error
    if not is_folder:
        raise refused_home(FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)))


def refused_home(error: OSError) -> ConfigError:
    """Return the error for a home that cannot be created, written to or locked."""
    accepted = "a folder on a local disk" if error.errno == errno.ENOLCK else "a folder to write to"
    return ConfigError(f"TUNEWRIGHT_HOME={home()}: {_why_refused(error)}; accepted: {accepted}")


def _why_refused(error: OSError) -> str:
    there = next(filter(os.path.lexists, (home(), *home().parents)))
    if not os.path.isdir(there):  # noqa: PTH112 Path.is_dir raises where a folder cannot be entered
        wrong = "is a file, not a folder" if os.path.exists(there) else "is a link to nothing"  # noqa: PTH110 as above
        return wrong if there == home() else f"{there} {wrong}"
    if there != home():
        return f"cannot be created here: {error.strerror}"
    if error.errno == errno.ENOLCK:
        return f"cannot be locked: {error.strerror}"
    return f"cannot be {'written' if os.access(there, os.R_OK | os.X_OK) else 'read'}: {error.strerror}"


def refused_database() -> ConfigError:
    """Return the error for a database that cannot be written, or that of the home if it is the cause."""
    try:
        make_home()
    except ConfigError as refused:
        return refused
    return refused_home(OSError(errno.EACCES, READ_ONLY_DATABASE))


def quiet_libraries() -> None:
    """Tells the libraries, before they are imported, to send nothing home, to take no more than they need, to say no
    more than who runs them can use, and to keep what they keep of a run in the home: Prefect has its errors, which
    name rows.

    What the environment has already stays.
    """
    for name, value in (NO_TELEMETRY | MODEST | {"PREFECT_LOCAL_STORAGE_PATH": str(home() / "errors")}).items():
        os.environ.setdefault(name, value)
    gc.set_threshold(*RARE_COLLECTIONS)
    atexit.register(gc.freeze)  # else Python looks through all that was imported once more as it ends: up to 1.4 s
    warnings.filterwarnings("ignore", category=FutureWarning, module=AMONG_LIBRARIES)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # says each retry; our error says that none answers
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # advises a download that is not needed


def prepare_environment(settings: Settings) -> None:
    """Makes the libraries quiet, and the hub unreachable where neither the base nor a source is on it."""
    quiet_libraries()
    is_local = settings.model.base.startswith("package:") or Path(settings.model.base).expanduser().is_dir()
    sources = (*settings.data.sources, *settings.data.held_out)
    if is_local and not any(source.path.startswith("hub:") for source in sources):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Works in the folder of a deployment file. Modules that lie there can be imported, after all others."""
    os.environ |= of_home()
    if paths := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in paths.split(os.pathsep))
    token, added = _CALLED_IN.set(called_in()), str(folder.absolute())
    sys.path.append(added)
    try:
        with chdir(folder):
            yield
    finally:
        sys.path.remove(added)
        _CALLED_IN.reset(token)


def called_in() -> Path:
    """The folder that the command was called in, or the current one where no command was."""
    return _CALLED_IN.get() or Path.cwd()


def from_here(path: Path) -> Path:
    """A path as a person calls it: relative to the folder that the command was called in where it lies below it."""
    return path.relative_to(called_in()) if path.is_relative_to(called_in()) else path


def as_called(path: str | Path) -> Path:
    """A path from the folder of the deployment file as a person calls it: without "..", unless it means another one."""
    whole = Path(path).absolute()
    plain = Path(os.path.normpath(whole))
    is_same = plain.exists() and whole.exists() and plain.samefile(whole)
    return from_here(plain if is_same else whole)


def is_local(path: str) -> bool:
    """Whether a path is relative, and no URL, hub id (hub:) or file of a package (package:)."""
    return not (":" in path.partition("/")[0] or path.startswith(("/", "~")))


def from_folder(path: str, folder: Path, *, or_name: bool = False) -> str:
    """A relative path of the command line as a deployment file in `folder` would name it.

    What may be a name as well, such as a hub id, is a path only where something is there or it begins with a dot.
    """
    is_name = or_name and not path.startswith(".") and not (called_in() / path).exists()
    if not is_local(path) or is_name or folder.resolve() == called_in().resolve():
        return path
    return os.path.relpath(called_in().resolve() / path, folder.resolve())


def or_meant(path: str) -> str:
    """Return the hint for a missing path that exists relative to the folder that the command was called in, or ""."""
    if not is_local(path) or called_in() == Path.cwd() or not any(called_in().glob(path)):
        return ""
    return f"; paths are relative to the deployment file: did you mean {from_folder(path, Path.cwd())}?"
