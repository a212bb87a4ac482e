"""Secrets are found by their kind, as the plugins alone would find them; they are never told; examples are none."""

import random
import string
from collections.abc import Callable
from time import process_time
from typing import Any

import pytest
from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.privacy.secrets import ANCHORS, BY_NAME, NAMED_TOKEN, PASSWORDS, TOKENS, secrets

PLUGINS: dict[str, Any] = {plugin.__name__: plugin for plugin in get_mapping_from_secret_type_to_class().values()}
DIGITS, LOWER = string.digits, string.digits + string.ascii_lowercase
HEX, ALL = string.digits + "abcdef", string.digits + string.ascii_letters


def drawn(length: int, letters: str = ALL) -> str:
    return "".join(random.choice(letters) for _ in range(length))


# By plugin or kind, a token as its maker issues it: drawn here, so that none stands in this file.
ISSUED: dict[str, Callable[[], str]] = {
    "AWSKeyDetector": lambda: "AKIA" + drawn(16, DIGITS + string.ascii_uppercase),
    "AzureStorageKeyDetector": lambda: f"AccountKey={drawn(86)}==",
    "BasicAuthDetector": lambda: f"https://bob:{drawn(12)}@git.acme-tools.io/x",
    "CloudantDetector": lambda: f"cloudant_password = '{drawn(64, HEX)}'",
    "DiscordBotTokenDetector": lambda: f"M{drawn(23)}.{drawn(6)}.{drawn(27)}",
    "GitHubTokenDetector": lambda: "ghp_" + drawn(36),
    "GitLabTokenDetector": lambda: "glpat-" + drawn(20),
    "IbmCloudIamDetector": lambda: f"ibm_cloud_iam_key: {drawn(44)}",
    "IbmCosHmacDetector": lambda: f"cos_hmac_secret_access_key = {drawn(48, HEX)}",
    "JwtTokenDetector": lambda: f"eyJhbGciOiJIUzI1NiJ9.eyJ1aWQiOiI3NyJ9.{drawn(43)}",
    "MailchimpDetector": lambda: f"{drawn(32, HEX)}-us12",
    "OpenAIDetector": lambda: f"sk-{drawn(20)}T3BlbkFJ{drawn(20)}",
    "PypiTokenDetector": lambda: f"pypi-AgEIcHlwaS5vcmc{drawn(80)}",
    "SendGridDetector": lambda: f"SG.{drawn(22)}.{drawn(43)}",
    "SlackDetector": lambda: f"xoxb-{drawn(12, DIGITS)}-{drawn(24, LOWER)}",
    "SoftlayerDetector": lambda: f"softlayer_api_key = {drawn(64, LOWER)}",
    "SquareOAuthDetector": lambda: "sq0csp-" + drawn(43),
    "StripeDetector": lambda: "sk_live_" + drawn(24),
    "TelegramBotTokenDetector": lambda: f"{drawn(9, DIGITS)}:{drawn(35)}",
    "TwilioKeyDetector": lambda: "SK" + drawn(32, HEX),
    "Anthropic API Key": lambda: f"sk-ant-api03-{drawn(80)}",
    "GitHub Token": lambda: "github_pat_" + drawn(82),
    "Google API Key": lambda: "AIza" + drawn(35),
    "Hugging Face Token": lambda: "hf_" + drawn(34, string.ascii_letters),
    "NPM Token": lambda: "npm_" + drawn(36),
    "OpenAI Token": lambda: f"sk-proj-{drawn(60)}",
    "Slack Token": lambda: f"xapp-1-{drawn(11, LOWER.upper())}-{drawn(13, DIGITS)}-{drawn(64, HEX)}",
}


def kinds(text: str) -> set[str]:
    return {found.kind for found in secrets(text)}


def test_every_plugin_and_every_token_of_our_own_is_tried() -> None:
    assert set(ISSUED) == {*ANCHORS, *BY_NAME, *TOKENS, "BasicAuthDetector"}


