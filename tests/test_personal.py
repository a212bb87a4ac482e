"""Personal data is found where a checksum or a plan confirms it, told masked, and numbers of other kinds are let be."""

import pytest

from tunewright.privacy.personal import is_card, is_iban, personal


def kinds(text: str) -> list[str]:
    return [found.kind for found in personal(text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe@gmail.com, please.", "e-mail address"),
        ("j_m+news@mail.uni-ulm.de", "e-mail address"),
        ("Call (212) 736-5000 now", "phone number"),
        ("212-736-5000", "phone number"),
        ("1-212-736-5000", "phone number"),
        ("dial 1 (212) 736-5000", "phone number"),
        ("My number is +41 44 668 18 00.", "phone number"),
        ("+49 (0)30 901820", "phone number"),
        ("tel: +81 3-6384-9000", "phone number"),
        ("+47 912 34 567", "phone number"),
        ("+47-91234567", "phone number"),
        ("ring 0047 912 34 567", "phone number"),
        ("00 47 91 23 45 67", "phone number"),
        ("card 4539 1488 0343 6467, thanks", "payment card"),
        ("3714-496353-98456", "payment card"),
        ("DE12 5001 0517 0648 4898 90", "IBAN"),
        ("GB33BUKB20201555555555", "IBAN"),
        ("SSN 219-09-9998", "US social security number"),
        ("CPF 529.982.247-25", "Brazilian CPF"),
        *((f"mi DNI es {number}", "Spanish DNI or NIE") for number in ("53184627W", "53.184.627-W", "53184627-W")),
        *((f"NIE {number}.", "Spanish DNI or NIE") for number in ("Y2468135L", "Y-2468135-L")),
        ("Llámame al 612 34 56 78.", "phone number"),
        ("mi teléfono es el 612345678", "phone number"),
        ("Tel.: 91 123 45 67", "phone number"),
        ("móvil: 612-345-678", "phone number"),
        ("mi celular (55) 1234 5678", "phone number"),
        ("Telefon 030 901820", "phone number"),
        ("Handynummer 0151 23456789", "phone number"),
        ("portable 06 12 34 56 78", "phone number"),
        ("celular: (11) 96123-4567", "phone number"),
        ("telefon kom. 512 345 678", "phone number"),
        ("電話番号は 03-6384-9000", "phone number"),
        ("mobile 2127365000", "phone number"),
        ("failed login from 52.14.203.9", "IP address"),
    ],
)
def test_what_leads_to_a_person_is_found_by_its_kind(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        *["", "no digits at all", "user@example.com", "a@b.example", "support@acme-tools.com", "noreply@shop.ch"],
        *["git@github.com:org/repo.git", "https://user@host.ch/x", "name@yourcompany.com", "@decorated", "3 @ 4.50"],
        *["order 2127365000", "2023-04-05 12:30", "$1,234,567.00", "212-555-0123", "123-456-7890", "1 2 3 4 5 6 7 8 9"],
        *[
            "4111 1111 1111 1111",
            "4539 1488 0343 6468",
            "42596-136-1-8360",
            "45391488034364671",
            "id-4539148803436467",
            "3.14159265358979",
        ],
        *["DE13 5001 0517 0648 4898 90", "DE89 3704 0044 0532 0130 00", "123-45-6789", "000-12-3456", "111.111.111-11"],
        *["ISBN 978-3-16-148410-0", "version 12.1.2.3", "127.0.0.1", "192.168.1.20", "203.0.113.90", "300.14.203.9"],
        *["order 0047912345678", "00 100 200 300 400", "+49 000 000 000", "it grew by +20 123 456 789"],
        *["DNI 12345678Z", "DNI 53184627K", "NIE X1234567L", "DNI 11111111H", "ref 53184627W-2", "a53184627W"],
        *["pedido 612345678", "son 612 345 678 euros", "mi teléfono. Pedido: 12 34 56", "móvil comprado el 2023-04-05"],
        *["móvil con IMEI 356938035643809", "tel 600 000 000", "phone 123456789", "mi móvil costó 612.345.678,00"],
        *["48/2 = 24 and 24 + 48 = 72", "020 7946 0958", "12-34-56-78", "ratio 16/9/2020/44"],
    ],
)
def test_other_numbers_and_examples_are_none(text: str) -> None:
    assert kinds(text) == []


def test_nothing_of_the_middle_is_told() -> None:
    found = personal("jane.doe@gmail.com or +41 44 668 18 00, card 4539 1488 0343 6467")
    assert [str(each) for each in found] == [
        "e-mail address j\u2026@g\u2026.com",
        "payment card 45\u202667",
        "phone number +4\u202600",
    ]


def test_one_wrong_digit_breaks_a_checksum() -> None:
    card, iban = "4539148803436467", "DE12500105170648489890"
    assert is_card(card)
    assert is_iban(iban)
    for position in range(4, 16):
        wrong = str((int(card[position]) + 1) % 10)
        assert not is_card(card[:position] + wrong + card[position + 1 :])
        wrong = str((int(iban[position]) + 1) % 10)
        assert not is_iban(iban[:position] + wrong + iban[position + 1 :])
