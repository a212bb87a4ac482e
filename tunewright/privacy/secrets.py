"""Credentials that stand in a text, by the plugins of detect-secrets, which name the kinds. Nothing is verified online.

All plugins on all texts cost 350 us a row. So one runs only where its anchor stands, without which it finds nothing,
and what is found counts only where nobody wrote it as an example. Left out are the plugins by entropy, to which any
hash is a secret, Artifactory's, to which APARTAMENTOS is one, npm's, which is slow on long lines, and the one for IP
addresses, which are personal.py's.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from tunewright.privacy import Masked

MIN_TOKEN = 20  # letters, digits and _-+/= in a row, in what each plugin of ANCHORS finds
PIECE = 4_096  # characters looked at together, half of them again with the next: some plugins are quadratic in them
# Names of a password that detect-secrets does not know: German, Spanish, French, Portuguese, Dutch, Nordic, Polish ...
PASSWORDS = (
    *("passwort", "kennwort", "clave", "contrasenya", "mot de passe", "senha", "wachtwoord", "lösenord", "passord"),
    *(
        "adgangskode",
        "salasana",
        "hasło",
        "heslo",
        "jelszó",
        "şifre",
        "пароль",
        "密码",
        "密碼",
        "パスワード",
        "비밀번호",
    ),
)
MIN_VALUE = 8  # characters of a value that is assigned to a name such as password

# By plugin, what a text must hold, in lower case, for the plugin to find a token in it.
ANCHORS: dict[str, tuple[str, ...]] = {
    "AWSKeyDetector": ("a3t", "abia", "acca", "akia", "asia", "aws"),
    "AzureStorageKeyDetector": ("accountkey=",),
    "DiscordBotTokenDetector": (".",),
    "GitHubTokenDetector": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "GitLabTokenDetector": ("gl", "gr1348941"),
    "JwtTokenDetector": ("eyj",),
    "MailchimpDetector": ("-us",),
    "OpenAIDetector": ("t3blbkfj",),
    "PypiTokenDetector": ("pypi-age",),
    "SendGridDetector": ("sg.",),
    "SlackDetector": ("xox", "hooks.slack.com"),
    "SquareOAuthDetector": ("sq0csp-",),
    "StripeDetector": ("k_live_",),
    "TelegramBotTokenDetector": (":",),
    "TwilioKeyDetector": ("ac", "sk"),
}
# These find a token by the name that it is assigned to, or by its address.
BY_NAME = ("CloudantDetector", "IbmCloudIamDetector", "IbmCosHmacDetector", "SoftlayerDetector")
NAMED_TOKEN = re.compile(
    r"(?:key|pwd?|password|pass|token)[\"']?\]?[ :=>]+[\"']?[a-z0-9_-]{24}|cloudant\.com|softlayer.com/soap"
)

# Tokens that detect-secrets 1.5 does not know, in the forms that their makers publish.
TOKENS = {
    "Anthropic API Key": r"\bsk-ant-[\w-]{20,}",
    "GitHub Token": r"\bgithub_pat_\w{40,}",
    "Google API Key": r"\bAIza[\w-]{35}\b",
    "Hugging Face Token": r"\bhf_[A-Za-z0-9]{30,}\b",
    "NPM Token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "OpenAI Token": r"\bsk-(?:proj|svcacct|admin)-[\w-]{40,}",
    "Slack Token": r"\bxapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{32,}",
}

# What somebody writes in the place of a secret, and the payload of the JSON Web Token that every tutorial shows.
EXAMPLE = re.compile(
    r"example|sample|dummy|placeholder|change.?me|redacted|your|p[a@4]ss|secret|test|demo|user|admin|abcd|qwerty"
    r"|x{4}|0{6}|1234|[*.]{3}|[][<>{}()$%\u2026]|eyJzdWIiOiIxMjM0NTY3ODkw",
    re.IGNORECASE,
)

_TOKENS = {kind: re.compile(pattern, re.ASCII) for kind, pattern in TOKENS.items()}
_OTHER_TOKEN = re.compile(r"sk-|github_pat_|AIza|hf_|npm_|xapp-")
IN_TOKEN = bytes(ord("x" if re.match(r"[\w+/=-]", chr(byte), re.ASCII) else " ") for byte in range(0x100))
_KEY_BODY = re.compile(r"[A-Za-z0-9+/]{40}")


def secrets(text: str) -> tuple[Masked, ...]:
    """The secrets in `text`, the first one of each kind."""
    found: dict[str, Masked] = {}
    for kind, value in _in_pieces(text):
        found.setdefault(kind, Masked(kind, _masked(value)))
    return tuple(found.values())


def secret_values(text: str) -> frozenset[str]:
    """The secrets in `text` as they stand there, to find them in another text; private keys are left out."""
    return frozenset(value for _, value in _in_pieces(text) if value)


def _in_pieces(text: str) -> Iterator[tuple[str, str]]:
    for start in range(0, max(len(text) - PIECE // 2, 1), PIECE // 2):
        yield from _found(text[start : start + PIECE])


def kinds() -> tuple[str, ...]:
    """All kinds that a secret can be of."""
    plugins = (*ANCHORS, *BY_NAME, "BasicAuthDetector", "PrivateKeyDetector")
    return tuple(sorted({*(_plugins()[name].secret_type for name in plugins), *TOKENS, "Password or Key"}))


def _found(text: str) -> Iterator[tuple[str, str]]:
    lowered = text.lower()
    if "://" in text and "@" in text:
        yield from _matches(_plugins()["BasicAuthDetector"], text, min_distinct=4)
    if "private key" in lowered or "putty-user-key-file" in lowered:
        yield from _private_keys(text)
    if b"x" * MIN_TOKEN in text.encode(errors="replace").translate(IN_TOKEN):
        yield from _tokens(text, lowered)
    if any(map(lowered.__contains__, ("key", "pass", "pwd", "secret", "contrase", *PASSWORDS))):
        yield from _assigned(text, lowered)


def _tokens(text: str, lowered: str) -> Iterator[tuple[str, str]]:
    anchored = [name for name, anchors in ANCHORS.items() if any(anchor in lowered for anchor in anchors)]
    for name in (*anchored, *(BY_NAME if NAMED_TOKEN.search(lowered) else ())):
        yield from _matches(_plugins()[name], text)
    if _OTHER_TOKEN.search(text):
        for kind, pattern in _TOKENS.items():
            yield from ((kind, match[0]) for match in pattern.finditer(text) if _is_random(match[0]))


def _matches(plugin: Any, text: str, min_distinct: int = 8) -> Iterator[tuple[str, str]]:
    for pattern in plugin.denylist:
        for match in pattern.finditer(text):
            # The last group is the secret; but of GitHub's and GitLab's tokens it is only the prefix.
            value = match[match.lastindex or 0]
            value = value if len(value) > 6 else match[0]
            if _is_random(value, min_distinct) and getattr(plugin, "is_formally_valid", bool)(value):
                yield plugin.secret_type, value


def _private_keys(text: str) -> Iterator[tuple[str, str]]:
    plugin = _plugins()["PrivateKeyDetector"]
    for pattern in plugin.denylist:
        for match in pattern.finditer(text):
            if _KEY_BODY.search(text, match.end(), match.end() + 500):  # a header alone gives nothing away
                yield plugin.secret_type, ""


def _assigned(text: str, lowered: str) -> Iterator[tuple[str, str]]:
    """Values with letters and digits that are given to a name such as password or api_key, quoted or not."""
    names, assignments = _names()
    if not any(map(lowered.__contains__, names)):
        return
    for assignment in assignments:
        for value in assignment.findall(text):
            is_mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
            if is_mixed and _is_random(value, min_distinct=5):
                yield "Password or Key", value


def _is_random(value: str, min_distinct: int = 8) -> bool:
    return len(set(value)) >= min_distinct and not EXAMPLE.search(value)


def _masked(value: str) -> str:
    """The first characters, which tell the kind and not the secret: four of a long one, one of a short one."""
    return value[: 4 if len(value) >= MIN_TOKEN else 1] + "\u2026"


@cache
def _plugins() -> dict[str, Any]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    return {plugin.__name__: plugin for plugin in get_mapping_from_secret_type_to_class().values()}


@cache
def _names() -> tuple[tuple[str, ...], tuple[re.Pattern[str], ...]]:
    """The names that detect-secrets' KeywordDetector knows, with PASSWORDS, and how they are given values.

    Its own forms take values that are sentences or calls, and seconds on a long line.
    """
    from detect_secrets.plugins.keyword import DENYLIST

    name, value = (
        rf"(?:{'|'.join((*DENYLIST, *PASSWORDS))})\w{{0,40}}[\]'\"]{{0,2}}",
        rf"([^\s\"'`,;&]{{{MIN_VALUE},200}})",
    )
    given = rf"{name}\s{{0,5}}(?:(?::=|=>|[:=\uff1a]{{1,3}}|!={{1,2}}|\()\s{{0,5}}@?[\"'`]?|\s[\"'`]){value}"
    compared = rf"[\"'`]{value}[\"'`]\s{{0,5}}[!=]={{1,2}}\s{{0,5}}\w{{0,40}}?{name}"
    spelled = tuple(name.replace("_?", dash) for name in DENYLIST for dash in ("", "_"))
    return (*spelled, *PASSWORDS), tuple(re.compile(form, re.IGNORECASE) for form in (given, compared))
