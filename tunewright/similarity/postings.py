"""Which rows hold an item in their prefix, compiled by numba: the index of the joins in join.py."""

import numpy as np

from tunewright.similarity.hashing import compiled


@compiled
def take_first(indptr, items, entries):
    """The first items of each row, as many as entries[row]..entries[row + 1]."""
    taken = np.empty(entries[-1], items.dtype)
    for row in range(len(entries) - 1):
        length = entries[row + 1] - entries[row]
        taken[entries[row] : entries[row + 1]] = items[indptr[row] : indptr[row] + length]
    return taken


@compiled
def numbered(items):
    """(items,) int32: equal items as one number, in the order in which they first appear."""
    room = 2
    while 3 * room < 4 * len(items):
        room *= 2
    first = np.full(room, -1, np.int32)  # a table of where each item is first, open to those next to their place
    numbers, found = np.empty(len(items), np.int32), 0
    for position in range(len(items)):
        place = items[position] & np.uint64(room - 1)
        while first[place] >= 0 and items[first[place]] != items[position]:
            place = (place + np.uint64(1)) & np.uint64(room - 1)
        if first[place] < 0:
            first[place], numbers[position] = position, found
            found += 1
        numbers[position] = numbers[first[place]]
    return numbers


@compiled
def invert(indptr, items, entries, numbers, lengths, part, parts):
    """Which rows have each number in the first `lengths` of their entries, as (postings, rows, positions of the item).

    Of number i from postings[i] to postings[i + 1], rows rising; none where items % parts is not `part`. The last that
    comes back is how many rows each row finds by its entries.
    """
    counts = np.zeros(numbers.max() + 1 if len(numbers) else 1, np.int64)
    for row in range(len(lengths)):
        for place in range(lengths[row]):
            if items[indptr[row] + place] % np.uint64(parts) == part:
                counts[numbers[entries[row] + place]] += 1
    postings = np.zeros(len(counts) + 1, np.int64)
    postings[1:] = np.cumsum(counts)
    free, work = postings[:-1].copy(), np.zeros(len(lengths), np.int64)
    rows, positions = np.empty(postings[-1], np.int32), np.empty(postings[-1], np.int64)
    for row in range(len(lengths)):
        for place in range(lengths[row]):
            if items[indptr[row] + place] % np.uint64(parts) == part:
                number = numbers[entries[row] + place]
                rows[free[number]], positions[free[number]] = row, indptr[row] + place
                free[number] += 1
        for entry in range(entries[row], entries[row + 1]):
            work[row] += counts[numbers[entry]]
    return postings, rows, positions, work
