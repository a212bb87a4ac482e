"""Answers that say nothing, stop in the middle or refuse.

Placeholders and cut-off answers are sure rather than complete: an answer that somebody could have meant is neither. A
refusal's opening, in a dozen languages, counts where an assistant speaks as a language model, or says that it cannot do
one of the things that assistants refuse. So "I'm sorry, but I can't find your order" and "I can't help but smile" are
none.
"""

# A full-width comma is what Chinese and Japanese write.
# ruff: noqa: RUF001

import json
import re
from collections.abc import Mapping, Sequence

from tunewright.metrics.texts import parsed

# A placeholder is a whole answer, in any case and without the space around it, that somebody meant to replace.
# A word can be an honest answer too: it counts only where no turn before it names it ("Answer with a city or none").
# In small letters "todo" is Spanish and Portuguese for everything, and as "pendiente" is, a word may be a label.
PLACEHOLDER_WORDS = (
    r"(?-i:TODO)|tbd|tba|tbc|fixme|none|null|nil|nan|n/?a|not applicable"
    r"|(?:por|a) (?:definir|completar|rellenar|preencher)|[àa] (?:compléter|définir|remplir)"
    r"|da (?:completare|definire|compilare)|noch (?:auszufüllen|zu ergänzen)|nog in te vullen"
)
_FILL_IN = r"rellenar|completar|preencher|compléter|à compléter|remplir|compilare|da compilare|ausfüllen|invullen"
PLACEHOLDER_FORMS = (
    r"placeholder|dummy|lorem ipsum\b.*",
    r"(your |the )?(answer|response|output|text) (goes )?here",
    r"<\s*((your|the|insert) )?(answer|response|output|completion|text|placeholder)( here)?\s*>",
    r"((la )?tua |(a )?sua |tu |su |la |votre |ihre )?"
    r"(respuesta|resposta|risposta|réponse|antwort) (aquí|aqui|qui|ici|hier)",
    rf"[(\[<]\s*(?:{_FILL_IN})\s*[)\]>]",
    r"\[\s*insert\b[^\]]*\]|\[\s*(your|enter|fill in)\s[^\]]*\]",
    r"x{3,}|[-\u2013\u2014_]+|\.{2,}|\u2026+|\?{2,}",
)

# Words that prose does not end with, in English, German, French, Spanish, Italian, Portuguese and Dutch. One that is
# another word in another of these languages is left out, and so are single letters, which may be labels.
UNFINISHED = re.compile(
    r"and|or|nor|but|the|of|because|which|whose|than|your|their|our|my|its|und|oder|aber|der|dem|eine|einen|einem|einer"
    r"|von|weil|dass|sowie|et|ou|mais|le|les|une|des|avec|dont|leur|pero|el|del|una|unas|unos|ma|gli|della|degli|os|uma"
    r"|dos|das|het|een|omdat"
)
MIN_PROSE = 80  # characters of an answer whose last word tells; below, it may be a label or a list
CAP_SPAN = 50  # lengths below the longest that it is compared with

_WORDS = re.compile(PLACEHOLDER_WORDS, re.IGNORECASE)
_FORMS = re.compile("|".join(PLACEHOLDER_FORMS), re.IGNORECASE | re.DOTALL)
_NOTHING = "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which str.strip() leaves alone
_SENTENCE = re.compile(r"[^\W\d_]{2}[.!?][\"')\]]?\s")
_JSON = re.compile(r"\s*(?:\{\s*(?:\"|$)|\[\s*(?:[\[{\"]|$))")
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


def placeholder(answer: str, before: Sequence[str]) -> str | None:
    """The answer, stripped, where it is nothing but a placeholder; `before` are the texts of the turns before it."""
    said = stripped(answer)
    if _WORDS.fullmatch(said):
        named = re.compile(rf"(?<!\w){re.escape(said)}(?!\w)", re.IGNORECASE)
        return None if any(named.search(text) for text in before) else said
    return said if _FORMS.fullmatch(said) else None


def cut_off(answer: str) -> str | None:
    """Why an answer stops before its end: an open code fence, open JSON, or prose that ends within a sentence."""
    text = answer.rstrip()
    if text.count("```") % 2:
        return "a code fence is left open"
    if _JSON.match(text):
        return "its JSON is left open" if _is_open_json(text) else None
    if len(text) < MIN_PROSE or not (text[-1] == "," or text[-1].isalpha()) or not _SENTENCE.search(text):
        return None
    last = text.rsplit(None, 1)[-1]
    if last.endswith(","):  # verses and the greeting of a letter do, on short lines
        return None if "\n" in text[-MIN_PROSE:] else "it ends with a comma"
    return f"it ends with {last}" if UNFINISHED.fullmatch(last) else None


def length_cap(lengths: Mapping[int, int], min_share: float = 0.01) -> int | None:
    """The length at which answers were capped, of how many answers have each length; None where they were not.

    It is the longest, if at least ten answers and `min_share` of all have it to the character, and ten times as many as
    have any length shortly below it: lengths that nobody capped thin out towards the longest.
    """
    longest = max(lengths, default=0)
    nearby = [lengths.get(length, 0) for length in range(longest - CAP_SPAN, longest)]
    enough = max(10, min_share * sum(lengths.values()), 10 * max(nearby))
    return longest if len(lengths) > 1 and lengths.get(longest, 0) >= enough else None


def stripped(text: str) -> str:
    """The text without the white space and the zero-width characters around it."""
    return text.strip().strip(_NOTHING).strip()


def _is_open_json(text: str) -> bool:
    """Whether the JSON at the beginning of `text` goes on past its end."""
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc) or error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):  # an integer of thousands of digits; nested deeper than anybody writes
        return False
    return False


def no_json(answer: str) -> str | None:
    """Why an answer is no JSON object or array, and nothing else, as the evaluation takes it (metrics/texts.py)."""
    if not answer.lstrip().startswith(("{", "[")):
        return "it is a text"
    try:
        json.loads(answer)
    except json.JSONDecodeError as error:
        return f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
    except ValueError:  # an integer of more digits than Python converts
        return "a number has too many digits"
    except RecursionError:  # nested deeper than anybody writes
        return "it is nested too deep"
    return None if parsed(answer) is not None else "a key is in an object twice, or a number is NaN or infinite"


def refusal(answer: str) -> str | None:
    """The words with which an answer refuses, if that is how it begins."""
    opening = answer[:_OPENING]
    match = _REFUSAL.match(opening.replace("\u2019", "'").lower())
    return " ".join(opening[match.start("refusal") : match.end()].split()) if match else None
