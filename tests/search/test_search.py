"""Searching real questions: every plan's price is its price, bounds hold, answers repeat, limits stop."""

import json
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

import planner
from costmodels.evaluate import evaluate
from costmodels.pipeline.schedules import Passes, pipeline_s
from costmodels.pipeline.simulation import StageWork, play
from costmodels.plan import FloatArray, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from planner.document_search import search_document
from planner.question.request import cost_context, setting_of
from planner.search.best import BestSoFar, SearchBudget
from planner.search.call import search
from planner.search.capacity import capacity
from planner.search.families import alike_families, least_step_s, passes_per_work
from planner.search.freedom import Freedom
from planner.search.partition.labels import solve_by_labels
from planner.search.partition.stage_table import _recomputed, option_table
from planner.search.portfolio import by_partition
from planner.search.question import Question
from planner.search.result import OPTIMAL_GAP, SearchResult
from planner.search.sweep import sweep
from planner.space.enumeration import plan_space
from profiles.errors import SpecError
from tests.search.small import INSTANCES, Small, model

BY_NAME = {instance.name: instance for instance in INSTANCES}
UNEVEN = BY_NAME["dense, large vocabulary"]
TWO_TYPES = BY_NAME["two types, loose"]


def found(instance: Small, **limits: Any) -> SearchResult:
    return instance.found(**limits)


@pytest.mark.parametrize(
    ("name", "room"),
    [
        ("dense, large vocabulary", 1e-6),
        ("dense, slow network", 0.005),  # degrees of their own are bounded, not exhausted
        ("MoE, named modules", 1e-6),
        ("dense, every share", 1e-6),
        ("dense, zero bubble", 1e-6),
        ("two types, loose", 1e-6),
        ("two types, slow network", 0.02),
    ],
)
def test_the_optimum_of_every_plan_there_is_is_found_and_proved(name: str, room: float) -> None:
    instance = BY_NAME[name]
    best_s, plans = instance.optimum()
    result = found(instance)
    assert plans > 1000
    assert result.best is not None
    assert result.best.step_time_s == pytest.approx(best_s, rel=1e-9)
    assert result.bound_s is not None
    assert result.bound_s <= best_s * (1 + 1e-9)
    assert result.gap is not None
    assert result.gap <= room


def test_cpsat_alone_finds_the_same() -> None:
    by_labels, by_cpsat = found(UNEVEN), found(UNEVEN, strategy="cpsat")
    assert by_labels.best is not None
    assert by_cpsat.best is not None
    assert by_cpsat.best.step_time_s == pytest.approx(by_labels.best.step_time_s, rel=2 * OPTIMAL_GAP)
    assert by_cpsat.engines[1].statistics["closed_by_cpsat"] == by_cpsat.engines[1].statistics["solved"] > 0
    assert by_cpsat.optimal


def test_stages_that_differ_beat_stages_that_do_not() -> None:
    result = found(UNEVEN)
    assert result.best is not None
    assert not result.best.uniform
    assert result.gain > 0.05
    assert result.best.step_time_s < result.uniform_step_time_s
    assert [item.step_time_s for item in result.improvements] == sorted(
        (item.step_time_s for item in result.improvements), reverse=True
    )


def test_two_types_of_devices_beat_the_faster_alone() -> None:
    result = found(TWO_TYPES)
    assert result.best is not None
    assert {stage.device for stage in result.best.stages} == {"A100-SXM-80GB", "H100-SXM-80GB"}
    assert result.gain > 0.05
    assert result.best.basis in ("measured", "learned", "analytic", "assumed")
    layers = {stage.device: stage.layers for stage in result.best.stages}
    assert layers["H100-SXM-80GB"] > layers["A100-SXM-80GB"]
    assert len(result.requests) == 2


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, "none is faster than 1x2xH100 alone"),
        (
            {"strategy": "mcmc", "evaluations": 2000},
            "none was found faster than 1x2xH100 alone",
        ),
    ],
)
def test_where_the_faster_group_alone_does_best_the_answer_says_so(limits: dict[str, Any], words: str) -> None:
    slow = replace(TWO_TYPES, cluster="1x2xA10G+1x2xH100")
    result = found(slow, **limits)
    assert result.best is not None
    assert {stage.device for stage in result.best.stages} == {"H100-SXM-80GB"}
    alone = search(**slow.arguments() | {"cluster": "1x2xH100"})
    assert alone.best is not None
    if not limits:
        assert result.best.step_time_s == pytest.approx(alone.best.step_time_s, rel=1e-9)
    (message,) = (note.message for note in result.warnings if note.code == "one_group")
    assert message == f"of the pipelines across groups that were searched {words}"


