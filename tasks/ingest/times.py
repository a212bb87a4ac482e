"""When a record was made, as text: ISO 8601 in UTC and of one width, so that the order of texts is that of times."""

from datetime import UTC, date, datetime, time
from typing import Any

# Other numbers are years, days or moments written without a mark, or in another unit.
SECONDS = (1e8, 4_102_444_800)  # since 1970: from 1973 to the year 2100


def utc_text(value: Any) -> str:
    """A time as "2024-05-01T10:00:00.000000Z".

    Accepted are ISO 8601 texts of a day or a time (UTC where they name no zone), seconds or milliseconds since 1970,
    between 1973 and 2100, as a number or its digits, and the dates and times of Parquet. Raises ValueError.
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
        return _since_1970(value)
    if not isinstance(value, str):
        raise ValueError("neither a text nor a number")
    text = value.strip()
    if text.removeprefix("-").replace(".", "", 1).isdecimal() and len(text) != len("20240501"):
        return _moment(float(text))
    return _moment(datetime.fromisoformat(text))


def _since_1970(number: float) -> datetime:
    first, end = SECONDS
    if first <= number < end:
        return datetime.fromtimestamp(number, UTC)
    if first * 1000 <= number < end * 1000:
        return datetime.fromtimestamp(number / 1000, UTC)
    raise ValueError("a number, but not of 1973 to 2100")
