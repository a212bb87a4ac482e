"""The version under an alias that answers requests, and the watch on the alias that replaces it."""

import threading
from http import HTTPStatus
from time import monotonic

from tunewright.cli.predict.model import FetchedVersion, fetch
from tunewright.cli.serve.answering import ServedVersion, free_memory, loads_apart
from tunewright.cli.serve.asking import RequestError
from tunewright.cli.serve.queue import RequestQueue, Tell
from tunewright.config import Registry
from tunewright.errors import TunewrightError, one_line
from tunewright.registry import release
from tunewright.registry.versions import current_version

POLL_SECONDS = 2.0  # between looks at the alias
RETRY_SECONDS = 60.0  # before a version that could not be loaded is tried again


class Endpoint(RequestQueue):
    """The version under the alias, or the one that was named, and the requests that wait for it."""

    def __init__(self, registry: Registry, number: str | None, max_waiting: int, tell: Tell) -> None:
        """Fetch, verify and load the version. Raises ConfigError, TunewrightError."""
        super().__init__(max_waiting, tell)
        self.registry = registry
        self.is_fixed = number is not None
        self.served = ServedVersion(fetch(registry, number))
        self._watch = threading.Thread(target=self._look_again, name="alias", daemon=True)
        self._refused = ("", 0.0)  # version that could not be loaded, and when it may be tried again
        self._said = ""

    @property
    def model(self) -> str:
        """The name of what answers now, such as triage@3."""
        return f"{self.registry.name}@{self.served.number}"

    @property
    def models(self) -> list[str]:
        """The names that a request may have."""
        name = self.registry.name
        return [name, *([] if self.is_fixed else [f"{name}@{self.registry.alias}"]), self.model]

    @property
    def loaded(self) -> list[tuple[str, ServedVersion]]:
        """The version that answers."""
        return [(self.registry.name, self.served)]

    def start(self) -> None:
        """Begin to watch the alias."""
        if not self.is_fixed:
            self._watch.start()

    def version_for(self, name: str) -> ServedVersion:
        """The version that answers now."""
        served = self.served
        self.require_model(name)
        return served

    def answered_as(self, name: str, served: ServedVersion) -> str:
        """The model with the number of the version."""
        return f"{name.partition('@')[0]}@{served.number}"

    def require_model(self, name: str) -> None:
        """Raises RequestError where it serves no such model now."""
        if name not in self.models:
            accepted = ", ".join(self.models)
            raise RequestError(
                f"the model {ascii(name)[:80]} is not served here; accepted: {accepted}",
                HTTPStatus.NOT_FOUND,
                param="model",
                code="model_not_found",
            )
        if self.is_withdrawn:
            raise RequestError(
                f"no version of {self.registry.name} is @{self.registry.alias} now", HTTPStatus.SERVICE_UNAVAILABLE
            )

    def _look_again(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self._look()
            except Exception as error:  # what loading a model can raise is anything; the old one goes on
                if self._stopping.is_set():
                    return
                said = str(error) if isinstance(error, TunewrightError) else one_line(error)
                self._say(f"{self.model} goes on: {said}")

    def _say(self, line: str) -> None:
        if line != self._said:
            self.tell(line)
        self._said = line

    def _look(self) -> None:
        """Serve the version that carries the alias now."""
        with release.opened(self.registry) as client:
            version = current_version(client, self.registry)
        alias = f"@{self.registry.alias}"
        if version is None:
            if not self.is_withdrawn:
                self.tell(f"no version of {self.registry.name} is {alias} now: requests get status 503")
            self.is_withdrawn = True
            return
        number = str(version.version)
        if number == self.served.number:
            self._said, self._refused = "", ("", 0.0)
        if number != self.served.number and not (number == self._refused[0] and monotonic() < self._refused[1]):
            try:
                self._swap(fetch(self.registry, number))
            except Exception:
                self.num_failed_swaps += 1
                self._refused = (number, monotonic() + RETRY_SECONDS)
                raise
            self.tell(f"{self.model} is {alias} now and answers from here on")
        elif number == self.served.number and self.is_withdrawn:
            self.tell(f"{self.model} is {alias} again")
        self.is_withdrawn = self.is_withdrawn and number != self.served.number

    def _swap(self, version: FetchedVersion) -> None:
        """Load a version and let it answer from the next request on."""
        if loads_apart(version):
            self.served = ServedVersion(version)
        else:
            self.served = self._worker.submit(ServedVersion, version).result()
        self.num_swaps += 1
        free_memory()


def opened(registry: Registry, number: str | None, max_waiting: int, tell: Tell) -> Endpoint:
    """The endpoint of a version. Raises TunewrightError where it cannot be loaded."""
    try:
        return Endpoint(registry, number, max_waiting, tell)
    except RequestError as error:  # its template cannot ask anything
        raise TunewrightError(f"{registry.name}: {error}") from error
