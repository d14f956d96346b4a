"""Rules on plans whose stages differ: what makes one a plan at all, and which framework could run it.

Frameworks lay out one mesh of ranks: they let stages differ in layers at most, and not all of them in that. A plan
they can express is a uniform plan with its layers laid out by hand, and is judged by the rules for those. What is
left needs a runtime with a mesh per stage, which none of the frameworks planned for has (Alpa, arXiv:2201.12023,
and FlashFlex, arXiv:2409.01143, had one).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Recompute, Schedule, chunks_per_stage
from costmodels.stage_plans.plan import CONFIG_COLUMNS, OFFLOAD_PARTS, StageConfigs, StagePlanBatch
from costmodels.stages.balance import balanced_stage_layers
from costmodels.stages.table import stage_table
from planner.rules.base import DEEPSPEED, FRAMEWORKS, HUGGINGFACE, MEGATRON, NANOTRON, Setting, mask
from planner.rules.modules import CORE
from planner.space.constraints import RULES, rules_for
from profiles.model import ModelSpec
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSetting:
    """What rules on stages look at besides the plan.

    Attributes:
        model: The model.
        configs: The configurations that stages refer to.
        devices: Devices of each group.
    """

    model: ModelSpec
    configs: StageConfigs
    devices: tuple[int, ...]


Excess = Callable[[StagePlanBatch, StageSetting], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRule:
    """One condition on a plan whose stages may differ.

    Attributes:
        name: Key under which violations are counted.
        text: The condition, in words.
        excess: (N,) by how much each plan violates it, 0 where it holds: what a search may climb down.
    """

    name: str
    text: str
    excess: Excess


def _over_stages(excess: IntArray | BoolArray, plans: StagePlanBatch) -> FloatArray:
    """(N,) sum over the stages of each plan."""
    found: FloatArray = np.where(plans.used, excess, 0).T.sum(axis=0).astype(np.float64)
    return found


def _layers_missing(plans: StagePlanBatch, setting: StageSetting) -> FloatArray:
    layers = setting.model.num_layers
    off: IntArray = np.abs((plans.layers * plans.used).T.sum(axis=0) - layers)
    return (off / layers).astype(np.float64)


def _empty_stages(plans: StagePlanBatch, setting: StageSetting) -> FloatArray:
    del setting
    chunks = chunks_per_stage(plans.schedule, plans.virtual_stages)[:, None]
    return _over_stages(np.maximum(chunks - plans.layers, 0), plans)


def _beyond_columns(plans: StagePlanBatch, setting: StageSetting) -> FloatArray:
    del setting
    legal = (plans.num_stages >= 1) & (plans.num_stages <= plans.width)
    return np.asarray(~legal, dtype=np.float64)


def _samples_differ(plans: StagePlanBatch, setting: StageSetting) -> FloatArray:
    samples = np.take(setting.configs.samples, plans.config.T)
    microbatches = np.take(setting.configs.plans.num_microbatches, plans.config.T)
    wrong = (samples != samples[:1]) | (microbatches != plans.num_microbatches)
    return _over_stages(wrong.T, plans)


def _devices_missing(plans: StagePlanBatch, setting: StageSetting) -> FloatArray:
    """Share by which the stages of a group need more devices than it has."""
    needed = np.take(setting.configs.num_devices, plans.config.T) * plans.used.T
    group = np.take(setting.configs.group, plans.config.T)
    excess = np.zeros(len(plans))
    for number, devices in enumerate(setting.devices):
        excess += np.maximum((needed * (group == number)).sum(axis=0) / devices - 1.0, 0.0)
    return excess


def _too_many_treated(plans: StagePlanBatch, setting: StageSetting) -> FloatArray:
    """Layers recomputed or offloaded beyond those there are."""
    dense, moe = plans.kinds(setting.model)
    full = plans.full_dense + plans.full_moe
    offloadable = np.where(full > 0, full, plans.layers)
    limits = (
        (plans.selective_dense + plans.full_dense, dense),
        (plans.selective_moe + plans.full_moe, moe),
        (plans.offloaded, offloadable),
        (plans.optimizer_offload, np.full_like(plans.layers, OFFLOAD_PARTS)),
        (plans.parameter_offload, np.full_like(plans.layers, OFFLOAD_PARTS)),
    )
    counts = (
        *(plans.selective_dense, plans.selective_moe, plans.full_dense, plans.full_moe),
        *(plans.offloaded, plans.optimizer_offload, plans.parameter_offload),
    )
    excess = sum(_over_stages(np.maximum(count - limit, 0), plans) for count, limit in limits)
    below = sum(_over_stages(np.maximum(-count, 0), plans) for count in counts)
    return np.asarray(excess + below, dtype=np.float64)


def _schedules(plans: StagePlanBatch, setting: StageSetting) -> FloatArray:
    del setting
    alone = (plans.num_stages > 1) | ((plans.schedule == Schedule.ONE_F_ONE_B) & (plans.virtual_stages == 1))
    chunks = (plans.virtual_stages == 1) | (plans.schedule == Schedule.ONE_F_ONE_B)
    rounds = (plans.virtual_stages == 1) | (plans.num_microbatches % np.maximum(plans.num_stages, 1) == 0)
    return np.asarray(~(alone & chunks & rounds), dtype=np.float64)


STAGE_RULES = (
    StageRule(name="stages_exist", text="a plan has at least one stage, and no more than are laid out",
              excess=_beyond_columns),
    StageRule(name="stages_hold_all_layers", text="the stages hold the layers of the model", excess=_layers_missing),
    StageRule(name="stages_have_layers", text="every stage, and every virtual stage, has a layer",
              excess=_empty_stages),
    StageRule(name="stages_agree_in_samples", text="a micro-batch is the same samples on every stage",
              excess=_samples_differ),
    StageRule(name="group_has_devices", text="the stages on a device group need no more devices than it has",
              excess=_devices_missing),
    StageRule(name="layers_are_there", text="only layers of the stage are recomputed or offloaded",
              excess=_too_many_treated),
    StageRule(name="schedule_fits_stages",
              text="schedules other than 1F1B and virtual stages need a pipeline; interleaving is 1F1B in whole rounds",
              excess=_schedules),
)  # fmt: skip


def stage_excess(plans: StagePlanBatch, setting: StageSetting) -> dict[str, FloatArray]:
    """Rule name to (N,) degree of violation, 0 where the rule holds; memory is no rule."""
    return {rule.name: rule.excess(plans, setting) for rule in STAGE_RULES}


# What stages of plans differ in beyond what uniform plans say, and what frameworks cannot be told of those: in words.
_CONDITIONS = {
    "stages_share_a_mesh": "all stages have the same degrees, ZeRO stage and micro-batch",
    "stages_recompute_alike": "all stages recompute alike: none, all or so many of their layers, or the same modules",
    "stages_offload_alike": "all stages offload alike: optimizer, weights, activations of all layers or none",
    "layers_laid_out_by_itself": "layers are on the stages that the framework puts them on",
    "optimizer_offloaded_whole": "the optimizer is offloaded as a whole or not at all",
    "parameters_offloaded_whole": "weights are offloaded as a whole or not at all",
}


def as_uniform(plans: StagePlanBatch, setting: StageSetting) -> tuple[PlanBatch, dict[str, BoolArray]]:
    """Plans as uniform ones with their layers laid out by hand, and by condition (N,) where that does not say all.

    Args:
        plans: N legal plans.
        setting: What their stages refer to.
    """
    used, config = plans.used.T, plans.config.T
    columns, same = {}, np.ones(len(plans), dtype=np.bool_)
    for name in CONFIG_COLUMNS:
        values = np.take(getattr(setting.configs.plans, name), config)
        columns[name] = values[0]
        same &= ((values == values[:1]) | ~used).all(axis=0)
    mode, layers, treated_alike = _recomputation(plans, setting.model)
    modules, modules_alike = _modules(plans)
    treated_alike &= modules_alike
    eighths, weights, offloaded = plans.optimizer_offload.T, plans.parameter_offload.T, plans.offloaded.T
    full = (plans.full_dense + plans.full_moe).T
    most = np.where(mode >= Recompute.FULL, full, plans.layers.T)
    moved_alike = (((offloaded == 0) | ~used).all(axis=0)) | (((offloaded == most) | ~used).all(axis=0))
    for share in (eighths, weights):
        moved_alike &= ((share == share[:1]) | ~used).all(axis=0)
    uniform = PlanBatch.from_columns(
        len(plans),
        **columns,
        pipeline_parallel=plans.num_stages,
        virtual_stages=plans.virtual_stages,
        schedule=plans.schedule,
        recompute=mode,
        recompute_layers=layers,
        recompute_modules=np.where(mode == Recompute.SELECTIVE, modules, CORE),
        offload_optimizer=eighths[0] > 0,
        offload_activations=offloaded[0] > 0,
        offload_parameters=weights[0] > 0,
        stage_layers=np.ascontiguousarray(plans.layers * plans.used),
    )
    differ = {
        "stages_share_a_mesh": ~same,
        "stages_recompute_alike": ~treated_alike,
        "stages_offload_alike": ~moved_alike,
    }
    return uniform, differ


def _modules(plans: StagePlanBatch) -> tuple[IntArray, BoolArray]:
    """(N,) modules that stages recompute, and whether all that recompute any recompute the same."""
    some = ((plans.selective_dense + plans.selective_moe) > 0).T & plans.used.T
    least = np.where(some, plans.modules.T, np.iinfo(np.int64).max).min(axis=0)
    most = np.where(some, plans.modules.T, 0).max(axis=0)
    return np.where(some.any(axis=0), most, CORE), mask((least == most) | ~some.any(axis=0))


def _recomputation(plans: StagePlanBatch, model: ModelSpec) -> tuple[IntArray, IntArray, BoolArray]:
    """(N,) ``Recompute`` code, layers of ``block``, and whether these say how every stage recomputes."""
    used, layers = plans.used.T, (plans.layers * plans.used).T
    selective = ((plans.selective_dense + plans.selective_moe) * plans.used).T
    full = ((plans.full_dense + plans.full_moe) * plans.used).T
    block = full.max(axis=0)
    everywhere_full = (full == layers).all(axis=0) & (block > 0)
    is_block = (full == np.minimum(layers, block)).all(axis=0) & (block > 0)
    some = selective.any(axis=0)
    everywhere_core = (selective == layers).all(axis=0) & some
    mode = np.select(
        [everywhere_full, block > 0, some],
        [int(Recompute.FULL), int(Recompute.BLOCK), int(Recompute.SELECTIVE)],
        int(Recompute.NONE),
    )
    dense, _ = plans.kinds(model)
    # ``block`` recomputes the kinds of layers of a stage in proportion.
    in_proportion = np.rint(full * dense.T / np.maximum(layers, 1)) == (plans.full_dense * plans.used).T
    plain = ~some & (block == 0)
    alike = plain | (everywhere_core & (block == 0)) | (is_block & ~some & (in_proportion | ~used).all(axis=0))
    return mode, np.where(mode == Recompute.BLOCK, block, 0), mask(alike)


def broken_by(plans: StagePlanBatch, setting: StageSetting, framework: Setting) -> dict[str, BoolArray]:
    """Why a framework could not run plans: rule name to (N,) whether it is broken.

    Args:
        plans: N legal plans.
        setting: What their stages refer to.
        framework: The framework, the model and the job; its number of devices is not read.
    """
    uniform, broken = as_uniform(plans, setting)
    broken["layers_laid_out_by_itself"] = ~_layout_possible(plans, uniform, framework)
    if framework.framework not in (MEGATRON, DEEPSPEED):
        broken["optimizer_offloaded_whole"] = _in_part(plans.optimizer_offload, plans)
    broken["parameters_offloaded_whole"] = _in_part(plans.parameter_offload, plans)
    broken |= uniform_broken(uniform, framework)
    return {name: rows for name, rows in broken.items() if rows.any()}


def _in_part(eighths: IntArray, plans: StagePlanBatch) -> BoolArray:
    """(N,) whether some stage offloads a part of something."""
    return mask((eighths % OFFLOAD_PARTS * plans.used).T.any(axis=0))


def uniform_broken(uniform: PlanBatch, framework: Setting) -> dict[str, BoolArray]:
    """Rule name to (N,) whether uniform plans, which may leave devices idle, break it."""
    return {
        rule.name: ~rule.holds(uniform, framework)
        for rule in rules_for(framework.framework)
        if rule.name not in _OF_THE_CLUSTER
    }


def pipelines_run(
    stages: IntArray, schedule: IntArray, virtual_stages: IntArray, num_microbatches: IntArray, framework: Setting
) -> BoolArray:
    """(N,) whether a framework runs pipelines with layers laid out by hand, as far as these numbers say.

    Args:
        stages: (N,) pipeline stages.
        schedule: (N,) ``Schedule`` codes.
        virtual_stages: (N,) chunks per stage.
        num_microbatches: (N,) micro-batches.
        framework: The framework and the model; its number of devices is not read.
    """
    plans = PlanBatch.from_columns(
        len(stages),
        pipeline_parallel=stages,
        schedule=schedule,
        virtual_stages=virtual_stages,
        num_microbatches=num_microbatches,
    )
    chunks = chunks_per_stage(schedule, virtual_stages)
    rounds = (virtual_stages == 1) | (num_microbatches % stages == 0)
    legal = (stages * chunks <= framework.model.num_layers) & rounds
    for rule in rules_for(framework.framework):
        if rule.columns <= _OF_PIPELINES:
            legal &= rule.holds(plans, framework)
    return mask(legal)


_OF_PIPELINES = frozenset({"pipeline_parallel", "virtual_stages", "num_microbatches", "schedule"})
# Plans may leave devices idle.
_OF_THE_CLUSTER = ("world_size",)


def lays_out_itself(framework: str) -> bool:
    """Whether layers cannot be laid out by hand.

    Source:
        Megatron-LM --pipeline-model-parallel-layout and torchtitan parallelism.module_fqns_per_model_part take any
        layout; DeepSpeed's PipelineModule has ``partition_method`` uniform, parameters and type:regex; nanotron
        balances by cost (``stage_balance``).
    """
    return framework in (DEEPSPEED, NANOTRON, HUGGINGFACE)


def has_pipelines(stack: StackSpec) -> bool:
    """Whether there are pipelines at all.

    Rules ``trainer_is_data_parallel`` and ``pipeline_stages_are_code`` leave one stage to the Trainer and to Hugging
    Face's model code under DeepSpeed.
    """
    return stack.framework != HUGGINGFACE and not (stack.framework == DEEPSPEED and stack.transformers_models)


def _layout_possible(plans: StagePlanBatch, uniform: PlanBatch, framework: Setting) -> BoolArray:
    """(N,) whether the framework can lay layers out like that, or does so itself as ``planner plan`` takes it to."""
    if not lays_out_itself(framework.framework):
        return np.ones(len(plans), dtype=np.bool_)
    layers, model = plans.layers * plans.used, framework.model
    unasked = stage_table(replace(uniform, stage_layers=None), model, full=True).layers
    possible = (layers[:, : unasked.shape[1]] == unasked).all(axis=1) & ~layers[:, unasked.shape[1] :].any(axis=1)
    if framework.framework == NANOTRON:
        for stages in np.unique(plans.num_stages).tolist():
            rows = np.flatnonzero(plans.num_stages == stages)
            possible[rows] |= (layers[rows, :stages] == balanced_stage_layers(model, stages)).all(axis=1)
    return mask(possible)


def condition(name: str) -> str:
    """In words, a condition that ``broken_by`` names."""
    known = {rule.name: rule.text for rule in RULES} | _CONDITIONS
    return known[name]


def verdicts(plans: StagePlanBatch, setting: StageSetting, framework: Setting) -> dict[str, dict[str, BoolArray]]:
    """Framework to what keeps it from running plans: name of a condition to (N,) whether it is broken.

    Args:
        plans: N legal plans.
        setting: What their stages refer to.
        framework: The model and the job; its framework is not read.
    """
    return {name: broken_by(plans, setting, replace(framework, framework=name)) for name in FRAMEWORKS}
