"""The index of the joins in join.py, compiled by numba: how rare items are, and which rows hold one in their prefix.

A join finds a pair by one of the rarest items of each row, so it compares the fewer rows, the rarer these are.
"""

from typing import Any

import numpy as np

from tunewright.similarity.hashing import compiled
from tunewright.similarity.join import ROUNDING, shared_items

HOLDER = np.dtype(  # a row that has an item in its prefix, with what rules most rows out before others of it are read
    [
        ("row", np.int32),
        ("size", np.int32),
        ("count", np.int32),  # of its items, without those that are left out
        ("left", np.int32),  # of them from the item on
        ("bits", np.uint64),  # its signature
        ("more_bits", np.uint64),
    ]
)


@compiled
def count_items(items, counts):
    """Adds to counts (buckets,) uint16, a power of two, how often items of each bucket occur, up to 65,535 times."""
    mask = np.uint64(len(counts) - 1)
    for item in items:
        counts[item & mask] += np.uint16(counts[item & mask] < 65_535)


@compiled
def rarities(counts):
    """(buckets,) uint8: twice the binary logarithm of each count; 0 where items of the bucket occur once."""
    classes = np.zeros(len(counts), np.uint8)
    for bucket in range(len(counts)):
        if counts[bucket] > 1:
            classes[bucket] = np.int64(2 * np.log2(counts[bucket]))
    return classes


@compiled
def order_items(indptr, items, classes):
    """Leaves out items that occur once and puts the others of each row in a common order, the rarest first.

    An item's upper 6 bits become the rarity of its bucket (rarities), the others stay of its hash.
    """
    mask = np.uint64(len(classes) - 1)
    rows, ordered, found = np.zeros(len(indptr), np.int64), np.empty(len(items), np.uint64), 0
    for row in range(len(indptr) - 1):
        begin = found
        for position in range(indptr[row], indptr[row + 1]):
            rarity = np.uint64(classes[items[position] & mask])
            if rarity > 0:
                ordered[found] = (rarity << np.uint64(58)) | (items[position] >> np.uint64(6))
                found += 1
        ordered[begin:found].sort()
        rows[row + 1] = found
    return rows, ordered[:found].copy()


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
def invert(indptr, items, sizes, bits, entries, numbers, lengths, last, part, parts):
    """Which rows have each number in the first `lengths` of their entries: (postings, middles, holders, work).

    Number i has the holders (HOLDER) postings[i] to postings[i + 1], rows rising; none where items % parts is not
    `part`. From middles[i] on they are those that come `last` (rows,), rising too. `work` (rows,) is how many holders
    each row finds by its entries.
    """
    counts = np.zeros(numbers.max() + 1 if len(numbers) else 1, np.int64)
    counts_last = np.zeros(len(counts), np.int64)
    for row in range(len(lengths)):
        for place in range(lengths[row]):
            if items[indptr[row] + place] % np.uint64(parts) == part:
                counts[numbers[entries[row] + place]] += 1
                counts_last[numbers[entries[row] + place]] += last[row]
    postings = np.zeros(len(counts) + 1, np.int64)
    postings[1:] = np.cumsum(counts)
    middles = postings[1:] - counts_last
    free, free_last, work = postings[:-1].copy(), middles.copy(), np.zeros(len(lengths), np.int64)
    holders = np.empty(postings[-1], HOLDER)
    for row in range(len(lengths)):
        count = indptr[row + 1] - indptr[row]
        for place in range(lengths[row]):
            if items[indptr[row] + place] % np.uint64(parts) == part:
                number, rooms = numbers[entries[row] + place], free_last if last[row] else free
                holder: Any = holders[rooms[number]]
                holder.row, holder.count, holder.left, holder.size = row, count, count - place, sizes[row]
                holder.bits, holder.more_bits = bits[row]
                rooms[number] += 1
        for entry in range(entries[row], entries[row + 1]):
            work[row] += counts[numbers[entry]]
    return postings, middles, holders, work


@compiled
def most_similar(indptr, items, sizes, entries, groups, others, postings, holders, asked, threshold):
    """(place in `others` or -1, similarity) of the row that is most similar to each of `asked`; of equals the first.

    `groups` number the items of each row's prefix, entries[row]..entries[row + 1]; an item's number leads by `postings`
    to the places of the others that hold it in theirs.
    """
    partner, similarity = np.full(len(asked), -1, np.int64), np.zeros(len(asked))
    last = np.full(len(others), -1, np.int32)  # the last of `asked` that each was compared with
    for number in range(len(asked)):
        row = asked[number]
        for entry in range(entries[row], entries[row + 1]):
            for node in range(postings[groups[entry]], postings[groups[entry] + 1]):
                place = holders[node]
                if last[place] == number:
                    continue
                last[place] = number
                other = others[place]
                total = sizes[row] + sizes[other]
                floor = max(threshold, similarity[number])
                needed = np.int64(np.ceil(floor / (1 + floor) * total - ROUNDING))
                shared = shared_items(items, indptr[row], indptr[row + 1], indptr[other], indptr[other + 1], needed)
                if shared < 0:
                    continue
                found = shared / (total - shared)
                if found > similarity[number] or (found == similarity[number] and place < partner[number]):
                    partner[number], similarity[number] = place, found
    return partner, similarity
