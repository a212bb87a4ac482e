"""MLflow's database says where files lie on the machine of the home; its server says how to get them through it.

The pipeline opens the database itself, and writes its files beside it. Whoever asks the server of `tunewright up` may
be on another machine, or may not be let into the home: what the server answers names the same files as
mlflow-artifacts:/, which MLflow's clients fetch from, and send to, the server.
"""

import json
import re
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

KEYS = ("artifact_uri", "artifact_location", "root_uri", "storage_location", "artifactUri", "artifactLocation")


class ServedPaths:
    """Puts mlflow-artifacts:/ in the place of `folder`, the server's artifacts destination, in all answers in JSON."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app = app
        spelled = {json.dumps(str(folder), ensure_ascii=escaped)[1:-1] for escaped in (True, False)}
        places = "|".join(map(re.escape, sorted(spelled)))
        self.local = re.compile(rf'("(?:{"|".join(KEYS)})"\s*:\s*")(?:file://)?(?:{places})(?:/+|(?="))'.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and its answer back."""
        held: list[Message] = []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_json(message):
                held.append(message)
            elif not held:
                await send(message)
            else:
                held.append(message)
                if not message.get("more_body"):
                    await self._send(held, send)

        await self.app(scope, receive, answer if scope["type"] == "http" else send)

    async def _send(self, held: list[Message], send: Send) -> None:
        start, *parts = held
        body = self.local.sub(rb"\1mlflow-artifacts:/", b"".join(part.get("body", b"") for part in parts))
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        await send(start)
        await send({"type": "http.response.body", "body": body})


def _is_json(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("application/json")
