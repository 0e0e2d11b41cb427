from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from models.bundle import Bundle, load_bundle
from models.prediction.reply_ranker import ReplySet, save_replies
from models.runtime.offline import open_text_encoder
from service.registry.heads import HeadRegistry
from service.telemetry.metrics import Metrics
from tests.support.explain_dialogues_app import Explains, app_of
from tests.support.tiny_bundle import tiny_intent_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_intent_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
async def explains(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Explains]:
    ranker, texts = HeadRegistry(bundle, None).ranker, tuple(letter * 5 for letter in "abcdefg" * 20)
    placed = ranker.project_replies(open_text_encoder(bundle).encode_texts(texts))
    save_replies(ReplySet("support", bundle.encoder_digest, texts, placed), tmp_path / "support.replies.safetensors")
    registry = HeadRegistry(bundle, tmp_path)
    app = app_of(bundle, registry, metrics, explains=True)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Explains(client, registry)
