"""The exact set similarity join, compiled by numba: which sets are similar, without comparing all with all.

Two sets with a Jaccard similarity of t share one of the rarest items of each (prefix filtering: Bayardo et al. 2007,
"Scaling up all pairs similarity search"). What follows that item bounds how much more they can share (positional
filtering: Xiao et al. 2008, "PPJoin"), and so does a signature of 128 bits (Sandes et al. 2017, "Bitmap filter"). Only
what passes is compared item by item, so no pair is missed and every pair is verified.

Sets come as CSR with the rarest item first; `sizes` counts items that only one set has too, which are left out of it.
"""

import numpy as np

from tunewright.similarity.hashing import compiled

ROUNDING = 1e-9


@compiled
def _bits(value):
    """The number of ones in 64 bits."""
    value -= (value >> np.uint64(1)) & np.uint64(0x5555555555555555)
    value = (value & np.uint64(0x3333333333333333)) + ((value >> np.uint64(2)) & np.uint64(0x3333333333333333))
    value = (value + (value >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((value * np.uint64(0x0101010101010101)) >> np.uint64(56))


@compiled
def signatures(indptr, items):
    """(rows, 2) uint64: a bit for each item, so that what one has and the other has not differs by at least so many."""
    found = np.zeros((len(indptr) - 1, 2), np.uint64)
    for row in range(len(found)):
        for position in range(indptr[row], indptr[row + 1]):
            place = items[position] & np.uint64(127)
            found[row, place >> np.uint64(6)] |= np.uint64(1) << (place & np.uint64(63))
    return found


@compiled
def prefix_lengths(indptr, sizes, threshold):
    """(rows,) int64: how many of a row's first items a row similar to it must share one of, left-out items aside."""
    lengths = np.empty(len(sizes), np.int64)
    for row in range(len(sizes)):
        left_out = sizes[row] - (indptr[row + 1] - indptr[row])
        length = sizes[row] - np.int64(np.ceil(threshold * sizes[row] - ROUNDING)) + 1 - left_out
        lengths[row] = min(max(length, 0), indptr[row + 1] - indptr[row])
    return lengths


@compiled
def _needed(total, threshold):
    """Return the fewest items that two sets of this total size share if their similarity reaches the threshold."""
    return np.int64(np.ceil(threshold / (1 + threshold) * total - ROUNDING))


@compiled
def shared_items(items, one, one_end, other, other_end, needed):
    """Count the items that two sorted runs share; -1 as soon as it is under `needed`."""
    shared = 0
    while one < one_end and other < other_end:
        if shared + min(one_end - one, other_end - other) < needed:
            return -1
        if items[one] == items[other]:
            shared, one, other = shared + 1, one + 1, other + 1
        elif items[one] < items[other]:
            one += 1
        else:
            other += 1
    return shared if shared >= needed else -1


@compiled
def _at_most(count, bits, more_bits, other_count, other_bits, other_more_bits):
    """The most items that two rows can share by their signatures."""
    own = _bits(bits & ~other_bits) + _bits(more_bits & ~other_more_bits)
    others = _bits(other_bits & ~bits) + _bits(other_more_bits & ~more_bits)
    return min(count - own, other_count - others)


@compiled
def _may_share(fewest, left, count, bits, more_bits, holder):
    """Whether a row can share so many items with the holder of one, from which on the row has so many `left`."""
    if left < fewest or holder.left < fewest:
        return False
    return _at_most(count, bits, more_bits, holder.count, holder.bits, holder.more_bits) >= fewest


@compiled
def _fill_needed(needed, size, threshold):
    """needed[other]: what _needed has for a set of `size` and one of `other` items, as far as they are no more."""
    for other in range(size + 1):
        needed[other] = _needed(size + other, threshold)


@compiled
def leaders(indptr, items, sizes, bits, entries, groups, threshold):
    """For each row the most similar earlier row that stays, as (row or -1, similarity). A row stays if there is none.

    `groups` number the items of each row's prefix, which are entries[row]..entries[row + 1].
    """
    rows = len(sizes)
    partner, similarity = np.full(rows, -1, np.int64), np.zeros(rows)
    last = np.full(rows, -1, np.int32)  # the last row that a row was compared with
    holder, left = _holders(indptr, entries)
    # An item leads to lists of the rows that stay and hold it: of one size, and with as many items left from it on, so
    # that a list as a whole can be too far away. `beside` leads from list to list, `behind` down a list.
    head = np.full(groups.max() + 1 if len(groups) else 1, -1, np.int64)
    beside, behind = np.full(len(groups), -1, np.int64), np.full(len(groups), -1, np.int64)
    for row in range(rows):
        count, (row_bits, more_bits) = indptr[row + 1] - indptr[row], bits[row]
        for entry in range(entries[row], entries[row + 1]):
            first = head[groups[entry]]
            while first >= 0:
                node, first = first, beside[first]
                total = sizes[row] + sizes[holder[node]]
                within = min(left[entry], left[node])
                while node >= 0:
                    needed = _needed(total, max(threshold, similarity[row]))
                    if within < needed:
                        break
                    other, j = holder[node], indptr[holder[node] + 1] - left[node]
                    node = behind[node]
                    if last[other] == row:
                        continue
                    last[other] = row
                    other_count, (other_bits, other_more_bits) = indptr[other + 1] - indptr[other], bits[other]
                    if _at_most(count, row_bits, more_bits, other_count, other_bits, other_more_bits) < needed:
                        continue
                    i = indptr[row + 1] - left[entry]
                    shared = shared_items(items, i, indptr[row + 1], j, indptr[other + 1], needed)
                    found = shared / (total - shared)
                    if found > similarity[row] or (found == similarity[row] and other < partner[row]):
                        partner[row], similarity[row] = other, found
        if partner[row] < 0:
            for entry in range(entries[row], entries[row + 1]):
                node = head[groups[entry]]
                while node >= 0 and (left[node] != left[entry] or sizes[holder[node]] != sizes[row]):
                    node = beside[node]
                if node < 0:
                    beside[entry], head[groups[entry]] = head[groups[entry]], entry
                else:
                    behind[entry], behind[node] = behind[node], entry
    return partner, similarity


@compiled
def _holders(indptr, entries):
    """The row of each entry of the prefixes, and how many items the row has left from that one on."""
    holder, left = np.empty(entries[-1], np.int64), np.empty(entries[-1], np.int64)
    for row in range(len(indptr) - 1):
        for entry in range(entries[row], entries[row + 1]):
            holder[entry], left[entry] = row, indptr[row + 1] - indptr[row] - (entry - entries[row])
    return holder, left


@compiled
def _root(parents, row):
    while parents[row] != row:
        parents[row] = parents[parents[row]]
        row = parents[row]
    return row


@compiled
def pairs(index, threshold, begin, end, enough):
    """The pairs (later, earlier, similarity) of the rows begin..end with earlier rows; `sizes` must rise.

    Of `index`, groups number the items of each row's prefix, entries[row]..entries[row + 1]; an item's number leads by
    postings to the rows that hold it in their shorter prefix (invert). A pair is found where the postings have the
    first item that both share. A row that has `enough` partners is given others only where they connect it to rows that
    it was not connected to.
    """
    indptr, items, sizes, bits, entries, groups, postings, _, holders = index
    needed = np.empty(sizes[end - 1] + 1 if end > begin else 0, np.int64)
    last, parents = np.full(len(sizes), -1, np.int32), np.arange(len(sizes))
    room, found = 1024, 0
    later, earlier, similarity = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room)
    for row in range(begin, end):
        partners, count, (row_bits, more_bits) = 0, indptr[row + 1] - indptr[row], bits[row]
        _fill_needed(needed, sizes[row], threshold)
        large_enough = np.searchsorted(sizes, threshold * sizes[row] - ROUNDING)
        for entry in range(entries[row], entries[row + 1]):
            i = indptr[row] + entry - entries[row]
            first, stop = postings[groups[entry]], postings[groups[entry] + 1]
            for place in range(first + np.searchsorted(holders.row[first:stop], large_enough), stop):
                holder = holders[place]
                other = holder.row
                if other >= row:
                    break
                fewest = needed[holder.size]
                if not _may_share(fewest, indptr[row + 1] - i, count, row_bits, more_bits, holder):
                    continue
                if last[other] == row:
                    continue
                last[other] = row
                if partners >= enough and _root(parents, row) == _root(parents, other):
                    continue
                j = indptr[other + 1] - holder.left
                shared = shared_items(items, i, indptr[row + 1], j, indptr[other + 1], fewest)
                if shared < 0:
                    continue
                if shared_items(items, indptr[row], i, indptr[other], j, 1) > 0:
                    continue  # what they share first leads elsewhere, and there all that they share is counted
                if found == room:
                    room *= 2
                    later, earlier, similarity = _grown(later, room), _grown(earlier, room), _grown(similarity, room)
                total = sizes[row] + sizes[other]
                later[found], earlier[found], similarity[found] = row, other, shared / (total - shared)
                found, partners = found + 1, partners + 1
                parents[_root(parents, row)] = _root(parents, other)
    return later[:found], earlier[:found], similarity[:found]


@compiled
def closest(index, splits, largest, floor, begin, end):
    """(row, other, similarity, compared) of the most similar pair across splits, one of it in begin..end; `sizes` rise.

    Only a pair over `floor` is found, and every such pair is compared unless a closer one was found before. Of equally
    close pairs it is the first by (row, other). `compared` counts the pairs that no bound ruled out. The rows of the
    split `largest` come last in the index, so that those of it are not looked up for each other.
    """
    indptr, items, sizes, bits, entries, groups, postings, middles, holders = index
    needed = np.empty(sizes[end - 1] + 1 if end > begin else 0, np.int64)
    last = np.full(len(sizes), -1, np.int32)
    best, best_row, best_other, compared = floor, -1, -1, 0
    for row in range(begin, end):
        count, (row_bits, more_bits) = indptr[row + 1] - indptr[row], bits[row]
        _fill_needed(needed, sizes[row], best)
        beyond = sizes[row] - np.int64(np.ceil(best * sizes[row] - ROUNDING)) + 1  # of its items share none
        beyond -= sizes[row] - count
        large_enough = np.searchsorted(sizes, best * sizes[row] - ROUNDING)
        for entry in range(entries[row], min(entries[row + 1], entries[row] + beyond)):
            i, number = indptr[row] + entry - entries[row], groups[entry]
            begin_last = middles[number]
            end_last = begin_last if splits[row] == largest else postings[number + 1]
            for first, stop in ((postings[number], begin_last), (begin_last, end_last)):
                for place in range(first + np.searchsorted(holders.row[first:stop], large_enough), stop):
                    holder = holders[place]
                    other = holder.row
                    if other >= row:
                        break
                    fewest = needed[holder.size]
                    if not _may_share(fewest, indptr[row + 1] - i, count, row_bits, more_bits, holder):
                        continue
                    if splits[other] == splits[row] or last[other] == row:
                        continue
                    last[other] = row
                    compared += 1
                    j = indptr[other + 1] - holder.left
                    shared = shared_items(items, i, indptr[row + 1], j, indptr[other + 1], fewest)
                    total = sizes[row] + sizes[other]
                    similarity = shared / (total - shared) if shared > 0 else 0.0
                    if similarity > best or (similarity == best and row == best_row and other < best_other):
                        best, best_row, best_other = similarity, row, other
                        _fill_needed(needed, sizes[row], best)
    return best_row, best_other, best, compared


@compiled
def _grown(array, room):
    larger = np.empty(room, array.dtype)
    larger[: len(array)] = array
    return larger


@compiled
def take_rows(indptr, items, rows):
    """The items of the rows in their order, as (indptr, items)."""
    starts = np.zeros(len(rows) + 1, np.int64)
    for i in range(len(rows)):
        starts[i + 1] = starts[i] + indptr[rows[i] + 1] - indptr[rows[i]]
    taken = np.empty(starts[-1], items.dtype)
    for i in range(len(rows)):
        taken[starts[i] : starts[i + 1]] = items[indptr[rows[i]] : indptr[rows[i] + 1]]
    return starts, taken
