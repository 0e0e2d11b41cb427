"""A stop cuts no request: the service is not ready first, answers what is under way, and refuses what comes."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from tests.support.local_service import Client, Reply, Service, free_port, load

DELAY_S = 1.5
CONNECTIONS = 8
LONG = {"inputs": [f"{index} " + "profit warning and costs " * 60 for index in range(16)], "method": "shapley"}


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_cuts_no_request(bundle: Path, signal_number: signal.Signals) -> None:
    service = Service(bundle, free_port(), environment={"HEED_STOP_DELAY_S": str(DELAY_S)})
    long: list[Reply] = []

    def send_long() -> None:
        with Client(service.port) as client:
            long.append(client.post(LONG, "/v1/explain/sentiment"))

    thread = threading.Thread(target=send_long)
    with load(service.port, CONNECTIONS, lambda index: {"inputs": f"profit up {index}"}) as outcomes:
        time.sleep(0.5)
        thread.start()
        time.sleep(0.1)
        service.process.send_signal(signal_number)
        sent, sent_s = len(outcomes), time.monotonic()
        while service.client.get("/readyz").status != 503:
            assert time.monotonic() - sent_s < DELAY_S
        not_ready = len(outcomes)
        service.process.communicate(timeout=60)
        service.client.__exit__()
    thread.join()
    replies = [outcome for outcome in outcomes if isinstance(outcome, Reply)]
    # The kernel resets a connection that is made in the moment at which the port closes, with no request read from it.
    closing = ConnectionRefusedError | ConnectionResetError
    cut = [outcome for outcome in outcomes if not isinstance(outcome, Reply | closing)]
    reset = [outcome for outcome in outcomes if isinstance(outcome, ConnectionResetError)]
    assert service.process.returncode == 0
    assert long[0].status == 200
    assert not cut
    assert len(reset) <= CONNECTIONS
    refused = next(number for number, outcome in enumerate(outcomes) if getattr(outcome, "status", 200) == 503)
    assert all(isinstance(outcome, Reply) for outcome in outcomes[:refused])
    assert {reply.status for reply in replies} == {200, 503}
    assert {outcome.status for outcome in outcomes[sent : not_ready + 20] if isinstance(outcome, Reply)} == {200}
    refusals = [reply for reply in replies if reply.status == 503]
    assert {reply.json["code"] for reply in refusals} == {"not_ready"}
    assert all(reply.headers["retry-after"] and reply.headers["connection"] == "close" for reply in refusals)


def test_a_second_signal_does_not_wait_for_requests(bundle: Path) -> None:
    service = Service(bundle, free_port(), environment={"HEED_STOP_DELAY_S": "30"})
    started_s = time.monotonic()
    code, _, _ = service.stop(signal.SIGINT, signal.SIGINT)
    assert code == 0
    assert time.monotonic() - started_s < 15
