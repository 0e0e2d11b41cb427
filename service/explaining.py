"""Why the served model answers as it does: explanations on a thread of their own, which gives way to plain requests.

One request at a time, a few may wait. The thread has a session of its own, opened by the first explanation, so that a
gateway which nobody asks for any is as light as before. Its priority is lower, and while plain texts are being answered
it pauses after each of its steps for nine times as long as that took. Between two steps it looks whether its caller's
time is over.
Knows nothing of HTTP or of Ray.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from models.bundle import Bundle
from models.tokens import Batch, EmptyTextError, Tokenizer, is_readable
from service.errors import (
    DeadlineExceeded,
    EmptyText,
    InferenceFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    Problem,
    TooMuchToExplain,
)
from service.predictor import Answered, Item

if TYPE_CHECKING:  # at run time only in the thread: a gateway without a model loads no runtime
    from models.explain import Explainer, Explanation, MethodName, Question

_log = structlog.get_logger(__name__)

_MOST_WAITING = 4
_PAUSES = 9.0  # for each second of work while plain texts are being answered
_LONGEST_PAUSE_S = 1.0
_NICENESS = 10
_MEMORY = 0.3  # of how long explanations take, for Retry-After: the share of the newest
_RESTART_S = 5.0
_PLACES = 4  # of an attention weight


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of every text. The method is the best one where none is named; no heads are all of them.

    `most_tokens` and `most_numbers` bound the maps: of each text, and of all that come back together.
    """

    method: MethodName | None = None
    target: str | None = None
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] | None = None
    most_tokens: int = 0
    most_numbers: int = 0


@dataclass(frozen=True, slots=True)
class Attention:
    """`weights` (layers, heads, tokens, tokens): the share that each token (third axis) takes from each (fourth).

    They are rounded to four places.
    """

    model_layers: int
    model_heads: int
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Explained(Answered):
    label: str
    explanation: Explanation
    attention: Attention | None


Outcome = Explained | Problem


@dataclass(frozen=True, slots=True)
class Explanations:
    """One outcome per item, in order."""

    outcomes: tuple[Outcome, ...]
    queue_s: float
    explain_s: float


class _GivenUp(Exception):
    """Nobody waits for this explanation any more."""


class _Job:
    """What event loop and thread share of one request: outcomes as they come, and whether they are still wanted."""

    def __init__(self, items: Sequence[Item], wanted: Wanted, deadline_s: float) -> None:
        self.items, self.wanted, self.deadline_s = items, wanted, deadline_s
        self.outcomes: list[Outcome] = []
        self.refused: Problem | None = None
        self.given_up = threading.Event()

    def check(self) -> None:
        if self.given_up.is_set() or time.monotonic() >= self.deadline_s:
            raise _GivenUp

    def answered(self) -> tuple[Outcome, ...]:
        """With a problem for each item that was not reached."""
        done = tuple(self.outcomes)
        late = DeadlineExceeded("The text was not explained in time.")
        return done + (late,) * (len(self.items) - len(done))


