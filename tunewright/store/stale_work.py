"""Work that nobody went on with: kept for a while, since it is what a run resumes from, and then removed.

A clock that is wrong for a while, as before it is set after a start, must not make all work look old. So work is first
marked, and removed only by a look at least a day after the mark that finds it untouched still. A mark from the future
says that the clock was wrong, and is taken off.
"""

import logging
import shutil
import time
from pathlib import Path

from tunewright.store.caching import lock, work_folder

log = logging.getLogger("tunewright")

KEPT_DAYS = 7
DAY = 86_400  # seconds
MARK = "stale"


def remove(stage: Path) -> None:
    """Removes the work on artifacts of the folder `stage` that lay untouched for KEPT_DAYS, unless a run holds it.

    Younger work stays, whatever became of other runs since: it can be that of a run that goes on tomorrow.
    """
    for work in work_folder(stage / "any").parent.glob("*/"):
        try:
            with lock(stage / work.name, wait=False):
                if _is_stale(work):
                    shutil.rmtree(work)
                    log.info("  removed unfinished work untouched for %d days: %s", KEPT_DAYS, work)
        except BlockingIOError:  # a run is at work there
            continue


def touched(work: Path) -> float:
    """When something in the folder of work in progress was last touched, in seconds since the epoch."""
    times = (path.stat().st_mtime for path in work.iterdir() if path.name != MARK)
    return max(times, default=work.stat().st_mtime)


def _is_stale(work: Path) -> bool:
    """Whether work lay untouched for KEPT_DAYS, as was found a day ago as well; what is so found is marked."""
    now, mark = time.time(), work / MARK
    marked = mark.stat().st_mtime if mark.exists() else now
    is_old = now - touched(work) > KEPT_DAYS * DAY and marked <= now
    if not is_old:
        mark.unlink(missing_ok=True)
    elif not mark.exists():
        mark.touch()
    return is_old and now - marked >= DAY
