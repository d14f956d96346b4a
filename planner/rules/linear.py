"""Rules on linear attention: who trains it, over how many ranks its heads go, and whether a sequence can be cut."""

from math import gcd

import numpy as np

from costmodels.plan import BoolArray, ContextKind, ExecutionPlan, IntArray, PlanBatch, Recompute
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
from profiles.linear_attention import DELTA_NET, KIND_TITLES, LINEAR_KINDS, MAMBA2, LinearAttention
from profiles.model import ModelSpec

_TRANSFORMERS = (
    "transformers 5.24 base_model_tp_plan of qwen3_next gathers what in_proj gives, those of kimi_linear, minimax and "
    "granitemoehybrid leave linear layers whole, and nemotron_h has none; torchtitan 0.3.0 has no model with linear "
    "attention"
)


def check_trained(model: ModelSpec, framework: str) -> None:
    """Refuse a model whose kind of linear attention a training framework has no code for.

    Raises:
        SpecError: If it has none.
    """
    if not _trains(model, framework):
        problem, hint = _untrained(model, framework)
        raise SpecError("model.linear_attention", problem, hint)


def _trains(model: ModelSpec, framework: str) -> bool:
    """Whether a framework has code for the linear attention of a model, if it has any.

    Megatron-LM's Mamba-2 is in layers without an MLP (its ``HybridModel``), its Gated DeltaNet in layers with one.
    """
    known = {MEGATRON: (MAMBA2 if model.layer_pattern else DELTA_NET,), NANOTRON: ()}
    return model.linear_attention is None or model.linear_attention.kind in known.get(framework, LINEAR_KINDS)


def _untrained(model: ModelSpec, framework: str) -> tuple[str, str]:
    kind = _kind_of(model)
    only = f", in layers that have an MLP {KIND_TITLES[DELTA_NET]} only" if framework == MEGATRON else ""
    others = ", megatron" if _trains(model, MEGATRON) else ""
    return (
        f"{FRAMEWORK_TITLES[framework]} trains no {KIND_TITLES[kind]}{only}",
        f"framework fsdp, deepspeed{others} or huggingface",
    )


def _or_megatron(setting: Setting) -> str:
    """The rest of a hint, where Megatron-LM trains the model."""
    kind = KIND_TITLES.get(_kind(setting), "")
    return f", or framework megatron for {kind}" if _trains(setting.model, MEGATRON) else ""


def _kind_of(model: ModelSpec) -> str:
    return "" if model.linear_attention is None else model.linear_attention.kind


def _kind(setting: Setting) -> str:
    return _kind_of(setting.model)


def _exists(plans: PlanBatch, setting: Setting) -> BoolArray:
    return np.full(len(plans), _trains(setting.model, setting.framework))


def _over_heads(plans: PlanBatch, setting: Setting) -> BoolArray:
    linear, t, c = setting.model.linear_attention, plans.tensor_parallel, plans.context_parallel
    if linear is None:
        return np.ones(len(plans), dtype=np.bool_)
    whole = linear.num_value_heads % (t * c) == 0
    if linear.kind == MAMBA2:
        return mask(whole & (linear.num_key_heads % t == 0) & _groups_over(linear, t, c))
    return mask(whole & (linear.num_key_heads % (t * c) == 0))


def _groups_over(linear: LinearAttention, tensor: IntArray, context: IntArray) -> BoolArray:
    """(N,) whether the groups of a tensor-parallel rank go over its context-parallel ranks, whole or each to several.

    Source:
        NVIDIA/Megatron-LM, megatron/core/ssm/mamba_context_parallel.py.
    """
    groups = np.maximum(linear.num_key_heads // tensor, 1)
    return np.asarray((groups % context == 0) | (context % groups == 0))


def _over_heads_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    linear = setting.model.linear_attention
    keys, values = (0, 0) if linear is None else (linear.num_key_heads, linear.num_value_heads)
    group = plan.tensor_parallel * plan.context_parallel
    if _kind(setting) == MAMBA2:
        problem = f"tp must divide the {keys} groups and tp x cp the {values} heads of Mamba-2; got {group}"
        return problem, f"tp {one_of(divisors(gcd(max(keys, 1), setting.num_devices)))}"
    problem = f"tp x cp must divide the {keys} key heads and {values} value heads of linear attention; got {group}"
    return problem, f"tp x cp {one_of(divisors(gcd(max(keys, 1), values, setting.num_devices)))}"


def _none(plans: PlanBatch, setting: Setting) -> BoolArray:
    return np.full(len(plans), not _kind(setting))


LINEAR = (
    Rule(
        name="linear_attention_exists",
        frameworks=(MEGATRON, NANOTRON),
        field="model.linear_attention",
        text="linear attention is of a kind that the framework trains: Megatron-LM Gated DeltaNet, and Mamba-2 where a "
        "layer is a mixer or an MLP alone, nanotron none",
        source=f"{MCORE}: experimental_attention_variant gated_delta_net or dsa (megatron-core 0.19); "
        "megatron/core/models/hybrid; nanotron/models",
        columns=columns(),
        holds=_exists,
        complaint=lambda _plan, setting: _untrained(setting.model, setting.framework),
    ),
    Rule(
        name="linear_attention_over_heads",
        frameworks=(MEGATRON,),
        field="tensor_parallel",
        text="tp x cp divides the key and value heads of linear attention; of Mamba-2 tp divides the groups",
        source=f"{MCORE}: linear_num_key_heads and linear_num_value_heads must be multiples of tp_cp_size; "
        "megatron/core/ssm/mamba_mixer.py and mamba_context_parallel.py: ngroups, nheads",
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
            f"tp 1{_or_megatron(setting)}",
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
            f"pp 1 and ep 1{_or_megatron(setting)}",
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
            f"cp 1{_or_megatron(setting)}",
        ),
    ),
    Rule(
        name="linear_attention_exchanges_heads",
        frameworks=(MEGATRON,),
        field="context_kind",
        text="beside linear attention, whose ranks exchange tokens for heads, context parallelism is no ring",
        source="megatron/core/ssm, gated_delta_net and mamba_context_parallel.py: all-to-alls whatever cp_comm_type "
        "says, under which nothing runs",
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
