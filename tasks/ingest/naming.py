"""Fields of a record under our names: messages about a record name each field as the record does."""

from collections.abc import Iterable, Mapping

from tunewright.tasks.ingest.parsing import Record, quoted


class Renamed(Record):
    """A record with its fields under our names; `columns` are ours -> theirs, and of ours only they count then.

    `places` has fields of ours that stand elsewhere in the record by its format, such as input.messages. Messages about
    it name its own fields.
    """

    def __init__(
        self,
        record: Record,
        columns: Mapping[str, str],
        places: Mapping[str, str] | None = None,
        own_fields: Iterable[str] = (),
    ) -> None:
        taken = columns.keys() | set(columns.values())
        super().__init__({field: value for field, value in record.items() if field not in taken})
        self.update({ours: record[theirs] for ours, theirs in columns.items() if theirs in record})
        self.own_fields, self.columns, self.places = [*own_fields] or [*record], columns, places or {}


def found_fields(record: Record) -> str:
    """Say which fields a record has."""
    fields = record.own_fields if isinstance(record, Renamed) else list(record)
    return f"the fields are {', '.join(map(quoted, fields[:8]))}" if fields else "it has no field"


def own_place(record: Record, field: str) -> str:
    """A field as the record names it: question, or input.messages."""
    if not isinstance(record, Renamed):
        return field
    return record.places.get(field) or record.columns.get(field, field)


def own_name(record: Record, field: str) -> str:
    """A field as the record names it, with our name where columns of the source map it: question (instruction)."""
    theirs = own_place(record, field)
    is_mapped = isinstance(record, Renamed) and field not in record.places and theirs != field
    return f"{theirs} ({field})" if is_mapped else theirs
