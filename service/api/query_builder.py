"""One user's question, against one state of a catalogue: what was done with which items, and which are to be ranked.

Knows what events and candidates mean together; what is wrong with one user's is that user's Problem. Knows nothing of
models but the events they can tell apart, and nothing of HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np

from models.catalogue.snapshot import Snapshot
from models.ranking.events import DISLIKE, EVENT_TYPES, MAX_EVENTS, NEUTRAL_RATING
from service.errors import InvalidRequest, UnknownItem
from service.inference.ranking_query import InlineItem, Numbers, RankingQuery
from service.schemas.recommend import Candidate, CandidateIds, HistoryEvent, User

AHEAD_S = 86_400.0
"""How far in the future an event may be: clocks differ, and so do days."""

_DAY_S = 86_400.0
_RATING = "rating"
_KINDS = {kind: number for number, kind in enumerate(EVENT_TYPES)} | {"dislike": DISLIKE}
_OTHER = EVENT_TYPES.index("other")

_item_id = itemgetter("item_id")


def build_query(user: User, snapshot: Snapshot, now_s: float) -> RankingQuery:
    """Raises InvalidRequest or UnknownItem, with a pointer into the user's own document."""
    return QueryBuilder(user, snapshot).question(now_s)


class QueryBuilder:
    """The items of one question get their numbers here, those that came as a text when they are first met."""

    def __init__(self, user: User, snapshot: Snapshot) -> None:
        self._user = user
        self._snapshot = snapshot
        self._skip = user.on_unknown == "skip"
        self._sent: dict[tuple[str | None, str | None], int] = {}
        self._texts: list[InlineItem] = []

    def question(self, now_s: float) -> RankingQuery:
        history = self._user.history
        times = _times(history, now_s)
        order = range(len(history)) if times is None else sorted(range(len(history)), key=times.__getitem__)
        places, items, skipped = self._newest(order)
        candidates, candidate_places = self._candidates()
        ages = np.full(len(places), np.nan, np.float32)
        if times and places:
            newest_s = times[places[-1]]
            ages[:] = [(newest_s - times[place]) / _DAY_S for place in places]
        return RankingQuery(
            snapshot=self._snapshot,
            items=np.array(items, np.int64),
            kinds=np.array([_kind(history[place], place) for place in places], np.int64),
            ages=ages,
            history_positions=places,
            candidates=candidates,
            candidate_positions=candidate_places,
            inline_items=tuple(self._texts),
            excluded=self._owned() if self._user.exclude_history else np.empty(0, np.int64),
            filter=self._user.filter or None,
            top_k=self._user.top_k,
            min_new_items=self._user.min_new_items,
            dropped=len(history) - len(places) - skipped,
            skipped=skipped,
            candidates_skipped=self._candidates_skipped,
            candidates_repeated=self._candidates_repeated,
        )

    def _newest(self, order: Sequence[int]) -> tuple[list[int], list[int], int]:
        """Places and numbers of the newest events with a known item, oldest first, and how many were skipped."""
        history = self._user.history
        places: list[int] = []
        items: list[int] = []
        unknown: list[int] = []
        for place in reversed(order):
            if len(places) == MAX_EVENTS:
                break
            number = self._number(history[place], "history", place)
            if number < 0:
                unknown.append(place)
            else:
                places.append(place)
                items.append(number)
        self._refuse(unknown, "history", "event")
        return places[::-1], items[::-1], len(unknown)

    def _candidates(self) -> tuple[Numbers | None, Sequence[int]]:
        """Each number once, and the place at which it came first."""
        self._candidates_skipped = self._candidates_repeated = 0
        if (given := self._user.candidates) is None:
            return None, ()
        with suppress(KeyError):  # one comes with a text, or is not known
            ids = given.ids if isinstance(given, CandidateIds) else map(_item_id, given)
            numbers = np.fromiter(map(self._snapshot.row_by_id.__getitem__, ids), np.int64, len(given))
            ascending = np.sort(numbers)
            if (ascending[1:] != ascending[:-1]).all():
                return numbers, range(len(given))
        row_of = self._snapshot.row_by_id.get
        first: dict[int, int] = {}
        unknown: list[int] = []
        for place, candidate in enumerate(given):
            number = row_of(candidate.get("item_id", ""), -1)  # no id is empty
            if number < 0:
                number = self._number(candidate, "candidates", place)
            if number < 0:
                unknown.append(place)
            else:
                first.setdefault(number, place)
        self._refuse(unknown, "candidates", "candidate")
        self._candidates_skipped = len(unknown)
        self._candidates_repeated = len(given) - len(unknown) - len(first)
        return np.fromiter(first, np.int64, len(first)), list(first.values())

    def _refuse(self, unknown: Sequence[int], part: str, noun: str) -> None:
        if not unknown or self._skip:
            return
        first, name = min(unknown), self._snapshot.name
        items = (
            f"item of {noun} {first} is"
            if len(unknown) == 1
            else f"items of {len(unknown)} {noun}s, {first} first, are"
        )
        raise UnknownItem(
            f"The {items} not in the catalogue {name} and came without a text.", pointer=f"/{part}/{first}"
        )

    def _number(self, item: HistoryEvent | Candidate, part: str, place: int) -> int:
        """-1 of an item that is not known and has no text."""
        item_id = item.get("item_id")
        if item_id is not None and (row := self._snapshot.row_by_id.get(item_id, -1)) >= 0:
            return row
        key = _key(item)
        if (number := self._sent.get(key, -1)) >= 0:
            return number
        text, pointer = item.get("text"), f"/{part}/{place}/text"
        if text is None:
            if item_id is None:
                raise InvalidRequest("An item should have an item_id, a text or both.", pointer=f"/{part}/{place}")
            if item_id not in self._elsewhere:
                return -1
            text, pointer = self._elsewhere[item_id]
        self._sent[key] = number = self._snapshot.rows + len(self._texts)
        self._texts.append(InlineItem(item_id, text, pointer))
        return number

    @cached_property
    def _elsewhere(self) -> dict[str, tuple[str, str]]:
        """Texts that came with an id, and where: given once, a text goes for every mention of its id."""
        parts: dict[str, Sequence[Any]] = {
            "history": self._user.history,
            "candidates": self._user.candidates or (),
        }
        return {
            item["item_id"]: (item["text"], f"/{part}/{place}/text")
            for part, items in parts.items()
            for place, item in enumerate(items)
            if "item_id" in item and "text" in item
        }

    def _owned(self) -> Numbers:
        """Of every event, also of those that are not read."""
        row_of = self._snapshot.row_by_id.get
        numbers = {row_of(event.get("item_id", ""), self._sent.get(_key(event), -1)) for event in self._user.history}
        return np.array([number for number in numbers if number >= 0], np.int64)