@pytest.mark.parametrize(("cluster", "strategy"), [(TWO_TYPES.cluster, "auto"), ("1x2xA10G+1x2xH100", "enumerate"),
                                                   ("2xH100", "auto")])  # fmt: skip
def test_nothing_is_said_of_groups_that_help_or_were_not_tried(cluster: str, strategy: str) -> None:
    result = found(replace(TWO_TYPES, cluster=cluster), strategy=strategy)
    assert [note for note in result.warnings if note.code == "one_group"] == []


def best_plan(question: Question) -> tuple[StagePlanBatch, StagePrices, BestSoFar]:
    best = BestSoFar(budget=SearchBudget())
    by_partition(question, best)
    assert best.plans is not None
    assert best.configs is not None
    prices = StagePrices(configs=best.configs, contexts=question.contexts, joint=question.joint)
    return best.plans, prices, best


@pytest.mark.parametrize("name", ["dense, large vocabulary", "two types, loose"])
def test_a_listed_price_is_the_price_and_the_schedule_played_out(name: str) -> None:
    question = BY_NAME[name].question()
    plans, prices, best = best_plan(question)
    priced = evaluate_stages(plans, prices)
    assert best.step_time_s == pytest.approx(float(priced.step_time_s[0]), rel=1e-12)
    assert bool(priced.fits[0])
    passes, used = priced.stages, int(plans.num_stages[0])
    work = [
        StageWork(
            forward_s=float(passes.forward_s[0, stage]),
            input_gradient_s=float(passes.input_gradient_s[0, stage]),
            weight_gradient_s=float(passes.weight_gradient_s[0, stage]),
        )
        for stage in range(used)
    ]
    parts = priced.time_parts_s
    told_s = sum(float(parts[name][0]) for name in ("passes", "bubble", "offload") if name in parts)
    sizes = {"virtual_stages": int(plans.virtual_stages[0]), "num_microbatches": int(plans.num_microbatches[0])}
    played = play(Schedule(int(plans.schedule[0])), work, **sizes)
    assert told_s == pytest.approx(played.pipeline_s * question.contexts[0].stack.step_time_scale, rel=1e-9)


def test_enumeration_is_what_plan_finds() -> None:
    instance = BY_NAME["dense, tight"]
    result = found(instance, strategy="enumerate")
    ranked = planner.plan(**instance.arguments(), max_oom_risk=1).best
    assert result.best is not None
    assert ranked is not None
    assert result.best.step_time_s == pytest.approx(ranked.step_time_s, rel=1e-12)
    assert result.best.uniform
    assert result.best.basis == ranked.basis
    assert result.optimal


@pytest.mark.parametrize("name", ["dense, tight", "MoE, two stages"])
def test_no_uniform_plan_is_below_the_bound_of_its_family(name: str) -> None:
    question = BY_NAME[name].question()
    request = question.requests[0]
    context = cost_context(request)
    plans = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices, pins=request.pins).plans
    families, configs = alike_families(plans)
    prices = StagePrices(configs=configs, contexts=(context,))
    perfect_s = least_step_s(families, prices)
    estimate = evaluate(plans, context)
    slowest_s = float(estimate.step_time_s[estimate.fits].max())
    bounds = capacity(families, prices, Freedom(), perfect_s=perfect_s, below_s=slowest_s)
    key = {(int(f.configs[0]), int(f.schedule), f.virtual_stages): at for at, f in enumerate(families)}
    checked = 0
    for row in np.flatnonzero(estimate.fits)[:400]:
        plan = plans.take(np.asarray([row]))
        (family,), own = alike_families(plan) if plan.schedule[0] in (0, 1) else ((None,), None)
        if family is None or own is None:
            continue
        for (config, schedule, chunks), at in key.items():
            same = schedule == int(family.schedule) and chunks == family.virtual_stages
            if same and configs.plans.plan(config) == own.plans.plan(0):
                assert bounds.least_s[at] <= estimate.step_time_s[row] * (1 + 1e-12)
                assert perfect_s[at] <= bounds.least_s[at]
                checked += 1
    assert checked > 50


def test_a_value_is_never_above_the_price_of_its_plan() -> None:
    question = UNEVEN.question()
    request = question.requests[0]
    plans = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices, pins=request.pins).plans
    families, configs = alike_families(plans)
    prices = StagePrices(configs=configs, contexts=question.contexts)
    checked = 0
    for family in families[:40]:
        table = option_table(family, prices, Freedom(), below_s=np.inf)
        if table is None:
            continue
        solved = solve_by_labels(table.instance)
        if solved.rows is None:
            continue
        priced = evaluate_stages(table.plans(solved.rows[None, :]), prices)
        stack = request.stack
        known_s = float(priced.step_time_s[0]) / stack.step_time_scale - stack.step_overhead_s
        assert solved.objective_s <= known_s * (1 + 1e-9)
        assert bool(priced.fits[0])
        checked += 1
    assert checked > 5


