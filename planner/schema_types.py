"""JSON Schema (2020-12) of the planner's documents, written out once and checked against real answers."""

from typing import Any

from costmodels.estimate import BASES, EXTRAPOLATED, MEMORY_PARTS, TIME_PARTS
from costmodels.plan import AxisOrder, ContextKind, ExecutionPlan, Recompute
from planner.ranking import OBJECTIVES
from planner.rules.base import FRAMEWORKS
from planner.rules.modules import MODULE_NAMES
from planner.rules.pipeline import SCHEDULE_NAMES

SCHEMA_VERSION = "1.0"
CONVENTIONS = {
    "mfu": "model FLOPs over the dense peak of the job's GEMM format; causal attention counted in half",
    "mfu_full_attention": "the same with the full score matrix (PaLM, Megatron-LM papers)",
    "hfu": "as mfu, recomputation included",
    "interval": "90 %",
    "memory": "one device of the stage; usable is what a framework can allocate, less memory_reserve_bytes",
    "oom_probability": "that a run dies of memory; peaks at the limit differ in it, as cached blocks are given back",
    "energy": "board power limit times time, hosts and cooling not counted: an upper bound of the devices' share",
    "cost": "device-hours times the price given; no price is assumed",
}

Shape = dict[str, Any]

TEXT: Shape = {"type": "string"}
FLAG: Shape = {"type": "boolean"}
COUNT: Shape = {"type": "integer", "minimum": 0}
SHARE: Shape = {"type": "number", "minimum": 0, "maximum": 1}
NUMBER: Shape = {"type": "number"}
AMOUNT: Shape = {"type": "number", "minimum": 0}
FREE: Shape = {"type": "object"}


def document_schema() -> Shape:
    """The schema of what ``schema.to_document`` returns."""
    answer = closed_object(
        schema_version={"const": SCHEMA_VERSION},
        kind={"enum": ["plan", "estimate"]},
        fits=FLAG,
        request=request_shape(),
        plans=list_of({"$ref": "#/$defs/estimate"}),
        riskier=or_null({"$ref": "#/$defs/estimate"}),
        explanation=or_null(_explanation()),
        switches=list_of(_switch()),
        infeasible=or_null(infeasible_shape()),
        pareto=list_of(_priced_plan()),
        search=closed_object(considered=COUNT, fitting=COUNT, likely=COUNT, rejected=map_of(COUNT)),
        assumptions=list_of(note_shape()),
        warnings=list_of(note_shape()),
        conventions=closed_object(**dict.fromkeys(CONVENTIONS, TEXT)),
    )
    return titled("planner answer", answer, plan=plan_shape(), estimate=estimate_shape())


def titled(title: str, answer: Shape, **definitions: Shape) -> Shape:
    """The schema of a whole document: which dialect it is in, what it is called, and the shapes it names."""
    named = {"$defs": definitions} if definitions else {}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **answer, **named}


def answer_about_plans(title: str, kind: str, **properties: Shape) -> Shape:
    """The schema of a document of one kind, which may name the shapes of plans and of what they are priced at."""
    answer = closed_object(schema_version={"const": SCHEMA_VERSION}, kind={"const": kind}, **properties)
    return titled(title, answer, plan=plan_shape(), estimate=estimate_shape())


def closed_object(**properties: Shape) -> Shape:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def list_of(items: Shape) -> Shape:
    """An array of such items."""
    return {"type": "array", "items": items}


def map_of(values: Shape) -> Shape:
    """An object of any keys with such values."""
    return {"type": "object", "additionalProperties": values}


def or_null(shape: Shape) -> Shape:
    """That, or null."""
    return {"anyOf": [shape, {"type": "null"}]}


def plan_shape() -> Shape:
    """An execution plan."""
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
            shapes[name] = list_of(COUNT)
        elif name == "recompute_modules":
            shapes[name] = list_of({"enum": list(MODULE_NAMES)})
        else:
            shapes[name] = FLAG if isinstance(getattr(default, name), bool) else COUNT
    return closed_object(**shapes)


