"""Rules on the product of the degrees, the batch, tensor parallelism and Megatron sequence parallelism."""

from collections.abc import Mapping
from math import gcd

import numpy as np

from costmodels.plan import BoolArray, ExecutionPlan, PlanBatch
from planner.rules.base import (
    ARGUMENTS,
    DEEPSPEED,
    FRAMEWORKS,
    FSDP,
    HUGGINGFACE,
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
)

_MCORE_ERRORS = "Megatron Core documentation, 'Configuration Errors' (2026)"
_NANOTRON_CONFIG = "nanotron/config/config.py Config.__post_init__"


def _all_true(plans: PlanBatch) -> BoolArray:
    return np.ones(len(plans), dtype=np.bool_)


def _degree_product(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    plan_text = (
        f"{plan.tensor_parallel} x {plan.pipeline_parallel} x {plan.data_parallel} x {plan.context_parallel}"
        f" (tp x pp x dp x cp) must equal the {setting.num_devices} devices"
    )
    model_degree = plan.tensor_parallel * plan.pipeline_parallel * plan.context_parallel
    if setting.num_devices % model_degree:
        return plan_text, f"tp x pp x cp must be one of {one_of(divisors(setting.num_devices))}"
    return plan_text, f"dp {setting.num_devices // model_degree}"


def _batch_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    total = setting.job.global_batch_size
    problem = (
        f"micro-batch {plan.micro_batch_size} x dp {plan.data_parallel} x {plan.num_microbatches} micro-batches"
        f" must equal the global batch of {total} sequences"
    )
    per_rank, rest = divmod(total, plan.data_parallel)
    if rest:
        return problem, f"a global batch that is a multiple of dp={plan.data_parallel}"
    return problem, f"micro-batch {one_of(divisors(per_rank))}"


def _batch_blame(plan: ExecutionPlan, setting: Setting, pins: Mapping[str, int]) -> tuple[str, str, str]:
    """Which of micro-batch and number of micro-batches to change: one that is fixed, so that the other still holds."""
    problem, hint = _batch_complaint(plan, setting)
    per_rank, rest = divmod(setting.job.global_batch_size, plan.data_parallel)
    size, count = pins.get("micro_batch_size"), pins.get("num_microbatches")
    if rest:
        return "data_parallel" if "data_parallel" in pins else "micro_batch_size", problem, hint
    if count is None:
        return "micro_batch_size", problem, hint
    if size is None:
        return "num_microbatches", problem, f"num_microbatches {one_of(divisors(per_rank))}"
    if per_rank % count == 0:
        return "micro_batch_size", problem, f"micro-batch {per_rank // count}"
    if per_rank % size == 0:
        return "num_microbatches", problem, f"num_microbatches {per_rank // size}"
    near = min(divisors(per_rank), key=lambda part: abs(part - size))
    return "num_microbatches", problem, f"num_microbatches {per_rank // near}, and micro-batch {near}"


def _kv_split(plans: PlanBatch, setting: Setting) -> BoolArray:
    t, holds = plans.tensor_parallel, _all_true(plans)
    for kv in setting.key_value_heads:
        holds &= (kv % t == 0) | (t % kv == 0)
    return mask(holds)


def _kv_whole(plans: PlanBatch, setting: Setting) -> BoolArray:
    return mask(gcd(*setting.key_value_heads) % plans.tensor_parallel == 0)


def _kv_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    both = gcd(setting.model.split_heads, setting.num_devices)
    return must_divide("num_key_value_heads", gcd(*setting.key_value_heads), plan.tensor_parallel, both)


def _dense_width(setting: Setting) -> list[int]:
    """Widths of the MLPs tensor parallelism splits."""
    model = setting.model
    widths = [model.ffn_hidden_size] if model.dense_mlp_layers else []
    if model.moe is not None and model.moe.shared_ffn_hidden_size:
        widths.append(model.moe.shared_ffn_hidden_size)
    return widths


def _widths_divide(plans: PlanBatch, setting: Setting) -> BoolArray:
    holds = _all_true(plans)
    for width in _dense_width(setting):
        holds &= width % plans.tensor_parallel == 0
    return holds


def _sequence_unit(plans: PlanBatch, setting: Setting) -> BoolArray:
    shard = np.where(plans.sequence_parallel, plans.tensor_parallel, 1)
    s, c = setting.job.sequence_length, plans.context_parallel
    return mask((s % c == 0) & ((s // np.maximum(c, 1)) % shard == 0))


def unsplit_sequence(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    """What to say of a sequence that does not split over the ranks that share it, and the smallest change."""
    length, c, t = setting.job.sequence_length, plan.context_parallel, plan.tensor_parallel
    always = setting.framework == FSDP or (setting.framework == MEGATRON and setting.model.moe is not None)
    longer = f"sequence_length {-(-length // (c * t)) * c * t}"
    return (
        f"the sequence length {length} does not split over cp {c} x tp {t}",
        f"{longer if always and t > 1 else 'sequence_parallel off'}, or a smaller degree",
    )


LAYOUT = (
    Rule(
        name="world_size",
        frameworks=FRAMEWORKS,
        field="data_parallel",
        text="tp x pp x dp x cp equals the number of devices",
        source=f"{ARGUMENTS}; {TITAN_DIMS}._validate; deepspeed/runtime/pipe/topology.py",
        columns=columns("tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel"),
        holds=lambda plans, setting: plans.num_devices == setting.num_devices,
        complaint=_degree_product,
    ),
    Rule(
        name="global_batch",
        frameworks=FRAMEWORKS,
        field="micro_batch_size",
        text="micro-batch x dp x micro-batches equals the global batch",
        source=f"{ARGUMENTS} and num_microbatches_calculator; deepspeed/runtime/config.py batch assertion",
        columns=columns("data_parallel", "micro_batch_size", "num_microbatches"),
        holds=lambda plans, setting: (
            plans.micro_batch_size * plans.data_parallel * plans.num_microbatches == setting.job.global_batch_size
        ),
        complaint=_batch_complaint,
        blame=_batch_blame,
    ),
    Rule(
        name="data_parallel_divides_batch",
        frameworks=FRAMEWORKS,
        field="data_parallel",
        text="dp divides the global batch",
        source=f"{ARGUMENTS} and num_microbatches_calculator",
        columns=columns("data_parallel"),
        holds=lambda plans, setting: setting.job.global_batch_size % plans.data_parallel == 0,
        complaint=lambda plan, setting: must_divide(
            "global_batch_size", setting.job.global_batch_size, plan.data_parallel, setting.num_devices
        ),
    ),
)

TENSOR = (
    Rule(
        name="trainer_is_data_parallel",
        frameworks=(HUGGINGFACE,),
        field="tensor_parallel",
        text="the Trainer is planned with data parallelism only (DDP, ZeRO or FSDP)",
        source="Hugging Face transformers Trainer; plan model parallelism as fsdp, deepspeed or megatron",
        columns=columns("tensor_parallel", "pipeline_parallel", "context_parallel"),
        holds=lambda plans, _setting: plans.tensor_parallel * plans.pipeline_parallel * plans.context_parallel == 1,
        complaint=lambda _plan, _setting: (
            "the Hugging Face Trainer is planned with data parallelism only",
            "tp 1, pp 1 and cp 1, or framework fsdp, deepspeed or megatron",
        ),
        also=("pipeline_parallel", "context_parallel"),
    ),
    Rule(
        name="tensor_parallel_divides_heads",
        frameworks=FRAMEWORKS,
        field="tensor_parallel",
        text="tp divides the attention heads",
        source=f"{_MCORE_ERRORS}; {_NANOTRON_CONFIG}; torchtitan parallelize of wq by columns",
        columns=columns("tensor_parallel"),
        holds=lambda plans, setting: setting.model.split_heads % plans.tensor_parallel == 0,
        complaint=lambda plan, setting: must_divide(
            "num_attention_heads", setting.model.split_heads, plan.tensor_parallel, setting.num_devices
        ),
    ),
    Rule(
        name="tensor_parallel_splits_kv_heads",
        frameworks=(MEGATRON,),
        field="tensor_parallel",
        text="tp divides, or is a multiple of, the key/value heads",
        source=f"{_MCORE_ERRORS}: num_query_groups must be a multiple or divisor of tensor_model_parallel_size",
        columns=columns("tensor_parallel"),
        holds=_kv_split,
        complaint=lambda plan, setting: (
            "must divide or be a multiple of num_key_value_heads="
            f"{' and '.join(map(str, setting.key_value_heads))}; got {plan.tensor_parallel}",
            one_of(
                [
                    t
                    for t in divisors(setting.model.split_heads)
                    if all(heads % t == 0 or t % heads == 0 for heads in setting.key_value_heads)
                ]
            ),
        ),
    ),
    Rule(
        name="tensor_parallel_divides_kv_heads",
        frameworks=(DEEPSPEED, FSDP, NANOTRON),
        field="tensor_parallel",
        text="tp divides the key/value heads, which are not replicated",
        source=f"{_NANOTRON_CONFIG}; torchtitan splits wk and wv by columns; Megatron-DeepSpeed ParallelAttention",
        columns=columns("tensor_parallel"),
        holds=_kv_whole,
        complaint=_kv_complaint,
    ),
    Rule(
        name="tensor_parallel_divides_mlp",
        frameworks=FRAMEWORKS,
        field="tensor_parallel",
        text="tp divides the width of the MLP (and of the shared experts)",
        source="megatron/core/utils.py divide(); nanotron TensorParallelColumnLinear",
        columns=columns("tensor_parallel"),
        holds=_widths_divide,
        complaint=lambda plan, setting: (
            f"must divide the MLP widths {_dense_width(setting)}; got {plan.tensor_parallel}",
            one_of(
                [
                    t
                    for t in divisors(setting.model.split_heads)
                    if all(width % t == 0 for width in _dense_width(setting))
                ]
            ),
        ),
    ),
    Rule(
        name="sequence_parallel_needs_tensor_parallel",
        frameworks=FRAMEWORKS,
        field="sequence_parallel",
        text="sequence parallelism needs tp > 1",
        source=f"{_MCORE_ERRORS}: Cannot use sequence parallelism without tensor parallelism",
        columns=columns("tensor_parallel", "sequence_parallel"),
        holds=lambda plans, _setting: ~plans.sequence_parallel | (plans.tensor_parallel > 1),
        complaint=lambda _plan, _setting: ("needs tensor_parallel > 1", "sequence_parallel off, or tp 2"),
    ),
    Rule(
        name="tensor_parallel_shards_sequence",
        frameworks=(FSDP,),
        field="sequence_parallel",
        text="tensor parallelism always shards the sequence between blocks",
        source="torchtitan parallelize plans (SequenceParallel norms whenever tp > 1)",
        columns=columns("tensor_parallel", "sequence_parallel"),
        holds=lambda plans, _setting: plans.sequence_parallel | (plans.tensor_parallel == 1),
        complaint=lambda _plan, _setting: ("cannot be off with tp > 1 in torchtitan", "sequence_parallel on"),
    ),
    Rule(
        name="sequence_divides_over_ranks",
        frameworks=FRAMEWORKS,
        field="sequence_parallel",
        text="with sequence parallelism, cp x tp divides the sequence length",
        source=f"{TITAN_DIMS}.seq_len_divisor; Megatron-LM scatter_to_sequence_parallel_region",
        columns=columns("tensor_parallel", "context_parallel", "sequence_parallel"),
        holds=_sequence_unit,
        complaint=unsplit_sequence,
    ),
)
