"""`tunewright clean`: what nothing needs in the home, the shared store and MLflow; shown, and removed on request."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from tunewright import config
from tunewright.config import Registry
from tunewright.errors import ConfigError, StoreError, TunewrightError
from tunewright.registry import needless
from tunewright.registry.needless import in_mlflow
from tunewright.store import in_use
from tunewright.store.needless import Needless, in_home, in_store

log = logging.getLogger("tunewright")

SHOWN = 20  # of a kind, one by one


@dataclass(frozen=True)
class Cleaned:
    """The items no longer needed, and those removed; `removed` is None where nothing was to be removed."""

    found: Sequence[Needless]
    removed: Sequence[Needless] | None


def clean(
    keep_runs: int, keep_rejected: int, store_days: int, server_models: Sequence[str] = (), *, remove: bool
) -> Cleaned:
    """Looks for what is needless, and removes it where asked to; artifacts and work only while no run is on.

    With `server_models`, also the versions of these models on the MLflow server that the environment names.
    Raises ConfigError where there is no home, or the environment names no server for `server_models`.
    """
    if not config.home().is_dir():
        raise ConfigError(
            f"TUNEWRIGHT_HOME={config.home()}: this folder does not exist; accepted: a home, which a run makes as "
            ".tunewright in the folder that it is called in"
        )
    server = needless.named_server() if server_models else None
    of_home = list(in_home(keep_runs))
    of_mlflow = list(in_mlflow(keep_rejected))
    of_store = _in_store(keep_runs, store_days)
    of_server = _on_server(server, server_models, keep_rejected) if server else []
    found = [*of_home, *of_store, *of_mlflow, *of_server]
    if not remove:
        return Cleaned(found, None)
    with in_use.by_none() as is_free:
        removed = [each for each in (*(of_home if is_free else ()), *of_mlflow) if each.remove()]
        removed += _removed_from_store(of_store)
    return Cleaned(found, [*removed, *filter(_is_removed, of_server)])


def _in_store(keep_runs: int, store_days: int) -> list[Needless]:
    """Return what nothing needs in the shared store; none where it cannot be reached, which is logged."""
    try:
        return list(in_store(keep_runs, store_days, _needed_bases))
    except StoreError as error:
        log.warning("%s; nothing in the store was looked at", error)
        return []


def _removed_from_store(found: Sequence[Needless]) -> list[Needless]:
    """Remove things from the shared store, up to the first that it refuses to remove, which is logged."""
    removed = []
    for each in found:
        try:
            if each.remove():
                removed.append(each)
        except StoreError as error:
            log.warning("%s; %s and what follows it stays in the store", error, each.name)
            break
    return removed


def _on_server(server: Registry, names: Sequence[str], keep_rejected: int) -> list[Needless]:
    """The versions on the server that nothing needs; none where it does not answer or refuses, which is logged."""
    try:
        return needless.on_server(server, names, keep_rejected)
    except TunewrightError as error:
        log.warning("%s; no version on the server was looked at", error)
        return []


def _is_removed(each: Needless) -> bool:
    """Removes something from a server; returns whether that did it. A refusal is logged."""
    try:
        return each.remove()
    except TunewrightError as error:
        log.warning("%s: %s", each.name, error)
        return False


def _needed_bases(digests: Collection[str]) -> Collection[str]:
    """Those of these bases that a version may need: all of them where MLflow cannot be asked."""
    try:
        return needless.needed_bases(digests)
    except TunewrightError as error:
        log.warning("%s; no base is removed from the store, as a version may need it", error)
        return digests


def show(console: Console, cleaned: Cleaned) -> None:
    """Each kind with its size, and each thing with why it is needless."""
    if not cleaned.found:
        console.print(f"nothing to remove in {config.home()}", markup=False)
        return
    for kind in dict.fromkeys(each.kind for each in cleaned.found):
        all_of_it = [each for each in cleaned.found if each.kind == kind]
        console.print(Text(f"{kind}: {len(all_of_it):,}, {decimal(sum(each.size for each in all_of_it))}", "bold"))
        table = Table(box=None, pad_edge=False, show_header=False)
        for each in sorted(all_of_it, key=lambda each: -each.size)[:SHOWN]:
            table.add_row(*map(Text, ("", each.name, decimal(each.size), each.why)))
        console.print(table)
        if len(all_of_it) > SHOWN:
            console.print(f"  and {len(all_of_it) - SHOWN:,} more")
    console.print()
    if cleaned.removed is None:
        total = decimal(sum(each.size for each in cleaned.found))
        console.print(f"{total} can be freed; nothing was removed. To remove it: the same command with --yes")
        return
    kept = len(cleaned.found) - len(cleaned.removed)
    console.print(f"removed {len(cleaned.removed):,}, {decimal(sum(each.size for each in cleaned.removed))}")
    if kept:
        console.print(f"{kept:,} kept: in use by a run, needed again, or refused by the server", style="yellow")


def as_json(cleaned: Cleaned) -> dict[str, Any]:
    """Return the output of `--json`; sizes are in bytes, and `removed` is null where nothing was to be removed."""

    def plain(each: Needless) -> dict[str, Any]:
        return {"kind": each.kind, "name": each.name, "size": each.size, "why": each.why}

    removed = cleaned.removed
    return {
        "home": str(config.home()),
        "found": [plain(each) for each in cleaned.found],
        "removed": None if removed is None else [plain(each) for each in removed],
    }
