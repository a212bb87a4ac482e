"""Answers that begin by refusing, in a dozen languages.

An opening counts where an assistant speaks as a language model, or says that it cannot do one of the things that
assistants refuse. So "I'm sorry, but I can't find your order" and "I can't help but smile" are no refusals.
"""
# ruff: noqa: RUF001
# A full-width comma is what Chinese and Japanese write.

import re

_CANNOT = r"(?:can'?t|cannot|can not|won't|will not|(?:'m|am) (?:not able|unable) to)"
_SORRY = (
    r"(?:(?:i(?:'m| am) )?(?:(?:very|so|really|truly) )?(?:sorry|afraid)|(?:i |my )?apologi[sz]es?|unfortunately)"
    r"[,.]? (?:but )?(?:that )?(?:as an ai(?: \w+){0,3},? )?"
)
_REFUSED = (
    r"(?:\w+ly )?(?:help (?:you|with)|assist|provide|fulfil|comply|answer (?:that|this)|engage in|respond to|generate"
    r"|browse|predict)"
)
_REFUSED_SORRILY = r"(?:\w+ly )?(?:help\b(?! but| it\b| \w+ing)|do (?:that|this)|answer|create|write|discuss|share)"
_HILFT = r"(?:weiterhelfen|helfen|beantworten|erfüllen|unterstützen|bereitstellen|erstellen|schreiben)"

# By language: what stands at the beginning of an answer, in lower case with straight apostrophes.
REFUSALS: dict[str, tuple[str, ...]] = {
    "en": (
        r"as an? (?:large )?(?:ai |artificial intelligence )?language model\b",
        rf"as an (?:ai|artificial intelligence)(?: assistant| model| chatbot)?,? i (?:{_CANNOT}|don't|do not|am not)\b",
        r"i(?:'m| am) (?:just |only )?an? (?:ai )?(?:language model|ai assistant),? (?:so |and )?i (?:can|do|am|'m)",
        rf"(?:{_SORRY})?i ?{_CANNOT} {_REFUSED}",
        rf"{_SORRY}i ?{_CANNOT} {_REFUSED_SORRILY}",
    ),
    "de": (
        r"als (?:ein )?(?:großes )?(?:ki[- ]?)?(?:sprachmodell\b|ki-assistent(?:in)? (?:kann|darf|habe|bin) ich\b)",
        rf"(?:es )?tut mir (?:sehr )?leid,? .{{0,40}}?(?:kann|darf) .{{0,80}}?(?:nicht|keinen?) .{{0,60}}?{_HILFT}",
        rf"leider (?:kann|darf) ich .{{0,80}}?(?:nicht|keinen?) .{{0,60}}?{_HILFT}",
    ),
    "fr": (
        r"en tant qu(?:e |')(?:un )?(?:grand )?(?:modèle de lang(?:age|ue)|(?:assistante? )?ia)\b",
        r"(?:je suis (?:vraiment )?)?(?:désolée?|malheureusement)[,.]? (?:mais )?je ne (?:peux|suis) pas "
        r"(?:en mesure d. ?)?(?:vous |t'|te |y )?(?:aid|fourn|répond|cré|écri|génér|particip|satisf)",
    ),
    "es": (
        r"como (?:un )?(?:gran )?(?:modelo de (?:lenguaje|ia)|asistente de ia|ia)(?: \w+){0,2},",
        r"(?:lo siento|lamentablemente|lo lamento)[,.]? (?:pero )?(?:no puedo|no me es posible) "
        r"(?:ayudar|proporcionar|cumplir|responder|crear|escribir|generar|participar)",
    ),
    "it": (
        r"(?:in quanto|come) (?:grande )?(?:modello (?:linguistico|di linguaggio)|assistente ia|ia)(?: \w+){0,2},",
        r"mi dispiace[,.]? (?:ma )?non (?:posso|sono in grado di) "
        r"(?:aiutar|fornir|soddisfar|risponder|crear|scriver|generar)",
    ),
    "pt": (
        r"como (?:uma? )?(?:grande )?(?:modelo de (?:linguagem|ia)|assistente de ia|ia)(?: \w+){0,2},",
        r"(?:desculpe|sinto muito|lamento|infelizmente)[,.]? (?:mas )?(?:eu )?não (?:posso|consigo) "
        r"(?:ajudar|fornecer|cumprir|responder|criar|escrever|gerar|participar)",
    ),
    "nl": (
        r"als (?:een )?(?:groot )?(?:ai-)?taalmodel\b|als ai-assistent\b",
        r"(?:het spijt me|sorry|helaas)[,.]? (?:maar )?(?:ik kan|kan ik) .{0,60}?(?:niet|geen) .{0,40}?"
        r"(?:helpen|beantwoorden|voldoen|verstrekken|schrijven)",
    ),
    "pl": (
        r"jako (?:duży )?model językowy\b|jako asystent ai\b",
        r"(?:przykro mi|przepraszam|niestety)[,.]? (?:ale )?nie mogę (?:w tym |ci )?"
        r"(?:pomóc|udzielić|spełnić|odpowiedzieć|stworzyć|napisać)",
    ),
    "ru": (
        r"(?:я )?как (?:большая )?языковая модель,",
        r"(?:извините|простите|к сожалению|мне жаль)[,.]? (?:но )?я не могу (?:вам |с этим )?"
        r"(?:помочь|предоставить|выполнить|ответить|создать|написать)",
    ),
    "ja": (
        r"(?:私は)?(?:ai|人工知能|大規模)?(?:の)?言語モデルとして",
        r"(?:申し訳(?:ありません|ございません)が?|すみませんが)[、,。]?.{0,40}?(?:お手伝い|お答え|提供|お応え|回答)"
        r"(?:すること)?[はを]?.{0,6}?(?:できません|できかねます|いたしかねます)",
    ),
    "zh": (
        r"作为(?:一个|一名)?(?:大型)?(?:(?:ai|人工智能)(?:语言模型|助手)|语言模型)",
        r"(?:很|非常)?(?:抱歉|对不起|遗憾)[,，。]?但?我?(?:无法|不能)(?:为您|帮|提供|回答|协助|满足|完成|参与|生成)",
    ),
    "ko": (
        r"(?:저는 )?(?:ai|인공지능) ?(?:언어 ?모델|어시스턴트)(?:로서|이기 때문에|이므로)",
        r"(?:죄송하지만|죄송합니다)[,.]? .{0,40}?(?:도와드릴|제공할|답변할|도움을 드릴|답변드릴) 수 없",
    ),
}

_OPENING = 200  # characters of an answer that are looked at
_GREETING = r"(?:(?:hi|hello|hey|hallo|bonjour|hola|thank you|thanks)\b[^.!?\n]{0,30}[.!?,]\s+)?"
_REFUSAL = re.compile(
    rf"[\W_]*{_GREETING}(?P<refusal>{'|'.join(form for forms in REFUSALS.values() for form in forms)})", re.DOTALL
)


def refusal(answer: str) -> str | None:
    """The words with which an answer refuses, if that is how it begins."""
    opening = answer[:_OPENING]
    match = _REFUSAL.match(opening.replace("\u2019", "'").lower())
    return " ".join(opening[match.start("refusal") : match.end()].split()) if match else None
