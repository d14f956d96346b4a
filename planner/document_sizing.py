"""Sizes of a cluster as plain data, and the JSON Schema of that document."""

from typing import Any

from planner.document_plan import estimate_document, infeasible_document, notes_document, request_document
from planner.schema_types import (
    AMOUNT,
    COUNT,
    FLAG,
    SCHEMA_VERSION,
    TEXT,
    Shape,
    answer_about_plans,
    closed_object,
    infeasible_shape,
    list_of,
    map_of,
    note_shape,
    or_null,
    request_shape,
)
from planner.sizes import KindSizes, Size, SizingResult

CONVENTIONS = {
    "sizes": "the plan that planner plan ranks first at each size looked at; a null estimate where none fits",
    "fewest": "num_devices of the smallest size on which a plan is likely to live, or where none is, fits",
    "cheapest": "num_devices of the one of such sizes that takes the least device time for a useful token",
    "cheapest of all": "the least dollars for a token: kind by its place, of several that all have a price",
    "in_time": "num_devices of the smallest such size whose run takes at most days",
    "nearest_bytes": "the least that the fullest device of a legal plan would hold, where none fits",
}


def sizing_document(result: SizingResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "sizing",
        "fits": result.fits,
        "kinds": [_kind(kind) for kind in result.kinds],
        "cheapest": _choice(result, result.cheapest),
        "cheapest_in_time": _choice(result, result.cheapest_in_time),
        "infeasible": infeasible_document(result.infeasible),
        "assumptions": notes_document(result.assumptions),
        "conventions": dict(CONVENTIONS),
    }


def _kind(kind: KindSizes) -> dict[str, Any]:
    return {
        "request": request_document(kind.request),
        "days": kind.days,
        "fewest": _devices(kind.fewest),
        "cheapest": _devices(kind.cheapest),
        "in_time": _devices(kind.in_time),
        "sizes": [
            {
                "num_devices": size.num_devices,
                "num_nodes": size.num_nodes,
                "global_batch_size": size.batch,
                "estimate": None if size.best is None else estimate_document(size.best),
                "nearest_bytes": size.nearest_bytes,
                "warnings": notes_document(size.warnings),
            }
            for size in kind.sizes
        ],
    }


def _choice(result: SizingResult, chosen: tuple[KindSizes, Size] | None) -> dict[str, Any] | None:
    """A kind, by its place, and a size."""
    if chosen is None:
        return None
    kind, size = chosen
    place = next(index for index, one in enumerate(result.kinds) if one is kind)
    return {"kind": place, "num_devices": size.num_devices, "usd_per_token": kind.usd_per_token(size)}


def _devices(size: Size | None) -> int | None:
    return None if size is None else size.num_devices


def sizing_schema() -> Shape:
    """The schema of what ``sizing_document`` returns."""
    size = closed_object(
        num_devices=COUNT,
        num_nodes=COUNT,
        global_batch_size=COUNT,
        estimate=or_null({"$ref": "#/$defs/estimate"}),
        nearest_bytes=or_null(AMOUNT),
        warnings=list_of(note_shape()),
    )
    kind = closed_object(
        request=request_shape(),
        days=or_null(AMOUNT),
        fewest=or_null(COUNT),
        cheapest=or_null(COUNT),
        in_time=or_null(COUNT),
        sizes=list_of(size),
    )
    choice = closed_object(kind=COUNT, num_devices=COUNT, usd_per_token=AMOUNT)
    return answer_about_plans(
        "planner sizing",
        "sizing",
        fits=FLAG,
        kinds=list_of(kind),
        cheapest=or_null(choice),
        cheapest_in_time=or_null(choice),
        infeasible=or_null(infeasible_shape()),
        assumptions=list_of(note_shape()),
        conventions=map_of(TEXT),
    )
