"""Rules on indexers, which choose the keys of DeepSeek sparse attention: who trains them, and how a sequence is cut."""

import numpy as np

from costmodels.plan import BoolArray, ContextKind, ExecutionPlan, PlanBatch
from planner.rules.base import (
    DEEPSPEED,
    FRAMEWORK_TITLES,
    FSDP,
    HUGGINGFACE,
    MCORE,
    MEGATRON,
    NANOTRON,
    Rule,
    Setting,
    columns,
    mask,
)
from profiles.errors import SpecError
from profiles.model import ModelSpec

_DSA = "megatron/core/transformer/experimental_attention_variant"
_OTHERS = (
    "transformers models/deepseek_v32 and glm_moe_dsa: eager and sdpa attention mask what was not chosen, of scores in "
    "fp32 of every pair of tokens and index head; torchtitan 0.3.0 and nanotron have no such model"
)
_ROWS = 64  # query heads of a rank, or a divisor of it: what FlashMLA's kernels are padded to


def shares_choices(model: ModelSpec) -> bool:
    """Whether layers take the choice of keys of a layer before them."""
    return model.indexer is not None and model.indexer.layers < model.num_layers


def check_indexer_trained(model: ModelSpec, framework: str) -> None:
    """Refuse a model with an indexer where a training framework has no price for it.

    Raises:
        SpecError: If it has none.
    """
    if model.indexer is not None and framework != MEGATRON:
        problem, hint = _untrained(framework)
        raise SpecError("model.indexer", problem, hint)


def _untrained(framework: str) -> tuple[str, str]:
    if framework == NANOTRON:
        return f"{FRAMEWORK_TITLES[framework]} has no indexer that chooses keys", "framework megatron"
    return (
        f"{FRAMEWORK_TITLES[framework]} runs model code that scores and masks all pairs of tokens op by op, and has no "
        "price here",
        "framework megatron, which has kernels for chosen keys",
    )


def _plain(plans: PlanBatch, setting: Setting) -> BoolArray:
    return np.full(len(plans), setting.model.indexer is None)


def _fits_heads(plans: PlanBatch, setting: Setting) -> BoolArray:
    heads = setting.model.num_attention_heads / plans.tensor_parallel
    return _plain(plans, setting) | mask((heads % _ROWS == 0) | (_ROWS % np.maximum(heads, 1) == 0))


def _heads_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    heads = setting.model.num_attention_heads
    problem = (
        f"leaves {heads / plan.tensor_parallel:g} of {heads} heads to a rank, for which no kernel of chosen keys is"
    )
    return problem, f"a degree that leaves a multiple or a divisor of {_ROWS}"


INDEXER = (
    Rule(
        name="indexer_has_kernels",
        frameworks=(DEEPSPEED, FSDP, HUGGINGFACE, NANOTRON),
        field="model.indexer",
        text="keys are chosen by an indexer under Megatron-Core only",
        source=_OTHERS,
        columns=columns(),
        holds=_plain,
        complaint=lambda _plan, setting: _untrained(setting.framework),
    ),
    Rule(
        name="indexer_attention_is_fused",
        frameworks=(MEGATRON,),
        field="job.attention",
        text="attention over chosen keys runs on fused kernels, in 16 bits",
        source=f"{_DSA}/dsa_kernels.py: --attention-backend unfused and --dsa-kernel-backend none go through chunks of "
        "PyTorch's operations, which have no price; dsa_cudnn_kernels.py and ops/sparse_mla.py take bf16",
        columns=columns(),
        holds=lambda plans, setting: (
            _plain(plans, setting) | (setting.job.attention == "flash" and not setting.job.fp8_attention)
        ),
        complaint=lambda _plan, _setting: (
            "an indexer's keys are attended to by fused kernels in 16 bits",
            "attention flash, without fp8 attention",
        ),
    ),
    Rule(
        name="indexer_gathers_keys",
        frameworks=(MEGATRON,),
        field="context_kind",
        text="with an indexer context parallelism gathers keys",
        source=f"{MCORE}: DSAttention context parallelism currently supports cp_comm_type=allgather only (0.19.2)",
        columns=columns("context_parallel", "context_kind"),
        holds=lambda plans, setting: (
            _plain(plans, setting) | (plans.context_parallel == 1) | (plans.context_kind == int(ContextKind.ALL_GATHER))
        ),
        complaint=lambda _plan, _setting: (
            "DSAttention gathers the keys of a context, and has no ring and no exchange of heads",
            "context_kind all_gather, or cp 1",
        ),
    ),
    Rule(
        name="indexer_choices_stay_in_a_stage",
        frameworks=(MEGATRON,),
        field="pipeline_parallel",
        text="layers that take the choice of one before them are on its pipeline stage",
        source=f"{_DSA}/dsa.py: cross-PP top-k sharing is not supported; a stage starts on a computing layer (0.19.2)",
        columns=columns("pipeline_parallel"),
        holds=lambda plans, setting: (
            np.full(len(plans), not shares_choices(setting.model)) | (plans.pipeline_parallel == 1)
        ),
        complaint=lambda _plan, setting: (
            f"{setting.model.name} has layers that take the choice of keys of one before, and which are where is not "
            "known here: a stage would start with one",
            "pp 1",
        ),
    ),
    Rule(
        name="indexer_heads_fit_kernels",
        frameworks=(MEGATRON,),
        field="tensor_parallel",
        text=f"heads of a rank are a multiple or a divisor of {_ROWS} where an indexer chooses keys",
        source=f"{_DSA}/dsa_cudnn_kernels.py, _flash_mla_head_padding (0.19.2)",
        columns=columns("tensor_parallel"),
        holds=_fits_heads,
        complaint=_heads_complaint,
    ),
)
