"""How long a process may take to start; a busy machine is no fault of its own."""

import time

from tunewright.machine import cpu_seconds

MOST_WAITS = 10  # times the limit, where a busy machine lets it go on slowly


class StartLimit:
    """The seconds in which a process has to answer; they begin anew when it has computed, up to MOST_WAITS times."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun = seconds, time.monotonic()
        self.until, self.last = self.begun + seconds, self.begun + MOST_WAITS * seconds
        self.computed = 0.0  # seconds of processor time

    def renew(self, pid: int) -> None:
        """Begin anew if the process has computed since the last call."""
        if (computed := cpu_seconds(pid)) > self.computed:
            self.computed, self.until = computed, min(time.monotonic() + self.seconds, self.last)

    @property
    def is_over(self) -> bool:
        """Whether the process has taken too long."""
        return time.monotonic() >= self.until

    @property
    def waited(self) -> float:
        """The seconds so far."""
        return time.monotonic() - self.begun
