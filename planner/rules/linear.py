"""Rules on linear attention: who trains it, over how many ranks its heads go, and whether a sequence can be cut."""

from math import gcd

import numpy as np

from costmodels.plan import BoolArray, ContextKind, ExecutionPlan, PlanBatch, Recompute
from planner.rules.base import (
    DEEPSPEED,
    FRAMEWORK_TITLES,
    FSDP,
    MCORE,
    MEGATRON,
    NANOTRON,
    Rule,
    Setting,
    columns,
    divisors,
    mask,
    one_of,
)
from profiles.errors import SpecError
from profiles.linear_attention import DELTA_NET, KIND_TITLES, LINEAR_KINDS
from profiles.model import ModelSpec

_TRANSFORMERS = (
    "transformers 5.24 base_model_tp_plan of qwen3_next gathers what in_proj gives, and those of kimi_linear, minimax "
    "and granitemoehybrid leave linear layers whole; torchtitan 0.3.0 has no model with linear attention"
)


def check_trained(model: ModelSpec, framework: str) -> None:
    """Refuse a model whose kind of linear attention a training framework has no code for.

    Raises:
        SpecError: If it has none.
    """
    linear = model.linear_attention
    if linear is None or _trains(linear.kind, framework):
        return
    problem, hint = _untrained(linear.kind, framework)
    raise SpecError("model.linear_attention", problem, hint)


def _trains(kind: str, framework: str) -> bool:
    known = {MEGATRON: (DELTA_NET,), NANOTRON: ()}
    return kind in known.get(framework, LINEAR_KINDS)


def _untrained(kind: str, framework: str) -> tuple[str, str]:
    only = f", in layers that have an MLP {KIND_TITLES[DELTA_NET]} only" if framework == MEGATRON else ""
    others = ", megatron" if kind == DELTA_NET else ""
    return (
        f"{FRAMEWORK_TITLES[framework]} trains no {KIND_TITLES[kind]}{only}",
        f"framework fsdp, deepspeed{others} or huggingface",
    )


def _kind(setting: Setting) -> str:
    linear = setting.model.linear_attention
    return "" if linear is None else linear.kind


def _exists(plans: PlanBatch, setting: Setting) -> BoolArray:
    kind = _kind(setting)
    return np.full(len(plans), not kind or _trains(kind, setting.framework))


def _over_heads(plans: PlanBatch, setting: Setting) -> BoolArray:
    linear, group = setting.model.linear_attention, plans.tensor_parallel * plans.context_parallel
    if linear is None:
        return np.ones(len(plans), dtype=np.bool_)
    return mask((linear.num_key_heads % group == 0) & (linear.num_value_heads % group == 0))


def _over_heads_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    linear = setting.model.linear_attention
    keys, values = (0, 0) if linear is None else (linear.num_key_heads, linear.num_value_heads)
    group = plan.tensor_parallel * plan.context_parallel
    problem = f"tp x cp must divide the {keys} key heads and {values} value heads of linear attention; got {group}"
    return problem, f"tp x cp {one_of(divisors(gcd(max(keys, 1), values, setting.num_devices)))}"


def _none(plans: PlanBatch, setting: Setting) -> BoolArray:
    return np.full(len(plans), not _kind(setting))


LINEAR = (
    Rule(
        name="linear_attention_exists",
        frameworks=(MEGATRON, NANOTRON),
        field="model.linear_attention",
        text="linear attention is of a kind that the framework trains: Megatron-LM Gated DeltaNet, nanotron none",
        source=f"{MCORE}: experimental_attention_variant gated_delta_net or dsa (megatron-core 0.19); nanotron/models",
        columns=columns(),
        holds=_exists,
        complaint=lambda _plan, setting: _untrained(_kind(setting), setting.framework),
    ),
    Rule(
        name="linear_attention_over_heads",
        frameworks=(MEGATRON,),
        field="tensor_parallel",
        text="tp x cp divides the key and value heads of linear attention",
        source=f"{MCORE}: linear_num_key_heads and linear_num_value_heads must be multiples of tp_cp_size",
        columns=columns("tensor_parallel", "context_parallel"),
        holds=_over_heads,
        complaint=_over_heads_complaint,
    ),
    Rule(
        name="linear_attention_is_whole",
        frameworks=(DEEPSPEED, FSDP),
        field="tensor_parallel",
        text="linear attention is not split over tensor-parallel ranks",
        source=_TRANSFORMERS,
        columns=columns("tensor_parallel"),
        holds=lambda plans, setting: _none(plans, setting) | (plans.tensor_parallel == 1),
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} does not split linear attention over ranks",
            "tp 1, or framework megatron for Gated DeltaNet",
        ),
    ),
    Rule(
        name="linear_attention_is_in_one_piece",
        frameworks=(FSDP,),
        field="pipeline_parallel",
        text="models with linear attention are not cut into stages, nor their experts spread over ranks",
        source=f"{_TRANSFORMERS}, and Accelerate cuts none",
        columns=columns("pipeline_parallel", "expert_parallel"),
        holds=lambda plans, setting: (
            _none(plans, setting) | ((plans.pipeline_parallel == 1) & (plans.expert_parallel == 1))
        ),
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} has no pipeline and no expert parallelism for linear attention",
            "pp 1 and ep 1, or framework megatron for Gated DeltaNet",
        ),
    ),
    Rule(
        name="linear_attention_reads_whole_sequences",
        frameworks=(DEEPSPEED, FSDP),
        field="context_parallel",
        text="a sequence is not cut where layers attend linearly: their state passes over all of it",
        source="torchtitan context_parallel.py and deepspeed/sequence/layer.py: scaled dot-product attention alone",
        columns=columns("context_parallel"),
        holds=lambda plans, setting: _none(plans, setting) | (plans.context_parallel == 1),
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} cuts sequences for attention in full only",
            "cp 1, or framework megatron for Gated DeltaNet",
        ),
    ),
    Rule(
        name="linear_attention_exchanges_heads",
        frameworks=(MEGATRON,),
        field="context_kind",
        text="beside linear attention, whose ranks exchange tokens for heads, context parallelism is no ring",
        source="megatron/core/ssm/gated_delta_net: all-to-alls whatever cp_comm_type says, under which nothing runs",
        columns=columns("context_parallel", "context_kind"),
        holds=lambda plans, setting: (
            _none(plans, setting) | (plans.context_parallel == 1) | (plans.context_kind != int(ContextKind.RING))
        ),
        complaint=lambda _plan, _setting: (
            "a ring is not priced beside the all-to-alls of linear attention",
            "context_kind all_gather or ulysses",
        ),
    ),
    Rule(
        name="linear_attention_recomputes_layers",
        frameworks=(FSDP,),
        field="recompute",
        text="layers of linear attention are recomputed whole: which of their operations are kept is not known",
        source="torchtitan 0.3.0 activation_checkpoint.py, whose lists of operations are those of its own models",
        columns=columns("recompute"),
        holds=lambda plans, setting: _none(plans, setting) | (plans.recompute != int(Recompute.SELECTIVE)),
        complaint=lambda _plan, _setting: (
            "torchtitan's selective recomputation knows no linear attention",
            "recompute none or full",
        ),
    ),
)
