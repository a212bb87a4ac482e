"""Personal data in a text: addresses and numbers that lead to one person, each confirmed by a checksum or a plan.

Precision comes first: order numbers, dates, prices, versions, and what documentation shows as an example are none.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from ipaddress import IPv4Address

from tunewright.privacy import Masked

REGION = "US"  # of phone numbers without a country code, which count only where they are grouped as 212-736-5000 is
# After one of these words, a number without a country code counts however it is grouped, if it is assigned in one of
# the countries.
PHONE_WORDS = {
    r"(?:tele)?phone|mobile|cell": "US GB AU IE NZ ZA IN",
    r"tel[eé]fonos?|tel[eé]f|m[oó]vil|celular|ll[aá]m[ae]\w*": "ES MX AR CO CL PE EC UY",
    r"telefon\w*|handy\w*|mobil\w*|rufnummer": "DE AT CH PL CZ SE NO DK TR",
    r"t[eé]l[eé]phone|portable": "FR BE CH CA",
    r"telefono|cellulare": "IT CH",
    r"telefone|telem[oó]vel|celular": "BR PT",
    r"telefoon\w*|mobiel\w*": "NL BE",
    r"телефон\w*": "RU UA",
    r"電話\w*|电话\w*|手机\w*": "JP CN TW HK",
    r"전화\w*|휴대폰\w*": "KR",
    r"tel|whatsapp": "US GB ES MX AR CO CL DE AT CH FR BE IT BR PT NL PL",
}

# Mailboxes that belong to no person (RFC 2142 and others), and domains of examples (RFC 2606 and tutorials).
ROLE_MAILBOX = re.compile(
    r"(?:info|marketing|sales|support|abuse|noc|security|(?:post|host|web)master|admin|contact|help|hello|office|service"
    r"|team|jobs|billing|(?:do.?not|no).?reply|git|user(?:name)?|name|you|your.*|e?mail|test|someone|example)\d*",
    re.IGNORECASE,
)
EXAMPLE_DOMAIN = re.compile(
    r"(?:.*\.)?(?:(?:example|test|invalid|localhost|local)(?:\.\w+)?|(?:your|my|some)?-?(?:domain|company|e?mail|site"
    r"|website|server|host|business|organi[sz]ation|xyz|abc|foo|bar|acme)(?:\.\w+){1,2})",
    re.IGNORECASE,
)
# Ranges and lengths by issuer (ISO/IEC 7812): Visa, Mastercard, American Express, Discover, JCB, UnionPay.
CARD = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}"
)
# What issuers, banks and authorities publish for tests and examples, and what everybody makes up.
EXAMPLES = re.compile(
    r"4111111111111111|4242424242424242|4012888888881881|4000056655665556|5555555555554444|5105105105105100"
    r"|5200828282828210|2223003122003222|378282246310005|371449635398431|6011111111111117|6011000990139424"
    r"|3530111333300000|DE89370400440532013000|GB29NWBK60161331926819|GB82WEST12345698765432|FR7630006000011234567890189"
    r"|078051120|219099999|123456789|12345678909|12345678Z|87654321X|X1234567L"
)
# Characters of an account number by country (the IBAN registry).
IBAN_LENGTHS = {
    country: int(length)
    for country, length in re.findall(
        r"(..)(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 "
        "EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 "
        "KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 "
        "PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 "
        "VA22 VG24 XK20 YE30",
    )
}

PHONE = "phone number"
_SEPARATOR = r"[ \u00a0\u202f().\u2011/-]"
# Seven digits that stand together, or an IP address: without it a text has none of the numbers below.
_NUMBER = re.compile(rf"\d(?:(?:{_SEPARATOR}{{0,2}}\d){{6}}|\d{{0,2}}(?:\.\d{{1,3}}){{2}}\.\d)", re.ASCII)


def personal(text: str) -> tuple[Masked, ...]:
    """The personal data in `text`, the first of each kind."""
    kinds = [*(_ADDRESSES if "@" in text else ()), *(_NUMBERS if _NUMBER.search(text) else ())]
    first = {
        kind: next((match[0] for match in form.finditer(text) if is_kind(match[0])), "")
        for kind, form, is_kind in kinds
    }
    if first.get(PHONE) == "":
        first[PHONE] = _named_phone(text)
    return tuple(Masked(kind, _masked(value)) for kind, value in first.items() if value)


def is_personal_mailbox(address: str) -> bool:
    """Whether an e-mail address belongs to a person, and not to a role or an example."""
    mailbox, domain = address.split("@")
    return not ROLE_MAILBOX.fullmatch(mailbox) and not EXAMPLE_DOMAIN.fullmatch(domain)


def is_phone(text: str) -> bool:
    """Whether a number is assigned by the numbering plan of its country; without a country code it must be grouped."""
    import phonenumbers

    if re.search(r"555\D?01\d\d$", text):  # kept for fiction
        return False
    international = re.sub(r"^00 ?", "+", text)
    leniency = phonenumbers.Leniency.VALID if international[0] == "+" else phonenumbers.Leniency.STRICT_GROUPING
    return phonenumbers.PhoneNumberMatcher(international, REGION, leniency=leniency).has_next()


def _named_phone(text: str) -> str:
    """The first number that follows one of PHONE_WORDS, as in "mi móvil es 612 34 56 78", and is assigned; or ""."""
    import phonenumbers

    for match in _NAMED_PHONE.finditer(text):
        number = match["number"]
        digits = re.sub(r"\D", "", number)
        if len(set(digits)) < 4 or EXAMPLES.fullmatch(digits) or _DATE.fullmatch(number):
            continue
        regions = " ".join(
            where for word, where in PHONE_WORDS.items() if re.fullmatch(word, match["word"], re.IGNORECASE)
        )
        for region in dict.fromkeys(regions.split()):
            with suppress(phonenumbers.NumberParseException):
                if phonenumbers.is_valid_number_for_region(phonenumbers.parse(number, region), region):
                    return number
    return ""


def is_card(text: str) -> bool:
    """Whether digits are a payment card's: an issuer's range and length, and the checksum of Luhn (ISO/IEC 7812)."""
    digits = re.sub(r"\D", "", text)
    if not CARD.fullmatch(digits) or EXAMPLES.fullmatch(digits) or len(set(digits)) < 5:
        return False
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether an account number has its country's length and leaves 1 when divided by 97 (ISO 13616)."""
    code = text.replace(" ", "")
    if IBAN_LENGTHS.get(code[:2]) != len(code) or EXAMPLES.fullmatch(code):
        return False
    return int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97 == 1


