"""The document of a workflow's plan: command line ``--json``, REST and library say the same.

As ``planner.document_plan`` for single jobs: SI units in the keys, fixed order, no key ever missing.
"""

from dataclasses import asdict
from typing import Any

from planner.dataflow.flow.infeasible import FlowInfeasible
from planner.dataflow.flow.request import FlowRequest
from planner.dataflow.flow.results import (
    Alternative,
    CallPlan,
    FlowPlan,
    FlowResult,
    GpuMemory,
    HeldData,
    Reallocation,
    SearchStatistics,
)
from planner.dataflow.graphs.graph import Call
from planner.dataflow.graphs.roles import Role
from planner.document_plan import model_document, notes_document, plan_document
from planner.flow_phrases import minimum_sentence, reason_sentence, shortage_sentence
from planner.schema_flow_types import FLOW_CONVENTIONS
from planner.schema_flow_types import flow_document_schema as flow_document_schema
from planner.schema_types import SCHEMA_VERSION
from profiles.cluster_string import cluster_to_mapping
from profiles.mixed_cluster import MixedCluster, mixed_cluster_to_mapping
from profiles.model import ModelSpec


def flow_document(result: FlowResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "workflow",
        "fits": result.fits,
        "request": _request(result.request),
        "plan": None if result.plan is None else _plan(result.plan),
        "infeasible": None if result.infeasible is None else _infeasible(result.infeasible),
        "assumptions": notes_document(result.assumptions),
        "warnings": notes_document(result.warnings),
        "conventions": dict(FLOW_CONVENTIONS),
    }


def _request(request: FlowRequest) -> dict[str, Any]:
    graph, cluster, output = request.graph, request.cluster, request.output
    return {
        "workflow": graph.name,
        "roles": {
            role.name: {
                "model": model_document(request.models[role.name]),
                "head": role.head,
                "task": role.task,
                "lora": _lora(role, request.models[role.name]) if graph.trainable(role.name) else None,
                "trained": graph.trainable(role.name),
                "experts": role.experts,
                "skew": role.skew,
            }
            for role in graph.roles
        },
        "calls": {name: _graph_call(graph.call(name), request.batch) for name in graph.order},
        "copies": [
            {"source": copy.source, "target": copy.target, "every": copy.every, "share": copy.share}
            for copy in graph.copies
        ],
        "cluster": _cluster(cluster),
        "framework": request.stack.framework,
        "engines": list(request.generators),
        "precision": request.precision,
        "batch": request.batch,
        "prompt_tokens": request.prompt_tokens,
        "generated_tokens": {"mean": output.mean, "most": output.most},
        "mode": request.mode,
        "dependency": request.dependency,
        "staleness": request.staleness,
        "rollout": request.options.rollout,
        "keep_cache": request.options.keep_cache,
        "eager": request.options.eager,
        "linear_loss": request.options.linear_loss,
        "attention_library": request.options.attention_library,
        "objective": request.options.objective,
        "max_oom_risk": request.options.max_oom_risk,
        "offload": request.options.offload,
        "pins": {
            name: {
                "first_gpu": pin.first_gpu,
                "num_gpus": pin.num_gpus,
                "engine": pin.engine,
                "plan": dict(pin.columns),
            }
            for name, pin in request.pins.items()
        },
    }


def _lora(role: Role, model: ModelSpec) -> dict[str, Any] | None:
    """The adapters a role trains."""
    lora = role.adapters(model).lora
    return None if lora is None else {"rank": lora.rank, "targets": list(lora.targets), "dropout": lora.dropout}


def _cluster(cluster: MixedCluster) -> dict[str, Any]:
    """The machines as a request could name them, and what they offer; groups only where there are several."""
    groups = [
        {
            **cluster_to_mapping(group),
            "name": group.name,
            "num_devices": group.num_devices,
            "usable_memory_bytes": group.device.usable_memory_bytes,
        }
        for group in cluster.groups
    ]
    if len(groups) == 1:
        return groups[0]
    mapping = mixed_cluster_to_mapping(cluster)
    return {**mapping, "name": cluster.name, "num_devices": cluster.num_devices, "groups": groups}


def _graph_call(call: Call, batch: int) -> dict[str, Any]:
    return {
        "kind": call.kind,
        "role": call.role,
        "inputs": list(call.inputs),
        "outputs": list(call.outputs),
        "sequences": call.sequences(batch),
        "mini_batches": call.mini_batches,
        "stream": call.stream,
    }


