"""What a body may hold: texts, numbers and mappings within bounds, and the base of every body."""

import math
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from profiles.hardware import MAX_DEVICES
from profiles.model import MAX_SEQUENCE
from profiles.precision import format_name

MAX_DEPTH = 8
MAX_VALUES = 4096
MAX_FIELDS = 128  # of a body: no body has half as many
MAX_TEXT = 4096
MAX_TOP = 100
MAX_INTEGER = 1 << 63

# Which branch of ``NameOrMapping`` an error lies in; no part of a field's name.
TEXT_TAG, MAPPING_TAG = "(text)", "(mapping)"
# Which of the two questions of ``PlanQuestion`` an error lies in.
JOB_TAG, WORKFLOW_TAG = "(job)", "(workflow)"
# Of a question about the plan of an answer.
SAVED_TAG = "(saved)"
INSIDE = "inside"  # type of an error whose context has the place inside a mapping, and the value there
# Which kind of a cell of a trial.
NUMBER_TAG, FLAG_TAG = "(number)", "(flag)"
TAGS = frozenset({TEXT_TAG, MAPPING_TAG, JOB_TAG, WORKFLOW_TAG, SAVED_TAG, NUMBER_TAG, FLAG_TAG})
# Every pattern here has its words in ``PATTERN_WORDS``.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 ._:+()/-]*$"
CLUSTER_PATTERN = NAME_PATTERN.replace("/-]", "/*\u00d7-]")  # other signs for times
PRICED_PATTERN = CLUSTER_PATTERN.replace("/*", "/@*")  # what a device-hour costs at the end
NAMES_PATTERN = NAME_PATTERN.replace("[A-Za-z0-9 ", "[A-Za-z0-9, ")  # with commas between
ROLE_PATTERN = r"^[a-z][a-z0-9_]*$"
LENGTHS_PATTERN = r"^(lognormal|cdf):[a-z0-9=.,+-]+$"
_OF_NAME = "must be letters, digits, blanks and . _ : + ( ) / -, a letter or digit first"
PATTERN_WORDS = {
    NAME_PATTERN: _OF_NAME,
    CLUSTER_PATTERN: _OF_NAME,
    PRICED_PATTERN: f"{_OF_NAME}, and may end in @ and a price",
    NAMES_PATTERN: f"{_OF_NAME}, with commas between several",
    ROLE_PATTERN: "must be lower-case letters, digits and _, a letter first",
    LENGTHS_PATTERN: "must be a number, or such as lognormal:mean=800,sigma=1,max=8192 or cdf:0.5=256,1=8192",
}


def _bounded(value: dict[str, Any]) -> dict[str, Any]:
    """The mapping, if its depth, size, texts and numbers are within bounds.

    Raises:
        ValueError: If one is not.
        PydanticCustomError: If a text or a number is not; its context has the place.
    """
    values = 0
    level: list[tuple[tuple[str | int, ...], dict[str, Any] | list[Any]]] = [((), value)]
    for _ in range(MAX_DEPTH):
        values += sum(2 * len(item) if isinstance(item, dict) else len(item) for _, item in level)  # keys count too
        if values > MAX_VALUES:  # before any is looked at: a body may hold many more
            raise ValueError(f"may hold at most {MAX_VALUES} values")
        inner: list[tuple[tuple[str | int, ...], Any]] = []
        for place, item in level:
            if isinstance(item, dict):
                inner += [(place, key) for key in item]
            held = item.items() if isinstance(item, dict) else enumerate(item)
            inner += [((*place, key), each) for key, each in held]
        for place, item in inner:
            _check_scalar(item, place)
        level = [(place, item) for place, item in inner if isinstance(item, dict | list)]
        if not level:
            return value
    raise ValueError(f"may be nested at most {MAX_DEPTH} levels deep")


def _check_scalar(value: object, place: tuple[str | int, ...]) -> None:
    problem = None
    if isinstance(value, str) and (len(value) > MAX_TEXT or not value.isprintable()):
        problem = f"texts may have at most {MAX_TEXT} printable characters"
    if isinstance(value, float) and not math.isfinite(value):
        problem = "numbers must be finite"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        problem = "whole numbers must fit into 64 bits"
    if problem:
        told = {"place": [_encodable(str(part)) for part in place], "value": _encodable(value)}
        raise PydanticCustomError(INSIDE, problem, told)