class Explaining:
    """Explains the answers of one bundle of sentiment, by its CPU graph.

    `busy` says whether plain texts are being answered; it is asked from the thread.
    """

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, busy: Callable[[], bool]) -> None:
        self._bundle, self._tokenizer, self._busy = bundle, tokenizer, busy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="explain", initializer=_give_way)
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._usual_s = 1.0
        self._job: _Job | None = None
        self._open = True

    async def stop(self) -> None:
        """Refuse what is new, give up what is under way."""
        self._open = False
        if self._job is not None:
            self._job.given_up.set()
        await asyncio.to_thread(self._thread.shutdown)

    async def explain(self, items: Sequence[Item], wanted: Wanted, deadline_s: float) -> Explanations:
        """By `deadline_s` on the monotonic clock: what is not reached by then gets DeadlineExceeded, the rest stands.

        Raises Overloaded when too many wait, NotReady once stopped, and InvalidRequest or TooMuchToExplain for all.
        Cancelling ends the work at its next step.
        """
        started_s = time.monotonic()
        await self._take_turn(deadline_s)
        job = _Job(items, wanted, deadline_s)
        begun_s = time.monotonic()
        try:
            if not self._open:
                raise NotReady("Explanations have been stopped here.", retry_after_s=_RESTART_S)
            self._job = job
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._work, job)
        except BaseException:
            self._turn.release()
            raise
        # Not when this call ends: what it gives up may be in the middle of a step.
        work.add_done_callback(lambda _: self._done(begun_s))
        try:
            await asyncio.wait([work], timeout=_left_s(deadline_s))
        finally:
            job.given_up.set()
        if work.done():
            work.result()
        if job.refused is not None:
            raise job.refused
        return Explanations(job.answered(), begun_s - started_s, time.monotonic() - begun_s)

    async def _take_turn(self, deadline_s: float) -> None:
        if self._waiting >= _MOST_WAITING:
            retry_s = self._usual_s * (self._waiting + 1)
            raise Overloaded("As many explanations wait as may wait.", retry_after_s=retry_s)
        self._waiting += 1
        try:
            async with asyncio.timeout(_left_s(deadline_s)):
                await self._turn.acquire()
        except TimeoutError:
            raise DeadlineExceeded("Other explanations took all the time there was.") from None
        finally:
            self._waiting -= 1

    def _done(self, begun_s: float) -> None:
        self._usual_s += _MEMORY * (time.monotonic() - begun_s - self._usual_s)
        self._job = None
        self._turn.release()

    # What follows runs in the thread.

    def _work(self, job: _Job) -> None:
        try:
            job.check()
            explainer = self._explainer
            self._runtime.job = job
            _check_maps(explainer, job.wanted)
            left = job.wanted.most_numbers
            for item in job.items:
                outcome = self._explained(explainer, item, job.wanted, left)
                if isinstance(outcome, Explained) and outcome.attention is not None:
                    left -= outcome.attention.weights.size
                job.outcomes.append(outcome)
        except _GivenUp:
            return
        except Problem as problem:
            job.refused = problem

    def _explained(self, explainer: Explainer, item: Item, wanted: Wanted, left: int) -> Outcome:
        if item.entity is not None and not is_readable(item.entity):
            return InvalidRequest("The entity is empty.", pointer="/entity")
        try:
            question = explainer.question(item.text, item.entity, wanted.target)
            if not np.isfinite(list(question.scores.values())).all():
                return InferenceFailed("The model failed on this text.")
            return self._weighed(explainer, question, wanted, left)
        except EmptyTextError:
            return EmptyText("The text holds nothing that can be read.", pointer="/text")
        except (_GivenUp, Problem):
            raise
        except Exception as error:  # of the runtime: this text's problem, as where it is answered
            _log.error("explaining failed", error=type(error).__name__)
            return InferenceFailed("The model failed on this text.")

    def _weighed(self, explainer: Explainer, question: Question, wanted: Wanted, left: int) -> Outcome:
        from models.explain import AUTO, explanation_of

        method, maps = wanted.method or AUTO, None
        if wanted.layers:
            maps, weights = self._attention(explainer, question, wanted, left)
        else:
            weights = explainer.weigh(question, method)
        if not np.isfinite(weights).all():
            return InferenceFailed("The model failed on this text.")
        tokens = question.words.tokens
        return Explained(
            tokens.length,
            tokens.truncated,
            1,
            max(question.scores, key=question.scores.__getitem__),
            explanation_of(question, method, weights),
            maps,
        )

    def _attention(
        self, explainer: Explainer, question: Question, wanted: Wanted, left: int
    ) -> tuple[Attention, NDArray[np.float64]]:
        """The maps, and what the answer takes from each part of the text by them, in the mean."""
        from models.explain import by_part, readers

        tokens = question.words.tokens
        heads = tuple(range(explainer.heads)) if wanted.heads is None else wanted.heads
        if tokens.length > wanted.most_tokens:
            reason = f"A text has {tokens.length} tokens; attention is shown for at most {wanted.most_tokens}."
            raise TooMuchToExplain(reason, pointer="/inputs")
        if len(wanted.layers) * len(heads) * tokens.length**2 > left:
            reason = f"The maps would be over {wanted.most_numbers} numbers; ask for fewer texts, layers or heads."
            raise TooMuchToExplain(reason, pointer="/inputs")
        found = explainer.maps(question)
        weights = np.stack([found.attention(layer)[0][list(heads)] for layer in wanted.layers])
        shares = readers(tokens) @ weights.mean(axis=(0, 1))
        pieces = tuple(self._tokenizer.pieces(tokens))
        # Rounded, and laid out as it is written, here and not in the event loop.
        shown = np.ascontiguousarray(weights.round(_PLACES))
        maps = Attention(explainer.layers, explainer.heads, pieces, wanted.layers, heads, shown)
        return maps, by_part(question, shares)

    @cached_property
    def _explainer(self) -> Explainer:
        from models.explain import Explainer

        return Explainer(self._bundle, self._tokenizer, self._runtime)

    @cached_property
    def _runtime(self) -> _Patient:
        return _Patient(self._bundle, self._busy)


class _Patient:
    """A runtime that makes way: it pauses while others are being answered, and stops when nobody waits for it."""

    def __init__(self, bundle: Bundle, busy: Callable[[], bool]) -> None:
        from models.runtime_onnx import OnnxRuntime

        self.job: _Job | None = None
        self._runtime, self._busy = OnnxRuntime(bundle.graph), busy

    def run(self, batch: Batch) -> NDArray[np.float32]:
        assert self.job is not None
        self.job.check()
        started_s = time.monotonic()
        rows = self._runtime.run(batch)
        if self._busy():
            pause_s = min(_LONGEST_PAUSE_S, _PAUSES * (time.monotonic() - started_s))
            self.job.given_up.wait(min(pause_s, _left_s(self.job.deadline_s)))
        return rows


def _check_maps(explainer: Explainer, wanted: Wanted) -> None:
    """Raises InvalidRequest for maps that the model does not have."""
    if not wanted.layers and wanted.method != "value_norm":
        return
    try:
        layers, heads = explainer.layers, explainer.heads
    except ValueError:  # a graph written by an older export, or by another
        raise InvalidRequest("The graph of this model shows no attention.", pointer="/method") from None
    for name, asked, there in (("layer", wanted.layers, layers), ("head", wanted.heads or (), heads)):
        for place, number in enumerate(asked):
            if number >= there:
                reason = f"This model has {there} {name}s, 0 to {there - 1}."
                raise InvalidRequest(reason, pointer=f"/{name}s/{place}")


def _give_way() -> None:
    """Of this thread: Linux has a niceness for each. Where that is refused, the pauses alone must do."""
    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS)


def _left_s(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())
