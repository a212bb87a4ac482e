"""Prefect's server as `tunewright up` starts it: it answers under its own address alone, and a link logs a browser in.

Its API asks for a password (PREFECT_SERVER_API_AUTH_STRING), which no web page of another origin has. A name that an
attacker resolves to 127.0.0.1 would still be served the pages, so that name is refused as a whole.
"""

import sys

import uvicorn
from prefect.server.api.server import create_app
from prefect.settings import get_current_settings
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright.cli.up.ports import LOGIN, LOOPBACK
from tunewright.machine.addresses import HOSTS

# Both of Prefect's user interfaces keep the password there. What follows # never leaves the browser.
LOGIN_PAGE = """<!doctype html><title>Log in</title><script>
localStorage.setItem("prefect-password", btoa(decodeURIComponent(location.hash.slice(1))));
location.replace("/v2");
</script>"""


class NoFrames:
    """Forbids pages of another origin to show those of this app in a frame, where clicks could be stolen."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and adds a header to the answer."""

        async def send_with_header(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = "frame-ancestors 'self'"
            await send(message)

        await self.app(scope, receive, send_with_header)


async def log_in(_: Request) -> HTMLResponse:
    """The page of the link that logs a browser in."""
    return HTMLResponse(LOGIN_PAGE, headers={"Cache-Control": "no-store"})


def main(port: int) -> None:
    """Serves until a signal ends it, with the settings of Prefect's own `prefect server start`."""
    server = get_current_settings().server
    app = create_app(final=True)
    app.router.routes.insert(0, Route(LOGIN, log_in))
    # Around the app and not in it: Prefect's automations call it within this process, under a host name of their own.
    guarded = TrustedHostMiddleware(NoFrames(app), allowed_hosts=HOSTS, www_redirect=False)
    uvicorn.run(
        guarded,
        host=LOOPBACK,
        port=port,
        timeout_keep_alive=server.api.keepalive_timeout,
        log_level=server.logging_level.lower(),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
