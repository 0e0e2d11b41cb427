from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.cluster import proxy_watch
from service.cluster.haproxy import ProxyStats, parse_stats, read_stats
from service.cluster.proxy_watch import ProxyWatch
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import samples

ANSWER = """Name: HAProxy
Pid: 4711
Uptime_sec: 12

# pxname,svname,scur,status,hrsp_2xx,hrsp_4xx,hrsp_5xx,
http_frontend,FRONTEND,9,OPEN,100,9,7,
heed,SERVE_REPLICA-heed-gateway-a,2,UP,60,4,1,
heed,SERVE_REPLICA-heed-gateway-b,1,DOWN,30,1,0,
heed,fallback,0,UP,0,0,2,
heed,BACKEND,5,UP,90,9,7,

"""


def test_haproxys_own_answers_are_those_that_no_server_sent() -> None:
    assert parse_stats(ANSWER) == ProxyStats(4711, 1, {"4xx": 4, "5xx": 4}, 5)


@pytest.mark.parametrize("answer", ["", "Unknown command\n", ANSWER.replace("hrsp_4xx", "other")])
def test_an_answer_of_another_kind_is_no_reading(answer: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        parse_stats(answer)


def test_an_haproxy_that_does_not_answer_has_no_statistics(tmp_path: Path) -> None:
    assert read_stats(tmp_path / "admin.sock") is None


class Watched:
    """A watch over statistics that a test sets."""

    def __init__(self, metrics: Metrics) -> None:
        self.now_s, self.stats = 0.0, ProxyStats(1, 2, {"4xx": 0, "5xx": 0})
        self.watch = ProxyWatch(lambda: [Path("socket")], 2, metrics, lambda: self.now_s)
        self._metrics = metrics

    def refused(self, process_id: int, of_4xx: int, of_5xx: int, live: int = 2) -> dict[str, float]:
        """Look at these statistics, and return the counts of the metrics."""
        self.stats = ProxyStats(process_id, live, {"4xx": of_4xx, "5xx": of_5xx})
        self.watch.look()
        counts = samples(self._metrics)
        return {statuses: counts["heed_proxy_refusals_total", statuses] for statuses in ("4xx", "5xx")}


@pytest.fixture
def watched(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched(metrics)
    monkeypatch.setattr(proxy_watch, "read_stats", lambda _: watched.stats)
    return watched


def test_refusals_are_counted_once_also_across_a_new_haproxy(watched: Watched) -> None:
    assert watched.refused(1, 0, 0) == {"4xx": 0, "5xx": 0}
    assert watched.refused(1, 3, 1) == {"4xx": 3, "5xx": 1}
    assert watched.refused(1, 3, 1) == {"4xx": 3, "5xx": 1}
    assert watched.refused(1, 2, -1) == {"4xx": 3, "5xx": 1}  # answers under way
    assert watched.refused(2, 2, 0) == {"4xx": 5, "5xx": 1}
    assert watched.refused(2, 2, 4) == {"4xx": 5, "5xx": 5}


def test_refusals_are_logged_in_summary(watched: Watched) -> None:
    with capture_logs() as records:
        for second in range(25):
            watched.now_s = float(second)
            watched.refused(1, 100 * min(second, 12), 0)
        watched.refused(1, 1200, 3)
        watched.watch.stop()
    summaries = [record for record in records if record["event"] == "proxy refused requests"]
    assert summaries == [
        {"event": "proxy refused requests", "log_level": "warning", "answers_4xx": 1000, "seconds": 10},
        {"event": "proxy refused requests", "log_level": "warning", "answers_4xx": 200, "seconds": 10},
        {"event": "proxy refused requests", "log_level": "warning", "answers_5xx": 3, "seconds": 4},
    ]


def test_a_lost_and_a_returned_replica_are_logged(watched: Watched) -> None:
    with capture_logs() as records:
        for live in (2, 1, 1, 0, 2, 2):
            watched.refused(1, 0, 0, live)
    assert [(record["log_level"], record["replicas"]) for record in records] == [
        ("warning", 1), ("warning", 0), ("info", 2)
    ]  # fmt: skip
