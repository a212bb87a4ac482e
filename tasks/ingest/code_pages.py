"""Which code page a text that is not UTF-8 was saved in: the one in which it is whole words of a language.

Each page reads the same bytes as other letters. A reading counts if fastText takes it for a language of that page and
its letters are of that language's alphabet: "dostarczy³" is Polish, but Windows-1252 has no Polish, and ³ is no letter
of it. Guessers by bytes alone, such as charset_normalizer, take short French and Spanish texts for Windows-1250.

For Japanese, Chinese and Korean, with several bytes a character, charset_normalizer says in which encodings the text
has least that does not belong together, and fastText has to find the language of the encoding.
"""

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from tunewright.data_checks.language import most_likely


class CodePage(NamedTuple):
    """An encoding of the languages of a region."""

    codec: str  # as Python calls it
    iconv: str  # as iconv does
    title: str
    family: str  # of the languages that it is for
    languages: frozenset[str]


def _page(codec: str, iconv: str, title: str, family: str, languages: str) -> CodePage:
    return CodePage(codec, iconv, title, family, frozenset(languages.split()))


WESTERN = "af ca da de en es et eu fi fr ga gl id is it lb ms nl no nn oc pt sq sv"
CENTRAL = "bs cs de hr hu pl ro sh sk sl sq sr"
CYRILLIC = "be bg mk ru sr uk"
VIETNAMESE = _page("cp1258", "WINDOWS-1258", "Windows-1258", "Vietnamese", "vi")  # a tone is a character of its own
PAGES = (  # of equal readings the first is named
    _page("cp1252", "WINDOWS-1252", "Latin-1 or Windows-1252", "Western European", WESTERN),
    _page("cp1250", "WINDOWS-1250", "Windows-1250", "Central European", CENTRAL),
    _page("iso8859-2", "ISO-8859-2", "ISO 8859-2", "Central European", CENTRAL),
    _page("cp1251", "WINDOWS-1251", "Windows-1251", "Cyrillic", CYRILLIC),
    _page("koi8-r", "KOI8-R", "KOI8-R", "Cyrillic", "ru bg"),
    _page("cp1253", "WINDOWS-1253", "Windows-1253", "Greek", "el"),
    _page("cp1254", "WINDOWS-1254", "Windows-1254", "Turkish", "tr az"),
    _page("cp1257", "WINDOWS-1257", "Windows-1257", "Baltic", "lt lv et"),
    _page("cp1255", "WINDOWS-1255", "Windows-1255", "Hebrew", "he yi"),
    _page("cp1256", "WINDOWS-1256", "Windows-1256", "Arabic", "ar fa ur"),
    VIETNAMESE,
)

WIDE_PAGES = (  # with several bytes a character
    _page("cp932", "CP932", "Shift-JIS", "Japanese", "ja"),
    _page("euc_jp", "EUC-JP", "EUC-JP", "Japanese", "ja"),
    _page("gb18030", "GB18030", "GBK or GB18030", "simplified Chinese", "zh wuu"),
    _page("big5", "CP950", "Big5", "traditional Chinese", "zh yue"),
    _page("cp949", "CP949", "EUC-KR", "Korean", "ko"),
)