def pipelines_s(
    schedule: Schedule, forward_s: FloatArray, backward_s: FloatArray, *, microbatches: int, chunks: int = 1
) -> FloatArray:
    """(N,) seconds of pipelines of (N, S) passes."""
    count = np.ones(forward_s.shape, dtype=np.int64)
    whole_s, _ = pipeline_s(
        int(schedule) * count[:, 0],
        Passes(forward_s=forward_s, input_gradient_s=backward_s, weight_gradient_s=np.zeros_like(backward_s)),
        count=count,
        virtual_stages=chunks * count[:, 0],
        num_microbatches=microbatches * count[:, 0],
    )
    return whole_s


def least_per_work(*sizes: int) -> float:
    """``passes_per_work`` of one pipeline."""
    return float(passes_per_work(*(np.asarray([value]) for value in sizes))[0])


@pytest.mark.parametrize(
    ("schedule", "stages", "microbatches", "chunks"),
    [
        (schedule, stages, microbatches, chunks)
        for schedule, most in ((Schedule.ONE_F_ONE_B, 3), (Schedule.GPIPE, 1))
        for stages, microbatches in ((4, 8), (4, 5), (4, 4), (2, 1), (8, 3), (8, 7), (1, 4))
        for chunks in range(1, most + 1)
    ],
)
def test_no_stages_make_a_shorter_pipeline(schedule: Schedule, stages: int, microbatches: int, chunks: int) -> None:
    rng = np.random.default_rng(stages * 100 + microbatches)
    forward_s, backward_s = rng.uniform(0.1, 2.0, (2, 2000, stages)) * rng.uniform(0.1, 2.0, (2000, stages))
    whole_s = pipelines_s(schedule, forward_s, backward_s, microbatches=microbatches, chunks=chunks)
    least = least_per_work(stages, microbatches, chunks, int(schedule))
    assert (whole_s >= least * (forward_s + backward_s).sum(axis=1) * (1 - 1e-12)).all()


@pytest.mark.parametrize(
    ("stages", "microbatches"), [(1, 1), (4, 16), (4, 5), (4, 4), (2, 2), (8, 3), (8, 7), (16, 16), (16, 2)]
)
def test_some_stages_make_a_pipeline_as_short_as_that(stages: int, microbatches: int) -> None:
    p, m = stages, microbatches
    half_s = np.full((1, p), 1.0)
    assert pipelines_s(Schedule.GPIPE, half_s, half_s, microbatches=m)[0] == pytest.approx(
        least_per_work(p, m, 1, int(Schedule.GPIPE)) * 2 * p, rel=1e-12
    )
    if 1 < m <= p:  # the stages in front, which wait for nothing, take as long as two of those behind
        half_s[:, : p - m + 1] = 2.0
    assert pipelines_s(Schedule.ONE_F_ONE_B, half_s, half_s, microbatches=m)[0] == pytest.approx(
        least_per_work(p, m, 1, int(Schedule.ONE_F_ONE_B)) * 2 * half_s.sum(), rel=1e-12
    )


def test_the_same_question_has_the_same_answer_and_more_budget_none_worse() -> None:
    first, second = found(UNEVEN, evaluations=20_000), found(UNEVEN, evaluations=20_000)
    assert asdict(first)["best"] == asdict(second)["best"]
    assert first.bound_s == second.bound_s
    few, more = found(UNEVEN, evaluations=1), found(UNEVEN)
    assert few.best is not None
    assert more.best is not None
    assert more.best.step_time_s <= few.best.step_time_s
    assert few.engines[-1].status == "evaluations"
    assert few.bound_s is not None
    assert few.bound_s <= more.best.step_time_s * (1 + 1e-9)
    assert not few.optimal


@pytest.mark.parametrize("name", ["dense, large vocabulary", "MoE, two stages", "two types, MoE"])
def test_however_early_a_search_ends_its_bound_holds_and_rises(name: str) -> None:
    instance = BY_NAME[name]
    whole = found(instance)
    assert whole.best is not None
    assert whole.bound_s is not None
    bounds = []
    for evaluations in (1, 1000, 10_000):
        early = found(instance, evaluations=evaluations)
        assert early.best is not None
        assert early.bound_s is not None
        assert early.bound_s <= whole.best.step_time_s * (1 + 1e-9)
        assert early.best.step_time_s >= whole.bound_s * (1 - 1e-9)
        assert early.gap == pytest.approx(1 - early.bound_s / early.best.step_time_s, abs=1e-12)
        bounds.append(early.bound_s)
    assert bounds == sorted(bounds)
    assert bounds[0] < whole.bound_s


