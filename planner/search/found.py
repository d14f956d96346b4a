"""Plans found by any engine, priced again from scratch and put into words."""

from dataclasses import replace
from math import ceil, expm1

import numpy as np

from costmodels.arrays import largest
from costmodels.evaluate import evaluate
from costmodels.kernels.calls import Basis
from costmodels.peak_rate import stages_at_peak_s, time_interval_s
from costmodels.plan import FloatArray, Schedule
from costmodels.stage_plans.estimate import StageEstimateBatch
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import OFFLOAD_PARTS, StageConfigs, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from costmodels.stage_plans.replay import replay
from planner.answer.memory_law import MemoryLaw
from planner.borrowed import borrowed
from planner.phrases import percent
from planner.results import RISKY, Note
from planner.rules.modules import module_names
from planner.rules.pipeline import NAME_OF_SCHEDULE
from planner.search.question import Question
from planner.search.result import OPTIMAL_GAP, FoundPlan, StageChoice, Verdict
from planner.space.stage_constraints import StageSetting, condition, stage_excess, verdicts
from profiles.units import GIB

# Micro-batches on all chunks of all stages that are played out: some tenths of a second, and less when time is up.
_MOST_WORKS, _MOST_WORKS_LATE = 100_000, 20_000


def found_plan(
    question: Question, plans: StagePlanBatch, configs: StageConfigs, *, out_of_time: bool = False
) -> FoundPlan:
    """The first of the plans, priced anew.

    Args:
        question: What was searched for.
        plans: The plan, as a batch of one.
        configs: The configurations its stages refer to.
        out_of_time: Whether only short schedules are to be played out.

    Raises:
        RuntimeError: If what was offered breaks a rule on stages.
    """
    config = np.unique(plans.config[0, : int(plans.num_stages[0])])
    own = StageConfigs(plans=configs.plans.take(config), group=configs.group[config])
    plan = plans.take(np.zeros(1, dtype=np.int64))
    plan = plan.with_columns(config=np.clip(np.searchsorted(config, plan.config), 0, len(config) - 1))
    setting = _setting(question, own)
    broken = [rule for rule, excess in stage_excess(plan, setting).items() if excess[0] > 0.0]
    if broken:
        raise RuntimeError(f"a search offered a plan that is none: {', '.join(broken)}")
    # Tables of their own, as if nothing had been priced before.
    prices = StagePrices(configs=own, contexts=question.contexts, joint=question.joint)
    priced = evaluate_stages(plan, prices, intervals=True)
    used = np.flatnonzero(plan.used[0])
    if priced.half_widths is None:
        raise RuntimeError("intervals were asked for")
    at_peak_s = stages_at_peak_s(plan, own, question.contexts)
    low_s, high_s = time_interval_s(priced.step_time_s, priced.half_widths, at_peak_s)
    devices = int(own.num_devices[plan.config[0, used]].sum())
    return FoundPlan(
        schedule=NAME_OF_SCHEDULE[Schedule(plan.schedule[0])],
        virtual_stages=int(plan.virtual_stages[0]),
        num_microbatches=int(plan.num_microbatches[0]),
        num_devices=devices,
        idle_devices=question.num_devices - devices,
        step_time_s=float(priced.step_time_s[0]),
        step_time_low_s=float(low_s[0]),
        step_time_high_s=float(high_s[0]),
        played_step_time_s=_played_s(plan, prices, _MOST_WORKS_LATE if out_of_time else _MOST_WORKS),
        time_parts_s={name: float(values[0]) for name, values in priced.time_parts_s.items()},
        peak_memory_bytes=float(largest(priced.stage_memory_bytes)[0]),
        fits=bool(priced.fits[0]),
        basis=_basis(question, own),
        stages=tuple(_stage(question, plan, own, priced, int(stage)) for stage in used),
        frameworks=_verdicts(question, plan, own),
    )


def _played_s(plan: StagePlanBatch, prices: StagePrices, most_works: int) -> float | None:
    """The step of a batch of one with its schedule played out; None where that takes long."""
    p, v, m = (int(column[0]) for column in (plan.num_stages, plan.virtual_stages, plan.num_microbatches))
    if p * v * m > most_works:
        return None
    return float(replay(plan, prices).estimate.step_time_s[0])


def _basis(question: Question, configs: StageConfigs) -> str:
    """The weakest basis of what stages cost."""
    weakest = 0
    for group, context in enumerate(question.contexts):
        members = np.flatnonzero(configs.group == group)
        if len(members):
            weakest = max(weakest, int(evaluate(configs.plans.take(members), context).basis.max()))
    return Basis(weakest).name.lower()


