"""Schemas of `/v1/catalogues`, and their limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from models.catalogue.items import MAX_NUMBER, Item
from service.schemas import examples
from service.schemas.wire import MAX_ID_CHARS, MAX_INPUTS, ItemError, Name, Timings, WireModel, with_message

MAX_ITEM_CHARS = 10_000
MAX_ITEM_ATTRIBUTES = 32
MAX_ATTRIBUTE_CHARS = 1_000
MAX_REMOVED = 1_000


def _check_exact(value: str | bool | int | float | None) -> str | bool | int | float | None:
    """Refuse a large whole number here, because with a range of its own it would be rounded to a float in range."""
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise ValueError("the number is too large")
    return value


ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
_Value = Annotated[
    Annotated[str, Field(max_length=MAX_ATTRIBUTE_CHARS)]
    | bool
    | Annotated[int, WithJsonSchema({"type": "integer", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER})]
    | Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER, allow_inf_nan=False)]
    | None,
    AfterValidator(_check_exact),
    with_message(
        f"Input should be a string of at most {MAX_ATTRIBUTE_CHARS} characters, true, false, null, or a number from "
        "-2**53 to 2**53; send a larger number as a string"
    ),
]


class CatalogueItem(WireModel):
    """An item of a catalogue."""

    item_id: ItemId
    text: Annotated[str, Field(max_length=MAX_ITEM_CHARS, description="English or Chinese description of the item")]
    attributes: Annotated[
        dict[Name, _Value],
        Field(max_length=MAX_ITEM_ATTRIBUTES, description="values for filters; null is the same as no attribute"),
    ] = Field(default_factory=dict)
    popularity: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_NUMBER,
            allow_inf_nan=False,
            description="users without a history get the most popular items",
        ),
        with_message("Input should be a number from 0 to 2**53"),
    ] = 0.0

    def to_item(self) -> Item:
        """Return the item as catalogues store it, without null attributes."""
        attributes = {name: value for name, value in self.attributes.items() if value is not None}
        return Item(self.item_id, self.text, attributes, self.popularity)


class CatalogueEdit(WireModel):
    """Items to add or to replace, and ids of items to remove. Of an id that comes twice, the first mention counts."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EDIT_REQUEST]})

    items: Annotated[list[CatalogueItem], Field(max_length=MAX_INPUTS)] = Field(default_factory=list)
    remove: Annotated[list[ItemId], Field(max_length=MAX_REMOVED, description="ids of items to remove")] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _check_not_empty(self) -> CatalogueEdit:
        if not self.items and not self.remove:
            raise PydanticCustomError("nothing", "There should be items, or ids to remove")
        return self


class EditedItem(WireModel):
    """The outcome for an item."""

    item_id: str
    outcome: Literal["added", "changed", "removed", "unchanged"]
    truncated: Annotated[
        bool | None,
        Field(description="whether the text was longer than the model reads; null if it is not new"),
    ]
    unsupported_language: Annotated[
        bool | None, Field(description="true if the text is new, and neither English nor Chinese; else absent")
    ] = None


class FailedEdit(WireModel):
    """An item that is wrong, repeated or unreadable. The catalogue keeps what it has under the id."""

    item_id: Annotated[str | None, Field(description="null without a valid id")]
    error: ItemError


class CatalogueInfo(WireModel):
    """A catalogue."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.CATALOGUE]})

    name: str
    count: Annotated[int, Field(ge=0, description="number of items")]
    version: Annotated[int, Field(ge=0, description="number of edits")]
    digest: Annotated[str, Field(description="digest of the model that embedded the items")]


class CatalogueEdited(WireModel):
    """Results in the order of the items and then of the removals. The whole edit is durable."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EDIT_RESPONSE]})

    model: str
    version: str
    results: list[EditedItem | FailedEdit]
    catalogue: CatalogueInfo
    timings_ms: Timings


class UnavailableCatalogue(WireModel):
    """A catalogue that the service cannot use, and the reason."""

    name: str
    error: ItemError


class CatalogueList(WireModel):
    """The catalogues that a request can name, and those that cannot be used."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.CATALOGUES]})

    catalogues: list[CatalogueInfo | UnavailableCatalogue]
