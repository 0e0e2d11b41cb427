"""A killed replica loses only its current requests, and is replaced."""

from __future__ import annotations

import signal
import time

from tests.support.local_service import Reply, Service, load, metric_sum

RECOVERY_TIMEOUT_S = 30.0


def test_a_killed_replica_is_replaced_and_fails_only_its_requests(service: Service) -> None:
    before = metric_sum(service.client, "heed_requests_total", route="/v1/sentiment", status="200")
    killed = service.replicas()[0]
    survivors = {replica.pid for replica in service.replicas()} - {killed.pid}
    with load(service.port, 16, lambda index: {"inputs": f"profit up {index}"}) as outcomes:
        time.sleep(1)
        killed.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        while len({r.pid for r in service.replicas()} - survivors - {killed.pid}) < 1 or not is_whole(service):
            assert time.monotonic() - killed_s < RECOVERY_TIMEOUT_S
            time.sleep(0.2)
        time.sleep(1)
    failed = [reply for reply in outcomes if not isinstance(reply, Reply) or reply.status != 200]
    assert len(outcomes) > 200
    assert len(failed) <= 16, failed  # each connection carried at most one request
    after = metric_sum(service.client, "heed_requests_total", route="/v1/sentiment", status="200")
    # A request that the dead replica counted without answering is repeated on another replica, and counted twice.
    assert len(outcomes) - len(failed) <= after - before <= len(outcomes) - len(failed) + 16
    assert metric_sum(service.client, "heed_queue_depth") == 0


def is_whole(service: Service) -> bool:
    """Return whether requests reach two replicas: HAProxy has a connection to the port of each."""
    ports = [
        {each.laddr.port for each in replica.net_connections("tcp4") if each.status == "ESTABLISHED"}
        for replica in service.replicas()
    ]
    return len(ports) == 2 and all(any(30_000 <= port <= 31_000 for port in replica_ports) for replica_ports in ports)
