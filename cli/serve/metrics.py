"""Figures of the endpoint in Prometheus' text format."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from tunewright.cli.serve.queue import RequestQueue

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
Served = tuple[str, str, str]  # the name, number and digest of a version


class RequestMetrics:
    """Counts requests and the time of their answers, by any engine, and shows them with the versions that answer."""

    def __init__(self, served: Callable[[], Iterable[Served]]) -> None:
        self._served = served
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "tunewright_requests", "Requests by path and status", ["path", "status"], registry=self._registry
        )
        self.whole = Histogram(
            "tunewright_answer_seconds",
            "Seconds from a request to the end of its answer, waiting included",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._registry.register(self)  # pyright: ignore[reportArgumentType] whatever has collect()

    def collect(self) -> Iterator[Metric]:
        """The versions that answer."""
        served = InfoMetricFamily("tunewright_served", "The version that answers")
        for name, version, digest in self._served():
            served.add_metric([], {"name": name, "version": version, "digest": digest})
        yield served

    def page(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)


class Metrics(RequestMetrics):
    """Counts tokens and the time to the first text besides, and shows the state of the endpoint."""

    def __init__(self, endpoint: RequestQueue) -> None:
        super().__init__(lambda: ((name, each.number, each.digest) for name, each in endpoint.loaded))
        self.endpoint = endpoint
        self.prompt_tokens = Counter("tunewright_prompt_tokens", "Tokens of prompts", registry=self._registry)
        self.answer_tokens = Counter("tunewright_answer_tokens", "Tokens of answers", registry=self._registry)
        self.first_token = Histogram(
            "tunewright_time_to_first_text_seconds",
            "Seconds from a request to the first text of its answer, waiting included",
            buckets=SECONDS,
            registry=self._registry,
        )

    def collect(self) -> Iterator[Metric]:
        """The state of the endpoint."""
        at = self.endpoint
        waiting = max(at.num_waiting - 1, 0)
        yield GaugeMetricFamily("tunewright_waiting_requests", "Requests that wait for the model", value=waiting)
        yield CounterMetricFamily("tunewright_swaps", "Times that the alias moved to another version", at.num_swaps)
        failed = "Attempts to load a version that failed"
        yield CounterMetricFamily("tunewright_failed_swaps", failed, at.num_failed_swaps)
        yield from super().collect()