def warnings_of(plan: FoundPlan, question: Question) -> tuple[Note, ...]:
    """Whether prices rest on other hardware, and whether the plan may well run out of memory."""
    notes = []
    if plan.basis == "assumed":
        notes.append(borrowed("best.step_time_s", [stage.device for stage in plan.stages]))
    # Of all there is: what the question leaves free is there for peaks that err, as this warning asks for it.
    devices = [request.cluster.device for request in question.requests]
    whole_bytes = {device.name: device.reported_memory_bytes for device in devices}
    full = max(plan.stages, key=lambda stage: stage.memory_bytes / whole_bytes[stage.device])
    most_bytes, law = whole_bytes[full.device], MemoryLaw.of(question.contexts[0].stack)
    risk = float(law.risk(np.log(np.asarray(full.memory_bytes / most_bytes))))
    if risk >= RISKY:  # blocks that an allocator gives back in need are counted: no risk is higher
        spare_gib = ceil(most_bytes * -expm1(law.most_log(RISKY)) / GIB)
        message = f"proved is what fits, and this may run out of memory, in up to {percent(risk)} of runs"
        message += f"; with {spare_gib} GiB to leave free (--reserve-gib {spare_gib}) the answer is likelier to live"
        notes.append(Note(code="at_risk", field="memory_reserve_bytes", message=message))
    return tuple(notes)


def _setting(question: Question, configs: StageConfigs) -> StageSetting:
    """What rules on stages look at."""
    devices = tuple(request.cluster.num_devices for request in question.requests)
    return StageSetting(model=question.contexts[0].model, configs=configs, devices=devices)


def _verdicts(question: Question, plan: StagePlanBatch, configs: StageConfigs) -> tuple[Verdict, ...]:
    """What every framework says of a batch of one."""
    settings = question.settings
    joined = max(each.joined_devices for each in settings)  # whose stages overlap had the links to
    found = verdicts(plan, _setting(question, configs), replace(settings[0], joined_devices=joined))
    return tuple(
        Verdict(framework=name, broken={rule: condition(rule) for rule, rows in broken.items() if rows[0]})
        for name, broken in found.items()
    )


def groups_alone(
    question: Question,
    plans: StagePlanBatch,
    configs: StageConfigs,
    *,
    step_time_s: float,
    bounds_s: list[float | None],
) -> tuple[Note, ...]:
    """Says so where one group alone does best, of several.

    Args:
        question: What was searched for.
        plans: The best plan, as a batch of one.
        configs: The configurations its stages refer to.
        step_time_s: Its price.
        bounds_s: No pipeline across groups that somebody looked at is below that; None where nothing is proved.
    """
    groups = np.unique(configs.group[plans.config[0, : int(plans.num_stages[0])]])
    if question.mixed is None or len(groups) > 1 or not bounds_s:
        return ()
    room = max(np.inf if bound_s is None else 1.0 - bound_s / step_time_s for bound_s in bounds_s)
    known, alone = "is" if room <= OPTIMAL_GAP else "was found", question.requests[int(groups[0])].cluster.name
    message = f"of the pipelines across groups that were searched none {known} faster than {alone} alone"
    if OPTIMAL_GAP < room < 1.0:
        message += f"; one could save {percent(room)} at most"
    return (Note(code="one_group", field="best.stages", message=message),)


def groups_refused(question: Question) -> tuple[Note, ...]:
    """Says so where plans on a group by itself are left out, because what is fixed is not legal on it."""
    return tuple(
        Note(
            code="group_left_out",
            field=error.field,
            message=f"plans on {question.requests[group].cluster.name} alone are left out: {error.problem}",
        )
        for group, error in sorted(question.refused.items())
    )


def _stage(
    question: Question, plan: StagePlanBatch, configs: StageConfigs, priced: StageEstimateBatch, stage: int
) -> StageChoice:
    config = int(plan.config[0, stage])
    way = configs.plans.plan(config)
    _, moe = plan.kinds(question.contexts[0].model)
    work_s: FloatArray = priced.stages.work_s
    selective = int(plan.selective_dense[0, stage] + plan.selective_moe[0, stage])
    return StageChoice(
        index=stage,
        device=question.requests[int(configs.group[config])].cluster.device.name,
        num_devices=int(configs.num_devices[config]),
        layers=int(plan.layers[0, stage]),
        moe_layers=int(moe[0, stage]),
        tensor_parallel=way.tensor_parallel,
        context_parallel=way.context_parallel,
        data_parallel=way.data_parallel,
        expert_parallel=way.expert_parallel,
        expert_tensor_parallel=way.expert_tensor_parallel,
        zero_stage=way.zero_stage,
        micro_batch_size=way.micro_batch_size,
        sequence_parallel=way.sequence_parallel,
        selective_layers=selective,
        recomputed_modules=module_names(int(plan.modules[0, stage])) if selective else (),
        full_layers=int(plan.full_dense[0, stage] + plan.full_moe[0, stage]),
        offloaded_layers=int(plan.offloaded[0, stage]),
        optimizer_offload=int(plan.optimizer_offload[0, stage]) / OFFLOAD_PARTS,
        parameter_offload=int(plan.parameter_offload[0, stage]) / OFFLOAD_PARTS,
        microbatch_time_s=float(work_s[0, stage]),
        memory_bytes=float(priced.stage_memory_bytes[0, stage]),
        usable_memory_bytes=float(priced.usable_bytes[0, stage]),
    )
