"""A run resumes from the newest checkpoint that is whole, and from no other."""

import hashlib
from pathlib import Path

import pytest

from tunewright.tasks.train.trainer import checkpoints


def make(folder: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(bytes([step % 256] * 100))
    (checkpoint / "adapter_model.safetensors").write_bytes(b"weights")
    if sealed:
        checkpoints.seal(checkpoint)
    return checkpoint


def test_the_newest_valid_checkpoint_is_taken_by_number(tmp_path: Path) -> None:
    make(tmp_path, 9)
    assert checkpoints.newest_valid(tmp_path)[0] == tmp_path / "checkpoint-9"
    make(tmp_path, 10)
    assert checkpoints.newest_valid(tmp_path)[0] == tmp_path / "checkpoint-10"


def test_an_unsealed_checkpoint_is_removed_and_the_one_before_taken(tmp_path: Path) -> None:
    make(tmp_path, 5)
    partial = make(tmp_path, 10, sealed=False)
    found, skipped = checkpoints.newest_valid(tmp_path)
    assert found == tmp_path / "checkpoint-5"
    assert skipped == [
        "checkpoint-10 is skipped: it was not finished when the training was stopped (it has no manifest.json)"
    ]
    assert not partial.exists()


def test_a_flipped_bit_a_missing_and_an_added_file_each_make_it_invalid(tmp_path: Path) -> None:
    flipped, missing, added = (make(tmp_path, step) for step in (1, 2, 3))
    (flipped / "optimizer.pt").write_bytes(b"\x01" * 99 + b"\x00")
    (missing / "optimizer.pt").unlink()
    (added / "scheduler.pt").write_bytes(b"from elsewhere")
    assert [checkpoints.fault(one) for one in (flipped, missing, added)] == [
        "optimizer.pt was altered",
        "optimizer.pt is missing",
        "scheduler.pt was added",
    ]
    assert checkpoints.newest_valid(tmp_path)[0] is None


@pytest.mark.parametrize(
    "manifest",
    [
        *("[]", "{}", '{"best_step": null, "files": 3}', "\x00" * 40, "[" * 5_000),
        '{"best_step": null, "files": {"optimizer.pt": null}}',
        '{"best_step": [], "files": {}}',
    ],
)
def test_a_manifest_that_is_not_as_it_was_written_is_none(tmp_path: Path, manifest: str) -> None:
    before, broken = make(tmp_path, 5), make(tmp_path, 10)
    (broken / checkpoints.MANIFEST).write_text(manifest)
    assert checkpoints.newest_valid(tmp_path) == (before, ["checkpoint-10 is skipped: manifest.json was altered"])


def test_a_best_step_without_its_manifest_is_no_unfinished_one(tmp_path: Path) -> None:
    best, newest = make(tmp_path, 5), make(tmp_path, 10, sealed=False)
    checkpoints.seal(newest, best_step=5)
    (best / checkpoints.MANIFEST).unlink()
    assert checkpoints.fault(newest) == "checkpoint-5, the best step: manifest.json is missing"


def test_a_name_that_ends_a_line_is_shown_as_an_escape(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 5)
    (checkpoint / "a\r\x1b[2Jb").touch()
    assert checkpoints.fault(checkpoint) == r'"a\r\u001b[2Jb" was added'


def test_a_replaced_file_leaves_it_valid_and_no_other_content_does(tmp_path: Path) -> None:
    checkpoint = make(tmp_path, 2)
    new = tmp_path / "new"
    new.write_bytes(b"new")
    checkpoints.replace(checkpoint, "optimizer.pt", new, best_step=2)
    assert (checkpoint / "optimizer.pt").read_bytes() == b"new"
    assert checkpoints.newest_valid(tmp_path)[0] == checkpoint
    (checkpoint / "optimizer.pt").write_bytes(b"other")
    assert checkpoints.fault(checkpoint) == "optimizer.pt was altered"


def test_a_checkpoint_that_is_its_own_best_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = make(tmp_path, 2, sealed=False)
    checkpoints.seal(checkpoint, best_step=2)
    read: list[str] = []
    original = hashlib.file_digest

    def file_digest(file: object, name: str) -> object:
        read.append(name)
        return original(file, name)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    assert checkpoints.newest_valid(tmp_path)[0] == checkpoint
    assert len(read) == len(["optimizer.pt", "adapter_model.safetensors"])


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoints.newest_valid(tmp_path / "nothing") == (None, [])