def is_ssn(text: str) -> bool:
    """Whether a US social security number was ever assigned, and is no example; it has no checksum."""
    area, group, serial = text.split("-")
    is_assigned = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return is_assigned and not EXAMPLES.fullmatch(area + group + serial)


def is_cpf(text: str) -> bool:
    """Whether a Brazilian taxpayer's number has its check digits: modulo 11, weights from 10 and from 11 down to 2."""
    digits = [int(digit) for digit in re.sub(r"\D", "", text)]
    if len(set(digits)) == 1 or EXAMPLES.fullmatch("".join(map(str, digits))):
        return False
    checks = [sum(digit * (n + 1 - i) for i, digit in enumerate(digits[:n])) * 10 % 11 % 10 for n in (9, 10)]
    return digits[9:] == checks


def is_dni(text: str) -> bool:
    """Whether a Spanish DNI or NIE has its check letter: the number modulo 23; an NIE's X, Y or Z is 0, 1 or 2."""
    code = re.sub(r"[.-]", "", text)
    digits = str("XYZ".find(code[0])) + code[1:-1] if code[0] in "XYZ" else code[:-1]
    if len(set(digits.lstrip("0"))) < 3 or EXAMPLES.fullmatch(code):
        return False
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == code[-1]


def is_public_address(text: str) -> bool:
    """Whether an IPv4 address is one of the public net; small numbers are more often a version or a section."""
    parts = text.split(".")
    numbers = [int(part) for part in parts]
    if max(numbers) > 255 or numbers[0] < 11 or max(numbers[1:]) < 20 or any(part != str(int(part)) for part in parts):
        return False
    return IPv4Address(text).is_global and not IPv4Address(text).is_multicast