@pytest.mark.parametrize("name", ISSUED)
def test_an_issued_token_is_found_and_not_told(name: str) -> None:
    random.seed(name)
    for _ in range(20):
        token = ISSUED[name]()
        for text in (token, f"Use this one, Bob:\n{token}\nand delete it.", f'{{"text": "{token}"}}'):
            found = secrets(text)
            assert (PLUGINS[name].secret_type if name in PLUGINS else name) in {each.kind for each in found}
            assert not any(part in str(each) for each in found for part in (token[-8:], token[6:14]))


@pytest.mark.parametrize("name", [*ANCHORS, *BY_NAME])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_plugin_finds_nothing_without_its_anchor(name: str, data: st.DataObject) -> None:
    ascii_ = st.characters(max_codepoint=0x7F)
    token = data.draw(st.one_of([st.from_regex(form, alphabet=ascii_) for form in PLUGINS[name].denylist])).lower()
    assert NAMED_TOKEN.search(token) if name in BY_NAME else any(anchor in token for anchor in ANCHORS[name])


@pytest.mark.parametrize(
    "text",
    [
        "DB_PASSWORD=s3cr7tX9q!z",
        "api_key: 'f81bd4fae7dec11d0a765'",
        "Your new password: Xk29vLq8",
        '{"client_key": "9fQz77LmWx"}',
        'if "9fQz77LmWx" == my_secret:',
        "ALTER USER bob WITH PASSWORD '9fQz77LmWx';",
        'std::string secret("9fQz77LmWx");',
        *(f"{name}: 9fQz77LmWx" for name in PASSWORDS),
        "mot de passe : 9fQz77LmWx",
        "密码\uff1a9fQz77LmWx",
    ],
)
def test_a_value_that_is_given_to_a_telling_name_is_found(text: str) -> None:
    assert kinds(text) == {"Password or Key"}


@pytest.mark.parametrize(
    "text",
    [
        *["", "My password is secret.", "the key to success: 10000hours", "password: must have 8 to 12 letters"],
        *[
            "password = input('Enter: ')",
            "password = os.environ['DB_PW1']",
            "api_key = '<your-api-key-1>'",
            "secret=hunter2",
        ],
        *["password: ********", "api_key = xxxxxxxx1", "PASSWORD=${DB_PASSWORD1}", "secret = config.get('key1')"],
        *["AKIAIOSFODNN7" + "EXAMPLE", "ghp_" + "x" * 36, "https://user:password@host.ch", "http://a.ch:8080/@b"],
        *[
            "a file that starts with -----BEGIN RSA PRIVATE KEY-----",
            "APARTAMENTOS",
            "e5d1f9a6b8c74f0e9d3a2b1c0f4e6d7a",
        ],
    ],
)
def test_examples_prose_and_code_hold_no_secret(text: str) -> None:
    assert kinds(text) == set()


def test_a_private_key_is_one_with_its_body() -> None:
    header = "-----BEGIN RSA PRIVATE " + "KEY-----\n"
    assert kinds(header) == set()
    assert kinds(f"{header}{drawn(64)}\n{drawn(64)}\n") == {"Private Key"}


def test_a_token_far_into_a_long_text_is_found() -> None:
    random.seed(0)
    for before in range(3_900, 4_300, 7):
        assert kinds("word " * (before // 5) + " " * (before % 5) + ISSUED["GitHubTokenDetector"]() + " word" * 900)


@pytest.mark.parametrize(
    "piece", ["eyJ", "sk-aaaaaaaaaaaaaaaaaaaaaa", 'password="', "://a:", "aws key'", "-----BEGIN PRIVATE KEY"]
)
def test_the_time_grows_no_faster_than_the_text(piece: str) -> None:
    started = process_time()
    secrets(piece * (100_000 // len(piece)) + "T3BlbkFJ")
    assert process_time() - started < 5  # with the whole text at once: 10 to 100
