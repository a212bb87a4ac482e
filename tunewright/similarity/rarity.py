"""How rare items are in all rows, and the items of each row in that order, compiled by numba.

The join finds a pair by one of the rarest items of each row, so it compares the fewer rows, the rarer these are.
"""

import numpy as np

from tunewright.similarity.hashing import compiled


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
