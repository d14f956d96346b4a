"""The one document every surface speaks: command line ``--json``, REST and library.

Keys carry SI units, come in a fixed order and never disappear; what does not apply is null. The
version changes in its first number when a key is renamed, removed or changes meaning, in its second
when one is added.
"""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from costmodels.plan import ExecutionPlan
from planner.phrases import explanation_sentences, remedy_sentence, rival_sentence
from planner.results import (
    FrontierPoint,
    Infeasible,
    Note,
    PlanEstimate,
    PlanResult,
    Remedy,
    Request,
    Rival,
    StageEstimate,
    Switch,
)
from planner.rules.modules import module_names
from planner.rules.pipeline import NAME_OF_SCHEDULE
from planner.schema_types import CONVENTIONS, SCHEMA_VERSION
from planner.schema_types import document_schema as document_schema
from profiles.cluster_string import cluster_to_mapping
from profiles.hardware import ClusterSpec, DeviceSpec
from profiles.model import ModelSpec
from profiles.parameters import active_parameters, total_parameters


def to_document(result: PlanResult) -> dict[str, Any]:
    """A result as plain data, ready for JSON."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": result.kind,
        "fits": result.fits,
        "request": request_document(result.request),
        "plans": [estimate_document(answer) for answer in result.plans],
        "riskier": None if result.riskier is None else estimate_document(result.riskier),
        "explanation": _explanation(result),
        "switches": [_switch(item) for item in result.switches],
        "infeasible": infeasible_document(result.infeasible),
        "pareto": [_point(point) for point in result.pareto],
        "search": {
            "considered": result.considered,
            "fitting": result.fitting,
            "likely": result.likely,
            "rejected": dict(sorted(result.rejected.items())),
        },
        "assumptions": notes_document(result.assumptions),
        "warnings": notes_document(result.warnings),
        "conventions": dict(CONVENTIONS),
    }


def request_document(request: Request) -> dict[str, Any]:
    """The question as it was understood."""
    job = asdict(request.job)
    if request.job.lora is not None:
        job["lora"]["targets"] = list(request.job.lora.targets)
    return {
        "model": model_document(request.model),
        "cluster": cluster_document(request.cluster),
        "job": job,
        "framework": request.stack.framework,
        "stack": request.stack.name,
        "stack_fitted": request.stack_fitted,
        "objective": request.objective,
        "max_oom_risk": request.max_oom_risk,
        "pins": dict(request.pins),
        "offload": request.offload,
        "named_modules": request.named_modules,
        "variants": request.variants,
        "memory_reserve_bytes": request.memory_reserve_bytes,
        "price_per_device_hour_usd": None if request.price is None else request.price.usd_per_device_hour,
        "price_date": None if request.price is None else request.price.date,
    }


def cluster_document(cluster: ClusterSpec) -> dict[str, Any]:
    """A cluster as its file holds it, and what follows."""
    return {
        **cluster_to_mapping(cluster),
        "name": cluster.name,
        "num_devices": cluster.num_devices,
        "usable_memory_bytes": cluster.device.usable_memory_bytes,
    }


def plan_document(plan: ExecutionPlan) -> dict[str, Any]:
    """A plan in the words the planner accepts back as pins, unless layers per stage were laid out one by one."""
    document = asdict(plan)
    document["recompute"] = plan.recompute.name.lower()
    document["recompute_modules"] = list(module_names(plan.recompute_modules))
    document["schedule"] = NAME_OF_SCHEDULE[plan.schedule]
    document["context_kind"] = plan.context_kind.name.lower()
    document["axis_order"] = plan.axis_order.name.lower()
    document["stage_layers"] = list(plan.stage_layers)
    return document


def estimate_document(answer: PlanEstimate) -> dict[str, Any]:
    """One priced plan."""
    return {
        "rank": answer.rank,
        "plan": plan_document(answer.plan),
        "num_devices": answer.num_devices,
        "fits": answer.fits,
        "time": {
            "step_time_s": answer.step_time_s,
            "step_time_low_s": answer.step_time_low_s,
            "step_time_high_s": answer.step_time_high_s,
            "parts_s": dict(answer.time_parts_s),
            "communication_total_s": dict(answer.communication_total_s),
        },
        "memory": {
            "peak_memory_bytes": answer.peak_memory_bytes,
            "peak_memory_low_bytes": answer.peak_memory_low_bytes,
            "peak_memory_high_bytes": answer.peak_memory_high_bytes,
            "usable_memory_bytes": answer.usable_memory_bytes,
            "headroom_bytes": answer.headroom_bytes,
            "oom_probability": answer.oom_probability,
            "host_memory_bytes": answer.host_memory_bytes,
            "fullest_stage": answer.fullest_stage.index,
        },
        "stages": [_stage(stage) for stage in answer.stages],
        "throughput": {
            "tokens_per_s": answer.tokens_per_s,
            "tokens_per_s_per_device": answer.tokens_per_s_per_device,
            "samples_per_s": answer.samples_per_s,
            "model_flops_per_s_per_device": answer.model_flops / answer.device_seconds_per_step,
            "mfu": answer.mfu,
            "mfu_full_attention": answer.mfu_full_attention,
            "hfu": answer.hfu,
        },
        "flops_per_step": {
            "model_flops": answer.model_flops,
            "model_flops_full_attention": answer.model_flops_full_attention,
            "hardware_flops": answer.hardware_flops,
        },
        "cost": {
            "device_seconds_per_step": answer.device_seconds_per_step,
            "energy_per_step_j": answer.energy_per_step_j,
            "run": None if answer.run is None else asdict(answer.run),
        },
        "basis": answer.basis,
        "extrapolated_share": dict(answer.extrapolated_share),
        "basis_share": dict(answer.basis_share),
    }


def _stage(stage: StageEstimate) -> dict[str, Any]:
    return {
        "index": stage.index,
        "layers": stage.layers,
        "moe_layers": stage.moe_layers,
        "in_flight_microbatches": stage.in_flight_microbatches,
        "has_embedding": stage.has_embedding,
        "has_head": stage.has_head,
        "microbatch_time_s": stage.microbatch_time_s,
        "memory_bytes": stage.memory_bytes,
        "memory_parts_bytes": dict(stage.memory_parts_bytes),
    }


def model_document(model: ModelSpec) -> dict[str, Any]:
    """A model: its dimensions, parameter counts and where they come from."""
    return {**asdict(model), "total_parameters": total_parameters(model), "active_parameters": active_parameters(model)}


def device_document(device: DeviceSpec) -> dict[str, Any]:
    """A device with the source of every figure."""
    return {
        "name": device.name,
        "vendor": device.vendor,
        "architecture": device.architecture,
        "peak_flops_per_s": dict(device.peak_flops_per_s),
        "memory_bytes": device.memory_bytes,
        "usable_memory_bytes": device.usable_memory_bytes,
        "memory_bandwidth_bytes_per_s": device.memory_bandwidth_bytes_per_s,
        "num_sms": device.num_sms,
        "l2_bytes": device.l2_bytes,
        "power_w": device.power_w,
        "default_node": device.default_node,
        "sources": dict(device.sources),
    }


def models_document() -> dict[str, Any]:
    """Every model of the catalogue."""
    from profiles.catalog import default_catalog
    from profiles.model_presets import list_models

    models = [model_document(model) for model in list_models(default_catalog())]
    return {"schema_version": SCHEMA_VERSION, "models": models}


def devices_document() -> dict[str, Any]:
    """Every device of the catalogue, by name."""
    from profiles.catalog import default_catalog

    devices = default_catalog().devices
    return {"schema_version": SCHEMA_VERSION, "devices": [device_document(devices[name]) for name in sorted(devices)]}


def frameworks_document() -> dict[str, Any]:
    """Every framework, and variant of one, that plans can be made for, by name."""
    from planner.rules.base import FRAMEWORKS
    from profiles.stack_names import tools_of
    from profiles.stacks import default_names, load_stacks

    usual = default_names()
    listed = [
        {
            "name": stack.name,
            "framework": stack.framework,
            "default": usual[stack.framework] == stack.name,
            "description": stack.description,
            "switched_on_by": stack.switched_on_by,
            "tools": list(tools_of(stack.name)),
        }
        for stack in load_stacks().values()
        if stack.framework in FRAMEWORKS
    ]
    order = {name: number for number, name in enumerate(FRAMEWORKS)}
    listed.sort(key=lambda item: (order[str(item["framework"])], not item["default"], str(item["name"])))
    return {"schema_version": SCHEMA_VERSION, "frameworks": listed}


def notes_document(notes: Iterable[Note]) -> list[dict[str, str]]:
    """Assumptions or warnings."""
    return [{"code": note.code, "field": note.field, "message": note.message} for note in notes]


def _point(point: FrontierPoint) -> dict[str, Any]:
    return {
        "plan": plan_document(point.plan),
        "num_devices": point.num_devices,
        "step_time_s": point.step_time_s,
        "peak_memory_bytes": point.peak_memory_bytes,
        "oom_probability": point.oom_probability,
    }


def _explanation(result: PlanResult) -> dict[str, Any] | None:
    explanation, best = result.explanation, result.best
    if explanation is None or best is None:
        return None
    return {
        "sentences": explanation_sentences(best, explanation),
        "time": [{"part": item.part, "time_s": item.value, "share": item.share} for item in explanation.time],
        "memory": [{"part": item.part, "memory_bytes": item.value, "share": item.share} for item in explanation.memory],
        "rivals": [_rival(rival) for rival in explanation.rivals],
    }


def _rival(rival: Rival) -> dict[str, Any]:
    return {
        "dimension": rival.dimension,
        "sentence": rival_sentence(rival),
        "plan": plan_document(rival.plan),
        "changed": list(rival.changes),
        "step_time_ratio": rival.step_time_ratio,
        "device_seconds_ratio": rival.device_seconds_ratio,
        "peak_memory_difference_bytes": rival.peak_memory_difference_bytes,
        "fits": rival.fits,
        "ranked": rival.ranked,
    }


def _switch(item: Switch) -> dict[str, Any]:
    return {
        "framework": item.framework,
        "switched_on_by": item.switched_on_by,
        "plan": plan_document(item.plan),
        "step_time_s": item.step_time_s,
        "step_time_ratio": item.step_time_ratio,
    }


def infeasible_document(infeasible: Infeasible | None) -> dict[str, Any] | None:
    """Why nothing fits, and what would; None where something does."""
    if infeasible is None:
        return None
    nearest = infeasible.nearest
    return {
        "reasons": dict(sorted(infeasible.reasons.items())),
        "nearest": None if nearest is None else estimate_document(nearest),
        "remedies": [_remedy(remedy) for remedy in infeasible.remedies],
    }


def _remedy(remedy: Remedy) -> dict[str, Any]:
    return {
        "code": remedy.code,
        "sentence": remedy_sentence(remedy),
        "fits": remedy.fits,
        "likely": remedy.likely,
        "plan": plan_document(remedy.plan),
        "num_devices": remedy.num_devices,
        "device": remedy.device,
        "step_time_s": remedy.step_time_s,
        "peak_memory_bytes": remedy.peak_memory_bytes,
        "oom_probability": remedy.oom_probability,
    }