def _key(item: HistoryEvent | Candidate) -> tuple[str | None, str | None]:
    """Items with one id are one item, and so are texts that are the same."""
    item_id = item.get("item_id")
    return (item_id, None) if item_id is not None else (None, item.get("text"))


def _times(history: Sequence[HistoryEvent], now_s: float) -> list[float] | None:
    """In seconds, or None when no event has one."""
    given = sum("at" in event for event in history)
    if given == 0:
        return None
    if given < len(history):
        place = next(place for place, event in enumerate(history) if "at" not in event)
        raise InvalidRequest(
            f"{given} of {len(history)} events have a time; give 'at' for all of them or for none.",
            pointer=f"/history/{place}",
        )
    return [_time(event["at"], place, now_s + AHEAD_S) for place, event in enumerate(history)]


def _time(at: str, place: int, latest_s: float) -> float:
    try:
        seconds = datetime.fromisoformat(at.upper()).timestamp()
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"There is no such time: {error}.", pointer=f"/history/{place}/at") from None
    if seconds > latest_s:
        raise InvalidRequest(
            "The event is in the future: more than a day after the time of this service.",
            pointer=f"/history/{place}/at",
        )
    return seconds


def _kind(event: HistoryEvent, place: int) -> int:
    """The number of an event's kind; a rating below neutral is a dislike."""
    name, value = event["event"], event.get("value", math.nan)
    if name == _RATING:
        if math.isnan(value):
            raise InvalidRequest("A rating should have a value, from 0 to 5.", pointer=f"/history/{place}")
        return DISLIKE if value < NEUTRAL_RATING else _KINDS["like"]
    if not math.isnan(value):
        raise InvalidRequest("Only a rating has a value.", pointer=f"/history/{place}/value")
    return _KINDS.get(name, _OTHER)
