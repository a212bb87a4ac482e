"""Backs up and restores what a team's servers remember: three databases, the S3 store and the workers' home.

    docker compose run --rm backup save /backups/monday
    docker compose run --rm backup restore /backups/monday       # into empty volumes, before the servers start

Runs may go on while a copy is made. The databases are saved first, then the histories of the shared store, then its
trees with their content, so that what is copied names nothing that came later. What is gone meanwhile is left out.
Where PostgreSQL and the store are, the environment says: PGHOST, PGUSER, PGPASSWORD and AWS_ENDPOINT_URL, AWS_*.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import s3fs
from pydantic import ValidationError

from tunewright.store.shared import TREE, content_of

DATABASES = ("prefect", "mlflow", "mlflow_auth")
BUCKET = "tunewright"
STORE = f"{BUCKET}/store"  # TUNEWRIGHT_STORE of compose.yaml; tunewright/store/shared.py has its layout
REMEMBERED = ("versions", "test_set_uses", "registered", "alias_history", "api")  # of the home: docs/recovering.md


def save(folder: Path) -> None:
    """Write a copy into a folder that does not exist yet; it is there whole, or not at all."""
    if folder.exists():
        sys.exit(f"error: {folder} is there already; accepted: a new folder")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in DATABASES:
        _run("pg_dump", "--format=custom", f"--file={unfinished / name}.dump", name)
    _save_store(unfinished / "store")
    if any((_home() / name).exists() for name in REMEMBERED):
        _run("tunewright", "home", "backup", str(unfinished / "home.tar"))
    unfinished.rename(folder)
    print(f"saved to {folder}")


def restore(folder: Path) -> None:
    """Put a copy into databases, a store and a home that are empty."""
    if not (folder / "mlflow.dump").is_file():
        sys.exit(f"error: {folder} is no copy that save has written")
    store = s3fs.S3FileSystem()
    store.makedirs(BUCKET, exist_ok=True)
    if store.find(BUCKET):
        sys.exit(f"error: the bucket {BUCKET} has files; accepted: empty volumes")
    for name in DATABASES:
        into = ("--single-transaction", "--clean", "--if-exists", "--no-owner", f"--dbname={name}")
        _run("pg_restore", *into, str(folder / f"{name}.dump"))
    for file in sorted(path for path in (folder / "store").rglob("*") if path.is_file()):
        store.put_file(str(file), f"{BUCKET}/{file.relative_to(folder / 'store')}")
    if (folder / "home.tar").is_file():
        _run("tunewright", "home", "restore", str(folder / "home.tar"))
    print(f"restored from {folder}; now start the servers")


def _save_store(to: Path) -> None:
    """Copy the bucket without leases, whose holders are gone when it is restored."""
    store = s3fs.S3FileSystem(use_listings_cache=False)
    histories, trees = f"{STORE}/histories/", f"{STORE}/trees/"
    for file in store.find(histories):
        _save_file(store, file, to)
    for tree in store.find(trees):
        _save_tree(store, tree, to)
    for file in store.find(BUCKET):
        if not file.startswith((histories, trees, f"{STORE}/leases/")):
            _save_file(store, file, to)


def _save_tree(store: s3fs.S3FileSystem, tree: str, to: Path) -> None:
    """Copy a tree and its content: the newer one where it is replaced meanwhile, and none that is not whole."""
    at = tree.removeprefix(f"{STORE}/trees/").removesuffix(".json")
    content = f"{STORE}/{content_of(at)}"
    copy, before = _place(tree, to), b""
    while _save_file(store, tree, to) and (now := copy.read_bytes()) != before:
        try:
            if all(_save_file(store, f"{content}/{file.sha256}", to) for file in TREE.validate_json(now).values()):
                return
        except ValidationError:  # damaged, and made anew by the next run
            pass
        copy.unlink()
        before = now
    copy.unlink(missing_ok=True)


def _save_file(store: s3fs.S3FileSystem, file: str, to: Path) -> bool:
    """Copy a file of the bucket unless its copy is there; returns False where the file is gone."""
    copy = _place(file, to)
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            store.get_file(file, str(copy))
        except FileNotFoundError:
            copy.unlink(missing_ok=True)
            return False
    return True


def _place(file: str, to: Path) -> Path:
    """Where the copy of a file of the bucket lies."""
    return to / file.removeprefix(f"{BUCKET}/")


def _home() -> Path:
    return Path(os.environ["TUNEWRIGHT_HOME"])


def _run(*command: str) -> None:
    if code := subprocess.run(command).returncode:
        sys.exit(f"error: {command[0]} ended with {code}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("save", "restore"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    os.umask(0o077)  # a copy has answers to test rows, and hashes of passwords
    (save if given.what == "save" else restore)(given.folder)