def _plan(plan: FlowPlan) -> dict[str, Any]:
    return {
        "num_gpus": plan.num_gpus,
        "time": {
            "steady_s": plan.steady_s,
            "steady_low_s": plan.steady_low_s,
            "steady_high_s": plan.steady_high_s,
            "first_s": plan.first_s,
            "total_s": plan.total_s,
            "mean_s": plan.mean_s,
            "iterations": plan.iterations,
        },
        "calls": {call.name: _call(call) for call in plan.calls},
        "reallocations": [_reallocation(move) for move in plan.reallocations],
        "memory": [_memory(group) for group in plan.memory],
        "host_memory_bytes": plan.host_bytes,
        "host_peak_memory_bytes": plan.host_peak_bytes,
        "data_memory_bytes": plan.data_bytes,
        "data": [_data(data) for data in plan.data],
        "leads": [{"source": lead.source, "target": lead.target, "lead_s": lead.lead_s} for lead in plan.leads],
        "utilisation": {"busy_share": plan.busy_share, "model_flops": plan.model_flops, "mfu": plan.mfu},
        "cost": {"gpu_seconds_per_iteration": plan.gpu_seconds, "usd_per_iteration": plan.usd},
        "reasons": [
            {
                "call": reason.call,
                "sentence": reason_sentence(plan, reason),
                "share": reason.share,
                "mfu": reason.mfu,
                "decode_steps": reason.decode_steps,
                "mean_tokens": reason.mean_tokens,
                "alternative": None if reason.alternative is None else _alternative(reason.alternative),
            }
            for reason in plan.reasons
        ],
        "schedule": [
            {
                "name": task.name,
                "kind": task.kind,
                "iteration": task.iteration,
                "start_s": task.start_s,
                "end_s": task.end_s,
                "meshes": [{"first_gpu": first, "num_gpus": count} for first, count in task.meshes],
            }
            for task in plan.tasks
        ],
        "search": _search(plan.search),
    }


def _search(search: SearchStatistics) -> dict[str, Any]:
    return {
        "method": search.method,
        "candidates": dict(search.candidates),
        "plans": search.plans,
        "evaluations": search.evaluations,
        "bound_s": search.bound_s,
        "found_s": search.found_s,
        "gap": search.gap,
        "proven": search.proven,
        "divisions": search.divisions,
        "seed": search.seed,
    }


def _call(call: CallPlan) -> dict[str, Any]:
    return {
        "role": call.role,
        "kind": call.kind,
        "model": call.model,
        "mesh": {"first_gpu": call.first_gpu, "num_gpus": call.num_gpus},
        "engine": call.engine,
        "plan": None if call.plan is None else plan_document(call.plan),
        "concurrent_sequences": call.concurrent,
        "sequences": call.sequences,
        "mini_batches": call.mini_batches,
        "holding": call.holding,
        "time_s": call.time_s,
        "time_low_s": call.time_low_s,
        "time_high_s": call.time_high_s,
        "host_traffic_s": call.host_traffic_s,
        "static_memory_bytes": call.static_bytes,
        "active_memory_bytes": call.active_bytes,
        "host_memory_bytes": call.host_bytes,
        "basis": call.basis,
        "experts": None if call.experts is None else asdict(call.experts),
    }


def _reallocation(move: Reallocation) -> dict[str, Any]:
    return {
        "role": move.role,
        "source": move.source,
        "target": move.target,
        "moved_bytes": move.moved_bytes,
        "route": move.route,
        "time_s": move.time_s,
        "every": move.every,
        "data": list(move.data),
    }


def _data(data: HeldData) -> dict[str, Any]:
    return {
        "key": data.key,
        "source": data.source,
        "readers": list(data.readers),
        "size_bytes": data.size_bytes,
        "copies": data.copies,
    }


def _memory(group: GpuMemory) -> dict[str, Any]:
    return {
        "gpus": {"first_gpu": group.first_gpu, "num_gpus": group.num_gpus},
        "peak_memory_bytes": group.peak_bytes,
        "usable_memory_bytes": group.usable_bytes,
        "peak_call": group.peak_call,
        "busy_share": group.busy_share,
        "oom_probability": group.oom_probability,
        "owners": [
            {
                "call": owner.call,
                "static_memory_bytes": owner.static_bytes,
                "active_memory_bytes": owner.active_bytes,
            }
            for owner in group.owners
        ],
    }


def _alternative(other: Alternative) -> dict[str, Any]:
    return {
        "mesh": {"first_gpu": other.first_gpu, "num_gpus": other.num_gpus},
        "engine": other.engine,
        "plan": plan_document(other.plan),
        "concurrent_sequences": other.concurrent,
        "holding": other.holding,
        "time_s": other.time_s,
        "steady_s": other.steady_s,
        "fits": other.fits,
        "over_bytes": other.over_bytes,
        "experts": None if other.experts is None else asdict(other.experts),
    }


def _infeasible(infeasible: FlowInfeasible) -> dict[str, Any]:
    return {
        "shortages": [
            {
                "call": item.call,
                "memory": "host" if item.on_host else "device",
                "needs_bytes": item.needs_bytes,
                "usable_bytes": item.usable_bytes,
                "sentence": shortage_sentence(item),
            }
            for item in infeasible.shortages
        ],
        "sentence": minimum_sentence(infeasible),
        "minimum_gpus": infeasible.minimum_gpus,
        "looked_at_gpus": infeasible.looked_at_gpus,
        "minimum_steady_s": infeasible.minimum_steady_s,
        "framework": infeasible.framework or None,
        "framework_steady_s": infeasible.framework_steady_s,
        "linear_loss_steady_s": infeasible.linear_loss_steady_s,
    }