def _masked(value: str) -> str:
    if "@" in value:
        mailbox, domain = value.split("@")
        return f"{mailbox[0]}\u2026@{domain[0]}\u2026{domain[domain.rindex('.') :]}"
    return f"{value[:2]}\u2026{value[-2:]}"


def _form(first: str, rest: str) -> re.Pattern[str]:
    """A number by its first character and the rest, that stands alone: no part of a longer number, name or amount.

    A search for one character is fast, one for what does not stand before it is not: so that is looked at second.
    """
    return re.compile(rf"{first}(?<![\w.,+/-].)(?:{rest})(?![\w-]|[.,/]\d)", re.ASCII)


_Kind = tuple[str, re.Pattern[str], Callable[[str], bool]]
_EMAIL = re.compile(r"(?<![\w.+/:-])\w[\w.+-]{0,63}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?![\w-]|:\S)", re.ASCII)
_US_PHONE = r"(?:\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}([ .-])\d{3}\1\d{4})"
_PHONE = (
    rf"(?<=\+)[1-9](?:\d|{_SEPARATOR}){{6,20}}\d|(?<=1)[ .-]{_US_PHONE}"
    rf"|(?<=0)0 ?[1-9]\d{{0,2}} (?:\d|{_SEPARATOR}){{5,18}}\d"
    r"|(?<=\()\d{3}\) ?\d{3}[ .-]\d{4}|(?<=\d)\d\d([ .-])\d{3}\2\d{4}"
)
_NAMED_PHONE = re.compile(
    rf"(?<!\w)(?P<word>{'|'.join(PHONE_WORDS)})(?!\w)[^\d\n!?+]{{0,20}}"
    rf"(?P<number>(?<![\d.,/-])\(?\d(?:\d|{_SEPARATOR}){{5,16}}\d(?![\w-]|[.,/]\d))",
    re.IGNORECASE,
)
_DATE = re.compile(r"(?:19|20)\d\d\D?[01]\d\D?[0-3]\d|[0-3]?\d\D[01]?\d\D(?:19|20)\d\d")
_ADDRESSES: list[_Kind] = [("e-mail address", _EMAIL, is_personal_mailbox)]
_NUMBERS: list[_Kind] = [
    (
        "payment card",
        _form(r"\d", r"\d{3}([ -])\d{4}\1\d{4}\1\d{1,4}(?:\1\d{3})?|\d{3}([ -])\d{6}\2\d{5}|\d{12,18}"),
        is_card,
    ),
    ("IBAN", _form(r"[A-Z]", r"[A-Z]\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"), is_iban),
    ("US social security number", _form(r"\d", r"\d\d-\d\d-\d{4}"), is_ssn),
    ("Brazilian CPF", _form(r"\d", r"\d\d\.\d{3}\.\d{3}-\d\d"), is_cpf),
    (
        "Spanish DNI or NIE",
        _form(r"[\dXYZ]", r"(?<=\d)(?:\d{7}|\d\.\d{3}\.\d{3})-?[A-Z]|(?<=[XYZ])-?\d{7}-?[A-Z]"),
        is_dni,
    ),
    ("IP address", _form(r"\d", r"\d{0,2}(?:\.\d{1,3}){3}"), is_public_address),
    (PHONE, _form(r"[\d+(]", _PHONE), is_phone),
]

KINDS = tuple(kind for kind, *_ in (*_ADDRESSES, *_NUMBERS))
