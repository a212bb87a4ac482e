"""A schedule in words, and when it is due next."""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from prefect.client.schemas.schedules import SCHEDULE_TYPES, IntervalSchedule, NoSchedule, RRuleSchedule
from pydantic import TypeAdapter

from tunewright.cli.deployment_file.keys import SHORTEST
from tunewright.errors import ConfigError
from tunewright.reports.progress import duration

DAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def in_words(schedule: SCHEDULE_TYPES) -> str:
    """Such as "every day at 03:00 UTC", "every 30 s"; what is none of the simple ones as it stands."""
    if isinstance(schedule, NoSchedule):
        return "never"
    if isinstance(schedule, IntervalSchedule):
        return f"every {_exact(schedule.interval)}"
    zone = schedule.timezone or "UTC"
    if isinstance(schedule, RRuleSchedule):
        return f"rrule {' '.join(schedule.rrule.split())} {zone}"
    simple = re.fullmatch(r"(\d{1,2}) (\d{1,2}) \* \* (\*|[0-6])", schedule.cron)
    if not simple:
        return f"cron {schedule.cron} {zone}"
    minute, hour, day = simple.groups()
    return f"every {'day' if day == '*' else DAYS[int(day)]} at {int(hour):02}:{int(minute):02} {zone}"


def next_times(schedule: SCHEDULE_TYPES, count: int = 2) -> Sequence[datetime]:
    """Return when it is due next, by Prefect's own scheduler."""
    if isinstance(schedule, NoSchedule):
        return []
    from prefect.server.schemas.schedules import SCHEDULE_TYPES

    there: Any = TypeAdapter[Any](SCHEDULE_TYPES).validate_python(schedule.model_dump())
    return asyncio.run(there.get_dates(count))


def require_due(schedules: Sequence[SCHEDULE_TYPES | None], places: Sequence[str]) -> None:
    """Raises ConfigError on one that is never due, such as a 31st of February, or again within a minute.

    A sixth field of cron is seconds. `places` say where each schedule stands.
    """
    for schedule, place in zip(schedules, places, strict=True):
        if schedule is None:
            continue
        try:
            times = next_times(schedule, 3)
        except ValueError:  # of croniter, which Prefect has a copy of
            times = []
        if not times:
            raise ConfigError(f"{place}: schedules: {in_words(schedule)}: no such time in the future")
        if (gap := min((b - a for a, b in pairwise(times)), default=SHORTEST)) < SHORTEST:
            raise ConfigError(
                f"{place}: schedules: {in_words(schedule)}: due again after {gap.seconds} s; accepted: at least "
                f"{SHORTEST.seconds} s between two runs"
            )


def _exact(interval: timedelta) -> str:
    seconds = interval.total_seconds()
    for unit, length in (("day", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            count = seconds / length
            return unit if count == 1 and unit == "day" else f"{count:.0f} {unit}{'s' if unit == 'day' else ''}"
    return duration(seconds) if seconds < 90 else f"{seconds:.0f} s"