def _encodable(value: object) -> object:
    """The value, a text without what UTF-8 cannot hold, which pydantic would stumble over."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _kind(value: object) -> str | None:
    return TEXT_TAG if isinstance(value, str) else MAPPING_TAG if isinstance(value, dict) else None


def _of_few(value: object, most: int) -> object:
    if isinstance(value, dict) and len(value) > most:
        raise PydanticCustomError("too_many_fields", "may have at most {most} fields", {"most": most})
    return value


def few(most: int) -> BeforeValidator:
    """Refuses a mapping of more fields as a whole: pydantic looks at each of them first, and tells what is wrong."""
    return BeforeValidator(lambda value: _of_few(value, most))


Name = Annotated[str, Field(min_length=1, max_length=120, pattern=NAME_PATTERN)]
Names = Annotated[str, Field(min_length=1, max_length=240, pattern=NAMES_PATTERN)]
Mapping = Annotated[dict[str, Any], Field(min_length=1), AfterValidator(_bounded), few(MAX_VALUES)]
Answer = Annotated[dict[str, Any], few(MAX_FIELDS)]  # of this service; the library reads it
NameOrMapping = Annotated[
    Annotated[Name, Tag(TEXT_TAG)] | Annotated[Mapping, Tag(MAPPING_TAG)],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="must be a text or a mapping"),
]
CLUSTER_TITLE = "Mapping of a cluster"  # whose fields the OpenAPI document has among its components
ClusterMapping = Annotated[Mapping, Field(title=CLUSTER_TITLE)]
Machine = Annotated[str, Field(min_length=1, max_length=120, pattern=CLUSTER_PATTERN)]
Cluster = Annotated[
    Annotated[Machine, Tag(TEXT_TAG)] | Annotated[ClusterMapping, Tag(MAPPING_TAG)],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="must be a text or a mapping"),
]
PricedName = Annotated[str, Field(min_length=1, max_length=120, pattern=PRICED_PATTERN)]
Machines = Annotated[
    Annotated[PricedName, Tag(TEXT_TAG)] | Annotated[ClusterMapping, Tag(MAPPING_TAG)],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="must be a text or a mapping"),
]
Role = Annotated[str, Field(min_length=1, max_length=40, pattern=ROLE_PATTERN)]
Lengths = Annotated[str, Field(min_length=1, max_length=2000, pattern=LENGTHS_PATTERN)]
Degree = Annotated[int, Field(ge=1, le=MAX_DEVICES)]
Bytes = Annotated[float, Field(ge=0, le=1e15)]
Risk = Annotated[float, Field(gt=0, le=1)]


def _cell_kind(value: object) -> str | None:
    flag, number = isinstance(value, bool) or value is None, isinstance(value, int | float)
    return FLAG_TAG if flag else NUMBER_TAG if number else _kind(value)


def _length_kind(value: object) -> str | None:
    number = isinstance(value, int) and not isinstance(value, bool)
    return NUMBER_TAG if number else TEXT_TAG if isinstance(value, str) else None


_NUMBER_OR_LENGTHS = Discriminator(
    _length_kind, custom_error_type="kind", custom_error_message="must be a whole number or a distribution as text"
)
Tokens = Annotated[
    Annotated[int, Field(ge=1, le=MAX_SEQUENCE), Tag(NUMBER_TAG)] | Annotated[Lengths, Tag(TEXT_TAG)],
    _NUMBER_OR_LENGTHS,
]  # of a response
AnsweredTokens = Annotated[
    Annotated[int, Field(ge=0, le=MAX_SEQUENCE), Tag(NUMBER_TAG)] | Annotated[Lengths, Tag(TEXT_TAG)],
    _NUMBER_OR_LENGTHS,
]  # of a request, which may be answered with none
Cell = Annotated[
    Annotated[str, Field(max_length=MAX_TEXT), Tag(TEXT_TAG)]
    | Annotated[float, Field(ge=0, le=1e18), Tag(NUMBER_TAG)]
    | Annotated[bool | None, Tag(FLAG_TAG)],
    Discriminator(_cell_kind, custom_error_type="kind", custom_error_message="must be text, a number, true or false"),
]


@cache
def _choices(body: type[BaseModel]) -> dict[str, tuple[object, ...]]:
    """Fields of a body that take one of a few words, with the words."""
    found = {}
    for name, field in body.model_fields.items():
        parts = (field.annotation, *get_args(field.annotation))
        words = tuple(word for part in parts if get_origin(part) is Literal for word in get_args(part))
        if words:
            found[name] = words
    return found


class Body(BaseModel):
    """Base of every body: unknown keys, coerced types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _in_words_known(cls, value: object) -> object:
        """Few fields, with ``LoRA`` and ``bfloat16`` as ``lora`` and ``bf16``, as the library takes them."""
        _of_few(value, MAX_FIELDS)
        if not isinstance(value, dict):
            return value
        meant = {}
        for name, words in _choices(cls).items():
            word = value.get(name)
            if isinstance(word, str) and format_name(word) in words:
                meant[name] = format_name(word)
        return {**value, **meant}
