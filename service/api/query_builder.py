"""Ranking queries: a user's events and candidates, looked up in a snapshot of a catalogue.

This module holds the rules between values of a user, and a user who breaks them gets a Problem. Of models it knows only
their event types. It does not know HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np

from models.catalogue.snapshot import Snapshot
from models.ranking.events import DISLIKE, EVENT_TYPES, MAX_EVENTS, NEUTRAL_RATING
from service.errors import InvalidRequest, UnknownItem
from service.inference.ranking_query import InlineItem, Numbers, RankingQuery
from service.schemas.recommend import Candidate, CandidateIds, HistoryEvent, User

MAX_AHEAD_S = 86_400.0
"""Seconds that an event may lie in the future, because clocks and time zones differ."""

_DAY_S = 86_400.0
_RATING = "rating"
_SECOND = slice(17, 19)  # of a time by RFC 3339
_EVENT_TYPES = {event: index for index, event in enumerate(EVENT_TYPES)} | {"dislike": DISLIKE}
_OTHER = EVENT_TYPES.index("other")

_item_id = itemgetter("item_id")


def build_query(user: User, snapshot: Snapshot, now_s: float) -> RankingQuery:
    """Return the query of a user; raise InvalidRequest or UnknownItem, with a pointer into the user's document."""
    return _QueryBuilder(user, snapshot).build(now_s)


class _QueryBuilder:
    """The numbering of the items of a query: rows of the catalogue first, then texts in the order of their mentions."""

    def __init__(self, user: User, snapshot: Snapshot) -> None:
        self._user = user
        self._snapshot = snapshot
        self._skip = user.on_unknown == "skip"
        self._inline_numbers: dict[tuple[str | None, str | None], int] = {}
        self._inline_items: list[InlineItem] = []

    def build(self, now_s: float) -> RankingQuery:
        history = self._user.history
        times = _parse_times(history, now_s)
        order = range(len(history)) if times is None else sorted(range(len(history)), key=times.__getitem__)
        positions, items, skipped = self._number_history(order)
        candidates, candidate_positions = self._number_candidates()
        ages = np.full(len(positions), np.nan, np.float32)
        if times and positions:
            newest_s = times[positions[-1]]
            ages[:] = [(newest_s - times[position]) / _DAY_S for position in positions]
        return RankingQuery(
            snapshot=self._snapshot,
            items=np.array(items, np.int64),
            kinds=np.array([_event_type(history[position], position) for position in positions], np.int64),
            ages=ages,
            history_positions=positions,
            candidates=candidates,
            candidate_positions=candidate_positions,
            inline_items=tuple(self._inline_items),
            excluded=self._history_items() if self._user.exclude_history else np.empty(0, np.int64),
            filter=self._user.filter or None,
            top_k=self._user.top_k,
            min_new_items=self._user.min_new_items,
            dropped=len(history) - len(positions) - skipped,
            skipped=skipped,
            candidates_skipped=self._candidates_skipped,
            candidates_repeated=self._candidates_repeated,
        )

    def _number_history(self, order: Sequence[int]) -> tuple[list[int], list[int], int]:
        """Return positions and numbers of the newest events with a known item, oldest first, and the skipped events."""
        history = self._user.history
        positions: list[int] = []
        items: list[int] = []
        unknown: list[int] = []
        for position in reversed(order):
            if len(positions) == MAX_EVENTS:
                break
            number = self._number(history[position], "history", position)
            if number < 0:
                unknown.append(position)
            else:
                positions.append(position)
                items.append(number)
        self._check_known(unknown, "history", "event")
        return positions[::-1], items[::-1], len(unknown)

    def _number_candidates(self) -> tuple[Numbers | None, Sequence[int]]:
        """Return each number once, and the position of its first candidate."""
        self._candidates_skipped = self._candidates_repeated = 0
        if (candidates := self._user.candidates) is None:
            return None, ()
        with suppress(KeyError):  # a candidate has a text alone, or is unknown
            ids = candidates.ids if isinstance(candidates, CandidateIds) else map(_item_id, candidates)
            numbers = np.fromiter(map(self._snapshot.row_by_id.__getitem__, ids), np.int64, len(candidates))
            ascending = np.sort(numbers)
            if (ascending[1:] != ascending[:-1]).all():
                return numbers, range(len(candidates))
        row_of = self._snapshot.row_by_id.get
        first_positions: dict[int, int] = {}
        unknown: list[int] = []
        for position, candidate in enumerate(candidates):
            number = row_of(candidate.get("item_id", ""), -1)  # no id is empty
            if number < 0:
                number = self._number(candidate, "candidates", position)
            if number < 0:
                unknown.append(position)
            else:
                first_positions.setdefault(number, position)
        self._check_known(unknown, "candidates", "candidate")
        self._candidates_skipped = len(unknown)
        self._candidates_repeated = len(candidates) - len(unknown) - len(first_positions)
        return np.fromiter(first_positions, np.int64, len(first_positions)), list(first_positions.values())

    def _check_known(self, unknown: Sequence[int], field: str, noun: str) -> None:
        """Raise UnknownItem for unknown items, unless the user skips them."""
        if not unknown or self._skip:
            return
        first, name = min(unknown), self._snapshot.name
        items = (
            f"item of {noun} {first} is"
            if len(unknown) == 1
            else f"items of {len(unknown)} {noun}s, {first} first, are"
        )
        raise UnknownItem(
            f"The {items} not in the catalogue {name} and came without a text.", pointer=f"/{field}/{first}"
        )

    def _number(self, item: HistoryEvent | Candidate, field: str, position: int) -> int:
        """Return the number of an item, -1 for an unknown item without a text."""
        item_id = item.get("item_id")
        if item_id is not None and (row := self._snapshot.row_by_id.get(item_id, -1)) >= 0:
            return row
        key = _key(item)
        if (number := self._inline_numbers.get(key, -1)) >= 0:
            return number
        text, pointer = item.get("text"), f"/{field}/{position}/text"
        if text is None:
            if item_id is None:
                raise InvalidRequest("An item should have an item_id, a text or both.", pointer=f"/{field}/{position}")
            if item_id not in self._texts_by_id:
                return -1
            text, pointer = self._texts_by_id[item_id]
        self._inline_numbers[key] = number = self._snapshot.rows + len(self._inline_items)
        self._inline_items.append(InlineItem(item_id, text, pointer))
        return number

    @cached_property
    def _texts_by_id(self) -> dict[str, tuple[str, str]]:
        """Texts that come with an id, and their pointers. A text counts for every mention of its id."""
        fields: dict[str, Sequence[Any]] = {
            "history": self._user.history,
            "candidates": self._user.candidates or (),
        }
        return {
            item["item_id"]: (item["text"], f"/{field}/{position}/text")
            for field, items in fields.items()
            for position, item in enumerate(items)
            if "item_id" in item and "text" in item
        }

    def _history_items(self) -> Numbers:
        """Return the numbers of the items of all events, including events that the model does not read."""
        row_of, inline_number_of = self._snapshot.row_by_id.get, self._inline_numbers.get
        numbers = {row_of(event.get("item_id", ""), inline_number_of(_key(event), -1)) for event in self._user.history}
        return np.array([number for number in numbers if number >= 0], np.int64)


