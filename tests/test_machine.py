"""A container's bounds count, and not what its host has."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tunewright import machine

Groups = Callable[..., None]
GIB = 1024**3


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Groups:
    """`groups("0::/pod", {"pod/cpu.max": "max 100000"})`: the groups we are in, and the files of their folders."""
    monkeypatch.setattr(machine, "MOUNT", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN", tmp_path / "own")
    monkeypatch.setattr(machine, "VMSTAT", tmp_path / "vmstat")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 64 if logical else 32)

    def write(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(text)

    return write


V1 = "4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n"
BOUND = [
    ("0::/pod/main\n", {"pod/cpu.max": "max 100000", "pod/main/cpu.max": "400000 100000\n"}, 4),
    ("0::/pod/main\n", {"pod/cpu.max": "250000 100000", "pod/main/cpu.max": "max 100000\n"}, 2),
    ("0::/\n", {"cpu.max": "50000 100000"}, 1),
    ("0::/pod\n", {"pod/cpu.max": "max 100000"}, 32),
    (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "300000", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 3),
    (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 32),
    (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),  # seen from inside of a container
]


@pytest.mark.parametrize(("own", "files", "cores"), BOUND)
def test_there_are_no_more_threads_than_a_container_has_processors(
    groups: Groups, own: str, files: dict[str, str], cores: int
) -> None:
    groups(own, files)
    assert machine.num_cores() == cores


def test_memory_is_the_least_of_what_the_groups_above_allow(groups: Groups) -> None:
    files = {
        "pod/memory.max": str(GIB),
        "pod/memory.current": str(GIB // 2),
        "pod/memory.stat": f"anon 7\ninactive_file {GIB // 4}\n",
        "pod/main/memory.max": "max\n",
        "pod/main/memory.current": str(GIB // 2),
    }
    groups("0::/pod/main\n", files)
    assert machine.memory_bytes() == GIB
    assert machine.available_bytes() == GIB * 3 // 4


def test_memory_of_the_first_version_is_bounded_too(groups: Groups) -> None:
    files = {
        "memory/docker/abc/memory.limit_in_bytes": str(GIB),
        "memory/docker/abc/memory.usage_in_bytes": str(GIB // 2),
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    groups(V1, files)
    assert (machine.memory_bytes(), machine.available_bytes()) == (GIB, GIB // 2)


def test_without_a_bound_memory_is_the_machines(groups: Groups) -> None:
    groups("0::/pod\n", {"pod/memory.max": "max"})
    assert machine.memory_bytes() == psutil.virtual_memory().total


def test_what_the_kernel_ended_for_want_of_memory_is_counted(groups: Groups, tmp_path: Path) -> None:
    groups("0::/pod\n", {})
    assert machine.oom_kills() == 0
    (tmp_path / "vmstat").write_text("nr_free_pages 12\noom_kill 3\n")
    assert machine.oom_kills() == 3
    groups("0::/pod\n", {"pod/memory.events": "low 0\noom 9\noom_kill 7\n"})
    assert machine.oom_kills() == 7


@pytest.mark.parametrize(
    ("value", "first"), [(None, "0"), ("", None), ("-1", None), ("1,0", "1"), ("GPU-8932f937,GPU-1", "GPU-8932f937")]
)
def test_the_first_gpu_is_that_which_is_shown_first(
    monkeypatch: pytest.MonkeyPatch, value: str | None, first: str | None
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert machine.first_gpu() == first


@pytest.mark.parametrize(
    ("value", "first"), [(None, ["0", "1"]), ("", []), ("3", ["3"]), ("3,1,0", ["3", "1"]), ("2,-1,1", ["2"])]
)
def test_so_many_gpus_are_the_first_of_those_that_are_shown(
    monkeypatch: pytest.MonkeyPatch, value: str | None, first: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if value is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert machine.first_gpus(2) == first
