"""Rules on context parallelism: rings, gathered keys and values, and Ulysses."""

from math import gcd

import numpy as np

from costmodels.plan import BoolArray, ContextKind, ExecutionPlan, PlanBatch
from planner.rules.base import (
    ACCELERATE_ALONE,
    ACCELERATE_COLUMNS,
    ARGUMENTS,
    DEEPSPEED,
    FRAMEWORKS,
    FSDP,
    MEGATRON,
    NANOTRON,
    TITAN_DIMS,
    Rule,
    Setting,
    accelerate_runs,
    accelerate_wants,
    columns,
    divisors,
    mask,
    must_divide,
    one_of,
)

_ULYSSES = "DeepSpeed-Ulysses (arXiv:2309.14509) section 3; deepspeed/sequence/layer.py"


def _zigzag(plans: PlanBatch, setting: Setting) -> BoolArray:
    c = plans.context_parallel
    return mask((c == 1) | (setting.job.sequence_length % (2 * c) == 0))


def _zigzag_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    s = setting.job.sequence_length
    legal = [c for c in divisors(setting.num_devices) if c == 1 or s % (2 * c) == 0]
    return f"the sequence length {s} must be a multiple of 2 x {plan.context_parallel}", one_of(legal)


def _ulysses(plans: PlanBatch) -> BoolArray:
    return mask((plans.context_parallel > 1) & (plans.context_kind == int(ContextKind.ULYSSES)))


def _ulysses_heads(plans: PlanBatch, setting: Setting) -> BoolArray:
    group = plans.tensor_parallel * plans.context_parallel
    heads = setting.model.split_heads % group == 0
    return mask(~_ulysses(plans) | (heads & (gcd(*setting.key_value_heads) % group == 0)))


def _windows_and_sinks(setting: Setting) -> tuple[ContextKind, ...]:
    """Ways to share a context that Transformer Engine has for the attention of a model."""
    if setting.model.has_sinks:
        return (ContextKind.ULYSSES,)
    return (ContextKind.ULYSSES, ContextKind.ALL_GATHER) if setting.model.sliding_window else tuple(ContextKind)


def _context_kinds(plans: PlanBatch, *kinds: ContextKind) -> BoolArray:
    return mask((plans.context_parallel == 1) | np.isin(plans.context_kind, [int(kind) for kind in kinds]))


def _or_accelerate(setting: Setting) -> str:
    """What would let Accelerate run a ring; nothing does where layers have windows."""
    if setting.model.sliding_window:
        return ""
    plan = "pp 1, ep 1, hsdp 0, recompute none or full and tensor_parallel_overlap off"
    return f"; or {accelerate_wants(setting, plan)}"


