"""JSON Schema (2020-12) of the planner's documents, written out once and checked against real answers."""

from typing import Any

from costmodels.estimate import BASES, EXTRAPOLATED, MEMORY_PARTS, TIME_PARTS
from costmodels.plan import AxisOrder, ContextKind, ExecutionPlan, Recompute
from planner.ranking import OBJECTIVES
from planner.rules.base import FRAMEWORKS
from planner.rules.pipeline import SCHEDULE_NAMES

SCHEMA_VERSION = "1.0"
CONVENTIONS = {
    "mfu": "model FLOPs over the dense peak of the job's GEMM format; causal attention counted in half",
    "mfu_full_attention": "the same with the full score matrix (PaLM, Megatron-LM papers)",
    "hfu": "as mfu, recomputation included",
    "interval": "90 %",
    "memory": "one device of the stage; usable is what a framework can allocate, less memory_reserve_bytes",
    "energy": "board power limit times time, hosts and cooling not counted: an upper bound of the devices' share",
    "cost": "device-hours times the price given; no price is assumed",
}

Shape = dict[str, Any]

_TEXT: Shape = {"type": "string"}
_FLAG: Shape = {"type": "boolean"}
_COUNT: Shape = {"type": "integer", "minimum": 0}
_NUMBER: Shape = {"type": "number"}
_AMOUNT: Shape = {"type": "number", "minimum": 0}
_FREE: Shape = {"type": "object"}


def document_schema() -> Shape:
    """The schema of what ``schema.to_document`` returns."""
    answer = _object(
        schema_version={"const": SCHEMA_VERSION},
        kind={"enum": ["plan", "estimate"]},
        fits=_FLAG,
        request=_request(),
        plans=_list({"$ref": "#/$defs/estimate"}),
        explanation=_or_null(_explanation()),
        infeasible=_or_null(_infeasible()),
        pareto=_list(_priced_plan()),
        search=_object(considered=_COUNT, fitting=_COUNT, rejected=_map(_COUNT)),
        assumptions=_list(_note()),
        warnings=_list(_note()),
        conventions=_object(**dict.fromkeys(CONVENTIONS, _TEXT)),
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "planner answer",
        **answer,
        "$defs": {"plan": _plan(), "estimate": _estimate()},
    }


def _object(**properties: Shape) -> Shape:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: Shape) -> Shape:
    return {"type": "array", "items": items}


def _map(values: Shape) -> Shape:
    return {"type": "object", "additionalProperties": values}


def _or_null(shape: Shape) -> Shape:
    return {"anyOf": [shape, {"type": "null"}]}


def _plan() -> Shape:
    words = {
        "recompute": [mode.name.lower() for mode in Recompute],
        "schedule": list(SCHEDULE_NAMES),
        "context_kind": [kind.name.lower() for kind in ContextKind],
        "axis_order": [order.name.lower() for order in AxisOrder],
    }
    shapes: dict[str, Shape] = {}
    default = ExecutionPlan()
    for name in ExecutionPlan.__dataclass_fields__:
        if name in words:
            shapes[name] = {"enum": words[name]}
        elif name == "stage_layers":
            shapes[name] = _list(_COUNT)
        else:
            shapes[name] = _FLAG if isinstance(getattr(default, name), bool) else _COUNT
    return _object(**shapes)


