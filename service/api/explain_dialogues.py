"""`/v1/explain/intent` and `/v1/explain/replies`: which turns and words of a dialogue speak for an intent, or a reply.

Explained is what the plain routes answer: the confidence that a head has in an intent, and the score of a reply.
"""

from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from models.prediction.intent_head import IntentHead, predict_intents
from models.text.tokenizer import Turn
from service.api.explanations import (
    accepts_npz,
    explanation_response,
    method_fields,
    parse_request,
    require_worker,
    turn_weights,
)
from service.api.intent import find_by_name, item_of
from service.api.intent import turns_of as spoken
from service.errors import ExplanationTooLarge, InvalidRequest, Problem
from service.explanation.request import InstanceFactory, TextOutcome
from service.explanation.worker import ExplanationWorker
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import as_list, failed_item, id_of, raise_if_all_failed
from service.inference.predictor import Item, Predictor
from service.registry.heads import HeadRegistry
from service.schemas.explain import (
    MAX_COMPARED,
    ExplainIntentRequest,
    ExplainIntentResponse,
    ExplainRepliesRequest,
    ExplainRepliesResponse,
)
from service.settings import Settings

if TYPE_CHECKING:
    from models.explain.explainer import Explainer
    from models.explain.instance import Instance


def add_explain_intent(
    app: FastAPI, predictor: Predictor, shelf: HeadRegistry, explaining: ExplanationWorker | None, settings: Settings
) -> None:
    body = JsonBody(ExplainIntentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(given: Request) -> Response:
        """Which turns and words speak for the intent of a dialogue, or of each of up to 16, or for one asked about."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        head: IntentHead = find_by_name(shelf.heads, request.label_set or settings.label_set, "/label_set", "label set")
        if request.target is not None and request.target not in head.labels:
            reason = f"The label set {head.name} has no such intent; /v1/models lists those that it has."
            raise InvalidRequest(reason, pointer="/target")
        inputs = as_list(request.inputs)
        wanted = parse_request(request, len(inputs), accepts_npz(given))
        items = [item_of(one)[0] for one in inputs]
        asks = [_about(item, head, request.target) for item in items]
        found = await require_worker(explaining, "intent").explain("intent", asks, wanted, due_s)
        raise_if_all_failed(found.outcomes, request.inputs)
        results = [_result(head, *one) for one in zip(inputs, items, found.outcomes, strict=True)]
        return await explanation_response(given, predictor, results, found, label_set=head.name)

    add_hot_route(app, "/v1/explain/intent", explain, ExplainIntentRequest, ExplainIntentResponse, 404)


def add_explain_replies(
    app: FastAPI, predictor: Predictor, shelf: HeadRegistry, explaining: ExplanationWorker | None, settings: Settings
) -> None:
    body = JsonBody(ExplainRepliesRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(given: Request) -> Response:
        """Which turns and words of a dialogue speak for a reply: the best one, or one asked about."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        turns = spoken(request.turns)
        if request.reply_set is not None:
            chosen = find_by_name(shelf.reply_sets, request.reply_set, "/reply_set", "reply set")
            texts, placed = chosen.texts, chosen.projected
        else:
            texts, placed = tuple(request.candidates or ()), None
        target = request.target
        if target is not None and target >= len(texts):
            raise InvalidRequest(f"There are {len(texts)} replies, 0 to {len(texts) - 1}.", pointer="/target")
        if target is None and placed is None and len(texts) > MAX_COMPARED:
            reason = f"At most {MAX_COMPARED} candidates are compared; name the one to explain as target."
            raise ExplanationTooLarge(reason, pointer="/candidates")
        among = texts if target is None else texts[target : target + 1]
        ranker = shelf.ranker

        def ask(explainer: "Explainer") -> "Instance":
            if placed is None:
                return explainer.reply_instance(turns, ranker, among, ranker.project_replies(explainer.vectors(among)))
            return explainer.reply_instance(
                turns, ranker, among, placed if target is None else placed[target : target + 1]
            )

        wanted = parse_request(request, 1, accepts_npz(given), "/turns")
        found = await require_worker(explaining, "intent").explain("intent", [ask], wanted, due_s)
        (outcome,) = found.outcomes
        if isinstance(outcome, Problem):
            raise outcome
        reply = outcome.explanation.target
        about = {
            "index": texts.index(reply) if target is None else target,
            "text": reply,
            "score": outcome.explanation.scores[reply],
        }
        result = {"target": about, **turn_weights([turn.text for turn in turns], outcome), **method_fields(outcome)}
        return await explanation_response(given, predictor, [result], found)

    add_hot_route(app, "/v1/explain/replies", explain, ExplainRepliesRequest, ExplainRepliesResponse, 404)


def _about(item: Item, head: IntentHead, target: str | None) -> InstanceFactory:
    turns = (*item.context, Turn("customer", item.text))
    return lambda explainer: explainer.intent_instance(turns, head, target)


def _result(head: IntentHead, given: Any, item: Item, outcome: TextOutcome) -> dict[str, Any]:
    """An ExplainIntentResult, or a FailedItem."""
    if isinstance(outcome, Problem):
        return failed_item(outcome, given)
    found = outcome.explanation
    outside = float(predict_intents(head, outcome.row[None]).out_of_scope_scores[0])
    out_of_scope = outside > head.threshold
    texts = [*(turn.text for turn in item.context), item.text]
    return {
        "intent": None if out_of_scope else max(found.scores, key=found.scores.__getitem__),
        "out_of_scope": out_of_scope,
        "out_of_scope_score": outside,
        "target": found.target,
        "confidence": found.scores[found.target],
        **turn_weights(texts, outcome),
        **method_fields(outcome),
        "id": id_of(given),
    }