def test_nothing_fits_is_an_answer() -> None:
    result = search(UNEVEN.model, "1xA10G", {"sequence_length": 2048, "global_batch_size": 4})
    assert result.best is None
    assert not result.fits
    assert not result.optimal
    assert result.bound_s is None
    assert [run.status for run in result.engines] == ["infeasible"] * 4
    assert json.dumps(search_document(result), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strategy": "annealing"}, "strategy: unknown value 'annealing'"),
        ({"seconds": 0}, "seconds: must be above 0"),
        ({"seconds": float("nan")}, "seconds: must be above 0"),
        ({"evaluations": 0}, "evaluations: must be between 1"),
        ({"seed": -1}, "seed: must be between 0"),
        ({"objective": "cost"}, "objective: a search minimises step_time"),
        ({"cluster": "8xA100+"}, "cluster: cannot read"),
        ({"cluster": "8xA100+8xH10O"}, "unknown name 'H10O'"),
    ],
)
def test_wrong_questions_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as error:
        search(**({"model": "llama-2-7b", "cluster": "8xA100-80GB"} | arguments))
    assert words in str(error.value)


@pytest.mark.parametrize("pin", [{"recompute": "full"}, {"first_stage_layers": 2, "pp": 2}])
def test_what_is_fixed_for_all_stages_leaves_nothing_to_lay_out(pin: dict[str, Any]) -> None:
    pinned = Small(name="", model=UNEVEN.model, cluster=UNEVEN.cluster, job=UNEVEN.job, pins=pin)
    result = found(pinned)
    assert [run.status for run in result.engines] == ["optimal", "not run"]
    assert "fixed for all stages" in result.engines[1].space
    assert result.best is not None
    if "recompute" in pin:
        assert all(stage.full_layers == stage.layers for stage in result.best.stages)
    else:
        assert result.best.stages[0].layers == 2


def test_deep_models_are_enumerated_only() -> None:
    result = search(model(300), "8xA100-80GB", {"sequence_length": 512, "global_batch_size": 8}, pins={"tp": 8})
    assert result.engines[1].status == "not run"
    assert result.engines[1].space == "more than 256 layers"


@pytest.mark.parametrize("fineness", ["all", "chain", "coarse"])
def test_coarser_choices_of_recomputation_are_among_the_finer(fineness: str) -> None:
    finer = {tuple(pair) for pair in _recomputed(20, Freedom(), "all").tolist()}
    some = {tuple(pair) for pair in _recomputed(20, Freedom(), fineness).tolist()}
    assert some <= finer
    assert {(0, 0), (20, 0), (0, 20)} <= some
    assert len(finer) == 21 * 22 // 2


def test_the_package_can_be_called() -> None:
    result = planner.search(**BY_NAME["dense, loose"].arguments(), strategy="enumerate")
    assert isinstance(result, planner.SearchResult)


def test_sweeps_answer_every_question_in_order() -> None:
    small = BY_NAME["dense, loose"].arguments()
    questions = [small, small | {"cluster": "8xH10O"}, small | {"strategy": "cpsat"}]
    answers = sweep(questions, backend="threading", workers=2, seconds=10.0)
    assert [type(answer) for answer in answers] == [SearchResult, SpecError, SearchResult]
    with pytest.raises(SpecError, match="backend: unknown value 'loki'"):
        sweep(questions, backend="loki")


def test_a_dask_cluster_answers_as_this_process_does() -> None:
    distributed = pytest.importorskip("distributed", reason="distributed is not installed")
    small = BY_NAME["dense, loose"].arguments()
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
    ):
        (there,) = sweep([small], backend="dask")
    assert isinstance(there, SearchResult)
    assert there.best == search(**small).best


@pytest.mark.parametrize(("strategy", "proved"), [("enumerate", True), ("mcmc", False), ("all", True)])
def test_annealing_proves_nothing_even_where_it_finds_nothing_better(strategy: str, proved: bool) -> None:
    """The uniform plans' bound is none of the plans that annealing looked at as well."""
    result = found(INSTANCES[0], strategy=strategy, evaluations=2000)
    assert result.best is not None
    assert result.engines[0].bound_s == pytest.approx(result.best.step_time_s)
    assert (result.bound_s is not None) == result.optimal == proved
