"""Prefect's server as `tunewright up` starts it: it answers under its own address alone, and a link logs a browser in.

Its API asks for a password (PREFECT_SERVER_API_AUTH_STRING), which no web page of another origin has. A name that an
attacker resolves to 127.0.0.1 would still be served the pages, so that name is refused as a whole. The pages reach no
other server: Prefect's would load the code and the settings of a service that counts who uses them.
"""

import base64
import hashlib
import sys
from urllib.parse import urlsplit

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright.compat import tell_first_states_at_once
from tunewright.machine.addresses import HOSTS, LOGIN, LOOPBACK

# Both of Prefect's user interfaces keep the password there. What follows # never leaves the browser.
LOGIN_SCRIPT = """
localStorage.setItem("prefect-password", btoa(decodeURIComponent(location.hash.slice(1))));
location.replace("/v2");
"""
LOGIN_PAGE = f"<!doctype html><title>Log in</title><script>{LOGIN_SCRIPT}</script>"


def policy(port: int, api: str | None) -> str:
    """Return the Content-Security-Policy of the pages: they may reach this server under each of its names, and its API.

    They may use only the server's own scripts and styles and those its code creates; no other origin may frame them.
    """
    own = [f"{scheme}://{host}:{port}" for host in HOSTS for scheme in ("http", "ws")]
    if api:  # of PREFECT_UI_API_URL, where the browser reaches the API under another address
        at = urlsplit(api)
        own += [f"{at.scheme}://{at.netloc}", f"{at.scheme.replace('http', 'ws')}://{at.netloc}"]
    login = base64.b64encode(hashlib.sha256(LOGIN_SCRIPT.encode()).digest()).decode()
    allowed = {
        "default-src": "'self'",
        "connect-src": f"'self' {' '.join(dict.fromkeys(own))}",
        "script-src": f"'self' 'sha256-{login}' 'unsafe-eval'",  # the graph of a run compiles what draws it
        "worker-src": "'self' blob: data:",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "object-src": "'none'",
        "base-uri": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'self'",
    }
    return "; ".join(f"{name} {sources}" for name, sources in allowed.items())


class Closed:
    """Adds a Content-Security-Policy to each answer of an app."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and adds the header to the answer."""

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = self.policy
            await send(message)

        await self.app(scope, receive, send_with_header)


async def log_in(_: Request) -> HTMLResponse:
    """The page of the link that logs a browser in."""
    return HTMLResponse(LOGIN_PAGE, headers={"Cache-Control": "no-store"})


def main(port: int) -> None:
    """Serves until a signal ends it, with the settings of Prefect's own `prefect server start`."""
    tell_first_states_at_once()
    server = get_current_settings().server
    app = create_app(final=True)
    app.router.routes.insert(0, Route(LOGIN, log_in))
    # Around the app and not in it: Prefect's automations call it within this process, under a host name of their own.
    closed = Closed(app, policy(port, server.ui.api_url))
    guarded = TrustedHostMiddleware(closed, allowed_hosts=HOSTS, www_redirect=False)
    uvicorn.run(
        guarded,
        host=LOOPBACK,
        port=port,
        timeout_keep_alive=server.api.keepalive_timeout,
        log_level=server.logging_level.lower(),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
