"""Work that nobody went on with: kept for a while, since it is what a run resumes from, and then removed."""

import logging
import shutil
import time
from pathlib import Path

from tasks.caching import lock, work_folder

log = logging.getLogger("tunewright")

KEPT_DAYS = 7


def remove(stage: Path) -> None:
    """Removes the work on artifacts of the folder `stage` that lay untouched for KEPT_DAYS, unless a run holds it.

    Younger work stays, whatever became of other runs since: it can be that of a run that goes on tomorrow.
    """
    oldest = time.time() - KEPT_DAYS * 86_400
    for work in work_folder(stage / "any").parent.glob("*/"):
        try:
            with lock(stage / work.name, wait=False):
                if _touched(work) < oldest:
                    shutil.rmtree(work)
                    log.info("  removed unfinished work that was untouched for %d days: %s", KEPT_DAYS, work)
        except BlockingIOError:  # a run is at work there
            continue


def _touched(work: Path) -> float:
    return max(path.stat().st_mtime for path in (work, *work.iterdir()))
