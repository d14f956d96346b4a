"""Rules on plans whose stages differ: what makes one a plan at all, and which framework could run it.

Frameworks lay out one mesh of ranks: they let stages differ in layers at most, and not all of them in that. A plan
they can express is a uniform plan with its layers laid out by hand, and is judged by the rules for those. What is
left needs a runtime with a mesh per stage, which none of the frameworks planned for has (Alpa, arXiv:2201.12023,
and FlashFlex, arXiv:2409.01143, had one).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, Recompute, Schedule
from costmodels.stage_balance import balanced_stage_layers
from costmodels.stage_plan import CONFIG_COLUMNS, OFFLOAD_PARTS, StageConfigs, StagePlanBatch
from planner.constraints import rules_for
from planner.rules.base import DEEPSPEED, FRAMEWORKS, HUGGINGFACE, MEGATRON, NANOTRON, Setting, mask
from profiles.model import ModelSpec


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
    chunks = np.where(plans.schedule == Schedule.ZERO_BUBBLE_V, 2, plans.virtual_stages)[:, None]
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
    )
    counts = (plans.selective_dense, plans.selective_moe, plans.full_dense, plans.full_moe)
    excess = sum(_over_stages(np.maximum(count - limit, 0), plans) for count, limit in limits)
    below = sum(_over_stages(np.maximum(-count, 0), plans) for count in (*counts, plans.offloaded))
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


def legal_stages(plans: StagePlanBatch, setting: StageSetting) -> BoolArray:
    """(N,) whether each plan is one."""
    legal = np.ones(len(plans), dtype=np.bool_)
    for excess in stage_excess(plans, setting).values():
        legal &= excess <= 0.0
    return legal


def as_uniform(plans: StagePlanBatch, setting: StageSetting) -> tuple[PlanBatch, BoolArray]:
    """Plans as uniform ones with their layers laid out by hand, and (N,) whether that says all.

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
    eighths, offloaded = plans.optimizer_offload.T, plans.offloaded.T
    full = (plans.full_dense + plans.full_moe).T
    most = np.where(mode >= Recompute.FULL, full, plans.layers.T)
    moved_alike = (((offloaded == 0) | ~used).all(axis=0)) | (((offloaded == most) | ~used).all(axis=0))
    same &= treated_alike & moved_alike & ((eighths == eighths[:1]) | ~used).all(axis=0)
    uniform = PlanBatch.from_columns(
        len(plans),
        **columns,
        pipeline_parallel=plans.num_stages,
        virtual_stages=plans.virtual_stages,
        schedule=plans.schedule,
        recompute=mode,
        recompute_layers=layers,
        offload_optimizer=eighths[0] > 0,
        offload_activations=offloaded[0] > 0,
        stage_layers=np.ascontiguousarray(plans.layers * plans.used),
    )
    return uniform, same


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
    uniform, expressible = as_uniform(plans, setting)
    broken = {"stages_run_alike": ~expressible}
    broken["layers_laid_out_by_hand"] = ~_layout_possible(plans, framework)
    if framework.framework not in (MEGATRON, DEEPSPEED):
        parts = (plans.optimizer_offload % OFFLOAD_PARTS * plans.used).T.any(axis=0)
        broken["optimizer_offloaded_in_part"] = mask(parts)
    for rule in rules_for(framework.framework):
        if rule.name not in _OF_THE_CLUSTER:
            broken[rule.name] = ~rule.holds(uniform, framework)
    return {name: rows for name, rows in broken.items() if rows.any()}


# Plans may leave devices idle; layers laid out by hand divide as they are laid out.
_OF_THE_CLUSTER = ("world_size",)


def _layout_possible(plans: StagePlanBatch, framework: Setting) -> BoolArray:
    """(N,) whether the framework can lay layers out like that.

    Source:
        Megatron-LM --pipeline-model-parallel-layout and torchtitan parallelism.module_fqns_per_model_part take any;
        DeepSpeed's PipelineModule has ``partition_method`` uniform, parameters and type:regex; nanotron balances by
        cost (``stage_balance``).
    """
    if framework.framework not in (DEEPSPEED, NANOTRON, HUGGINGFACE):
        return np.ones(len(plans), dtype=np.bool_)
    layers, model = plans.layers * plans.used, framework.model
    possible = np.zeros(len(plans), dtype=np.bool_)
    for stages in np.unique(plans.num_stages).tolist():
        rows = np.flatnonzero(plans.num_stages == stages)
        wanted: Sequence[int]
        if framework.framework == NANOTRON:
            wanted = balanced_stage_layers(model, stages)
        elif model.num_layers % stages:
            continue
        else:
            wanted = [model.num_layers // stages] * stages
        possible[rows] = (layers[rows, :stages] == np.asarray(wanted)).all(axis=1)
    return possible


def runnable_by(plans: StagePlanBatch, setting: StageSetting, framework: Setting) -> dict[str, BoolArray]:
    """Framework to (N,) whether it can run each plan.

    Args:
        plans: N legal plans.
        setting: What their stages refer to.
        framework: The model and the job; its framework is not read.
    """
    found = {}
    for name in FRAMEWORKS:
        of = Setting(model=framework.model, job=framework.job, num_devices=framework.num_devices, framework=name)
        broken = np.zeros(len(plans), dtype=np.bool_)
        for rows in broken_by(plans, setting, of).values():
            broken |= rows
        found[name] = ~broken
    return found
