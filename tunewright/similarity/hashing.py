"""Texts as hashes, compiled by numba: normalized segments, words, numbers and word n-grams, straight from UTF-8 bytes.

Everything here takes the bytes of Folded (folding.py). Equality is that of 64-bit hashes (FNV-1a, finished as in
MurmurHash3): among a hundred million different words two collide with a chance under one in three thousand.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numba.core import config as numba_settings

from tunewright import config

SPACE, DROPPED, WORD, SPACELESS, SYMBOL = range(5)  # to words a character is a gap, nothing, a part, or one by itself

_BASIS = np.uint64(0xCBF29CE484222325)
_OTHER_BASIS = np.uint64(0x9E3779B97F4A7C15)
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


def compiled(function: Callable[..., Any]) -> Any:
    """The function compiled, without Python's lock while it runs; numba keeps what it compiled for the next process.

    It is kept beside its module or in the user's cache folder; in the home folder where neither can be written.
    """
    compile_it = njit(cache=True, nogil=True)
    try:
        return compile_it(function)
    except RuntimeError:  # numba has no folder to write to
        numba_settings.CACHE_DIR = str(config.home() / "numba")  # pyright: ignore[reportAttributeAccessIssue]
        return compile_it(function)


@compiled
def _finish(value):
    value ^= value >> _HALF
    value *= _FIRST
    value ^= value >> _HALF
    value *= _SECOND
    return value ^ (value >> _HALF)


@compiled
def _join(one, other):
    """A hash of two in their order, and not 0 for zeros, which stand for nothing."""
    return _finish(one * _PRIME + other + _BASIS)


@compiled
def _lower(code):
    return code + 32 if 65 <= code <= 90 else code


@compiled
def _hash_normalized(data, begin, end, cut):
    """Two hashes of data[begin:end] without case and with runs of white space as one space, 0 if it is empty.

    Where a sentence or a line is `cut` off, it is that of the first one that is not empty. Comes with where it ends.
    """
    one, other, gap, empty = _BASIS, _OTHER_BASIS, False, True
    for position in range(begin, end):
        byte = data[position]
        if byte > 32 or not _BLANK[byte]:
            if gap:
                one, other, gap = (one ^ np.uint64(32)) * _PRIME, (other ^ np.uint64(32)) * _PRIME, False
            lower = np.uint64(_lower(byte))
            one, other, empty = (one ^ lower) * _PRIME, (other ^ lower) * _PRIME, False
        elif not empty:
            if cut and (byte == 10 or byte == 13 or _ENDS[data[position - 1]]):
                end = position
                break
            gap = True
    return (np.uint64(0), np.uint64(0), end) if empty else (_finish(one), _finish(other), end)


@compiled
def hash_messages(data, begins, ends):
    """(2, messages) uint64: two hashes of the normalized text of each message."""
    hashes = np.empty((2, len(begins)), np.uint64)
    for message in range(len(begins)):
        one, other, _ = _hash_normalized(data, begins[message], ends[message], False)
        hashes[0, message], hashes[1, message] = one, other
    return hashes


@compiled
def hash_exactly(data, begins, ends):
    """(2, texts) uint64: two hashes of each text as it is, without white space at its end, with LF for CRLF."""
    hashes = np.empty((2, len(begins)), np.uint64)
    for text in range(len(begins)):
        one, other, end = _BASIS, _OTHER_BASIS, ends[text]
        while end > begins[text] and _BLANK[data[end - 1]]:
            end -= 1
        for position in range(begins[text], end):
            byte = data[position]
            if byte != 13 or data[position + 1] != 10:  # the last byte is no line break, so there is a next one
                one, other = (one ^ np.uint64(byte)) * _PRIME, (other ^ np.uint64(byte)) * _PRIME
        hashes[0, text], hashes[1, text] = _finish(one), _finish(other)
    return hashes


@compiled
def segment(data, starts, messages):
    """The sentences of the lines of messages[0]..messages[1] of each row, as (indptr, begin, end, hash)."""
    indptr, room = np.zeros(len(messages) + 1, np.int64), 0
    for first, last in messages:
        room += (starts[last] - starts[first] + last - first + 1) // 2  # a segment is a character and what ends it
    begins, ends, hashes = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint64)
    found = 0
    for row in range(len(messages)):
        for message in range(messages[row, 0], messages[row, 1]):
            begin, stop = starts[message], starts[message + 1]
            while begin < stop:
                value, _, end = _hash_normalized(data, begin, stop, True)
                if value != 0:  # else it is white space
                    begins[found], ends[found], hashes[found] = begin, end, value
                    found += 1
                begin = end
        indptr[row + 1] = found
    return indptr, begins[:found].copy(), ends[:found].copy(), hashes[:found].copy()


@compiled
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


@compiled
def _word(value, is_spaceless):
    """The hash of a word; its lowest bit says whether that is a spaceless character (are_spaceless)."""
    return (_finish(value) | np.uint64(1)) ^ np.uint64(not is_spaceless)


def are_spaceless(words):
    """(words,) bool: the hashes of words that are a character of a script without spaces."""
    return (words & np.uint64(1)).astype(np.bool_)


@compiled
def hash_words(data, begins, ends, classes):
    """The words of each segment, as (indptr, hashes)."""
    indptr, hashes = np.zeros(len(begins) + 1, np.int64), np.empty((ends - begins).sum(), np.uint64)
    found = 0
    for piece in range(len(begins)):
        position, value = begins[piece], _BASIS
        while position <= ends[piece]:
            code, kind, width = 0, SPACE, 1
            if position < ends[piece]:
                code, width = _character(data, position)
                kind = classes[code]
            position += width
            if kind == DROPPED:
                continue
            if kind != WORD and value != _BASIS:
                hashes[found] = _word(value, False)
                found, value = found + 1, _BASIS
            if kind != SPACE:
                value = (value ^ np.uint64(_lower(code))) * _PRIME
            if kind >= SPACELESS:  # or SYMBOL
                hashes[found] = _word(value, kind == SPACELESS)
                found, value = found + 1, _BASIS
        indptr[piece + 1] = found
    return indptr, hashes[:found].copy()


@compiled
def _goes_on(data, position, end):
    """Whether a number that has begun goes on here: with a digit, or a point or comma before one."""
    point = (data[position] == 44 or data[position] == 46) and position + 1 < end
    return 48 <= data[position + point] <= 57


@compiled
def hash_numbers(data, begins, ends):
    """The numbers of each segment, each with the sign before it, as (indptr, hashes)."""
    indptr, hashes = np.zeros(len(begins) + 1, np.int64), np.empty(((ends - begins + 1) // 2).sum(), np.uint64)
    found = 0
    for piece in range(len(begins)):
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
            hashes[found] = value
            found += 1
        indptr[piece + 1] = found
    return indptr, hashes[:found].copy()


@compiled
def hash_sequences(indptr, hashes):
    """(rows,) uint64: all hashes of a row in their order."""
    joined = np.zeros(len(indptr) - 1, np.uint64)
    for row in range(len(joined)):
        for position in range(indptr[row], indptr[row + 1]):
            joined[row] = _join(joined[row], hashes[position])
    return joined


@compiled
def hash_sets(indptr, hashes):
    """(rows,) uint64: all hashes of a row in whatever order."""
    joined = np.zeros(len(indptr) - 1, np.uint64)
    for row in range(len(joined)):
        for position in range(indptr[row], indptr[row + 1]):
            joined[row] += hashes[position]
    return joined


@compiled
def distinct(indptr, hashes):
    """The different ones of each row's hashes but 0, as (indptr, hashes)."""
    longest = np.diff(indptr).max() if len(indptr) > 1 else 0
    seen = np.zeros(_room(longest), np.uint64)  # a table that is open to hashes next to their place
    rows, kept, found = np.zeros(len(indptr), np.int64), np.empty(len(hashes), np.uint64), 0
    for row in range(len(indptr) - 1):
        room = _room(indptr[row + 1] - indptr[row])
        seen[:room] = 0
        for value in hashes[indptr[row] : indptr[row + 1]]:
            place = value & np.uint64(room - 1)
            while seen[place] != 0 and seen[place] != value:
                place = (place + np.uint64(1)) & np.uint64(room - 1)
            if seen[place] != value:
                seen[place] = kept[found] = value
                found += 1
        rows[row + 1] = found
    return rows, kept[:found].copy()


@compiled
def _room(count):
    """A power of two, of which `count` is half at most."""
    room = 2
    while room < 2 * count:
        room *= 2
    return room


@compiled
def hash_shingles(indptr, words, whole, kinds):
    """The set of 2-grams of each row's words, as (indptr, items); `whole` stands for a row without words.

    3-grams where they begin with a spaceless character. An item is another one in another kind.
    """
    rows, items = np.zeros(len(indptr), np.int64), np.empty(len(words) + len(indptr), np.uint64)
    found = 0
    for row in range(len(indptr) - 1):
        first, last, begin = indptr[row], indptr[row + 1], found
        for position in range(first, last):
            is_spaceless = words[position] & np.uint64(1) != 0
            if position + 2 + is_spaceless > last:
                continue
            item = _join(words[position], words[position + 1])
            if is_spaceless:
                item = _join(item, words[position + 2])
            items[found] = _join(item, kinds[row])
            found += 1
        if found == begin:  # shorter than its shingles would be: the text as a whole
            item = whole[row] if first == last else np.uint64(0)
            for position in range(first, last):
                item = _join(item, words[position])
            items[found] = _join(item, kinds[row])
            found += 1
        rows[row + 1] = found
    return distinct(rows, items[:found])
