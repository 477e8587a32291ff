"""A real daemon's metrics, scraped over HTTP and read by Prometheus' own parser."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.broker import Broker, Listener, find_mosquitto, wait_until
from support.daemon_process import STATION, Daemon, write_settings
from support.tiny_bundle import DARK, build_bundle, write_image

parser = pytest.importorskip("prometheus_client.parser", reason="needs metal-edge[metrics]")
pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="needs mosquitto")
OTHER = STATION.replace("/station", "/other")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    (tmp_path / "broker").mkdir()
    with Broker(tmp_path / "broker") as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build_bundle(tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    for i, level in enumerate((DARK, 200, DARK, DARK, DARK, DARK)):
        write_image(tmp_path / "images" / f"{i}.png", level)
    return tmp_path


def address(daemon: Daemon) -> str:
    """Where it says that its metrics are."""
    found = wait_until(lambda: re.search(r"metrics at (http\S+)", daemon.log), "the server")
    return str(found[1])


def scrape(url: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample by name and labels; the station only where it is not the usual one."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  (our own)
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items() - {("station", STATION)})): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def get(samples: dict[Any, float], name: str, **labels: str) -> float | None:
    return samples.get((f"metal_edge_{name}", frozenset(labels.items())))


def test_what_a_part_changes(broker: Broker, folder: Path) -> None:
    config = write_settings(folder / "line.toml", broker, metrics={"port": 0})
    with Listener(broker) as heard, Daemon(config) as daemon:
        daemon.armed(heard)
        url = address(daemon)
        wait_until(lambda: get(scrape(url), "healthy") == 1, "a first heartbeat")
        before = scrape(url)
        assert get(before, "decisions_total", verdict="pass", reason="ok") is None
        assert get(before, "latency_seconds_count", stage="infer") == 0
        assert get(before, "state", state="armed") == 1
        assert get(before, "state", state="disarmed") == 0
        for number in range(3):
            heard.trigger(STATION, f"t{number}", "p")
            heard.verdict(f"t{number}")
        said = heard.wait("heartbeat", lambda h: h.data["last_decision_seq"] == 3).data
        after = wait_until(
            lambda: (
                (s := scrape(url)) and get(s, "decisions_total", verdict="pass", reason="ok") and s
            ),
            "counted decisions",
        )
        assert get(after, "last_decision_seq") == 3
        assert (get(after, "heartbeats_total") or 0) >= said["seq"]
        passed = get(after, "decisions_total", verdict="pass", reason="ok")
        rejected = [
            value
            for (name, labels), value in after.items()
            if name == "metal_edge_decisions_total" and ("verdict", "reject") in labels
        ]
        assert passed == said["decisions"]["pass"] == 2
        assert sum(rejected) == said["decisions"]["reject"] == 1
        for stage in ("grab", "infer", "post", "total"):
            assert get(after, "latency_seconds_count", stage=stage) == 3
            assert get(after, "latency_seconds_bucket", stage=stage, le="+Inf") == 3
            assert 0 < (get(after, "latency_seconds_sum", stage=stage) or 0) < 10
        model = heard.wait("model").data
        build = {"recipe": "default", "model": "tiny", "model_version": "1"}
        build |= {"model_sha256": model["sha256"], "backend": "onnxruntime"}
        assert get(after, "build_info", **build) == 1
        # A heartbeat's lost or hung sender must not leave `healthy` behind as it was.
        heard.command(STATION, b'{"reason": "cleaning"}', b"d", verb="disarm")
        wait_until(lambda: get(scrape(url), "healthy") == 0, "the disarmed line")
        assert get(scrape(url), "state", state="disarmed") == 1
        assert daemon.stop() == 0


def test_it_counts_on_without_a_broker(broker: Broker, folder: Path) -> None:
    camera = {"mode": "latest", "fps": 20, "loop": True}
    config = write_settings(folder / "line.toml", broker, metrics={"port": 0}, camera=camera)
    with Listener(broker) as heard, Daemon(config) as daemon:
        daemon.armed(heard)
        url = address(daemon)
        broker.kill()
        dropped = wait_until(lambda: get(scrape(url), "decisions_dropped_total"), "lost decisions")
        wait_until(
            lambda: (get(scrape(url), "decisions_dropped_total") or 0) > dropped, "more of them"
        )
        now = scrape(url)
        assert (get(now, "outbox_depth") or 0) > 0
        assert (get(now, "problems") or 0) >= 1


def test_a_port_in_use_costs_the_metrics_only(broker: Broker, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = write_settings(folder / "line.toml", broker, metrics={"port": port})
        with Listener(broker) as heard, Daemon(config) as daemon:
            heard.wait("state", lambda h: h.data["status"] == "online", 20)
            note = f"metrics: 127.0.0.1:{port} cannot be used"
            heard.wait("state", lambda h: note in h.data["problems"])
            heard.trigger(STATION, "t1", "p1")
            assert heard.verdict("t1")["verdict"] == "pass"
            assert daemon.stop() == 0


def test_lines_of_one_process_share_a_server(broker: Broker, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    first = write_settings(folder / "first.toml", broker, metrics={"port": port})
    second = write_settings(
        folder / "second.toml", broker, metrics={"port": port}, station={"station": "other"}
    )
    with Listener(broker) as heard, Daemon(first, also=(second,)) as daemon:
        url = address(daemon)
        heard.wait("state", lambda h: h.topic == f"{OTHER}/state" and h.data["status"] == "online")
        heard.trigger(OTHER, "t1", "p1")
        heard.verdict("t1")
        counted = {"verdict": "pass", "reason": "ok", "station": OTHER}
        assert wait_until(lambda: get(scrape(url), "decisions_total", **counted), "the other") == 1
        assert get(scrape(url), "decisions_total", verdict="pass", reason="ok") is None
        wait_until(lambda: get(scrape(url), "healthy") == 1, "the first line")
        assert daemon.stop() == 0
