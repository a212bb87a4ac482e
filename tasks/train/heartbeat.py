"""Whether a trainer that lives is at work: it writes or touches a file in its folder all along, or at least computes.

A process that was stopped, or that waits for a lock or a disk for ever, does neither.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

from tunewright.machine import cpu_seconds

IDLE_SECONDS = 300.0  # without a file written and without computing: it hangs
BUSY_SECONDS = 1800.0  # without a file written, but computing: as loading, compiling and long answers are at most
BUSY_STEPS = 30  # or so many steps, where these take long
IDLE_SHARE = 0.02  # of a processor: what threads that only wait take
LOOK_SECONDS = 1.0


class Heartbeat:
    """The signs of life of the process `pid`, which works in the folder `work`."""

    def __init__(self, work: Path, pid: int) -> None:
        self.work, self.pid = work, pid
        self.written: dict[str, float] = {}
        self.computed = self.silent = 0.0
        self.looked = time.monotonic()

    def hangs(self, step_seconds: float) -> bool:
        """Return whether the trainer was silent for too long; `step_seconds` is the time of a step, 0 if unknown."""
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return False
        written: dict[str, float] = {}  # when each file beneath the folder was; the newest may be of a clock set back
        for at, _, names in os.walk(self.work):
            for name in names:
                with suppress(OSError):  # files that go meanwhile count for nothing
                    written[f"{at}/{name}"] = Path(at, name).stat().st_mtime
        computed = cpu_seconds(self.pid)  # of its ranks as well
        if written != self.written:
            self.written, self.computed, self.silent = written, computed, 0.0
        else:  # a machine that slept, and a parent that was stopped, are no silence of the trainer's
            self.silent += min(now - self.looked, 2 * LOOK_SECONDS)
        self.looked = now
        is_idle = computed - self.computed < IDLE_SHARE * self.silent
        return self.silent > (IDLE_SECONDS if is_idle else max(BUSY_SECONDS, BUSY_STEPS * step_seconds))
