"""
What Prometheus is told.

Counters and histograms are added to where things happen; gauges of the queue are read when somebody asks. Labels take few values, none of which a
caller can make up.

In:  events, a scheduler's queues      Out: Prometheus's text
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

import nv_embed
from nv_embed_sidecar.engines import Engine
from nv_embed_sidecar.models import Models
from nv_embed_sidecar.queues import Waiting

CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SHARES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

LOOKING = ("/ui", "/v1/health/", "/v1/metrics", "other")
"""Calls over HTTP that ask for no vector and come again and again."""

PRIORITIES = {True: "interactive", False: "bulk"}


class Queues(Protocol):
    """What waits, and how fast it goes: a scheduler."""

    def waiting(self) -> Mapping[bool, Waiting]: ...

    def rates(self) -> Mapping[Engine, float]: ...


@dataclass(frozen=True)
class Load:
    """How much goes through a sidecar, counted from its start; whoever looks twice knows the rates.

    Attributes:
        requests: that were answered or refused, but for those that only look, such as a probe's.
        waiting: by priority.
        fill: of the batches of a priority, how many there were and the sum of their shares of what a batch may cost.
        rates: by model, the tokens a second of recent full batches.
    """

    is_serving: bool
    requests: float
    texts: float
    tokens: float
    waiting: Mapping[str, Waiting]
    fill: Mapping[str, tuple[float, float]]
    rates: Mapping[str, float]


class Metrics:
    """The numbers of one sidecar. Any thread may tell it things."""

    def __init__(self, models: Models) -> None:
        self._names: dict[Engine, str] = {model.engine: model.name for model in models}
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        counter, histogram = partial(Counter, registry=self._registry), partial(Histogram, registry=self._registry)
        self._requests = counter("nv_embed_requests", "Requests that were answered or refused.", ["door", "call", "code"])
        self._seconds = histogram("nv_embed_request_seconds", "From a request's coming in to its answer.", ["door", "call"], buckets=SECONDS)
        self._texts = counter("nv_embed_texts", "Texts that were queued.", ["model", "input_type"])
        self._tokens = counter("nv_embed_tokens", "Their tokens, prompts and special ones included.", ["model", "input_type"])
        self._batch_seconds = histogram("nv_embed_batch_seconds", "What batches took the engine.", ["model", "priority"], buckets=SECONDS)
        self._batch_texts = counter("nv_embed_batch_texts", "Texts in batches that were computed.", ["model", "priority"])
        self._batch_tokens = counter("nv_embed_batch_tokens", "Their tokens.", ["model", "priority"])
        self._batch_rows = counter("nv_embed_batch_rows", "Tokens that the engine computed for them, padding included.", ["model", "priority"])
        self._fill = histogram("nv_embed_batch_fill", "Cost of a batch, as a share of what one may have.", ["model", "priority"], buckets=SHARES)
        self._missed = counter("nv_embed_deadlines_missed", "Requests whose deadline passed while they waited.")
        self._tell_models(models)

    def watch(self, queues: Queues, is_serving: Callable[[], bool]) -> None:
        """Where the gauges are read."""
        self._gauges = _Gauges(queues, self._names, is_serving)
        self._registry.register(self._gauges)

    @contextmanager
    def request(self, door: str, call: str) -> Iterator["Outcome"]:
        """Around a request; the code is what the outcome is given."""
        outcome, begun = Outcome(), perf_counter()
        try:
            yield outcome
        finally:
            self._requests.labels(door, call, outcome.code).inc()
            self._seconds.labels(door, call).observe(perf_counter() - begun)

    def queued(self, model: str, input_type: str, tokens: Iterable[int]) -> None:
        counts = list(tokens)
        self._texts.labels(model, input_type).inc(len(counts))
        self._tokens.labels(model, input_type).inc(sum(counts))

    def ran(self, engine: Engine, *, interactive: bool, lengths: Sequence[int], fill: float, seconds: float) -> None:
        """A batch has been dealt with."""
        labels = (self._names.get(engine, ""), PRIORITIES[interactive])
        self._batch_seconds.labels(*labels).observe(seconds)
        self._batch_texts.labels(*labels).inc(len(lengths))
        self._batch_tokens.labels(*labels).inc(sum(lengths))
        self._batch_rows.labels(*labels).inc(engine.rows(lengths))
        self._fill.labels(*labels).observe(fill)

    def missed(self, requests: int) -> None:
        """The deadlines of so many passed."""
        self._missed.inc(requests)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def load(self) -> Load:
        """What a person wants to see of it; `watch` has been called."""
        gauges = self._gauges
        fill = {
            priority: (_sum(self._fill, "_count", priority=priority), _sum(self._fill, "_sum", priority=priority)) for priority in PRIORITIES.values()
        }
        return Load(
            is_serving=gauges.is_serving(),
            requests=sum(sample.value for sample in _samples(self._requests, "_total") if not sample.labels["call"].startswith(LOOKING)),
            texts=_sum(self._texts, "_total"),
            tokens=_sum(self._tokens, "_total"),
            waiting={PRIORITIES[interactive]: waiting for interactive, waiting in gauges.queues.waiting().items()},
            fill=fill,
            rates={self._names[engine]: rate for engine, rate in gauges.queues.rates().items()},
        )

    def _tell_models(self, models: Models) -> None:
        version = Gauge("nv_embed_info", "What runs.", ["version"], registry=self._registry)
        version.labels(nv_embed.__version__).set(1)
        served = Gauge("nv_embed_model_info", "What is served.", ["model", "revision", "device", "precision"], registry=self._registry)
        for model in models:
            served.labels(model.name, model.revision, model.engine.device, model.engine.precision).set(1)


class Outcome:
    """How a request ended.

    Attributes:
        code: a gRPC or HTTP status; that of one whose caller has gone until it is set.
        error: the class of the error, if it failed.
    """

    code: str = "CANCELLED"
    error: str | None = None


def _samples(metric: MetricWrapperBase, suffix: str, **labels: str) -> Iterator[Sample]:
    """The samples of a metric whose names end so, with these labels."""
    for family in metric.collect():
        for sample in family.samples:
            if sample.name.endswith(suffix) and labels.items() <= sample.labels.items():
                yield sample


def _sum(metric: MetricWrapperBase, suffix: str, **labels: str) -> float:
    return sum(sample.value for sample in _samples(metric, suffix, **labels))


class _Gauges(Collector):
    def __init__(self, queues: Queues, names: Mapping[Engine, str], is_serving: Callable[[], bool]) -> None:
        self.queues = queues
        self.is_serving = is_serving
        self._names = names

    def collect(self) -> Iterable[Metric]:
        texts = GaugeMetricFamily("nv_embed_queue_texts", "Texts that wait for the engine.", labels=["priority"])
        tokens = GaugeMetricFamily("nv_embed_queue_tokens", "What they cost, in tokens of short texts.", labels=["priority"])
        oldest = GaugeMetricFamily("nv_embed_queue_oldest_seconds", "For how long the request has waited that has for longest.", labels=["priority"])
        for interactive, waiting in self.queues.waiting().items():
            priority = [PRIORITIES[interactive]]
            texts.add_metric(priority, waiting.texts)
            tokens.add_metric(priority, waiting.cost)
            oldest.add_metric(priority, waiting.oldest_s)
        rate = GaugeMetricFamily("nv_embed_engine_tokens_per_second", "What the engine computes, by its recent full batches.", labels=["model"])
        for engine, tokens_per_s in self.queues.rates().items():
            rate.add_metric([self._names[engine]], tokens_per_s)
        serving = GaugeMetricFamily("nv_embed_serving", "1 while requests are taken, else 0.", value=float(self.is_serving()))
        return texts, tokens, oldest, rate, serving
