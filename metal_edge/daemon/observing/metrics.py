"""Prometheus metrics over HTTP: what the lines of this process have said, when it is asked for.

Nothing here runs when a part is decided: lines add up in a Tally, and a scrape reads it in the
server's thread. The package prometheus-client is optional and only imported when a port is set.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from metal_edge.daemon.clock import Clock
from metal_edge.daemon.deciding.transitions import State
from metal_edge.daemon.mqtt.publisher import Copy
from metal_edge.daemon.observing.tally import BOUNDS_S, Snapshot, Tally
from metal_edge.settings import LineSettings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger(__name__)

PREFIX = "metal_edge_"
STATES = (*(state.value for state in State), "offline")
Value = Callable[[Snapshot], float | None]
FamilyT = TypeVar("FamilyT")


@dataclass(frozen=True, slots=True)
class Plain:
    """A metric with no label but the station.

    Attributes:
        value: None leaves the line's sample out: not known.
        counter: only grows, until the line is armed anew.
    """

    name: str
    about: str
    value: Value
    counter: bool = False


def _beat(key: str, scale: float = 1.0) -> Value:
    """A number of the last heartbeat."""

    def value(line: Snapshot) -> float | None:
        found = None if line.beat is None else line.beat[key]
        return None if found is None else float(found) * scale

    return value


PLAIN = (
    Plain("healthy", "1: inspects. 0: it does not, or is silent", lambda line: float(line.healthy)),
    Plain("heartbeat_age_seconds", "since the last heartbeat", lambda line: line.beat_age_s),
    Plain(
        "problems",
        "how many problems the last heartbeat names",
        lambda line: None if line.beat is None else float(len(line.beat["problems"])),
    ),
    Plain(
        "last_frame_age_seconds",
        "of the camera silent for longest",
        _beat("last_frame_age_ms", 1e-3),
    ),
    Plain("puback_age_seconds", "since the broker last acknowledged", _beat("puback_age_ms", 1e-3)),
    Plain(
        "echo_age_seconds",
        "of the youngest heartbeat that the PLC echoed",
        _beat("echo_age_ms", 1e-3),
    ),
    Plain("heartbeats", "sent or not, since the line was armed", _beat("seq"), True),
    Plain("last_decision_seq", "number of the last decision", _beat("last_decision_seq")),
    Plain("queue_depth", "triggers waiting", _beat("queue_depth")),
    Plain("outbox_depth", "audit events waiting", _beat("outbox_depth")),
    Plain("clock_synced", "1: the kernel says so; absent: it does not say", _beat("clock_synced")),
    Plain("frames_dropped", "free run: frames nobody had time for", _beat("frames_dropped"), True),
    Plain("triggers_lost", "exposures that gave no frame", _beat("triggers_lost"), True),
    Plain("events_dropped", "audit events given up", _beat("events_dropped"), True),
    Plain("decisions_dropped", "decisions nobody heard in time", _beat("decisions_dropped"), True),
    Plain(
        "evidence_left_out", "parts whose pictures were not kept", _beat("evidence_left_out"), True
    ),
)


class Labelled(NamedTuple):
    """A metric with labels of its own."""

    name: str
    about: str
    labels: tuple[str, ...]


DECISIONS = Labelled("decisions", "verdicts by reason", ("verdict", "reason"))
LATENCY = Labelled("latency_seconds", "by stage; total: exposure to publication", ("stage",))
STATE = Labelled("state", "1 for the state that the line is in", ("state",))
BUILD = Labelled(
    "build_info",
    "1; what decides, and with what",
    ("recipe", "model", "model_version", "model_sha256", "backend"),
)


class StationCollector:
    """What prometheus-client asks at each scrape.

    Args:
        stations: gives the tallies by topic root; asked each time.
    """

    def __init__(self, stations: Callable[[], Mapping[str, Tally]]) -> None:
        self._stations = stations

    def describe(self) -> Iterable[Metric]:
        """Nothing in advance: then the registry does not scrape just to learn names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of all lines."""
        from prometheus_client import metrics_core as core  # noqa: PLC0415  (optional)

        lines = {name: tally.snapshot() for name, tally in self._stations().items()}
        for plain in PLAIN:
            kind = core.CounterMetricFamily if plain.counter else core.GaugeMetricFamily
            family = kind(PREFIX + plain.name, plain.about, labels=["station"])
            for station, line in lines.items():
                value = plain.value(line)
                if value is not None:
                    family.add_metric([station], value)
            yield family
        decisions = _family(core.CounterMetricFamily, DECISIONS)
        latency = _family(core.HistogramMetricFamily, LATENCY)
        states = _family(core.GaugeMetricFamily, STATE)
        build = _family(core.GaugeMetricFamily, BUILD)
        for station, line in lines.items():
            for (verdict, reason), count in line.decisions.items():
                decisions.add_metric([station, verdict, reason], count)
            for stage, found in line.latency.items():
                latency.add_metric([station, stage], _cumulated(found.counts), found.sum_s)
            for state in STATES:
                states.add_metric([station, state], float(state == line.state))
            if line.model is not None:
                build.add_metric([station, *_model(line.model)], 1)
        yield from (decisions, latency, states, build)


def _family(kind: Callable[..., FamilyT], what: Labelled) -> FamilyT:
    return kind(PREFIX + what.name, what.about, labels=("station", *what.labels))


def _cumulated(counts: list[int]) -> list[tuple[str, float]]:
    """Prometheus wants each bucket to hold all that is below its bound."""
    bounds = [*(f"{bound:g}" for bound in BOUNDS_S), "+Inf"]
    total, buckets = 0, []
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    return buckets


def _model(said: Mapping[str, Any]) -> list[str]:
    return [str(said[key]) for key in ("recipe", "id", "version", "sha256", "backend")]


class Joined(NamedTuple):
    """What a line's copies go to, and what is wrong with the server, in a few words."""

    copies: tuple[Copy, ...]
    problem: str | None = None


