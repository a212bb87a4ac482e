"""Memory of a command and all its children, looked at from outside, so that nothing hides in a busy process."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

POLL_SECONDS = 0.05
MB = 1_000_000


@dataclass(frozen=True)
class Watched:
    """The output of a command, one JSON object a line, and the memory of its process tree over time."""

    objects: list[dict[str, Any]]
    samples: list[tuple[float, float]]  # (time.time(), MB resident; memory that processes share counts in each)

    def peak(self, start: float, end: float) -> float:
        """The most MB between two moments of time.time()."""
        return max((size for moment, size in self.samples if start <= moment <= end + POLL_SECONDS), default=0.0)

    def at(self, moment: float) -> float:
        """The MB at a moment of time.time(): those of the last sample before it."""
        return next((size for seen, size in reversed(self.samples) if seen <= moment), 0.0)


def watch(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Runs a command to its end. Raises SystemExit where it fails; what it wrote to stderr has been seen by then."""
    samples = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(command, env=os.environ | (environment or {}), stdout=printed)
        tree = psutil.Process(process.pid)
        while process.poll() is None:
            samples.append((time.time(), resident(tree)))
            time.sleep(POLL_SECONDS)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        printed.seek(0)
        return Watched([json.loads(line) for line in printed if line.startswith("{")], samples)


def resident(tree: psutil.Process) -> float:
    """MB resident of a process and its descendants."""
    total = 0
    try:
        family = [tree, *tree.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # ended since it was listed
            continue
    return total / MB
