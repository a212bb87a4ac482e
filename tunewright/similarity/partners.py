"""The most similar of some other rows for each row, compiled by numba: the join of join.py between two sets of rows.

The others change from call to call, so they are not sorted by size, and a call needs memory only for its rows, however
many of their pairs are similar.
"""

import numpy as np

from tunewright.similarity.hashing import compiled
from tunewright.similarity.join import ROUNDING, shared_items


@compiled
def most_alike(indptr, items, sizes, entries, groups, others, postings, holders, asked, threshold):
    """(place in `others` or -1, similarity) of the row that is most alike to each of `asked`; of equals the first.

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
