"""The keys and schedules of a Prefect deployment file: what is wrong is said with its line, before Prefect sees it."""

from datetime import timedelta
from typing import Any

from prefect.client.schemas.objects import ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import SCHEDULE_TYPES, IntervalSchedule, construct_schedule
from pydantic import ValidationError

from tunewright.cli.deployment_file.strict_yaml import Document
from tunewright.errors import ConfigError
from tunewright.flows.parameters import Parameters, shown, unknown

FILE_KEYS = (
    *("deployments", "definitions", "name", "description", "prefect-version", "required_inputs"),
    *("build", "push", "pull"),
)
DEPLOYMENT_KEYS = (
    *("name", "entrypoint", "parameters", "schedules", "work_pool", "triggers", "paused"),
    *("description", "tags", "version", "version_type", "concurrency_limit", "flow_name", "enforce_parameter_schema"),
    *("build", "push", "pull", "sla"),
)
TRUTH = (bool, "true or false")
# Key -> its type, and what is accepted in words; the other keys have checks of their own.
OF_DEPLOYMENT: dict[str, tuple[Any, str]] = {
    "paused": TRUTH,
    "enforce_parameter_schema": TRUTH,
    "description": (str, "text"),
    "flow_name": (str, "text"),
    "version": (str, 'text: put it in quotes, such as "1.0"'),
    "version_type": (str, "text"),
    "tags": (str | list, "a list of texts, such as [nightly]"),
    "sla": (list, "a list of mappings"),
}
OF_WORK_POOL: dict[str, tuple[Any, str]] = {
    "name": (str, "text, such as local"),
    "work_queue_name": (str, "text, such as default"),
    "job_variables": (dict, "a mapping, such as {env: {NAME: text}}"),
}
OF_SCHEDULE: dict[str, tuple[Any, str]] = {"active": TRUTH}
SCHEDULE_KEYS = (
    *("cron", "interval", "rrule", "timezone", "anchor_date", "day_or", "active", "parameters", "slug", "replaces"),
    *("schedule", "max_scheduled_runs"),
)
TIME_KEYS = ("cron", "interval", "rrule", "timezone", "anchor_date")  # what a schedule is made of
ACCEPTED_TIMES = {
    "cron": 'minute, hour, day of month, month and day of week, such as "0 3 * * 1-5" or "@daily"',
    "interval": "seconds, at least 60, such as 3600",
    "rrule": "an iCalendar rule, such as FREQ=DAILY;BYHOUR=3",
    "timezone": "a name of the IANA database, such as Europe/Berlin",
}
SHORTEST = timedelta(minutes=1)  # between two runs by a schedule; sooner ones only pile up, as each takes seconds
WORK_POOL_KEYS = ("name", "work_queue_name", "job_variables")
CONCURRENCY_KEYS = ("limit", "collision_strategy", "grace_period_seconds")
STRATEGIES = [each.value for each in ConcurrencyLimitStrategy]


def check(document: Document) -> None:
    """Raises ConfigError on a key that Prefect does not know, which it ignores, and on a schedule that can be none."""
    file = document.value
    if not isinstance(file, dict):
        raise ConfigError(f"{document.name}: not a mapping; a deployment file has deployments: with a list of them")
    if misplaced := [key for key in file if key in Parameters.model_fields]:
        place = document.place(misplaced[0])
        raise ConfigError(
            f"{place}: {misplaced[0]}: is not indented enough; it belongs under deployments, then parameters"
        )
    _known(document, "", file, FILE_KEYS)
    for at, deployment in mappings(document, "deployments", file.get("deployments")):
        if misplaced := [key for key in deployment if key in Parameters.model_fields]:
            place = document.place(f"{at}.{misplaced[0]}")
            raise ConfigError(f"{place}: {misplaced[0]}: is not indented enough; it belongs under parameters")
        _known(document, at, deployment, DEPLOYMENT_KEYS)
        for name, accepted in (("work_pool", WORK_POOL_KEYS), ("concurrency_limit", CONCURRENCY_KEYS)):
            if isinstance(deployment.get(name), dict):
                _known(document, f"{at}.{name}", deployment[name], accepted)
        _pooled(document, f"{at}.work_pool", deployment.get("work_pool"))
        _limited(document, f"{at}.concurrency_limit", deployment.get("concurrency_limit"))
        _typed(document, at, deployment, OF_DEPLOYMENT)
        for under, trigger in mappings(document, f"{at}.triggers", deployment.get("triggers")):
            _selective(document, under, trigger)
        for under, schedule in mappings(document, f"{at}.schedules", deployment.get("schedules")):
            _known(document, under, schedule, SCHEDULE_KEYS)
            _typed(document, under, schedule, OF_SCHEDULE)
            schedule_of(document, under, schedule)


