"""Backs up and restores what a team's servers remember: three databases, the S3 store and the workers' home.

    docker compose run --rm backup save /backups/monday
    docker compose run --rm backup restore /backups/monday       # into empty volumes, before the servers start

The databases are saved before the store, so that every file that they name is in the copy, also while runs go on.
Where PostgreSQL and the store are, the environment says: PGHOST, PGUSER, PGPASSWORD and AWS_ENDPOINT_URL, AWS_*.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import s3fs

DATABASES = ("prefect", "mlflow", "mlflow_auth")
BUCKET = "tunewright"
REMEMBERED = ("versions", "test_set_uses", "registered", "alias_history", "api")  # of the home: docs/recovering.md


def save(folder: Path) -> None:
    """Write a copy into a folder that does not exist yet; it is there whole, or not at all."""
    if folder.exists():
        sys.exit(f"error: {folder} is there already; accepted: a new folder")
    os.umask(0o077)  # it has answers to test rows, and hashes of passwords
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name in DATABASES:
        _run("pg_dump", "--format=custom", f"--file={unfinished / name}.dump", name)
    store = s3fs.S3FileSystem()
    for file in store.find(BUCKET):
        to = unfinished / "store" / file.removeprefix(f"{BUCKET}/")
        to.parent.mkdir(parents=True, exist_ok=True)
        store.get_file(file, str(to))
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
    (save if given.what == "save" else restore)(given.folder)
