"""JSON Schema (2020-12) of the planner's document about a workflow."""

from costmodels.estimate import BASES
from planner.dataflow.flow.answer import CALL, TRANSFER
from planner.dataflow.flow.request import MODES, OBJECTIVES
from planner.dataflow.graphs.graph import KINDS
from planner.dataflow.holdings import HOLDING_NAMES
from planner.dataflow.rollouts import ROLLOUTS
from planner.dataflow.solving.iterations import DEPENDENCIES
from planner.schema_types import (
    AMOUNT,
    COUNT,
    FLAG,
    FREE,
    NUMBER,
    SCHEMA_VERSION,
    SHARE,
    TEXT,
    Shape,
    closed_object,
    list_of,
    map_of,
    note_shape,
    or_null,
    plan_shape,
    titled,
)

FLOW_CONVENTIONS = {
    "gpus": "numbered from 0, node by node",
    "steady_s": "per iteration once settled: the slowest pace at which any call recurs",
    "interval": "90 %, all calls at the end of theirs together",
    "memory": "between runs of all calls on a GPU, shared shards once, plus the most one takes as it runs",
    "mfu": "model FLOPs over the dense peak of all GPUs; causal attention counted in half, recomputation not at all",
    "holding": "where the weights of a call lie between its runs",
}
_TASK_KINDS = (CALL, TRANSFER)


def flow_document_schema() -> Shape:
    """JSON Schema (2020-12) of what ``flow_document`` returns."""
    return titled(
        "planner answer about a workflow",
        closed_object(
            schema_version={"const": SCHEMA_VERSION},
            kind={"const": "workflow"},
            fits=FLAG,
            request=_request_shape(),
            plan=or_null(_plan_shape()),
            infeasible=or_null(_infeasible_shape()),
            assumptions=list_of(note_shape()),
            warnings=list_of(note_shape()),
            conventions=closed_object(**dict.fromkeys(FLOW_CONVENTIONS, TEXT)),
        ),
        layout=plan_shape(),
        mesh=closed_object(first_gpu=COUNT, num_gpus=COUNT),
        experts=closed_object(
            **dict.fromkeys(("total", "on_device", "on_host", "on_disk", "sequences"), COUNT),
            runs=AMOUNT,
            hit_share=SHARE,
            fetch_s=AMOUNT,
        ),
    )


_LAYOUT: Shape = {"$ref": "#/$defs/layout"}
_MESH: Shape = {"$ref": "#/$defs/mesh"}
_EXPERTS: Shape = or_null({"$ref": "#/$defs/experts"})


def _request_shape() -> Shape:
    call = closed_object(
        kind={"enum": list(KINDS)},
        role=TEXT,
        inputs=list_of(TEXT),
        outputs=list_of(TEXT),
        sequences=COUNT,
        mini_batches=COUNT,
        stream=FLAG,
    )
    pin = closed_object(first_gpu=or_null(COUNT), num_gpus=or_null(COUNT), engine=or_null(TEXT), plan=map_of(COUNT))
    lora = closed_object(rank=COUNT, targets=list_of(TEXT), dropout=FLAG)
    return closed_object(
        workflow=TEXT,
        roles=map_of(
            closed_object(
                model=FREE, head=TEXT, task=TEXT, lora=or_null(lora), trained=FLAG, experts=COUNT, skew=AMOUNT
            )
        ),
        calls=map_of(call),
        copies=list_of(closed_object(source=TEXT, target=TEXT, every=COUNT, share=AMOUNT)),
        cluster=FREE,
        framework=TEXT,
        engines=list_of(TEXT),
        precision=TEXT,
        batch=COUNT,
        prompt_tokens=COUNT,
        generated_tokens=closed_object(mean=AMOUNT, most=AMOUNT),
        mode={"enum": list(MODES)},
        dependency={"enum": list(DEPENDENCIES)},
        staleness=COUNT,
        rollout={"enum": list(ROLLOUTS)},
        keep_cache=FLAG,
        eager=FLAG,
        linear_loss=or_null(FLAG),
        attention_library=or_null(TEXT),
        objective={"enum": list(OBJECTIVES)},
        max_oom_risk=SHARE,
        offload=FLAG,
        pins=map_of(pin),
    )


