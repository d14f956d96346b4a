"""Rules on expert and expert-tensor parallelism."""

from math import gcd

import numpy as np

from costmodels.plan import AxisOrder, BoolArray, ExecutionPlan, IntArray, PlanBatch, Recompute, RecomputeModule
from planner.rules.base import (
    ARGUMENTS,
    DEEPSPEED,
    FRAMEWORKS,
    FSDP,
    HUGGINGFACE,
    MCORE,
    MEGATRON,
    NANOTRON,
    TITAN_DIMS,
    Rule,
    Setting,
    columns,
    divisors,
    mask,
    must_divide,
    one_of,
    recomputes_layers,
)
from planner.rules.layout import unsplit_sequence


def _num_experts(setting: Setting) -> int:
    return setting.model.moe.num_experts if setting.model.moe is not None else 1


def _expert_width(setting: Setting) -> int:
    return setting.model.moe.ffn_hidden_size if setting.model.moe is not None else 1


def _expert_ranks(plans: PlanBatch) -> BoolArray:
    ranks = plans.tensor_parallel * plans.context_parallel * plans.data_parallel
    return mask(ranks % (plans.expert_parallel * plans.expert_tensor_parallel) == 0)


def _titan_expert_ranks(plans: PlanBatch) -> BoolArray:
    """EP borrows all of cp (and tp when etp is 1) and some of the sharded data ranks, of which DDP has none."""
    t, c, e = plans.tensor_parallel, plans.context_parallel, plans.expert_parallel
    replicated = np.where(plans.zero_shard_degree > 0, plans.data_parallel * c // plans.shard_degree, 1)
    sharded = np.where(plans.zero_stage > 0, plans.data_parallel // np.maximum(replicated, 1), 1) * c
    with_tensor = (e % c == 0) & (sharded % e == 0)
    alone = (e % (c * t) == 0) & (sharded * t % e == 0)
    fits = np.where(plans.expert_tensor_parallel == t, with_tensor, alone)
    holds: BoolArray = (e == 1) | fits
    return holds


def _expert_replicas(plans: PlanBatch) -> IntArray:
    """(N,) ranks of a stage that hold the same experts."""
    ranks = plans.tensor_parallel * plans.context_parallel * plans.data_parallel
    return ranks // (plans.expert_parallel * plans.expert_tensor_parallel)


def _shares_experts_out(plans: PlanBatch, setting: Setting) -> BoolArray:
    sets = plans.data_parallel * plans.context_parallel // np.maximum(plans.zero_shard_degree, 1)
    whole = _expert_replicas(plans) % np.maximum(sets, 1) == 0
    return mask((plans.zero_shard_degree == 0) | (setting.model.moe is None) | whole)


def _shares_complaint(plan: ExecutionPlan, _setting: Setting) -> tuple[str, str]:
    ranks = plan.data_parallel * plan.context_parallel
    replicas = int(_expert_replicas(PlanBatch.from_plans([plan]))[0])
    degrees = [ranks // sets for sets in divisors(gcd(ranks, replicas))]
    return (
        f"{plan.zero_shard_degree} makes {ranks // plan.zero_shard_degree} sets of shards, which must divide the "
        f"{replicas} replicas of an expert",
        one_of(sorted(degrees)),
    )


def _repeats_exchange(plans: PlanBatch) -> BoolArray:
    experts = (plans.recompute == int(Recompute.SELECTIVE)) & ((plans.recompute_modules & int(RecomputeModule.MOE)) > 0)
    return mask(recomputes_layers(plans) | experts)


def _expert_complaint(plan: ExecutionPlan, _setting: Setting) -> tuple[str, str]:
    ranks = plan.tensor_parallel * plan.context_parallel * plan.data_parallel
    return (
        f"{plan.expert_parallel} x {plan.expert_tensor_parallel} (ep x etp) must divide the {ranks} ranks of a stage",
        one_of([e for e in divisors(ranks) if ranks % (e * plan.expert_tensor_parallel) == 0]) or "etp 1",
    )


def _no_experts(_plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    return f"{setting.model.name} has no experts", "ep 1 and etp 1"


def _width_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    if setting.model.moe is None:
        return _no_experts(plan, setting)
    return must_divide("moe.ffn_hidden_size", _expert_width(setting), plan.expert_tensor_parallel, setting.num_devices)


def _sequence_parallel_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    problem = f"is needed by a mixture of experts with tp={plan.tensor_parallel}"
    if setting.job.sequence_length % (plan.context_parallel * plan.tensor_parallel) == 0:
        return problem, "sequence_parallel on"
    unsplit, hint = unsplit_sequence(plan, setting)
    return f"{problem}, and {unsplit}", hint


EXPERT = (
    Rule(
        name="expert_parallel_needs_experts",
        frameworks=FRAMEWORKS,
        field="expert_parallel",
        text="expert parallelism needs a mixture-of-experts model",
        source=f"{MCORE}: num_moe_experts must be non None to use expert-parallel",
        columns=columns("expert_parallel", "expert_tensor_parallel"),
        holds=lambda plans, setting: (
            (plans.expert_parallel * plans.expert_tensor_parallel == 1) | (setting.model.moe is not None)
        ),
        complaint=_no_experts,
    ),
    Rule(
        name="expert_parallel_divides_experts",
        frameworks=FRAMEWORKS,
        field="expert_parallel",
        text="ep divides the number of experts",
        source=f"{ARGUMENTS}: Number of experts should be a multiple of expert model parallel size",
        columns=columns("expert_parallel"),
        holds=lambda plans, setting: (
            mask(setting.model.moe is None) | (_num_experts(setting) % plans.expert_parallel == 0)
        ),
        complaint=lambda plan, setting: must_divide(
            "num_experts", _num_experts(setting), plan.expert_parallel, setting.num_devices
        ),
    ),
    Rule(
        name="expert_tensor_parallel_divides_width",
        frameworks=FRAMEWORKS,
        field="expert_tensor_parallel",
        text="etp divides the width of an expert",
        source="megatron/core/utils.py divide()",
        columns=columns("expert_tensor_parallel"),
        holds=lambda plans, setting: (
            (plans.expert_tensor_parallel == 1) | (_expert_width(setting) % plans.expert_tensor_parallel == 0)
        ),
        complaint=_width_complaint,
    ),
    Rule(
        name="expert_ranks",
        frameworks=(MEGATRON,),
        field="expert_parallel",
        text="ep x etp divides the tp x cp x dp ranks of a stage",
        source="megatron/core/parallel_state.py: expert_tensor_model_pipeline_parallel_size divides the world size",
        columns=columns(
            "tensor_parallel", "context_parallel", "data_parallel", "expert_parallel", "expert_tensor_parallel"
        ),
        holds=lambda plans, _setting: _expert_ranks(plans),
        complaint=_expert_complaint,
    ),
    Rule(
        name="shard_sets_divide_expert_replicas",
        frameworks=(MEGATRON,),
        field="zero_shard_degree",
        text="sets of shards (dp x cp over the shard degree) divide the replicas of an expert, too",
        source="megatron/core/parallel_state.py: Expert data parallel size should be divisible by partial DistOpt "
        "shard factor (--num-distributed-optimizer-instances)",
        columns=columns(
            *("tensor_parallel", "data_parallel", "context_parallel", "zero_shard_degree"),
            *("expert_parallel", "expert_tensor_parallel"),
        ),
        holds=_shares_experts_out,
        complaint=_shares_complaint,
    ),
    Rule(
        name="expert_order_with_pipeline_inside",
        frameworks=(MEGATRON,),
        field="axis_order",
        text="with the pipeline inside the data ranks, ep x etp equals tp x cp",
        source="megatron/core/parallel_state.py: without pp-last rank ordering, the data-parallel sizes of attention "
        "and MoE layers must be the same",
        columns=columns(
            "axis_order",
            "pipeline_parallel",
            "tensor_parallel",
            "context_parallel",
            "expert_parallel",
            "expert_tensor_parallel",
        ),
        holds=lambda plans, setting: (
            mask(setting.model.moe is None)
            | (plans.axis_order == int(AxisOrder.TP_CP_DP_PP))
            | (plans.pipeline_parallel == 1)
            | (plans.expert_parallel * plans.expert_tensor_parallel == plans.tensor_parallel * plans.context_parallel)
        ),
        complaint=lambda _plan, _setting: ("needs ep x etp = tp x cp for a mixture of experts", "the default order"),
    ),
    Rule(
        name="expert_ranks_in_data_ranks",
        frameworks=(DEEPSPEED, NANOTRON, HUGGINGFACE),
        field="expert_parallel",
        text="ep divides the data-parallel ranks",
        source="deepspeed/utils/groups.py _create_expert_and_data_parallel; nanotron ParallelContext",
        columns=columns("data_parallel", "expert_parallel"),
        holds=lambda plans, _setting: plans.data_parallel % plans.expert_parallel == 0,
        complaint=lambda plan, setting: must_divide(
            "data_parallel", plan.data_parallel, plan.expert_parallel, setting.num_devices
        ),
    ),
    Rule(
        name="expert_ranks_in_sharded_ranks",
        frameworks=(FSDP,),
        field="expert_parallel",
        text="ep takes all of cp (and of tp when etp is 1) and divides the sharded ranks",
        source=f"{TITAN_DIMS}._validate",
        columns=columns(
            "tensor_parallel",
            "context_parallel",
            "data_parallel",
            "expert_parallel",
            "expert_tensor_parallel",
            "zero_stage",
            "zero_shard_degree",
        ),
        holds=lambda plans, _setting: _titan_expert_ranks(plans),
        complaint=_expert_complaint,
    ),
    Rule(
        name="expert_tensor_parallel_one_or_tp",
        frameworks=(FSDP,),
        field="expert_tensor_parallel",
        text="etp is 1 or tp",
        source=f"{TITAN_DIMS}._validate: Currently we only support ETP=TP or ETP=1",
        columns=columns("tensor_parallel", "expert_parallel", "expert_tensor_parallel"),
        holds=lambda plans, _setting: (
            (plans.expert_tensor_parallel == plans.tensor_parallel) | (plans.expert_tensor_parallel == 1)
        ),
        complaint=lambda plan, _setting: (
            f"must be 1 or tp={plan.tensor_parallel}; got {plan.expert_tensor_parallel}",
            one_of(sorted({1, plan.tensor_parallel})),
        ),
    ),
    Rule(
        name="expert_tensor_parallel_is_tp",
        frameworks=(DEEPSPEED, NANOTRON, HUGGINGFACE),
        field="expert_tensor_parallel",
        text="experts are split over the same tensor ranks as the rest",
        source="DeepSpeed MoE enable_expert_tensor_parallelism; nanotron MoE layers",
        columns=columns("tensor_parallel", "expert_tensor_parallel"),
        holds=lambda plans, setting: (
            (setting.model.moe is None) | (plans.expert_tensor_parallel == plans.tensor_parallel)
        ),
        complaint=lambda plan, _setting: (
            f"must equal tp={plan.tensor_parallel}; got {plan.expert_tensor_parallel}",
            f"etp {plan.tensor_parallel}",
        ),
    ),
    Rule(
        name="deepspeed_experts_exclude_zero_3",
        frameworks=(DEEPSPEED,),
        field="zero_stage",
        text="expert parallelism is not combined with ZeRO 3",
        source="deepspeed/runtime/engine.py: MoE not supported with Stage 3",
        columns=columns("zero_stage", "expert_parallel"),
        holds=lambda plans, _setting: (plans.zero_stage < 3) | (plans.expert_parallel == 1),
        complaint=lambda plan, _setting: (
            f"3 is not combined with expert_parallel={plan.expert_parallel} in DeepSpeed",
            "zero 2, or ep 1",
        ),
    ),
    Rule(
        name="trainer_keeps_experts_whole",
        frameworks=(HUGGINGFACE,),
        field="expert_parallel",
        text="the Trainer has no expert parallelism",
        source="Hugging Face transformers Trainer",
        columns=columns("expert_parallel"),
        holds=lambda plans, _setting: plans.expert_parallel == 1,
        complaint=lambda _plan, _setting: ("the Hugging Face Trainer has no expert parallelism", "ep 1"),
    ),
    Rule(
        name="experts_need_sequence_parallel",
        frameworks=(MEGATRON,),
        field="sequence_parallel",
        text="mixtures of experts with tp > 1 need sequence parallelism",
        source=f"{ARGUMENTS}: When using MoE and tensor parallelism, sequence parallelism must be used",
        columns=columns("tensor_parallel", "sequence_parallel"),
        holds=lambda plans, setting: (
            plans.sequence_parallel | (plans.tensor_parallel == 1) | (setting.model.moe is None)
        ),
        complaint=_sequence_parallel_complaint,
    ),
    Rule(
        name="expert_overlap_needs_interleaving",
        frameworks=(MEGATRON,),
        field="virtual_stages",
        text="hiding the exchange of tokens with experts needs virtual stages where pp > 1",
        source=f"{MCORE}: overlap_moe_expert_parallel_comm with pipeline_model_parallel_size > 1",
        columns=columns("expert_parallel", "pipeline_parallel", "virtual_stages"),
        holds=lambda plans, setting: (
            mask(not setting.overlaps_experts)
            | (plans.expert_parallel == 1)
            | (plans.pipeline_parallel == 1)
            | (plans.virtual_stages > 1)
        ),
        complaint=lambda plan, _setting: (
            f"must be above 1 to hide the exchange of tokens with experts at pp={plan.pipeline_parallel}",
            "vpp 2, or framework megatron",
        ),
    ),
    Rule(
        name="expert_overlap_excludes_whole_layers",
        frameworks=(MEGATRON,),
        field="recompute",
        text="hiding the exchange of tokens with experts excludes recomputing whole layers, or all of an expert layer",
        source=f"{MCORE}: overlap_moe_expert_parallel_comm with recompute_granularity full or moe in recompute_modules",
        columns=columns("expert_parallel", "recompute", "recompute_modules"),
        holds=lambda plans, setting: (
            mask(not setting.overlaps_experts) | (plans.expert_parallel == 1) | ~_repeats_exchange(plans)
        ),
        complaint=lambda _plan, _setting: (
            "would repeat the exchange of tokens with experts, which the framework hides only if it runs once",
            "recompute none or selective, or framework megatron",
        ),
    ),
)
