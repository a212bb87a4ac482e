"""When a record was made, as text: ISO 8601 in UTC and of one width, so that the order of texts is that of times."""

from datetime import UTC, date, datetime, time
from typing import Any

MILLISECONDS_FROM = 1e11  # in seconds the year 5138, in milliseconds 1973


def utc_text(value: Any) -> str:
    """A time as "2024-05-01T10:00:00.000000Z".

    Accepted are ISO 8601 texts of a day or a time (UTC where they name no zone), seconds or milliseconds since 1970 as
    a number or its digits, and the dates and times of Parquet. Raises ValueError.
    """
    try:
        return f"{_moment(value).astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _moment(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value / 1000 if abs(value) >= MILLISECONDS_FROM else value, UTC)
    if not isinstance(value, str):
        raise ValueError("neither a text nor a number")
    text = value.strip()
    if text.removeprefix("-").replace(".", "", 1).isdecimal() and len(text) != len("20240501"):
        return _moment(float(text))
    return _moment(datetime.fromisoformat(text))