ALPHABETS = {  # language -> its letters beyond ASCII, small where lower() knows them, those of common loanwords too
    **dict.fromkeys(("en", "ga", "af", "id", "ms", "eu"), "áàâäåæçéèêëíïîñóòôöøúùûü"),
    **dict.fromkeys(("es", "gl", "pt", "ca", "oc", "it"), "áàâãçéèêíìîïñóòôõúùüªº"),
    **dict.fromkeys(("fr", "nl", "lb"), "àâæäçéèêëíîïñóôœöùúûü"),
    **dict.fromkeys(("de", "sq"), "äöüßéèàáâçêëôñ"),
    **dict.fromkeys(("sv", "fi", "et", "da", "no", "nn"), "åäöæøéèêëàóòôõüšž"),
    "is": "áéíóúýþæöð",
    "pl": "ąćęłńóśźżéüö",
    **dict.fromkeys(("cs", "sk"), "áäčďéěíľĺňóôřŕšťúůýžöü"),
    "hu": "áéíóöőúüűä",
    **dict.fromkeys(("hr", "bs", "sh", "sl"), "čćđšžéöü"),
    "ro": "ăâîşţéáö",
    "tr": "çğıİöşüâîû",
    "az": "çğıİöşüə",
    "vi": "àáâãèéêìíòóôõùúăđĩũơưýạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "lt": "ąčęėįšųūžéäöü",
    "lv": "āčēģīķļņōŗšūžéäöü",
    "ru": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "bg": "абвгдежзийклмнопрстуфхцчшщъьюя",
    "uk": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",
    "be": "абвгдеёжзійклмнопрстуўфхцчшыьэюя",
    "mk": "абвгдѓежзѕијклљмнњопрстќуфхцчџш",
    "sr": "абвгдђежзијклљмнњопрстћуфхцчџшčćđšž",
    "el": "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώϊϋΐΰ",
    **dict.fromkeys(("he", "yi"), "אבגדהוזחטיכךלמםנןסעפףצץקרשת"),
    "ar": "ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىيًٌٍَُِّْ",
    "fa": "ءآأؤئابپتثجچحخدذرزژسشصضطظعغفقكگلمنهويىة",
    "ur": "ءآأؤئابپتثٹجچحخدذڈرڑزژسشصضطظعغفقكگلمنںهھہويىےة",
}
COMMON = {  # language without Latin letters -> those that make up most of any text, which tells it from another page
    **dict.fromkeys(CYRILLIC.split(), "оеаинтсрвлкмиіју"),
    "el": "ατοιεσνηυρπκμλίάόέής",
    **dict.fromkeys(("he", "yi"), "יוהלאתרבמשנםד"),
    **dict.fromkeys(("ar", "fa", "ur"), "اليمنوترهبدك"),
}
FINAL = re.compile(r"[ςךםןףץ](?=\w)")  # letters that stand at the end of a word alone
MARKS = "‚„…‘’“”•–—‹›«»\xa0¡¿€‰™\u200e\u200f\xad،؛؟"  # noqa: RUF001  # may touch a word
WORD = re.compile(r"[A-Za-z\u0080-\U0010ffff]+(?:'[A-Za-z]+)?")
BREAK = re.compile(r"""\\[nrt]|[\r\n\t;,:.!?"{}\[\]\\|()]+""")  # between what may be of two languages, as keys of JSON
CONTROL = re.compile(r"[\x80-\x9f]")

LEAST_LETTERS = 4  # in the words that a reading is told by; fewer are words of many languages
LEAST_WIDE_LETTERS = 10
MOST_ODD = 0.05  # share of the words with letters beyond ASCII: names and typing errors
LEAST_LIKELY = 0.3  # of a reading, 0 to 1
MARGIN = 0.15  # to the next reading
MOST_CHAOS = 0.2  # as charset_normalizer measures it, 0 to 1, of a reading that there may be
LEAST_LINES = 3  # that tell the page of text in several languages
MOST_LINES = 50
MOST_SHOWN = 50
AROUND = 200
MOST_READ = 20_000  # characters that the language is told from
ASCII = bytes(range(0x80))


class Guess(NamedTuple):
    """The page that a text is in, or without certainty those that it may be in, likeliest first; and how it reads."""

    pages: tuple[CodePage, ...]
    excerpt: str  # empty near something secret or personal
    is_sure: bool

    def said(self, of: str = "it") -> str:
        """The rest of a sentence about the text."""
        if self.is_sure:
            reads = f", in which it reads {self.excerpt!r}: check that it reads right" if self.excerpt else ""
            return f"; {of} looks like {self.named()}{reads}"
        said = f"; {of} may be {self.named()}: convert it to UTF-8 from the one in which it reads right"
        return said if self.pages else ""

    def named(self) -> str:
        """The pages, with or between them."""
        return " or ".join(f"{page.title} ({page.family})" for page in self.pages)


class _Reading(NamedTuple):
    likelihood: float
    page: CodePage
    shown: str
    num_letters: int


def guess(sample: bytes, beyond_ascii: Iterable[int]) -> Guess:
    """The code page of lines that are not ASCII; `beyond_ascii` are all such bytes of the file that they are from."""
    found = _told(_narrow(sample, beyond_ascii), sample, LEAST_LETTERS)
    if found.is_sure or not (wide := _wide(sample)):
        return found
    return _told(wide, sample, LEAST_WIDE_LETTERS)


def guess_by_line(sample: bytes, beyond_ascii: Iterable[int]) -> Guess:
    """The code page of text in several languages: that of all lines of which one can be sure, if it is the same."""
    numbers, lines = [*beyond_ascii], [line for line in sample.splitlines() if not line.isascii()]
    found = [each for line in lines[:MOST_LINES] if (each := guess(line, numbers)).is_sure]
    if len(found) < LEAST_LINES or len({each.pages for each in found}) > 1:
        return Guess((), "", is_sure=False)
    return found[0]


def named_page(said: str, beyond_ascii: Iterable[int]) -> CodePage | None:
    """The page with one byte a character that Guess.said() named with certainty, if a file with these bytes has it."""
    seen = bytes(sorted(beyond_ascii))
    named = (page for page in PAGES if f"; it looks like {page.title} (" in said)
    return next((page for page in named if _decodes(seen, page.codec)), None)


