"""MLflow's server as `tunewright up` starts it: for whoever has the password of this home, and for no page of others.

MLflow itself lets any page of localhost in, whatever its port, and whoever reaches the port. Its assistant starts the
command line agents of this machine for them, and cannot be turned off, so its API is not served.
"""

import base64
import binascii
import secrets

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks import addresses, config
from tasks.served_paths import ServedPaths

OPEN = {"/health", "/version"}  # they tell nothing of this home
ASSISTANT = "/mlflow/assistant"


class Guard:
    """Refuses what comes without the password, from a page of another origin, or for the assistant."""

    def __init__(self, app: ASGIApp, password: str) -> None:
        self.app = app
        self.password = password.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers why not."""
        refusal = self._refusal(scope["path"], Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> PlainTextResponse | None:
        if headers.get("origin", own := f"http://{headers.get('host')}") != own:
            return PlainTextResponse("a page of another origin", status_code=403)
        if ASSISTANT in path:
            return PlainTextResponse("tunewright up serves no assistant", status_code=404)
        if path in OPEN or secrets.compare_digest(_password(headers), self.password):
            return None
        challenge = {"WWW-Authenticate": 'Basic realm="tunewright: any user name, the password of the home"'}
        return PlainTextResponse("the password is in the home folder", status_code=401, headers=challenge)


def _password(headers: Headers) -> bytes:
    """The password of basic authentication, with any user name; empty where there is none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    try:
        return base64.b64decode(credentials).partition(b":")[2] if scheme.lower() == "basic" else b""
    except binascii.Error:
        return b""


def create_app() -> ASGIApp:
    """MLflow's app behind the guard; MLflow finds it as the plug-in `tunewright` of its group mlflow.app."""
    from mlflow.server.fastapi_app import app

    if not (password := addresses.password()):
        raise RuntimeError(f"no password in {addresses.password_file()}: tunewright up makes it")
    app.add_middleware(ServedPaths, folder=config.mlflow_artifacts())
    app.add_middleware(Guard, password=password)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=addresses.HOSTS, www_redirect=False)
    return app
