"""The account of all rows for pages and summaries: read + general = kept + quarantined + duplicates."""

from collections import Counter

from pydantic import BaseModel

from tunewright.artifacts import CheckedRows, Rows, Splits, Tokens, UniqueRows
from tunewright.artifacts.payloads import EarlierRows, LeakProof
from tunewright.reports.pages import below, counted, percent

MOST_BOILERPLATE = 20  # sentences that the record of the unique rows has
Counted = Rows | CheckedRows | UniqueRows | Splits | Tokens


class Account(BaseModel, frozen=True):
    """The account of all rows: read + general = kept + quarantined + duplicates, and kept = train + validation + test.

    The `general` rows are those that rehearse made. Of train `replay` are replay rows. Rows with an undesirable answer
    are kept, and are `undesirable` in place of their split. A run that ended before the split has no
    splits yet, and they are 0.
    """

    read: int
    kept: int
    quarantined: int
    duplicates: int
    train: int
    validation: int
    test: int
    general: int = 0
    replay: int = 0
    undesirable: int = 0

    @classmethod
    def of(
        cls,
        rows: Rows,
        checked: CheckedRows | None = None,
        unique: UniqueRows | None = None,
        splits: Splits | None = None,
        tokens: Tokens | None = None,
    ) -> "Account":
        """The account of what stages handed on, as far as there are any."""
        last = next(each for each in (tokens, splits, unique, checked, rows) if each)
        is_split = isinstance(last, Tokens | Splits)
        sizes = (last.num_train, last.num_validation, last.num_test) if is_split else (0, 0, 0)
        aside = last.undesirable if isinstance(last, Splits) else (0, 0, 0)  # split has them in its sizes
        train, validation, test = (size - unwanted for size, unwanted in zip(sizes, aside, strict=True))
        undesirable = tokens.sum_undesirable if tokens else sum(aside)
        return cls(
            read=rows.num_read,
            general=rows.num_general,
            kept=train + validation + test + undesirable if is_split else last.num_rows,
            quarantined=sum(each.num_quarantined for each in (rows, checked, splits, tokens) if each),
            duplicates=unique.num_removed if unique else 0,
            train=train,
            validation=validation,
            test=test,
            replay=last.num_replay if isinstance(last, Tokens | Splits) else 0,
            undesirable=undesirable,
        )

    def counts(self) -> dict[str, int]:
        """Each count by its name; those of the splits only where the run came to a split, which is never empty."""
        of_splits = {"train", "validation", "test", "replay", "undesirable"}
        return self.model_dump(exclude=None if self.train else of_splits)

    def begins(self) -> str:
        """The left side of the account in words, as "536 rows read + 41 general rows made"."""
        made = f" + {counted(self.general, 'general row')} made" if self.general else ""
        return f"{counted(self.read, 'row')} read{made}"

    def add_up(self) -> None:
        """Raises AssertionError where a row is lost: that would be a bug, and must never be shown as a result."""
        if self.read + self.general != self.kept + self.quarantined + self.duplicates:
            raise AssertionError(f"rows do not add up: {self}")
        splits = self.train + self.validation + self.test + self.undesirable
        if splits and self.kept != splits:
            raise AssertionError(f"splits do not add up: {self}")


def reasons(*records: Counted | None) -> dict[str, int]:
    """Reason code -> rows that did not stay, over all stages, the most frequent first."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.reasons if record else {})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def leak_sentence(proof: LeakProof, unique: UniqueRows | None = None) -> str:
    """Describe the leaks in split's proof.json, and which sentences of the `unique` rows were not compared."""
    shared, of_held_out = proof.decontamination, ""
    most = (
        "the two most similar rows of different splits have a similarity of"
        if proof.largest_pair
        else "no row is similar to one of another split by more than"
    )
    if shared.held_out_records:
        rows = shared.by_partner.get("held_out", 0)
        records = counted(shared.held_out_records, "held-out record")
        who = f"Training rows that share a passage or a prompt with the {records}: "
        of_held_out = f" {who}{rows:,}{', removed' if rows and shared.removed else ''}."
    of_groups = f" No group is in two splits ({counted(proof.num_groups, 'group')})." if proof.num_groups else ""
    leaked = percent(proof.random_leak_share, 1) if proof.random_leak_share else "none"
    return (
        f"No near-duplicates across splits: {most} {below(proof.largest_similarity, proof.threshold)} "
        f"(threshold {proof.threshold:.2f}{_not_compared(unique)}).{of_groups} "
        f"A random split would have leaked {leaked} of the test rows."
        f"{of_held_out}"
    )


def _not_compared(unique: UniqueRows | None) -> str:
    if unique is None or not unique.boilerplate:
        return ""
    number, is_one = counted(len(unique.boilerplate), "sentence"), len(unique.boilerplate) == 1
    at_least = "at least " if len(unique.boilerplate) == MOST_BOILERPLATE else ""
    return f"; {at_least}{number} that many rows share {'is' if is_one else 'are'} left out: dedupe.boilerplate_share"


GONE = "gone (deleted from the files, refused by a check or removed as duplicates)"


def growth_sentence(proof: LeakProof) -> str:
    """Describe the rows of the previous version in split's proof.json, or return "" if there was none."""
    versions = proof.versions
    if versions.earlier is None:
        return ""
    if versions.returned_in_split is not None:
        return _growth(proof, versions, versions.returned_in_split)
    known = versions.known_rows
    rows = sum(proof.rows.values()) + sum(proof.quarantined.values())
    moved = known - versions.stayed - versions.quarantined
    returned = versions.returned or 0
    new, or_not = rows - known - returned, " or had no split" if versions.returned is None else ""
    told = {
        "kept their split": versions.stayed,
        "moved to another split": moved,
        f"{'is' if versions.quarantined == 1 else 'are'} quarantined now": versions.quarantined,
        f"{'is' if versions.gone == 1 else 'are'} {GONE}": versions.gone,
        f"{'is' if new == 1 else 'are'} new{or_not}": new,
        "had been quarantined or removed": returned,
    }
    first, *others = [(number, said) for said, number in told.items() if number] or [(0, "are left")]
    parts = [f"{counted(first[0], 'row')} {first[1]}", *(f"{number:,} {said}" for number, said in others)]
    return f"Since the previous version: {', '.join(parts)}."


def _growth(proof: LeakProof, versions: EarlierRows, returned: int) -> str:
    """The sentence as a sum of the rows that are in splits now, and then those of the version before that are not."""
    in_splits, replay = sum(proof.rows.values()), proof.because["train"].get("replay", 0)
    moved = versions.known_rows - versions.stayed - versions.quarantined
    new = in_splits - replay - versions.stayed - moved - returned
    told = {
        "kept theirs": versions.stayed,
        "moved to another": moved,
        f"{'is' if new == 1 else 'are'} new": new,
        "had been quarantined or removed": returned,
    }
    parts = [f"{number:,} that {said}" for said, number in told.items() if number]
    parts += [counted(replay, "replay row")] if replay else []
    lost = {"quarantined now": versions.quarantined, GONE: versions.gone}
    others = [f"{number:,} {'is' if number == 1 else 'are'} {said}" for said, number in lost.items() if number]
    said = f"{counted(in_splits, 'row')} in splits = {' + '.join(parts)}"
    return f"Since the previous version: {said}{'; of its rows ' if others else ''}{', '.join(others)}."