def _pooled(document: Document, at: str, given: Any) -> None:
    """Raises ConfigError where a work pool has no form that Prefect takes."""
    if given is None:
        return
    if not isinstance(given, dict):
        example = given if isinstance(given, str) and given.isprintable() else "local"
        raise ConfigError(f"{document.place(at)}: {at}: {shown(given)} is refused; accepted: {{name: {example}}}")
    _typed(document, at, given, OF_WORK_POOL)


def _typed(document: Document, at: str, values: dict[str, Any], accepted: dict[str, tuple[Any, str]]) -> None:
    """Raises ConfigError on a value of another type than Prefect takes; a template is filled in later."""
    for key, (kind, words) in accepted.items():
        value = values.get(key)
        if value is not None and not isinstance(value, kind) and "{{" not in str(value):
            place = f"{at}.{key}"
            raise ConfigError(f"{document.place(place)}: {place}: {shown(value)} is refused; accepted: {words}")


def _selective(document: Document, at: str, trigger: dict[str, Any]) -> None:
    """Raises ConfigError on a trigger that every event meets, those of the runs that it starts included."""
    is_event = trigger.get("type", "event") == "event" and trigger.get("posture", "Reactive") == "Reactive"
    if is_event and not any(trigger.get(key) for key in ("expect", "match", "match_related", "after")):
        raise ConfigError(
            f"{document.place(at)}: {at}: neither expect nor match is set, so every event would start a run, and the "
            "events of that run the next ones; accepted: expect: [the name of an event], or match: {a label: a value}"
        )


def _limited(document: Document, at: str, given: Any) -> None:
    """Raises ConfigError where the limit of runs at once is none."""
    limit = given if isinstance(given, dict) else {"limit": given}
    number, strategy = limit.get("limit"), limit.get("collision_strategy")
    is_count = type(number) is int and number > 0
    if given is not None and not is_count and "{{" not in str(number):
        said = "missing" if number is None else f"{shown(number)} is refused"
        key = f"{at}.limit" if isinstance(given, dict) else at
        raise ConfigError(f"{document.place(key)}: {key}: {said}; accepted: how many runs at once, such as 1")
    if strategy is not None and strategy not in STRATEGIES:
        key = f"{at}.collision_strategy"
        raise ConfigError(
            f"{document.place(key)}: {key}: {shown(strategy)} is refused; accepted: {', '.join(STRATEGIES)}"
        )


def _known(document: Document, at: str, values: dict[str, Any], accepted: tuple[str, ...]) -> None:
    for key in values:
        if key not in accepted:
            full = f"{at}.{key}" if at else key
            raise ConfigError(f"{document.place(full)}: {unknown(full, key, accepted)}")


def schedule_of(document: Document, at: str, schedule: dict[str, Any]) -> SCHEDULE_TYPES | None:
    """The schedule as Prefect makes it, whose own error has no line of the file; None where Prefect fills it in."""
    times = {key: schedule[key] for key in TIME_KEYS if schedule.get(key) is not None}
    if any("{{" in str(value) for value in times.values()):
        return None
    try:
        made = None if _is_no_interval(times.get("interval")) else construct_schedule(**times)
    except ValidationError as error:
        found = error.errors()[0]
        key = next((key for key in times if key in found["loc"]), "")
        if key in ACCEPTED_TIMES:
            raise _refused(document, at, key, times[key]) from None
        place, said = f"{at}.{key}" if key else at, found["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{document.place(place)}: {place}: {said}") from None
    except ValueError as error:
        raise ConfigError(f"{document.place(at)}: {at}: {error}") from None
    if made is None or (isinstance(made, IntervalSchedule) and made.interval < SHORTEST):
        raise _refused(document, at, "interval", times["interval"])
    return made


def _is_no_interval(given: Any) -> bool:
    """Return whether `given` is a number that is too small or too large for an interval in Prefect."""
    is_number = isinstance(given, int | float)
    return is_number and not SHORTEST.total_seconds() <= given < timedelta.max.total_seconds()


def _refused(document: Document, at: str, key: str, given: Any) -> ConfigError:
    place = f"{at}.{key}"
    return ConfigError(f"{document.place(place)}: {place}: {shown(given)} is refused; accepted: {ACCEPTED_TIMES[key]}")


def mappings(document: Document, at: str, items: Any) -> list[tuple[str, dict[str, Any]]]:
    """The items of the list at `at`, each with its own path; all must be mappings."""
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ConfigError(f"{document.place(at)}: {at}: {shown(items)} is refused; accepted: a list of mappings")
    return [(f"{at}[{i}]", item) for i, item in enumerate(items)]
