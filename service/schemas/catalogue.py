"""The wire of catalogues, and its limits: items that callers put in, and what they are told of a catalogue."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from models.catalogue.items import MAX_EXACT_INTEGER, Item
from service.schemas.wire import MAX_ID_CHARS, MAX_INPUTS, MAX_NAME_CHARS, ItemError, Timings, WireModel

MAX_ITEM_CHARS = 10_000
MAX_ITEM_ATTRIBUTES = 32
MAX_ATTRIBUTE_CHARS = 1_000
MAX_REMOVED = 1_000


def _exact(value: str | bool | int | float | None) -> str | bool | int | float | None:
    if isinstance(value, int) and abs(value) > MAX_EXACT_INTEGER:
        raise PydanticCustomError("inexact", "Whole numbers up to 2**53 are told apart; send a larger one as a string")
    return value


ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
_Value = Annotated[
    Annotated[str, Field(max_length=MAX_ATTRIBUTE_CHARS)]
    | bool
    | int
    | Annotated[float, Field(allow_inf_nan=False)]
    | None,
    AfterValidator(_exact),
]


class CatalogueItem(WireModel):
    item_id: ItemId
    text: Annotated[str, Field(max_length=MAX_ITEM_CHARS, description="what the item is, English or Chinese")]
    attributes: Annotated[
        dict[_Name, _Value],
        Field(max_length=MAX_ITEM_ATTRIBUTES, description="to filter by; null is the same as nothing"),
    ] = Field(default_factory=dict)
    popularity: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="who has no history gets the most popular items")
    ] = 0.0

    def to_item(self) -> Item:
        attributes = {name: value for name, value in self.attributes.items() if value is not None}
        return Item(self.item_id, self.text, attributes, self.popularity)


class CatalogueEdit(WireModel):
    """Each item replaces the one of its id as a whole, or is added."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {"item_id": "22138", "text": "Baking set 9 piece retrospot", "attributes": {"price": 4.95}},
                        {"item_id": "t-3", "text": "红色波点茶杯", "popularity": 12},
                    ],
                    "remove": ["85123A"],
                }
            ]
        }
    )

    items: Annotated[list[CatalogueItem], Field(max_length=MAX_INPUTS)] = Field(default_factory=list)
    remove: Annotated[list[ItemId], Field(max_length=MAX_REMOVED, description="ids of items")] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _each_once(self) -> CatalogueEdit:
        if not self.items and not self.remove:
            raise PydanticCustomError("nothing", "There should be items, or ids to remove")
        seen: set[str] = set()
        for item_id in [*(item.item_id for item in self.items), *self.remove]:
            if item_id in seen:
                raise PydanticCustomError("duplicate", "An item is named twice: {item_id}", {"item_id": item_id})
            seen.add(item_id)
        return self


class EditedItem(WireModel):
    item_id: str
    outcome: Literal["added", "changed", "removed", "unchanged"]
    truncated: Annotated[
        bool | None, Field(description="whether a new text was longer than the model reads; null when it is not new")
    ]


class FailedEdit(WireModel):
    """Its text cannot be used; what the catalogue held under its id is there as before."""

    item_id: str
    error: ItemError


class CatalogueInfo(WireModel):
    name: str
    count: Annotated[int, Field(ge=0, description="items")]
    version: Annotated[int, Field(ge=0, description="edits since it was made")]
    digest: Annotated[str, Field(description="of the model that its items are embedded by, its card apart")]


class CatalogueEdited(WireModel):
    """Results are in the order of the items and then of what was to be removed; all of them are durable."""

    model: str
    version: str
    results: list[EditedItem | FailedEdit]
    catalogue: CatalogueInfo
    timings_ms: Timings


class UnavailableCatalogue(WireModel):
    name: str
    error: ItemError


class CatalogueList(WireModel):
    catalogues: list[CatalogueInfo | UnavailableCatalogue]