def _reason_shape() -> Shape:
    alternative = closed_object(
        mesh=_MESH,
        engine=TEXT,
        plan=_LAYOUT,
        concurrent_sequences=COUNT,
        holding={"enum": ["", *HOLDING_NAMES]},
        time_s=AMOUNT,
        steady_s=AMOUNT,
        fits=FLAG,
        over_bytes=AMOUNT,
        experts=_EXPERTS,
    )
    return closed_object(
        call=TEXT,
        sentence=TEXT,
        share=AMOUNT,
        mfu=AMOUNT,
        decode_steps=AMOUNT,
        mean_tokens=AMOUNT,
        alternative=or_null(alternative),
    )


def _plan_shape() -> Shape:
    seconds = ("steady_s", "steady_low_s", "steady_high_s", "first_s", "total_s", "mean_s")
    data = closed_object(key=TEXT, source=TEXT, readers=list_of(TEXT), size_bytes=AMOUNT, copies=COUNT)
    owner = closed_object(call=TEXT, static_memory_bytes=AMOUNT, active_memory_bytes=AMOUNT)
    return closed_object(
        num_gpus=COUNT,
        time=closed_object(**dict.fromkeys(seconds, AMOUNT), iterations=COUNT),
        calls=map_of(_call_shape()),
        reallocations=list_of(_move_shape()),
        memory=list_of(
            closed_object(
                gpus=_MESH,
                peak_memory_bytes=AMOUNT,
                usable_memory_bytes=AMOUNT,
                peak_call=TEXT,
                busy_share=AMOUNT,
                oom_probability=SHARE,
                owners=list_of(owner),
            )
        ),
        **dict.fromkeys(("host_memory_bytes", "host_peak_memory_bytes", "data_memory_bytes"), AMOUNT),
        data=list_of(data),
        leads=list_of(closed_object(source=TEXT, target=TEXT, lead_s=NUMBER)),
        utilisation=closed_object(busy_share=AMOUNT, model_flops=AMOUNT, mfu=AMOUNT),
        cost=closed_object(gpu_seconds_per_iteration=AMOUNT, usd_per_iteration=or_null(AMOUNT)),
        reasons=list_of(_reason_shape()),
        schedule=list_of(
            closed_object(
                name=TEXT,
                kind={"enum": list(_TASK_KINDS)},
                iteration=COUNT,
                start_s=AMOUNT,
                end_s=AMOUNT,
                meshes=list_of(_MESH),
            )
        ),
        search=closed_object(
            method=TEXT,
            candidates=map_of(COUNT),
            plans=AMOUNT,
            evaluations=COUNT,
            bound_s=AMOUNT,
            found_s=AMOUNT,
            gap=NUMBER,
            proven=FLAG,
            divisions=COUNT,
            seed=COUNT,
        ),
    )


def _move_shape() -> Shape:
    words = dict.fromkeys(("role", "source", "target", "route"), TEXT)
    return closed_object(**words, moved_bytes=AMOUNT, time_s=AMOUNT, every=COUNT, data=list_of(TEXT))


def _call_shape() -> Shape:
    amounts = (
        *("time_s", "time_low_s", "time_high_s", "host_traffic_s"),
        *("static_memory_bytes", "active_memory_bytes", "host_memory_bytes"),
    )
    return closed_object(
        role=TEXT,
        kind={"enum": list(KINDS)},
        model=TEXT,
        mesh=_MESH,
        engine=TEXT,
        plan=or_null(_LAYOUT),
        concurrent_sequences=COUNT,
        sequences=COUNT,
        mini_batches=COUNT,
        holding={"enum": ["", *HOLDING_NAMES]},
        **dict.fromkeys(amounts, AMOUNT),
        basis={"enum": list(BASES)},
        experts=_EXPERTS,
    )


def _infeasible_shape() -> Shape:
    shortage = closed_object(
        call=TEXT, memory={"enum": ["device", "host"]}, needs_bytes=AMOUNT, usable_bytes=AMOUNT, sentence=TEXT
    )
    return closed_object(
        shortages=list_of(shortage),
        sentence=TEXT,
        minimum_gpus=or_null(COUNT),
        looked_at_gpus=COUNT,
        minimum_steady_s=or_null(AMOUNT),
        framework=or_null(TEXT),
        framework_steady_s=or_null(AMOUNT),
        linear_loss_steady_s=or_null(AMOUNT),
    )
