"""`/v1/explain/intent` and `/v1/explain/replies`: the turns and words of a dialogue behind an intent or a reply.

They explain what the plain routes answer: the confidence of an intent, and the score of a reply.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response

from models.prediction.intent_head import IntentHead, predict_intents
from models.text.tokenizer import Turn
from service.api.explanations import (
    EXPLANATIONS,
    accepts_npz,
    explanation_response,
    method_fields,
    parse_request,
    require_worker,
    turn_weights,
)
from service.api.intent import find_by_name, item_of, turns_of
from service.errors import ExplanationTooLarge, InvalidRequest, Problem
from service.explanation.request import InstanceFactory, TextOutcome
from service.explanation.worker import ExplanationWorker
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation
from service.http.responses import as_list, failed_item, fill_in, id_of, settle_outcomes, valid_items
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
    app: FastAPI,
    predictor: Predictor,
    registry: HeadRegistry,
    explanations: ExplanationWorker | None,
    settings: Settings,
) -> None:
    """Add the route for intents."""
    reader = JsonBody(ExplainIntentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(request: Request) -> Response:
        """Explain an intent: the weight of each turn and word, or attention maps.

        `inputs` is a text, a dialogue, or a list of at most 16. `target` is the intent to explain. With
        `Accept: application/x-npz`, attention maps come as a file of arrays.
        """
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        head = find_by_name(registry.heads, body.label_set or settings.label_set, "/label_set", "label set")
        if body.target is not None and body.target not in head.labels:
            reason = f"The label set {head.name} has no such intent; /v1/models lists its intents."
            raise InvalidRequest(reason, pointer="/target")
        inputs = as_list(body.inputs)
        options = parse_request(body, len(inputs), accepts_npz(request))
        items = fill_in(inputs, [item_of(item)[0] for item in valid_items(inputs)])
        instances = [_intent_instance_factory(item, head, body.target) for item in items]
        batch = await require_worker(explanations, "intent").explain("intent", instances, options, deadline_s)
        outcomes = settle_outcomes(body.inputs, batch.outcomes)
        results = [_result(head, *fields) for fields in zip(inputs, items, outcomes, strict=True)]
        return await explanation_response(request, predictor, results, batch, label_set=head.name)

    summary = "Explain the intent of dialogues by turns and words"
    operation = Operation("explain_intent", EXPLANATIONS, summary, problems=(404,))
    add_hot_route(app, "/v1/explain/intent", explain, ExplainIntentRequest, ExplainIntentResponse, operation)


def add_explain_replies(
    app: FastAPI,
    predictor: Predictor,
    registry: HeadRegistry,
    explanations: ExplanationWorker | None,
    settings: Settings,
) -> None:
    """Add the route for replies."""
    reader = JsonBody(ExplainRepliesRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(request: Request) -> Response:
        """Explain the score of a reply: the weight of each turn and word, or attention maps.

        `target` is the index of the reply to explain, by default the best. With `Accept: application/x-npz`, attention
        maps come as a file of arrays.
        """
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        turns = turns_of(body.turns)
        texts, instance = _reply_instance_factory(body, turns, registry)
        options = parse_request(body, 1, accepts_npz(request), "/turns")
        batch = await require_worker(explanations, "intent").explain("intent", [instance], options, deadline_s)
        (outcome,) = batch.outcomes
        if isinstance(outcome, Problem):
            raise outcome
        reply = outcome.explanation.target
        target = {
            "index": texts.index(reply) if body.target is None else body.target,
            "text": reply,
            "score": outcome.explanation.scores[reply],
        }
        result = {
            "target": target,
            **turn_weights([turn.text for turn in turns], outcome),
            **method_fields(outcome, turns[-1].text),
        }
        return await explanation_response(request, predictor, [result], batch)

    summary = "Explain the score of a reply by turns and words"
    operation = Operation("explain_replies", EXPLANATIONS, summary, problems=(404,))
    add_hot_route(app, "/v1/explain/replies", explain, ExplainRepliesRequest, ExplainRepliesResponse, operation)


def _intent_instance_factory(item: Item | Problem, head: IntentHead, target: str | None) -> InstanceFactory | Problem:
    if isinstance(item, Problem):
        return item
    turns = (*item.context, Turn("customer", item.text))
    return lambda explainer: explainer.intent_instance(turns, head, target)


def _reply_instance_factory(
    body: ExplainRepliesRequest, turns: Sequence[Turn], registry: HeadRegistry
) -> tuple[tuple[str, ...], InstanceFactory]:
    """Return all replies and the factory of the instance; raise InvalidRequest or ExplanationTooLarge."""
    if body.reply_set is None:
        texts, projected = tuple(body.candidates or ()), None
    else:
        reply_set = find_by_name(registry.reply_sets, body.reply_set, "/reply_set", "reply set")
        texts, projected = reply_set.texts, reply_set.projected
    target = body.target
    if target is not None and target >= len(texts):
        raise InvalidRequest(f"There are {len(texts)} replies, 0 to {len(texts) - 1}.", pointer="/target")
    if target is None and projected is None and len(texts) > MAX_COMPARED:
        reason = f"Without a target, there can be at most {MAX_COMPARED} candidates; name the target."
        raise ExplanationTooLarge(reason, pointer="/candidates")
    chosen = slice(None) if target is None else slice(target, target + 1)
    replies, ranker = texts[chosen], registry.ranker

    def make_instance(explainer: "Explainer") -> "Instance":
        vectors = ranker.project_replies(explainer.vectors(replies)) if projected is None else projected[chosen]
        return explainer.reply_instance(turns, ranker, replies, vectors)

    return texts, make_instance


def _result(head: IntentHead, request_item: Any, item: Item | Problem, outcome: TextOutcome) -> dict[str, Any]:
    """Return the `ExplainIntentResult` of an input, or its `FailedItem`."""
    if isinstance(outcome, Problem):
        return failed_item(outcome, request_item)
    assert isinstance(item, Item)
    explanation = outcome.explanation
    out_of_scope_score = float(predict_intents(head, outcome.row[None]).out_of_scope_scores[0])
    out_of_scope = out_of_scope_score > head.threshold
    texts = [*(turn.text for turn in item.context), item.text]
    return {
        "intent": None if out_of_scope else max(explanation.scores, key=explanation.scores.__getitem__),
        "out_of_scope": out_of_scope,
        "out_of_scope_score": out_of_scope_score,
        "target": explanation.target,
        "confidence": explanation.scores[explanation.target],
        **turn_weights(texts, outcome),
        **method_fields(outcome, item.text),
        "id": id_of(request_item),
    }