def _told(readings: Iterable[_Reading], sample: bytes, least_letters: int) -> Guess:
    """The likeliest readings: one, where it is likely, well ahead of the next one, and has letters enough."""
    from tunewright.privacy import excerpts  # with detect-secrets, which is slow to import

    likely = sorted((r for r in readings if r.likelihood > 0), key=lambda r: -r.likelihood)
    if not likely:
        return Guess((), "", is_sure=False)
    best, second = likely[0], likely[1].likelihood if len(likely) > 1 else 0.0
    is_sure = best.likelihood >= max(LEAST_LIKELY, second + MARGIN) and best.num_letters >= least_letters
    text = _text(sample, best.page)
    at = text.find(best.shown)
    around = text[max(0, at - AROUND) : at + len(best.shown) + AROUND]
    excerpt = excerpts.clipped(best.shown, MOST_SHOWN) if excerpts.masked(around) == around else ""
    return Guess(tuple(r.page for r in likely[: 1 if is_sure else 3]), excerpt, is_sure)


def _narrow(sample: bytes, beyond_ascii: Iterable[int]) -> Iterable[_Reading]:
    """The different readings by code pages with one byte a character."""
    seen = bytes(sorted(beyond_ascii))
    readings: dict[str, _Reading] = {}
    for page in PAGES:
        if _decodes(seen, page.codec):
            text = _text(sample, page)
            reading = _judged(text, page)
            if text not in readings or reading.likelihood > readings[text].likelihood:
                readings[text] = reading
    return readings.values()


def _wide(sample: bytes) -> list[_Reading]:
    """The readings by encodings with several bytes a character in which the text has a language of the encoding."""
    from charset_normalizer import from_bytes

    pages, found = {page.codec: page for page in WIDE_PAGES}, []
    for match in from_bytes(sample, cp_isolation=[*pages], threshold=MOST_CHAOS):
        page = pages[match.encoding]
        text = codecs.getincrementaldecoder(page.codec)("replace").decode(sample)  # the last character may be cut off
        parts = [part.strip() for part in BREAK.split(text) if not part.isascii()]
        words = "".join(parts)[:MOST_READ]
        num_letters = sum(not letter.isascii() for letter in words)
        detected = most_likely(words)
        if detected.code in page.languages and num_letters > len(words) / 2:  # or a word has hardly a letter of it
            found.append(_Reading(detected.confidence - match.chaos, page, max(parts, key=len), num_letters))
    return found


def _text(sample: bytes, page: CodePage) -> str:
    """The sample by a page, composed: Windows-1258 has the tones of Vietnamese as characters of their own."""
    return unicodedata.normalize("NFC", sample.decode(page.codec, "replace"))


def _decodes(content: bytes, codec: str) -> bool:
    try:
        text = content.decode(codec)
    except UnicodeDecodeError:
        return False
    return not CONTROL.search(text.replace("\x85", "")) or codec == "koi8-r"


def _judged(text: str, page: CodePage) -> _Reading:
    """Score a reading: fastText's confidence in the best language of the page, less for rare letters."""
    parts = [part.strip() for part in BREAK.split(text) if not part.isascii()]
    words = Counter(word for part in parts for word in _words(part))
    shown = max(parts, key=lambda part: (min(len(part), MOST_SHOWN), -len(part)), default="")
    num_letters = sum(len(word) for word in words.elements())
    detected = most_likely(" ".join(" ".join(parts).split())[:MOST_READ])
    alphabet = ALPHABETS.get(detected.code, "")
    if detected.code not in page.languages or not alphabet:
        return _Reading(0.0, page, shown, num_letters)
    odd = sum(count for word, count in words.items() if _is_odd(word, alphabet))
    if odd > MOST_ODD * words.total():
        return _Reading(0.0, page, shown, num_letters)
    return _Reading(detected.confidence * _commonness(words, detected.code), page, shown, num_letters)


def _commonness(words: Counter[str], language: str) -> float:
    """The square of the share of letters that are among a language's most frequent; 1 in Latin letters."""
    if language not in COMMON:
        return 1.0
    letters = Counter[str]()
    for word, count in words.items():
        letters.update(dict.fromkeys(word.lower(), count))
    return (sum(n for letter, n in letters.items() if letter in COMMON[language]) / max(1, letters.total())) ** 2


def _words(text: str) -> list[str]:
    """The words with anything beyond ASCII, without the marks around them."""
    stripped = (word.strip(MARKS) for word in WORD.findall(re.sub(f"[{MARKS}]", " ", text)))
    return [word for word in stripped if not word.isascii()]


def _is_odd(word: str, alphabet: str) -> bool:
    """Whether a word has a letter of another alphabet, a sign between its letters, or capitals inside."""
    if len(word) == 1 and not word.isalpha():
        return False  # a sign that stands alone, or beside a number
    if FINAL.search(word) or not (word.isupper() or word[1:] == word[1:].lower()):
        return True
    return any(not c.isascii() and c not in alphabet and c.lower() not in alphabet for c in word)
