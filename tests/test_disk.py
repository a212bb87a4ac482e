"""Files are replaced in one step, and only by what is on the disk."""

import os
from pathlib import Path

import pytest

from tunewright.store import disk


def test_a_file_that_cannot_be_written_keeps_its_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "history.jsonl"
    disk.replace(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        disk.replace(file, "new")
    assert file.read_text() == "old"


def test_a_file_is_on_the_disk_before_it_takes_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seen = tmp_path / "history.jsonl", list[str]()
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: seen.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    disk.replace(file, "new")
    assert [Path(name).parent for name in seen] == [tmp_path]
    assert str(file) not in seen
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]