def _key(item: HistoryEvent | Candidate) -> tuple[str | None, str | None]:
    """Return the identity of an item: its id, or its text if it has no id."""
    item_id = item.get("item_id")
    return (item_id, None) if item_id is not None else (None, item.get("text"))


def _parse_times(history: Sequence[HistoryEvent], now_s: float) -> list[float] | None:
    """Return the times of the events in seconds, or None if no event has a time; raise InvalidRequest."""
    times = sum("at" in event for event in history)
    if times == 0:
        return None
    if times < len(history):
        position = next(position for position, event in enumerate(history) if "at" not in event)
        raise InvalidRequest(
            f"{times} of {len(history)} events have a time; give 'at' for all of them or for none.",
            pointer=f"/history/{position}",
        )
    return [_parse_time(event["at"], position, now_s + MAX_AHEAD_S) for position, event in enumerate(history)]


def _parse_time(at: str, position: int, latest_s: float) -> float:
    try:
        seconds = _seconds_of(at.upper())
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(f"There is no such time: {error}.", pointer=f"/history/{position}/at") from None
    if seconds > latest_s:
        raise InvalidRequest(
            "The event is in the future: more than a day after the time of this service.",
            pointer=f"/history/{position}/at",
        )
    return seconds


def _seconds_of(at: str) -> float:
    """Return a time by RFC 3339 in seconds; a leap second is the second after it. Raises ValueError."""
    if at[_SECOND] != "60":
        return datetime.fromisoformat(at).timestamp()
    whole = datetime.fromisoformat(f"{at[: _SECOND.start]}59{at[_SECOND.stop :]}").replace(microsecond=0)
    next_second = (whole + timedelta(seconds=1)).astimezone(UTC)
    if (next_second.day, next_second.hour, next_second.minute) != (1, 0, 0):
        raise ValueError("a leap second is the last of a month, 23:59:60 in UTC")
    return next_second.timestamp()


def _event_type(event: HistoryEvent, position: int) -> int:
    """Return the index of an event's type; a rating below neutral is a dislike."""
    name, value = event["event"], event.get("value", math.nan)
    if name == _RATING:
        if math.isnan(value):
            raise InvalidRequest("A rating should have a value, from 0 to 5.", pointer=f"/history/{position}")
        return DISLIKE if value < NEUTRAL_RATING else _EVENT_TYPES["like"]
    if not math.isnan(value):
        raise InvalidRequest("Only a rating has a value.", pointer=f"/history/{position}/value")
    return _EVENT_TYPES.get(name, _OTHER)
