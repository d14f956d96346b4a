"""Rules on pipeline stages, virtual stages and schedules.

Symbols: L layers, p stages, v virtual stages per rank, m micro-batches.
"""

import numpy as np

from costmodels.plan import BoolArray, ExecutionPlan, PlanBatch, Schedule, chunks_per_stage
from planner.rules.base import (
    ARGUMENTS,
    DEEPSPEED,
    FRAMEWORKS,
    FSDP,
    HUGGINGFACE,
    MEGATRON,
    NANOTRON,
    Rule,
    Setting,
    columns,
    divisors,
    mask,
    must_divide,
    one_of,
)

_TITAN_PIPELINE = "torchtitan/distributed/pipeline_parallel.py; torch.distributed.pipelining.schedules"
_STAGES = columns("pipeline_parallel", "first_stage_layers", "last_stage_layers")
_SCHEDULES = {
    MEGATRON: (Schedule.ONE_F_ONE_B,),
    DEEPSPEED: (Schedule.ONE_F_ONE_B,),
    FSDP: (Schedule.ONE_F_ONE_B, Schedule.GPIPE, Schedule.ZERO_BUBBLE_V),
    NANOTRON: (Schedule.ONE_F_ONE_B, Schedule.GPIPE),
    HUGGINGFACE: (Schedule.ONE_F_ONE_B,),
}
SCHEDULE_NAMES = {
    "1f1b": Schedule.ONE_F_ONE_B,
    "gpipe": Schedule.GPIPE,
    "zb-1p": Schedule.ZERO_BUBBLE_1P,
    "zb-2p": Schedule.ZERO_BUBBLE_2P,
    "zb-v": Schedule.ZERO_BUBBLE_V,
}
NAME_OF_SCHEDULE = {code: name for name, code in SCHEDULE_NAMES.items()}


def _even_layers(plans: PlanBatch, setting: Setting) -> BoolArray:
    """Layers left after fixed first and last stages divide over the other stages, or just suffice for a free layout."""
    if plans.stage_layers is not None:
        return _laid_out(plans, setting)
    first, last = plans.first_stage_layers, plans.last_stage_layers
    free_stages = plans.pipeline_parallel - (first > 0) - (last > 0)
    free_layers = setting.model.num_layers - first - last
    divided = setting.free_layout | (free_layers % np.maximum(free_stages, 1) == 0)
    even = (free_stages > 0) & (free_layers >= free_stages) & divided
    return mask(even | ((free_stages == 0) & (free_layers == 0)))


def _laid_out(plans: PlanBatch, setting: Setting) -> BoolArray:
    table = plans.stage_layers
    if table is None:
        return np.ones(len(plans), dtype=np.bool_)
    laid = table.sum(axis=1) > 0
    complete = (table.sum(axis=1) == setting.model.num_layers) & ((table > 0).sum(axis=1) == plans.pipeline_parallel)
    return mask(~laid | complete)


def _enough_layers(plans: PlanBatch, setting: Setting) -> BoolArray:
    chunks = chunks_per_stage(plans.schedule, plans.virtual_stages)
    first, last = plans.first_stage_layers, plans.last_stage_layers
    bare = sum((end > 0) & (end == chunks - 1) for end in (first, last)) if setting.free_layout else 0
    enough = plans.pipeline_parallel * chunks <= setting.model.num_layers + bare
    return mask(enough & (first + last <= setting.model.num_layers))


