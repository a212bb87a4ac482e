"""Limits on what a run may access, set by a worker's environment only, not by a form or a deployment file.

Without these variables everything is allowed but metadata services, whose answers are credentials of the machine:

    TUNEWRIGHT_ROOTS           folders, or beginnings of URLs, that files and bases are read from
    TUNEWRIGHT_MODULES         modules of the team's that metrics and expectations are imported from
    TUNEWRIGHT_TRACKING_HOSTS  hosts that registry.tracking_uri may name
    TUNEWRIGHT_JUDGE_HOSTS     hosts that judge.url may name; only these are sent TUNEWRIGHT_JUDGE_KEY
    TUNEWRIGHT_API_HOSTS       hosts that evaluation.api_models[].url and compute.vllm may name

Each holds several, with commas between.
"""

import ipaddress
import os
import re
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tunewright.errors import ConfigError, visible

HTTP_URL = "^https?://[^ ]+$"
METADATA = frozenset({"metadata", "metadata.google.internal", "instance-data", "instance-data.ec2.internal"})
METADATA_ADDRESSES = frozenset(map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16")))
HTTP = re.compile(r"(?:https?|ftp|webhdfs)://(?:\[[^\]\s]*\])?(?:(?!::)\S)*", re.I)  # also behind zip://file::
PARAMETER = r"[?&#;][^=&#\s]*(?:key|sig|signature|token|password|passwd|secret|credential|auth)[^=&#\s]*"
SECRET = re.compile(rf"://[^/?#]*@|{PARAMETER}=", re.I)


def holds_secret(url: str) -> bool:
    """Whether a URL holds a user, a password, or a parameter that is called as a secret is."""
    return bool(SECRET.search(url))


def require_no_secret(url: str, instead: str) -> str:
    """Return the URL. Raises ValueError, without the secret, where it holds one; `instead` says where it belongs."""
    named = url if url.startswith("http") else re.sub(r"(?<=//)[^:/@?#]+@", "", url)  # the user of a database alone
    if holds_secret(named):
        raise ValueError(f"{without_secrets(url)}: a URL with credentials; leave them out and set {instead}")
    return url


def without_secrets(url: str) -> str:
    """A URL without what may be secret: user, password, query and fragment."""
    return re.sub(r"(?<=//)[^/?#]*@|[?#].*", "", url, flags=re.S)


def without_credentials(text: str) -> str:
    """A text without the users, the passwords and the secret parameters of the URLs in it."""
    named = re.sub(r"(?<=:/)(/?)[^\s/?#@]+@", r"\1", text)  # one slash, where a path was made of a URL
    return re.sub(rf"({PARAMETER}=)[^&#;\s]*", r"\1***", named, flags=re.I)


def check_path(setting: str, path: str) -> None:
    """Raises ConfigError where a file, folder or URL lies outside TUNEWRIGHT_ROOTS, or at a metadata service.

    Also where its name has a control character, which would steer a terminal, or a line break, which would part a list.
    """
    if visible(path) != path or len(path.splitlines()) > 1:
        raise ConfigError(f"{setting}={path!r}: has a control character or a line break in it; give it another name")
    for url in HTTP.findall(path):
        check_address(setting, url)
    roots = _listed("TUNEWRIGHT_ROOTS")
    if roots and not any(_lies_in(path, root) for root in roots):
        said = f"lies outside TUNEWRIGHT_ROOTS={','.join(roots)} of this worker"
        raise ConfigError(f"{setting}={without_secrets(path)}: {said}")


def check_module(setting: str, name: str) -> None:
    """Raises ConfigError where TUNEWRIGHT_MODULES is set and `name` is of none of them."""
    modules = _listed("TUNEWRIGHT_MODULES")
    if modules and not any(f"{name}.".replace(":", ".").startswith(f"{module}.") for module in modules):
        raise ConfigError(f"{setting}={name}: is of none of TUNEWRIGHT_MODULES={','.join(modules)} of this worker")


def check_host(setting: str, url: str, variable: str) -> None:
    """Raises ConfigError where `variable` is set and does not name the URL's host, or that is a metadata service."""
    check_address(setting, url)
    if (hosts := _listed(variable)) and not is_listed(url, variable):
        said = f"its host is none of {variable}={','.join(hosts)} of this worker"
        raise ConfigError(f"{setting}={without_secrets(url)}: {said}")


def is_listed(url: str, variable: str) -> bool:
    """Whether an environment variable names the host of a URL, or the host with its port."""
    return bool(_names(url) & {each.lower() for each in _listed(variable)})


def key_of(url: str, variable: str) -> str:
    """The key of a URL's host, or of the host with its port, in a variable of host=key; empty where it has none."""
    found = [each.partition("=") for each in _listed(variable)]
    return next((key.strip() for host, _, key in found if host.strip().lower() in _names(url)), "")


def _names(url: str) -> set[str]:
    if "?" in url and not url.startswith("http"):  # the query of a database can name another host
        return set()
    try:
        host, port = urlsplit(url).hostname, urlsplit(url).port
    except ValueError:
        return set()
    return {f"{host}", f"{host}:{port}"}


def check_address(setting: str, url: str) -> None:
    """Raises ConfigError where a URL leads to a metadata service, by its name or by the address that it resolves to."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError as error:
        raise ConfigError(f"{setting}={without_secrets(url)}: is not a URL ({error})") from error
    if host in METADATA or any(_is_metadata(address) for address in _addresses(host)):
        raise ConfigError(
            f"{setting}={without_secrets(url)}: is the address of a metadata service or link-local, which answers with "
            "credentials of this machine; accepted: any other"
        )


def _is_metadata(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_link_local or address in METADATA_ADDRESSES


def _addresses(host: str) -> set[str]:
    """Resolve a host, also an address in another notation; empty if it is not found."""
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)} if host else set()
    except (OSError, UnicodeError):
        return set()


def _lies_in(path: str, root: str) -> bool:
    if "://" in path or "://" in root:
        return path.startswith(root.rstrip("/") + "/") and "::" not in path and ".." not in unquote(path)
    if path.startswith(("hub:", "package:")):
        return root == path.partition(":")[0] + ":"
    try:
        return Path(path).expanduser().resolve().is_relative_to(Path(root).expanduser().resolve())
    except RuntimeError:  # ~ of nobody
        return False


def _listed(variable: str) -> list[str]:
    return [each.strip() for each in os.environ.get(variable, "").split(",") if each.strip()]
