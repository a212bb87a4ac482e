"""A run resumes from the newest checkpoint that is whole, and from no other."""

from pathlib import Path

from tasks.trainer import checkpoints


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
    assert checkpoints.newest_valid(tmp_path) == tmp_path / "checkpoint-9"
    make(tmp_path, 10)
    assert checkpoints.newest_valid(tmp_path) == tmp_path / "checkpoint-10"


def test_an_unsealed_checkpoint_is_removed_and_the_one_before_taken(tmp_path: Path) -> None:
    make(tmp_path, 5)
    partial = make(tmp_path, 10, sealed=False)
    assert checkpoints.newest_valid(tmp_path) == tmp_path / "checkpoint-5"
    assert not partial.exists()


def test_a_flipped_bit_a_missing_and_an_added_file_each_make_it_invalid(tmp_path: Path) -> None:
    flipped, missing, added = (make(tmp_path, step) for step in (1, 2, 3))
    (flipped / "optimizer.pt").write_bytes(b"\x01" * 99 + b"\x00")
    (missing / "optimizer.pt").unlink()
    (added / "scheduler.pt").write_bytes(b"from elsewhere")
    assert [checkpoints.is_valid(one) for one in (flipped, missing, added)] == [False] * 3
    assert checkpoints.newest_valid(tmp_path) is None


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert checkpoints.newest_valid(tmp_path / "nothing") is None
