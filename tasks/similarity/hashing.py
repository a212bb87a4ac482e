"""Texts as hashes, compiled by numba: normalized segments, words, numbers and word n-grams, straight from UTF-8 bytes.

Everything here takes the bytes of Folded (folding.py). Equality is that of 64-bit hashes (FNV-1a, finished as in
MurmurHash3): among a hundred million different words two collide with a chance under one in three thousand.
"""

import numpy as np
from numba import njit

SPACE, DROPPED, WORD, SPACELESS, SYMBOL = range(5)  # to words a character is a gap, nothing, a part, or one by itself

_BASIS = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_FIRST = np.uint64(0xFF51AFD7ED558CCD)
_SECOND = np.uint64(0xC4CEB9FE1A85EC53)
_HALF = np.uint64(33)
_SIGNS = np.zeros(128, np.bool_)
_SIGNS[[ord(sign) for sign in "-+*/^<>="]] = True
_ENDS = np.zeros(256, np.bool_)
_ENDS[[ord(end) for end in ".!?:"]] = True
_BLANK = np.zeros(256, np.bool_)
_BLANK[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = True


@njit(cache=True, nogil=True)
def _finish(value):
    value ^= value >> _HALF
    value *= _FIRST
    value ^= value >> _HALF
    value *= _SECOND
    return value ^ (value >> _HALF)


@njit(cache=True, nogil=True)
def _join(one, other):
    """A hash of two in their order."""
    return _finish(one * _PRIME + other)


@njit(cache=True, nogil=True)
def _lower(byte):
    return byte + np.uint8(32) if 65 <= byte <= 90 else byte


@njit(cache=True, nogil=True)
def hash_normalized(data, begin, end, seed):
    """The hash of data[begin:end] without case and with runs of white space as one space; seed itself if empty."""
    value, gap, empty = _BASIS ^ seed, False, True
    for position in range(begin, end):
        byte = data[position]
        if _BLANK[byte]:
            gap = True
            continue
        if gap and not empty:
            value = (value ^ np.uint64(32)) * _PRIME
        gap, empty = False, False
        value = (value ^ np.uint64(_lower(byte))) * _PRIME
    return seed if empty else _finish(value)


@njit(cache=True, nogil=True)
def hash_messages(data, starts, seed):
    """(messages,) uint64: the normalized text of each message."""
    hashes = np.empty(len(starts) - 1, np.uint64)
    for message in range(len(hashes)):
        hashes[message] = hash_normalized(data, starts[message], starts[message + 1], seed)
    return hashes


@njit(cache=True, nogil=True)
def segment(data, starts, messages):
    """The sentences of the lines of messages[0]..messages[1] of each row, as (indptr, begin, end, hash)."""
    rows = len(messages)
    total = 0
    for row in range(rows):
        for message in range(messages[row, 0], messages[row, 1]):
            total += 1
            for position in range(starts[message], starts[message + 1]):
                byte = data[position]
                total += byte == 10 or byte == 13 or (_BLANK[byte] and position and _ENDS[data[position - 1]])
    indptr = np.zeros(rows + 1, np.int64)
    begins, ends, hashes = np.empty(total, np.int64), np.empty(total, np.int64), np.empty(total, np.uint64)
    found = 0
    for row in range(rows):
        for message in range(messages[row, 0], messages[row, 1]):
            begin, stop = starts[message], starts[message + 1]
            for position in range(begin, stop + 1):
                cut = position == stop
                if not cut:
                    byte = data[position]
                    cut = byte == 10 or byte == 13
                    cut = cut or (_BLANK[byte] and position > begin and _ENDS[data[position - 1]])
                if cut:
                    value = hash_normalized(data, begin, position, np.uint64(0))
                    if value != 0:  # else it is white space
                        begins[found], ends[found], hashes[found] = begin, position, value
                        found += 1
                    begin = position
        indptr[row + 1] = found
    return indptr, begins[:found], ends[:found], hashes[:found]


@njit(cache=True, nogil=True)
def _character(data, position):
    """(code point, bytes) of the UTF-8 character at a position."""
    byte = np.int64(data[position])
    if byte < 0x80:
        return byte, 1
    if byte < 0xE0:
        return ((byte & 0x1F) << 6) | (data[position + 1] & 0x3F), 2
    if byte < 0xF0:
        return ((byte & 0x0F) << 12) | ((data[position + 1] & 0x3F) << 6) | (data[position + 2] & 0x3F), 3
    high = ((byte & 0x07) << 18) | ((data[position + 1] & 0x3F) << 12)
    return high | ((data[position + 2] & 0x3F) << 6) | (data[position + 3] & 0x3F), 4


@njit(cache=True, nogil=True)
def hash_words(data, indptr, begins, ends, kept, classes):
    """The words of the kept segments of each row, as (indptr, hashes, whether a word is a spaceless character)."""
    size = 0
    for piece in range(len(begins)):
        size += (ends[piece] - begins[piece] + 1) // 2 + 1 if kept[piece] else 0
    hashes, spaceless = np.empty(size, np.uint64), np.empty(size, np.bool_)
    found, rows = 0, np.zeros(len(indptr), np.int64)
    for row in range(len(indptr) - 1):
        for piece in range(indptr[row], indptr[row + 1]):
            if not kept[piece]:
                continue
            position, value, inside = begins[piece], _BASIS, False
            while position <= ends[piece]:
                kind, width = SPACE, 1
                if position < ends[piece]:
                    code, width = _character(data, position)
                    kind = classes[code]
                if kind == WORD:
                    for offset in range(width):
                        value = (value ^ np.uint64(_lower(data[position + offset]))) * _PRIME
                    inside = True
                elif kind != DROPPED:
                    if inside:
                        hashes[found], spaceless[found] = _finish(value), False
                        found, value, inside = found + 1, _BASIS, False
                    if kind != SPACE:
                        for offset in range(width):
                            value = (value ^ np.uint64(data[position + offset])) * _PRIME
                        hashes[found], spaceless[found] = _finish(value), kind == SPACELESS
                        found, value = found + 1, _BASIS
                position += width
        rows[row + 1] = found
    return rows, hashes[:found], spaceless[:found]


@njit(cache=True, nogil=True)
def _goes_on(data, position, end):
    """Whether a number that has begun goes on here: with a digit, or a point or comma before one."""
    point = (data[position] == 44 or data[position] == 46) and position + 1 < end
    return 48 <= data[position + point] <= 57


@njit(cache=True, nogil=True)
def hash_numbers(data, indptr, begins, ends, kept):
    """(rows,) uint64: the numbers of the kept segments in their order, each with the sign before it."""
    numbers = np.zeros(len(indptr) - 1, np.uint64)
    for row in range(len(numbers)):
        for piece in range(indptr[row], indptr[row + 1]):
            if not kept[piece]:
                continue
            position, begin = begins[piece], begins[piece]
            while position < ends[piece]:
                if not 48 <= data[position] <= 57:
                    position += 1
                    continue
                before, value = position - 1, _BASIS
                if before >= begin and _BLANK[data[before]]:
                    before -= 1
                if before >= begin and data[before] < 128 and _SIGNS[data[before]]:
                    value = (value ^ np.uint64(data[before])) * _PRIME
                while position < ends[piece] and _goes_on(data, position, ends[piece]):
                    value = (value ^ np.uint64(data[position])) * _PRIME
                    position += 1
                numbers[row] = _join(numbers[row], value)
    return numbers


@njit(cache=True, nogil=True)
def hash_sequences(indptr, hashes):
    """(rows,) uint64: all hashes of a row in their order."""
    joined = np.zeros(len(indptr) - 1, np.uint64)
    for row in range(len(joined)):
        for position in range(indptr[row], indptr[row + 1]):
            joined[row] = _join(joined[row], hashes[position])
    return joined


@njit(cache=True, nogil=True)
def hash_shingles(indptr, hashes, spaceless, whole, kinds):
    """The set of 2-grams of each row's words, as (indptr, sorted items); `whole` stands for a row without words.

    3-grams where they begin with a spaceless character. An item is another one in another kind.
    """
    rows, items = np.zeros(len(indptr), np.int64), np.empty(len(hashes) + len(indptr), np.uint64)
    found = 0
    for row in range(len(indptr) - 1):
        first, last, begin = indptr[row], indptr[row + 1], found
        for position in range(first, last):
            if position + 2 + spaceless[position] > last:
                continue
            item = _join(hashes[position], hashes[position + 1])
            if spaceless[position]:
                item = _join(item, hashes[position + 2])
            items[found] = item
            found += 1
        if found == begin:  # shorter than its shingles would be: the text as a whole
            items[found] = whole[row] if first == last else np.uint64(0)
            for position in range(first, last):
                items[found] = _join(items[found], hashes[position])
            found += 1
        items[begin:found] = np.sort(items[begin:found])
        unique = begin
        for position in range(begin, found):
            if position == begin or items[position] != items[position - 1]:
                items[unique] = items[position]
                unique += 1
        found = unique
        for position in range(begin, found):
            items[position] = _join(items[position], kinds[row])
        rows[row + 1] = found
    return rows, items[:found]