def estimate_shape() -> Shape:
    """A priced plan."""
    axes = ("tensor_parallel", "context_parallel", "expert_parallel", "pipeline_transfer", "data_parallel", "offload")
    return closed_object(
        rank={"type": "integer", "minimum": 1},
        plan={"$ref": "#/$defs/plan"},
        num_devices={"type": "integer", "minimum": 1},
        fits=FLAG,
        time=closed_object(
            step_time_s=AMOUNT,
            step_time_low_s=AMOUNT,
            step_time_high_s=AMOUNT,
            parts_s=closed_object(**dict.fromkeys(TIME_PARTS, AMOUNT)),
            communication_total_s=closed_object(**dict.fromkeys(axes, AMOUNT)),
        ),
        memory=closed_object(
            peak_memory_bytes=AMOUNT,
            peak_memory_low_bytes=AMOUNT,
            peak_memory_high_bytes=AMOUNT,
            usable_memory_bytes=AMOUNT,
            headroom_bytes=NUMBER,
            oom_probability=SHARE,
            host_memory_bytes=AMOUNT,
            fullest_stage=COUNT,
        ),
        stages=list_of(_stage()),
        throughput=closed_object(
            tokens_per_s=AMOUNT,
            tokens_per_s_per_device=AMOUNT,
            samples_per_s=AMOUNT,
            model_flops_per_s_per_device=AMOUNT,
            mfu=AMOUNT,
            mfu_full_attention=AMOUNT,
            hfu=AMOUNT,
        ),
        flops_per_step=closed_object(model_flops=AMOUNT, model_flops_full_attention=AMOUNT, hardware_flops=AMOUNT),
        cost=closed_object(
            device_seconds_per_step=AMOUNT,
            energy_per_step_j=AMOUNT,
            run=or_null(
                closed_object(
                    tokens=AMOUNT,
                    steps=AMOUNT,
                    duration_s=AMOUNT,
                    device_hours=AMOUNT,
                    cost_usd=or_null(AMOUNT),
                    energy_j=AMOUNT,
                )
            ),
        ),
        basis={"enum": list(BASES)},
        extrapolated_share=closed_object(**dict.fromkeys(EXTRAPOLATED, AMOUNT)),
        basis_share=closed_object(**dict.fromkeys(BASES, AMOUNT)),
    )


def _stage() -> Shape:
    return closed_object(
        index=COUNT,
        layers=COUNT,
        moe_layers=COUNT,
        in_flight_microbatches=AMOUNT,
        has_embedding=FLAG,
        has_head=FLAG,
        microbatch_time_s=AMOUNT,
        memory_bytes=AMOUNT,
        memory_parts_bytes=closed_object(**dict.fromkeys(MEMORY_PARTS, AMOUNT)),
    )


def request_shape() -> Shape:
    """A question as it was understood."""
    return closed_object(
        model=FREE,
        cluster=FREE,
        job=FREE,
        framework={"enum": list(FRAMEWORKS)},
        stack=TEXT,
        stack_fitted=FLAG,
        objective={"enum": list(OBJECTIVES)},
        max_oom_risk=SHARE,
        pins=map_of(COUNT),
        offload=FLAG,
        named_modules=FLAG,
        variants=FLAG,
        memory_reserve_bytes=AMOUNT,
        price_per_device_hour_usd=or_null(AMOUNT),
        price_date=or_null(TEXT),
    )


def _explanation() -> Shape:
    return closed_object(
        sentences=list_of(TEXT),
        time=list_of(closed_object(part={"enum": list(TIME_PARTS)}, time_s=AMOUNT, share=AMOUNT)),
        memory=list_of(closed_object(part={"enum": list(MEMORY_PARTS)}, memory_bytes=AMOUNT, share=AMOUNT)),
        rivals=list_of(
            closed_object(
                dimension=TEXT,
                sentence=TEXT,
                plan={"$ref": "#/$defs/plan"},
                changed=list_of(TEXT),
                step_time_ratio=AMOUNT,
                device_seconds_ratio=AMOUNT,
                peak_memory_difference_bytes=NUMBER,
                fits=FLAG,
                ranked=FLAG,
            )
        ),
    )


def infeasible_shape() -> Shape:
    """Why nothing fits, and what would."""
    remedy = closed_object(
        code=TEXT, sentence=TEXT, fits=FLAG, likely=FLAG, device=TEXT, **_priced_plan()["properties"]
    )
    return closed_object(reasons=map_of(COUNT), nearest=or_null({"$ref": "#/$defs/estimate"}), remedies=list_of(remedy))


def _priced_plan() -> Shape:
    return closed_object(
        plan={"$ref": "#/$defs/plan"},
        num_devices=COUNT,
        step_time_s=AMOUNT,
        peak_memory_bytes=AMOUNT,
        oom_probability=SHARE,
    )


def _switch() -> Shape:
    return closed_object(
        framework=TEXT,
        switched_on_by=TEXT,
        plan={"$ref": "#/$defs/plan"},
        step_time_s=AMOUNT,
        step_time_ratio=AMOUNT,
    )


def note_shape() -> Shape:
    """An assumption or a warning."""
    return closed_object(code=TEXT, field=TEXT, message=TEXT)
