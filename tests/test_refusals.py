"""Refusals are found in a dozen languages at the beginning of an answer, and nowhere else."""
# ruff: noqa: RUF001
# Letters of other languages look like ours.

import pytest

from tunewright.data_checks.answers import REFUSALS, refusal

SAID = {
    "en": [
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I cannot assist with that request.",
        "Sorry, I can't do that.",
        "As an AI language model, I do not have opinions.",
        "As an AI, I don't have feelings.",
        "I cannot provide medical advice.",
        "I apologize, but I am unable to fulfill this request.",
        "Hello! Unfortunately, I won't be... \u2014 I mean:".replace(
            "won't be... \u2014 I mean:", "can't generate that."
        ),
    ],
    "de": ["Es tut mir leid, aber dabei kann ich nicht helfen.", "Als KI-Sprachmodell habe ich keine Meinung."],
    "fr": ["Je suis désolé, mais je ne peux pas vous aider.", "En tant que modèle de langage, je n'ai pas d'avis."],
    "es": ["Lo siento, pero no puedo ayudar con eso.", "Como modelo de lenguaje, no tengo opiniones."],
    "it": ["Mi dispiace, ma non posso aiutarti.", "In quanto modello linguistico, non ho opinioni."],
    "pt": ["Desculpe, mas não posso ajudar com isso.", "Como um modelo de linguagem, não tenho opiniões."],
    "nl": ["Het spijt me, maar ik kan je daar niet bij helpen.", "Als taalmodel heb ik geen mening."],
    "pl": ["Przykro mi, ale nie mogę w tym pomóc.", "Jako model językowy nie mam zdania."],
    "ru": ["Извините, но я не могу помочь с этим.", "Как языковая модель, я не имею мнения."],
    "ja": ["申し訳ありませんが、そのご要望にはお応えできません。", "AI言語モデルとして、意見はありません。"],
    "zh": ["抱歉，我无法提供这方面的帮助。", "作为一个人工智能语言模型，我没有观点。"],
    "ko": ["죄송하지만 그 요청은 도와드릴 수 없습니다.", "저는 AI 언어 모델로서 의견이 없습니다."],
}


def test_every_language_that_is_known_is_tried() -> None:
    assert set(SAID) == set(REFUSALS)


@pytest.mark.parametrize("answer", [answer for answers in SAID.values() for answer in answers])
def test_an_answer_that_opens_with_a_refusal_is_one(answer: str) -> None:
    found = refusal(answer)
    assert found
    assert found in answer


@pytest.mark.parametrize(
    "answer",
    [
        *[
            "",
            "I can help.",
            "I can't help but smile.",
            "I'm sorry, but I can't find your order.",
            "Sorry, I can't let you go.",
        ],
        *[
            "I cannot recommend this book enough.",
            "As an AI overlord, I rule.",
            "I won't go there again.",
            "I cannot give up.",
        ],
        *["The reply was: I'm sorry, but I can't help with that.", "Unfortunately, the shop is closed.", "No."],
        *["Als künstliche Intelligenz bezeichnet man Verfahren.", "Es tut mir leid, dass Ihr Paket fehlt. Wir helfen."],
        *[
            "Como uma IA pode ajudar uma empresa?",
            "作为人工智能的一个分支，它很重要。",
            "申し訳ありませんが、在庫がありません。",
        ],
    ],
)
def test_an_answer_that_says_something_is_none(answer: str) -> None:
    assert refusal(answer) is None
