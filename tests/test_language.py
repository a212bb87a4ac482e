"""A language is told where there is text enough to tell it, offline, and never guessed."""

# ruff: noqa: RUF001
# Letters of other languages look like ours.

import socket

import pytest

from tunewright.data_checks.language import _model, codes, language

SENTENCES = {
    "en": ["Where is the parcel that I ordered last week?", "The meeting was moved to Monday morning."],
    "de": ["Wo bleibt das Paket, das ich bestellt habe?", "Die Sitzung wurde auf Montag verschoben."],
    "fr": ["Où est le colis que j'ai commandé ?", "La réunion a été reportée à lundi matin."],
    "es": ["¿Dónde está el paquete que pedí?", "La reunión se ha pasado al lunes por la mañana."],
    "it": ["Dov'è il pacco che ho ordinato?", "La riunione è stata spostata a lunedì mattina."],
    "pt": ["Onde está a encomenda que eu fiz?", "A reunião foi adiada para segunda-feira."],
    "nl": ["Waar is het pakje dat ik heb besteld?", "De vergadering is naar maandag verplaatst."],
    "pl": ["Gdzie jest paczka, którą zamówiłem?", "Spotkanie przeniesiono na poniedziałek rano."],
    "tr": ["Sipariş ettiğim paket nerede kaldı acaba?", "Toplantı pazartesi sabahına ertelendi."],
    "ru": ["Где посылка, которую я заказал?", "Встречу перенесли на утро понедельника."],
    "uk": ["Де посилка, яку я замовив минулого тижня?", "Зустріч перенесли на ранок понеділка."],
    "ar": ["أين الطرد الذي طلبته الأسبوع الماضي؟", "تم تأجيل الاجتماع إلى صباح الاثنين."],
    "hi": ["मैंने जो पार्सल मंगवाया था वह कहाँ है?", "बैठक सोमवार की सुबह तक स्थगित कर दी गई है।"],
    "ja": ["注文した荷物はどこですか。", "会議は月曜日の朝に変更されました。"],
    "zh": ["我上周订购的包裹在哪里？", "会议改到星期一早上了。"],
    "ko": ["제가 주문한 소포는 어디에 있나요?", "회의가 월요일 아침으로 변경되었습니다."],
    "th": ["พัสดุที่ฉันสั่งซื้ออยู่ที่ไหน", "การประชุมเลื่อนไปเป็นเช้าวันจันทร์"],
}


@pytest.mark.parametrize(("code", "text"), [(code, text) for code, texts in SENTENCES.items() for text in texts])
def test_a_short_sentence_is_told_by_its_language(code: str, text: str) -> None:
    found = language(text)
    assert found
    assert found.code == code
    assert 0.5 <= found.confidence <= 1


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            " \n ",
            "yes",
            "42",
            "card_arrival",
            "Paris",
            "New York",
            "3 + 4 = 7",
            "12.50",
            "???",
            "🎉🎉🎉 🎉🎉🎉 🎉🎉🎉",
        ],
        *['{"intent": "BookRestaurant", "slots": [{"slot": "city"}]}', '["a long label", "another long label"]'],
        *[
            "def area(radius):\n    return 3.14 * radius ** 2",
            "SELECT name FROM users WHERE id = 7;",
            "<p>Where is it?</p>",
        ],
        *[
            "SELECT name, COUNT(*) AS n, AVG(price) AS mean_price, MAX(price) AS highest\nFROM orders",
            "INSERT INTO orders (customer, item, price) VALUES ('Ada', 'lamp', 12)",
            "UPDATE customers SET city = 'Berlin' WHERE id = 7",
            "DELETE FROM customers WHERE city IS NULL",
            "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL)",
            "WITH recent AS (SELECT customer FROM orders)",
        ],
        *["```python\nprint('hello there')\n```", "rnbqkbnr/pp1ppppp/8/2p5/4P3/5N2/PPPP1PPP/RNBQKB1R"],
    ],
)
def test_labels_numbers_code_and_json_have_no_language(text: str) -> None:
    assert language(text) is None


def test_the_codes_that_can_be_told_are_known() -> None:
    assert {"en", "de", "fr", "ja", "zh"} <= codes()
    assert {"english", "EN", "", "__label__en"} & codes() == set()


@pytest.mark.parametrize(
    "text",
    [
        "VPN client freezes at step 645 while exporting the list of eeno47 and eeno48",
        "badge reader crashes with error 261 when I open case eento28 in the portal",
    ],
)
def test_words_with_digits_are_of_no_language(text: str) -> None:
    found = language(text)
    assert found and found.code == "en"


def test_capitals_do_not_make_a_text_japanese() -> None:
    found = language("WHERE IS THE PARCEL THAT I ORDERED LAST WEEK?")
    assert found
    assert found.code == "en"


@pytest.mark.parametrize(
    "text",
    [
        "你好，货件三天没有更新，上海站点在等。",
        "货件三天没有更新，槟城的客户在问。",
        "急！折扣请发给我，裕廊的客户要回复。",
        "报关单被扣住了，上海站点在问。",
    ],
)
def test_chinese_is_not_taken_for_a_language_with_other_letters(text: str) -> None:
    found = language(text)
    assert found
    assert found.code == "zh"


def test_the_model_is_loaded_without_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    _model.cache_clear()
    assert language("The model lies in a package that is installed.")
