"""One scrape of any replica covers both replicas."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.parser import text_string_to_metric_families

from tests.support.local_service import Reply, Service, load, metric_sum, post_all

EN = ["Shares of Acme plunge after profit warning", "Acme beats estimates", "Results in line", "Dividend cut again"]
ZH = ["公司利润大增，股票上涨", "平安银行下跌", "手机质量不好", "快递好"]


def test_the_counter_is_exactly_the_number_of_answers(service: Service) -> None:
    answered = {"route": "/v1/sentiment", "status": "200"}
    before = metric_sum(service.client, "heed_requests_total", **answered)
    scrapes: list[float] = []
    with load(service.port, 8, lambda index: {"inputs": EN[index % len(EN)]}) as outcomes:
        while len(scrapes) < 40:
            scrapes.append(metric_sum(service.client, "heed_requests_total", **answered))
    assert all(isinstance(reply, Reply) and reply.status == 200 for reply in outcomes)
    assert scrapes == sorted(scrapes)
    with ThreadPoolExecutor(8) as pool:  # to reach both replicas
        after = set(pool.map(lambda _: metric_sum(service.client, "heed_requests_total", **answered), range(40)))
    assert after == {before + len(outcomes)}


def test_both_replicas_get_requests(service: Service) -> None:
    """Otherwise the test above would prove nothing."""
    before = {replica.pid: sum(replica.cpu_times()[:2]) for replica in service.replicas()}
    post_all(service.port, _each((EN + ZH) * 60), 8)
    assert len(before) == 2
    assert all(sum(replica.cpu_times()[:2]) > before[replica.pid] for replica in service.replicas())


def test_two_thousand_texts_over_32_connections_get_correct_answers(service: Service) -> None:
    """Every good text is answered as if sent alone, every bad one gets an error, and the metrics add up."""
    rng = random.Random(7)
    texts = [f"{rng.choice(EN + ZH)} {rng.choice(EN + ZH)} {index % 90}" for index in range(300)]
    alone = dict(
        zip(texts, (reply.json["results"][0] for reply in post_all(service.port, _each(texts), 4)), strict=True)
    )
    sent = [rng.choice(texts) if index % 100 else rng.choice(["", "  ", "\u200b"]) for index in range(2000)]
    requests = []
    remaining = sent
    while remaining:
        size = rng.choice([1, 1, 2, 3, 8, 20])
        requests.append(remaining[:size])
        remaining = remaining[size:]
    before = _outcomes(service)
    replies = post_all(service.port, [{"inputs": request} for request in requests], 32)
    good = bad = 0
    for request, reply in zip(requests, replies, strict=True):
        if reply.status == 422:  # because no item could be answered
            assert reply.json["code"] == "empty_text"
            assert not any(text in alone for text in request)
            bad += len(request)
            continue
        assert reply.status == 200
        for text, result in zip(request, reply.json["results"], strict=True):
            if text in alone:
                good += 1
                assert result["label"] == alone[text]["label"]
                assert all(
                    abs(result["scores"][label] - score) < 1e-3 for label, score in alone[text]["scores"].items()
                )
            else:
                bad += 1
                assert result["error"]["code"] == "empty_text"
    assert (good, bad) == (1980, 20)
    after = _outcomes(service)
    answered, refused, requested, computed, shared = (b - a for a, b in zip(before, after, strict=True))
    assert [answered, refused, requested] == [good, bad, len(requests)]
    assert computed + shared == good


def test_prometheus_can_parse_the_metrics(service: Service) -> None:
    service.client.get("/v1/made/up/route")
    families = {
        family.name: family for family in text_string_to_metric_families(service.client.get("/metrics").body.decode())
    }
    assert {
        "heed_requests", "heed_items", "heed_request_seconds", "heed_tokenize_seconds", "heed_queue_seconds",
        "heed_infer_seconds", "heed_batch_items", "heed_batch_tokens", "heed_padding_ratio", "heed_tokens",
        "heed_queue_depth", "heed_bundle_info", "heed_items_shared", "heed_items_cached", "heed_cache_entries",
    } <= set(families)  # fmt: skip
    routes = {sample.labels["route"] for sample in families["heed_requests"].samples}
    assert "other" in routes
    assert not any("made" in route for route in routes)


def _each(texts: list[str]) -> list[object]:
    return [{"inputs": text} for text in texts]


def _outcomes(service: Service) -> list[float]:
    """Return the counts of answered texts, refused texts, requests, texts in batches and shared answers."""
    return [
        metric_sum(service.client, "heed_items_total", outcome="ok"),
        metric_sum(service.client, "heed_items_total", outcome="empty_text"),
        metric_sum(service.client, "heed_requests_total", route="/v1/sentiment"),
        metric_sum(service.client, "heed_batch_items_sum"),
        metric_sum(service.client, "heed_items_shared_total"),
    ]