class Endpoints:
    """The HTTP servers of this process: one per address, shared by the lines that name it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stations: dict[tuple[str, int], dict[str, Tally]] = {}
        self._servers: dict[tuple[str, int], Any] = {}

    def join(self, settings: LineSettings, clock: Clock, cleanup: ExitStack) -> Joined:
        """Shows a line's metrics where its settings say, if they do.

        A port that is taken, or a package that is missing, costs the metrics and nothing else.
        `cleanup` marks the line as ended; its last figures stay readable.
        """
        if settings.metrics.port is None:
            return Joined(())
        address = (settings.metrics.host, settings.metrics.port)
        tally = Tally(clock, settings.heartbeat_hz)
        cleanup.callback(tally.end)
        with self._lock:
            stations = self._stations.setdefault(address, {})
            self._stations[address] = {**stations, settings.station.topic_root: tally}
            if address not in self._servers:
                try:
                    self._servers[address] = self._serve(address)
                except ImportError as error:
                    log.error("no metrics: %s; pip install 'metal-edge[metrics]'", error)
                    return Joined((), "metrics: package missing")
                except (OSError, OverflowError) as error:
                    where = "{}:{}".format(*address)
                    log.error("no metrics at %s: %s; choose another metrics.port", where, error)
                    return Joined((), f"metrics: {where} cannot be used")
        return Joined((tally.hear,))

    def close(self) -> None:
        """Ends the servers."""
        with self._lock:
            servers, self._servers = list(self._servers.values()), {}
        for server in servers:
            server.shutdown()
            server.server_close()

    def _serve(self, address: tuple[str, int]) -> Any:
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415

        host, port = address
        registry = CollectorRegistry()
        registry.register(StationCollector(lambda: self._stations[address]))
        server, thread = start_http_server(port, host, registry)
        thread.name = "metrics"
        log.info("metrics at http://%s:%d/metrics", host, server.server_port)
        return server
