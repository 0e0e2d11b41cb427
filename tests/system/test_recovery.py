"""A replica that is killed takes nothing with it but what it was working on, and comes back."""

from __future__ import annotations

import signal
import time

from tests.support.local_service import Reply, Service, counted, load

WHOLE_WITHIN_S = 30.0


def test_a_killed_replica_is_replaced_and_nobody_else_notices(service: Service) -> None:
    before = counted(service.client, "heed_requests_total", route="/v1/sentiment", status="200")
    killed = service.replicas()[0]
    others = {replica.pid for replica in service.replicas()} - {killed.pid}
    with load(service.port, 16, lambda number: {"inputs": f"profit up {number}"}) as found:
        time.sleep(1)
        killed.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        while len({r.pid for r in service.replicas()} - others - {killed.pid}) < 1 or not is_whole(service):
            assert time.monotonic() - killed_s < WHOLE_WITHIN_S
            time.sleep(0.2)
        time.sleep(1)
    failed = [reply for reply in found if not isinstance(reply, Reply) or reply.status != 200]
    assert len(found) > 200
    assert len(failed) <= 16, failed  # each connection had at most one request on it
    after = counted(service.client, "heed_requests_total", route="/v1/sentiment", status="200")
    # What the dead replica had counted just before it died, without its answer getting out, is asked again elsewhere.
    assert len(found) - len(failed) <= after - before <= len(found) - len(failed) + 16
    assert counted(service.client, "heed_queue_depth") == 0


def is_whole(service: Service) -> bool:
    """Whether requests reach two replicas: each has a connection from HAProxy on its own port."""
    ports = [
        {held.laddr.port for held in replica.net_connections("tcp4") if held.status == "ESTABLISHED"}
        for replica in service.replicas()
    ]
    return len(ports) == 2 and all(any(30_000 <= port <= 31_000 for port in held) for held in ports)