def _even_chunks(plans: PlanBatch, setting: Setting) -> BoolArray:
    """Every rank's layers divide into its chunks, fixed first and last stages included; not where laid out by hand.

    A free layout needs a layer for every chunk only, but for those that hold embedding or head.
    """
    v = plans.virtual_stages
    first, last = plans.first_stage_layers, plans.last_stage_layers
    free_stages = plans.pipeline_parallel - (first > 0) - (last > 0)
    middle = np.where(free_stages > 0, (setting.model.num_layers - first - last) // np.maximum(free_stages, 1), v)
    laid = False if plans.stage_layers is None else plans.stage_layers.any(axis=1)
    if setting.free_layout:
        held = ((first == 0) | (first >= v - 1)) & ((last == 0) | (last >= v - 1)) & (middle >= v)
    else:
        held = (first % v == 0) & (last % v == 0) & (middle % v == 0)
    return mask((v == 1) | held | laid)


def _rounds(plans: PlanBatch) -> BoolArray:
    """Torch's interleaved schedule runs max(1, m // p) rounds, which must divide m."""
    m = plans.num_microbatches
    rounds = np.maximum(m // plans.pipeline_parallel, 1)
    return mask((plans.virtual_stages == 1) | (m % rounds == 0))


def _schedule_known(plans: PlanBatch, setting: Setting) -> BoolArray:
    known = [int(code) for code in _SCHEDULES[setting.framework]]
    return mask(np.isin(plans.schedule, known))


def _layers_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    layers = setting.model.num_layers
    first, last = plan.first_stage_layers, plan.last_stage_layers
    if plan.stage_layers:
        return f"stage_layers must give all {layers} layers to the stages; got {str(plan.stage_layers)[:60]}", ""
    if (first or last) and plan.pipeline_parallel == 1:
        unsharded = " and zero 0 or 1" if plan.zero_stage > 1 else ""  # with which alone there are stages
        ends = " and ".join(name for name, count in (("first", first), ("last", last)) if count)
        return "needs several pipeline stages; got 1", f"pp 2 or more{unsharded}, or leave those of the {ends} out"
    if first or last:
        return (
            f"{layers} layers, less {first} on the first and {last} on the last stage, must divide over the stages "
            f"between; got {plan.pipeline_parallel} stages",
            "change first_stage_layers or last_stage_layers",
        )
    problem, hint = must_divide("num_layers", layers, plan.pipeline_parallel, setting.num_devices)
    return problem, f"{hint}; or set first_stage_layers and last_stage_layers"


PIPELINE_RULES = (
    Rule(
        name="pipeline_divides_layers",
        frameworks=(MEGATRON,),
        field="pipeline_parallel",
        text="pp divides the layers, apart from fixed first and last stages and where any layout can be given",
        source=f"{ARGUMENTS}: Number of layers should be divisible by the pipeline-model-parallel size",
        columns=_STAGES,
        holds=_even_layers,
        complaint=_layers_complaint,
        also=("first_stage_layers", "last_stage_layers"),
    ),
    Rule(
        name="stage_layers_complete",
        frameworks=FRAMEWORKS,
        field="stage_layers",
        text="hand-laid stages name every stage and add up to the layers",
        source="Megatron-LM --pipeline-model-parallel-layout (PipelineParallelLayerLayout)",
        columns=columns("pipeline_parallel"),
        holds=_laid_out,
        complaint=lambda plan, setting: (
            f"{len(plan.stage_layers)} stages with {sum(plan.stage_layers)} layers; "
            f"pp is {plan.pipeline_parallel} and the model has {setting.model.num_layers} layers",
            "list every stage's layers",
        ),
    ),
    Rule(
        name="stages_have_layers",
        frameworks=FRAMEWORKS,
        field="pipeline_parallel",
        text="every stage, and every virtual stage, has a layer, but for those of embedding or head in a free layout",
        source=f"{_TITAN_PIPELINE}; Megatron-LM account_for_embedding_in_pipeline_split (transformer_block.py: "
        "num_layers_to_build >= 0 in the first and the last virtual stage)",
        columns=_STAGES | columns("virtual_stages", "schedule"),
        holds=_enough_layers,
        complaint=lambda plan, setting: (
            f"{plan.pipeline_parallel} stages x {plan.virtual_stages} chunks need more than the "
            f"{setting.model.num_layers} layers of {setting.model.name}",
            f"pp x vpp at most {setting.model.num_layers}",
        ),
    ),
    Rule(
        name="pipeline_schedule_exists",
        frameworks=FRAMEWORKS,
        field="schedule",
        text="the framework implements the schedule",
        source=(
            "megatron/core/pipeline_parallel/schedules.py; deepspeed/runtime/pipe/schedule.py TrainSchedule; "
            f"{_TITAN_PIPELINE}; nanotron pp_engine: 1f1b or afab"
        ),
        columns=columns("schedule"),
        holds=_schedule_known,
        complaint=lambda plan, setting: (
            f"{NAME_OF_SCHEDULE[plan.schedule]!r} is not implemented by {setting.framework}",
            " or ".join(NAME_OF_SCHEDULE[code] for code in _SCHEDULES[setting.framework]),
        ),
    ),
    Rule(
        name="schedule_needs_pipeline",
        frameworks=FRAMEWORKS,
        field="schedule",
        text="a schedule other than 1F1B needs pp > 1",
        source=_TITAN_PIPELINE,
        columns=columns("pipeline_parallel", "schedule"),
        holds=lambda plans, _setting: (plans.pipeline_parallel > 1) | (plans.schedule == int(Schedule.ONE_F_ONE_B)),
        complaint=lambda plan, _setting: (f"{NAME_OF_SCHEDULE[plan.schedule]!r} needs pipeline_parallel > 1", "1f1b"),
    ),
    Rule(
        name="interleaving_exists",
        frameworks=(DEEPSPEED, NANOTRON),
        field="virtual_stages",
        text="there are no virtual stages",
        source="deepspeed/runtime/pipe/schedule.py TrainSchedule; nanotron pp_engine: 1f1b or afab",
        columns=columns("virtual_stages"),
        holds=lambda plans, _setting: plans.virtual_stages == 1,
        complaint=lambda _plan, setting: (f"{setting.framework} has no interleaved schedule", "vpp 1"),
    ),
    Rule(
        name="interleaving_is_1f1b",
        frameworks=FRAMEWORKS,
        field="virtual_stages",
        text="virtual stages belong to 1F1B (ZB-V places its two chunks itself)",
        source="arXiv:2104.04473 section 2.2.2; arXiv:2405.15362",
        columns=columns("virtual_stages", "schedule"),
        holds=lambda plans, _setting: (plans.virtual_stages == 1) | (plans.schedule == int(Schedule.ONE_F_ONE_B)),
        complaint=lambda plan, _setting: (f"must be 1 with schedule {NAME_OF_SCHEDULE[plan.schedule]!r}", "vpp 1"),
    ),
    Rule(
        name="interleaving_needs_pipeline",
        frameworks=(MEGATRON, FSDP),
        field="virtual_stages",
        text="virtual stages need pp > 1",
        source=f"{ARGUMENTS}: pipeline-model-parallel size should be greater than 1 (with p2p overlap)",
        columns=columns("pipeline_parallel", "virtual_stages"),
        holds=lambda plans, _setting: (plans.virtual_stages == 1) | (plans.pipeline_parallel > 1),
        complaint=lambda _plan, _setting: ("needs pipeline_parallel > 1", "vpp 1, or pp 2"),
    ),
    Rule(
        name="interleaving_divides_layers",
        frameworks=(MEGATRON,),
        field="virtual_stages",
        text="vpp divides the layers of every stage, unless any layout can be given",
        source=f"{ARGUMENTS}: number of layers per pipeline stage must be divisible (80 layers, PP16 VPP2 "
        "silently trained 64: NVIDIA/Megatron-LM issue 468)",
        columns=_STAGES | columns("virtual_stages"),
        holds=_even_chunks,
        complaint=lambda plan, setting: (
            f"must divide the {setting.model.num_layers // plan.pipeline_parallel} layers of a stage; "
            f"got {plan.virtual_stages}",
            one_of(divisors(max(setting.model.num_layers // plan.pipeline_parallel, 1))),
        ),
    ),
    Rule(
        name="interleaving_divides_microbatches",
        frameworks=(MEGATRON,),
        field="virtual_stages",
        text="with virtual stages, pp divides the micro-batches",
        source="megatron/core/pipeline_parallel/schedules.py (micro-batch groups of pp by default)",
        columns=columns("pipeline_parallel", "virtual_stages", "num_microbatches"),
        holds=lambda plans, _setting: (
            (plans.virtual_stages == 1) | (plans.num_microbatches % plans.pipeline_parallel == 0)
        ),
        complaint=lambda plan, _setting: (
            f"needs micro-batches in multiples of pp={plan.pipeline_parallel}; got {plan.num_microbatches}",
            "vpp 1, or another micro-batch size",
        ),
    ),
    Rule(
        name="interleaving_rounds",
        frameworks=(FSDP,),
        field="virtual_stages",
        text="with virtual stages, max(1, m // pp) rounds divide the m micro-batches",
        source="torch.distributed.pipelining.schedules ScheduleInterleaved1F1B",
        columns=columns("pipeline_parallel", "virtual_stages", "num_microbatches"),
        holds=lambda plans, _setting: _rounds(plans),
        complaint=lambda plan, _setting: (
            f"{plan.num_microbatches} micro-batches do not form whole rounds over pp={plan.pipeline_parallel}",
            "vpp 1, or micro-batches in multiples of pp",
        ),
    ),
)