CONTEXT = (
    Rule(
        name="context_parallel_divides_sequence",
        frameworks=(MEGATRON, FSDP),
        field="context_parallel",
        text="2 x cp divides the sequence length (each rank takes an early and a late chunk)",
        source=f"{ARGUMENTS}: seq-length should be a multiple of 2 * context-parallel-size; {TITAN_DIMS}",
        columns=columns("context_parallel"),
        holds=_zigzag,
        complaint=_zigzag_complaint,
    ),
    Rule(
        name="sequence_divides_over_context",
        frameworks=(DEEPSPEED, NANOTRON),
        field="context_parallel",
        text="cp divides the sequence length",
        source=_ULYSSES,
        columns=columns("context_parallel"),
        holds=lambda plans, setting: setting.job.sequence_length % plans.context_parallel == 0,
        complaint=lambda plan, setting: must_divide(
            "sequence_length", setting.job.sequence_length, plan.context_parallel, setting.num_devices
        ),
    ),
    Rule(
        name="ulysses_divides_heads",
        frameworks=FRAMEWORKS,
        field="context_parallel",
        text="with Ulysses, tp x cp divides the attention and the key/value heads",
        source=f"{_ULYSSES}; Transformer Engine AttnFuncWithCPAndQKVOA2A",
        columns=columns("tensor_parallel", "context_parallel", "context_kind"),
        holds=_ulysses_heads,
        complaint=lambda plan, setting: (
            f"tp {plan.tensor_parallel} x cp {plan.context_parallel} must divide "
            f"{setting.model.split_heads} heads and {gcd(*setting.key_value_heads)} key/value heads with Ulysses",
            "context_kind ring, or a smaller degree",
        ),
    ),
    Rule(
        name="context_kind_suits_windows_and_sinks",
        frameworks=(MEGATRON,),
        field="context_kind",
        text="with sliding windows context parallelism is Ulysses or gathers keys and values, with sinks it is Ulysses",
        source="Transformer Engine attn_forward_func_with_cp: sliding windows with cp_comm_type a2a or all_gather; "
        "get_attention_backend: softmax other than vanilla with a2a",
        columns=columns("context_parallel", "context_kind"),
        holds=lambda plans, setting: _context_kinds(plans, *_windows_and_sinks(setting)),
        complaint=lambda plan, setting: (
            f"{setting.model.name} has {'attention sinks' if setting.model.has_sinks else 'sliding windows'}, "
            f"which Transformer Engine does not share as {plan.context_kind.name.lower()}",
            "context_kind " + " or ".join(kind.name.lower() for kind in _windows_and_sinks(setting)),
        ),
    ),
    Rule(
        name="context_parallel_ulysses_only",
        frameworks=(DEEPSPEED,),
        field="context_kind",
        text="context parallelism is Ulysses",
        source=_ULYSSES,
        columns=columns("context_parallel", "context_kind"),
        holds=lambda plans, _setting: _context_kinds(plans, ContextKind.ULYSSES),
        complaint=lambda _plan, _setting: ("DeepSpeed offers Ulysses only", "context_kind ulysses"),
    ),
    Rule(
        name="context_parallel_no_ulysses",
        frameworks=(FSDP,),
        field="context_kind",
        text="context parallelism is a ring or gathers keys and values",
        source="torchtitan context_parallel_rotate_method: allgather or alltoall (a rotating ring)",
        columns=columns("context_parallel", "context_kind"),
        holds=lambda plans, _setting: _context_kinds(plans, ContextKind.RING, ContextKind.ALL_GATHER),
        complaint=lambda _plan, _setting: ("torchtitan has no Ulysses", "context_kind ring or all_gather"),
    ),
    Rule(
        name="context_ring_is_accelerates",
        frameworks=(FSDP,),
        field="context_kind",
        text=f"context parallelism is a ring with Accelerate's FSDP2, {ACCELERATE_ALONE}",
        source="torchtitan 0.3.0 ParallelismConfig has no context_parallel_rotate_method any more, and PyTorch gathers "
        "keys and values unless told otherwise; accelerate cp_comm_strategy alltoall",
        columns=ACCELERATE_COLUMNS | columns("context_parallel", "context_kind"),
        holds=lambda plans, setting: (
            _context_kinds(plans, ContextKind.ALL_GATHER, ContextKind.ULYSSES) | accelerate_runs(plans, setting)
        ),
        complaint=lambda _plan, setting: (
            "is a ring with Accelerate's FSDP2 alone, torchtitan gathers keys and values",
            "context_kind all_gather" + _or_accelerate(setting),
        ),
    ),
    Rule(
        name="context_parallel_has_no_sinks",
        frameworks=(FSDP,),
        field="context_parallel",
        text="a context is not shared by attention with sinks",
        source="torchtitan 0.3.0 distributed/context_parallel/api.py: Variable-length attention CP is not yet "
        "supported, and its gpt_oss configurations have no other; accelerate big_modeling.py: Context parallelism "
        "does not support attention layers of type sliding_attention",
        columns=columns("context_parallel"),
        holds=lambda plans, setting: mask((plans.context_parallel == 1) | (not setting.model.has_sinks)),
        complaint=lambda _plan, setting: (
            f"{setting.model.name} has attention sinks, which neither torchtitan nor Accelerate shares over ranks",
            "cp 1, or framework megatron with context_kind ulysses",
        ),
    ),
    Rule(
        name="context_parallel_has_no_caps",
        frameworks=(FSDP, MEGATRON),
        field="context_parallel",
        text="a context is not shared by attention whose logits are capped",
        source="Megatron-Bridge models/gemma/modeling_gemma2.py: Context parallelism is only supported by "
        "TEDotProductAttention; Accelerate shares it by PyTorch's attention alone, which transformers 5.24 refuses for "
        "Gemma 2 (_supports_sdpa = False), and torchtitan 0.3.0 has no such model",
        columns=columns("context_parallel"),
        holds=lambda plans, setting: mask((plans.context_parallel == 1) | (not setting.model.attention_softcap)),
        complaint=lambda _plan, setting: (
            f"{setting.model.name} caps attention's logits, which nobody here shares over ranks",
            "cp 1, or framework deepspeed with attention flash",
        ),
    ),
    Rule(
        name="context_parallel_has_no_wide_heads",
        frameworks=(MEGATRON,),
        field="context_parallel",
        text="a context is not shared by attention whose heads are too wide for a fused kernel",
        source="Transformer Engine get_attention_backend: UnfusedDotProductAttention is disabled under context "
        "parallelism, and others take no heads of 512 (issue 3006); NVIDIA-NeMo/Megatron-Bridge, issue 4663",
        columns=columns("context_parallel"),
        holds=lambda plans, setting: mask((plans.context_parallel == 1) | (not setting.widest_unfused_head)),
        complaint=lambda _plan, setting: (
            f"{setting.model.name} has heads of {setting.widest_unfused_head}, which Transformer Engine runs unfused, "
            "and unfused attention shares no context",
            "cp 1",
        ),
    ),
    Rule(
        name="ulysses_has_no_eager_attention",
        frameworks=(DEEPSPEED,),
        field="context_parallel",
        text="Ulysses shares no attention that transformers runs op by op",
        source="deepspeed/runtime/sequence_parallel/ulysses_sp.py, register_with_transformers: eager is not supported",
        columns=columns("context_parallel"),
        holds=lambda plans, setting: mask(
            (plans.context_parallel == 1) | (not setting.transformers_models) | (setting.job.attention == "flash")
        ),
        complaint=lambda _plan, _setting: ("Ulysses shares no eager attention", "cp 1, or attention flash"),
    ),
    Rule(
        name="context_parallel_ring_only",
        frameworks=(NANOTRON,),
        field="context_kind",
        text="context parallelism is ring attention",
        source="nanotron parallelism.context_parallel_size with ring flash attention",
        columns=columns("context_parallel", "context_kind"),
        holds=lambda plans, _setting: _context_kinds(plans, ContextKind.RING),
        complaint=lambda _plan, _setting: ("nanotron has ring attention only", "context_kind ring"),
    ),
    Rule(
        name="ulysses_excludes_pipeline",
        frameworks=(DEEPSPEED,),
        field="context_parallel",
        text="Ulysses is not combined with pipeline stages",
        source="microsoft/DeepSpeed discussion 5551 (DS-SP is incompatible with PP in Megatron-DeepSpeed)",
        columns=columns("pipeline_parallel", "context_parallel"),
        holds=lambda plans, _setting: (plans.context_parallel == 1) | (plans.pipeline_parallel == 1),
        complaint=lambda _plan, _setting: ("is not combined with pipeline_parallel > 1", "cp 1 or pp 1"),
    ),
    Rule(
        name="ulysses_excludes_sequence_parallel",
        frameworks=(DEEPSPEED,),
        field="sequence_parallel",
        text="Ulysses is not combined with Megatron's sequence parallelism",
        source="Megatron-DeepSpeed megatron/initialize.py: Remove --sequence_parallel",
        columns=columns("context_parallel", "sequence_parallel"),
        holds=lambda plans, _setting: (plans.context_parallel == 1) | ~plans.sequence_parallel,
        complaint=lambda _plan, _setting: ("is not combined with context_parallel > 1", "sequence_parallel off"),
    ),
)