def _estimate() -> Shape:
    axes = ("tensor_parallel", "context_parallel", "expert_parallel", "pipeline_transfer", "data_parallel")
    return _object(
        rank={"type": "integer", "minimum": 1},
        plan={"$ref": "#/$defs/plan"},
        num_devices={"type": "integer", "minimum": 1},
        fits=_FLAG,
        time=_object(
            step_time_s=_AMOUNT,
            step_time_low_s=_AMOUNT,
            step_time_high_s=_AMOUNT,
            parts_s=_object(**dict.fromkeys(TIME_PARTS, _AMOUNT)),
            communication_total_s=_object(**dict.fromkeys(axes, _AMOUNT)),
        ),
        memory=_object(
            peak_memory_bytes=_AMOUNT,
            peak_memory_low_bytes=_AMOUNT,
            peak_memory_high_bytes=_AMOUNT,
            usable_memory_bytes=_AMOUNT,
            headroom_bytes=_NUMBER,
            host_memory_bytes=_AMOUNT,
            fullest_stage=_COUNT,
        ),
        stages=_list(_stage()),
        throughput=_object(
            tokens_per_s=_AMOUNT,
            tokens_per_s_per_device=_AMOUNT,
            samples_per_s=_AMOUNT,
            model_flops_per_s_per_device=_AMOUNT,
            mfu=_AMOUNT,
            mfu_full_attention=_AMOUNT,
            hfu=_AMOUNT,
        ),
        flops_per_step=_object(model_flops=_AMOUNT, model_flops_full_attention=_AMOUNT, hardware_flops=_AMOUNT),
        cost=_object(
            device_seconds_per_step=_AMOUNT,
            energy_per_step_j=_AMOUNT,
            run=_or_null(
                _object(
                    tokens=_AMOUNT,
                    steps=_AMOUNT,
                    duration_s=_AMOUNT,
                    device_hours=_AMOUNT,
                    cost_usd=_or_null(_AMOUNT),
                    energy_j=_AMOUNT,
                )
            ),
        ),
        basis={"enum": list(BASES)},
        extrapolated_share=_object(**dict.fromkeys(EXTRAPOLATED, _AMOUNT)),
        basis_share=_object(**dict.fromkeys(BASES, _AMOUNT)),
    )


def _stage() -> Shape:
    return _object(
        index=_COUNT,
        layers=_COUNT,
        moe_layers=_COUNT,
        in_flight_microbatches=_AMOUNT,
        has_embedding=_FLAG,
        has_head=_FLAG,
        microbatch_time_s=_AMOUNT,
        memory_bytes=_AMOUNT,
        memory_parts_bytes=_object(**dict.fromkeys(MEMORY_PARTS, _AMOUNT)),
    )


def _request() -> Shape:
    return _object(
        model=_FREE,
        cluster=_FREE,
        job=_FREE,
        framework={"enum": list(FRAMEWORKS)},
        stack=_TEXT,
        objective={"enum": list(OBJECTIVES)},
        pins=_map(_COUNT),
        offload=_FLAG,
        variants=_FLAG,
        memory_reserve_bytes=_AMOUNT,
        price_per_device_hour_usd=_or_null(_AMOUNT),
        price_date=_or_null(_TEXT),
    )


def _explanation() -> Shape:
    return _object(
        sentences=_list(_TEXT),
        time=_list(_object(part={"enum": list(TIME_PARTS)}, time_s=_AMOUNT, share=_AMOUNT)),
        memory=_list(_object(part={"enum": list(MEMORY_PARTS)}, memory_bytes=_AMOUNT, share=_AMOUNT)),
        rivals=_list(
            _object(
                dimension=_TEXT,
                sentence=_TEXT,
                plan={"$ref": "#/$defs/plan"},
                changed=_list(_TEXT),
                step_time_ratio=_AMOUNT,
                device_seconds_ratio=_AMOUNT,
                peak_memory_difference_bytes=_NUMBER,
                fits=_FLAG,
            )
        ),
    )


def _infeasible() -> Shape:
    remedy = _priced_plan()
    remedy = _object(code=_TEXT, sentence=_TEXT, fits=_FLAG, **remedy["properties"])
    return _object(reasons=_map(_COUNT), nearest=_or_null({"$ref": "#/$defs/estimate"}), remedies=_list(remedy))


def _priced_plan() -> Shape:
    return _object(plan={"$ref": "#/$defs/plan"}, num_devices=_COUNT, step_time_s=_AMOUNT, peak_memory_bytes=_AMOUNT)


def _note() -> Shape:
    return _object(code=_TEXT, field=_TEXT, message=_TEXT)
