"""Exhaustive search: chunks change nothing, nothing is missed, and what is ruled out is counted."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import Outcomes, evaluate, outcomes, peaks
from costmodels.plan import PlanBatch
from costmodels.step.layer_costs import LayerCosts, layer_costs
from planner import api
from planner.answer.pricing import blocks_of_one, join, memory_rejections, price_all, price_contenders, price_fitting
from planner.document_plan import to_document
from planner.question.request import Options, cost_context, resolve_request, setting_of
from planner.ranking import Priced, best_rows, nearest_row
from planner.rules.base import Setting
from planner.space.enumeration import plan_space
from profiles.hardware import ClusterSpec
from tests.fakes import RateKernels, context, device, gpt, job, node


@pytest.fixture(scope="module")
def plans() -> PlanBatch:
    setting = Setting(model=gpt(), job=job(), num_devices=64, framework="megatron")
    return plan_space(setting, domain_devices=8).plans


@pytest.mark.parametrize("chunk_rows", [1, 7, 99, 100])
def test_chunks_change_nothing(plans: PlanBatch, monkeypatch: pytest.MonkeyPatch, chunk_rows: int) -> None:
    where, few = context(kernels=RateKernels()), plans.take(slice(0, None, len(plans) // 99))
    whole = price_all(few, where)
    monkeypatch.setattr("planner.answer.pricing.CHUNK_ROWS", chunk_rows)
    priced = price_all(few, where)
    for name in ("step_time_s", "peak_memory_bytes", "host_memory_bytes", "fits"):
        assert np.array_equal(getattr(priced, name), getattr(whole, name)), name


def test_of_many_plans_those_that_do_not_fit_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    request = resolve_request("llama-2-13b", "8xA100-40GB", None, None, Options())
    where = cost_context(request)
    space = plan_space(setting_of(request), domain_devices=8).plans
    whole = price_fitting(space, where)
    monkeypatch.setattr("planner.answer.pricing.CHUNK_ROWS", 999)
    some = price_fitting(space, where)
    assert 0 < whole.fits.sum() < len(space)
    assert np.isfinite(whole.step_time_s).all()
    assert np.array_equal(some.fits, whole.fits)
    known = np.isfinite(some.peak_memory_bytes)
    assert np.array_equal(some.peak_memory_bytes[known], whole.peak_memory_bytes[known])
    assert known[some.fits].all()
    assert some.step_time_s[some.fits] == pytest.approx(whole.step_time_s[some.fits], rel=1e-12)
    assert np.isinf(some.step_time_s[~some.fits]).all()


def test_answers_are_the_same_whether_all_plans_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    question = ("llama-2-13b", "16xA100-40GB")
    before = to_document(api.plan(*question))
    monkeypatch.setattr("planner.answer.pricing.CHUNK_ROWS", 999)
    after = to_document(api.plan(*question))
    assert [rival["fits"] for rival in before["explanation"]["rivals"]].count(False) > 0
    assert after == before


def test_chunks_are_bounded(plans: PlanBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(part: PlanBatch, where: CostContext) -> Outcomes:
        sizes.append(len(part))
        return outcomes(part, where)

    monkeypatch.setattr("planner.answer.pricing.outcomes", counting)
    monkeypatch.setattr("planner.answer.pricing.CHUNK_ROWS", 1000)
    price_all(plans, context(kernels=RateKernels()))
    assert max(sizes) == 1000
    assert sum(sizes) == len(plans)


def test_the_best_is_the_best_of_all(plans: PlanBatch) -> None:
    priced = price_all(plans, context(kernels=RateKernels()))
    row = int(best_rows(priced, objective="step_time", count=1)[0])
    assert priced.fits[row]
    assert priced.step_time_s[row] == priced.step_time_s[priced.fits].min()


def test_nothing_to_price() -> None:
    none = PlanBatch.from_columns(0)
    priced = price_all(none, context())
    assert len(priced) == 0
    assert memory_rejections(priced, context()) == {}


def test_memory_rejections_name_the_memory(plans: PlanBatch) -> None:
    peaks_bytes, hosts_bytes = np.array([1.0, 80e9, 80e9, 1.0, 1.0]), np.array([0.0, 0.0, 3e12, 3e12, 2e12])
    priced = Priced(
        plans=plans.take(slice(0, 5)), step_time_s=np.ones(5), peak_memory_bytes=peaks_bytes,
        host_memory_bytes=hosts_bytes, fits=np.array([True, False, False, False, True]),
    )  # fmt: skip
    assert memory_rejections(priced, context()) == {"out_of_memory": 2, "out_of_host_memory": 1}


def test_joined_searches_keep_their_order(plans: PlanBatch) -> None:
    where = context(kernels=RateKernels())
    first, second = (price_all(plans.take(rows), where) for rows in (slice(0, 5), slice(5, 9)))
    both = join([first, second])
    assert len(both) == 9
    assert both.plans.plan(6) == plans.plan(6)
    assert both.step_time_s[6] == second.step_time_s[1]
    assert join([first]) is first


@pytest.mark.parametrize("step_time_scale", [1.0, 1.25])
def test_a_search_ranks_by_what_a_report_shows(plans: PlanBatch, step_time_scale: float) -> None:
    where = context(kernels=RateKernels(), stack=replace(context().stack, step_time_scale=step_time_scale))
    some = plans.take(slice(0, None, 37))
    ranked, reported = price_all(some, where), evaluate(some, where)
    for name in ("step_time_s", "peak_memory_bytes", "host_memory_bytes", "fits"):
        assert np.array_equal(getattr(ranked, name), getattr(reported, name)), name


def test_blocks_priced_by_a_search_serve_its_report(plans: PlanBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    where = context(kernels=RateKernels(relative_half_width=0.2))
    searched = price_all(plans, where)
    assert searched.costs is not None
    monkeypatch.setattr("planner.answer.pricing.CHUNK_ROWS", len(plans) - 1)
    assert price_all(plans, where).costs is None
    rows = np.arange(0, len(plans), len(plans) // 7)
    after, alone = (evaluate(plans.take(rows), where, full=True, costs=c) for c in (searched.costs.take(rows), None))
    for name in ("step_time_s", "step_time_low_s", "step_time_high_s", "stage_time_s", "basis", "hardware_flops"):
        assert np.array_equal(getattr(after, name), getattr(alone, name)), name
    for name in ("time_parts_s", "communication_total_s", "extrapolated_share", "basis_share"):
        for part, values in getattr(alone, name).items():
            assert np.array_equal(getattr(after, name)[part], values), part


@pytest.mark.parametrize("model", ["llama-3-8b", "mixtral-8x7b"])
def test_blocks_of_one_plan_are_those_of_all(model: str) -> None:
    request = resolve_request(model, "2x8xH100", None, None, Options())
    where = cost_context(request)
    space = plan_space(setting_of(request), domain_devices=8).plans
    some = space.take(np.random.default_rng(0).choice(len(space), 12, replace=False))
    together = layer_costs(some, where)
    for row in range(len(some)):
        one = blocks_of_one(some.take([row]), where)
        assert blocks_of_one(some.take([row]), cost_context(request)) is one
        for name in LayerCosts.__dataclass_fields__:
            alone, block = getattr(one, name), getattr(together, name)
            assert (alone is None) == (block is None)
            if block is not None:
                assert np.array_equal(alone.seconds[:, 0], block.seconds[:, block.of_row[row]]), name
                assert np.array_equal(alone.reach_s[:, 0], block.reach_s[:, block.of_row[row]]), name


def neighbours(plans: PlanBatch, row: int) -> list[int]:
    """Rows that differ from one plan in a single degree of freedom."""
    names = ("tensor_parallel", "pipeline_parallel", "micro_batch_size", "recompute", "zero_stage", "virtual_stages")
    differing = np.sum([getattr(plans, name) != getattr(plans, name)[row] for name in names], axis=0)
    return np.flatnonzero(differing <= 1).tolist()


def test_the_best_is_no_worse_than_any_neighbour(plans: PlanBatch) -> None:
    priced = price_all(plans, context(kernels=RateKernels()))
    row = int(best_rows(priced, objective="step_time", count=1)[0])
    near = [other for other in neighbours(plans, row) if priced.fits[other]]
    assert len(near) > 5
    assert all(priced.step_time_s[row] <= priced.step_time_s[other] * (1 + 1e-6) for other in near)


@pytest.mark.parametrize("memory_gib", [64.0, 3.0, 1.0, 0.001])
def test_contenders_are_what_all_plans_would_have_ranked(plans: PlanBatch, memory_gib: float) -> None:
    """Where something fits that alone is priced, and where nothing does what comes nearest."""
    usable = memory_gib * 2**30
    node_ = node(device=device(memory_bytes=usable, usable_memory_bytes=usable))
    asked = context(cluster=ClusterSpec(name="fake", node=node_, num_nodes=8))
    every, few = price_all(plans, asked), price_contenders(plans, asked)
    needs = peaks(plans, asked)
    np.testing.assert_array_equal(needs.peak_memory_bytes, every.peak_memory_bytes)
    np.testing.assert_array_equal(needs.host_memory_bytes, every.host_memory_bytes)
    np.testing.assert_array_equal(needs.fits, every.fits)
    assert few.fits.all() == every.fits.any()
    assert len(few) == every.fits.sum() or not every.fits.any()
    assert len(few) < len(every) or every.fits.all()
    chosen = [
        best_rows(priced, objective="step_time", count=1)
        if every.fits.any()
        else [nearest_row(priced, usable_bytes=usable, host_bytes=asked.cluster.node.host_memory_bytes)]
        for priced in (every, few)
    ]
    (first, second) = (priced.plans.plan(int(rows[0])) for priced, rows in zip((every, few), chosen, strict=True))
    assert first == second
