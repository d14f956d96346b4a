"""Sharp bounds of pipelines across groups held against every plan of small families, and good plans of large ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.plan import Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch
from planner.question.request import Options
from planner.search.best import BestSoFar, SearchBudget
from planner.search.bounds.mixed import mixed_least_s
from planner.search.bounds.sharp import sharp_least_s
from planner.search.freedom import Freedom
from planner.search.least_work import least_work
from planner.search.mixed_families import Mixed, mixed_families
from planner.search.partition.labels import solve_by_labels
from planner.search.partition.stage_table import option_table
from planner.search.portfolio import by_enumeration
from planner.search.question import Question, ask
from tests.search.small import INSTANCES, freedom, stopped_after
from tests.search.test_bounds import least_of_all_s

BY_NAME = {instance.name: instance for instance in INSTANCES}


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("two types, loose", 0.9),
        ("two types, tight", 0.8),
        ("two types, MoE", 0.9),
        ("two types, slow network", 0.6),
        ("two types, interleaved", 0.8),
        ("two types, zero bubble", 0.8),
    ],
)
def test_no_layout_of_a_family_is_below_its_bound_and_most_come_close(name: str, close: float) -> None:
    question = BY_NAME[name].question()
    mixed = mixed_families(question, question.requests[0].pins)
    families = sorted(mixed.families(), key=lambda family: family.num_stages)[:60]
    least_s = least_of_all_s(question, families, mixed.prices)
    for below_s in (2 * least_s.min(), 1.2 * least_s.min()):
        bound_s = sharp_least_s(families, mixed.prices, freedom(question), below_s=below_s)
        beating = least_s < below_s
        assert beating.sum() > 1
        share = bound_s[beating] / least_s[beating]
        assert share.max() <= 1 + 1e-9
        assert np.median(share) > close


LARGE: dict[str, tuple[str, str, dict[str, int]]] = {
    "dense": ("llama-3-70b", "2x8xA100-80GB+2x8xH100", {"sequence_length": 4096, "global_batch_size": 256}),
    "less memory": ("llama-3-70b", "4x8xA100-40GB+4x8xA100-80GB", {"sequence_length": 8192, "global_batch_size": 128}),
    "dense layers before MoE": (
        "deepseek-v2", "8x8xA100-80GB+8x8xH100", {"sequence_length": 4096, "global_batch_size": 512}
    ),
    "three groups": (
        "mixtral-8x7b", "1x8xA100-80GB+2x8xH100+1x8xH200", {"sequence_length": 4096, "global_batch_size": 128}
    ),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "close"), [("dense", 0.9), ("less memory", 0.9), ("dense layers before MoE", 0.85), ("three groups", 0.8)]
)
def test_good_plans_of_large_families_are_not_below_the_bound(name: str, close: float) -> None:
    model, cluster, job = LARGE[name]
    question = ask(model, cluster, job, None, Options())
    best = BestSoFar(budget=SearchBudget(seconds=1000.0))
    by_enumeration(question, best)
    mixed = mixed_families(question, {})
    hopeful = np.flatnonzero(mixed.least_s < 0.7 * best.step_time_s)
    some = [family for family in mixed.families(0, len(hopeful)) if family.num_stages <= 8]
    families = [some[at] for at in np.random.default_rng(7).choice(len(some), size=min(400, len(some)), replace=False)]
    coarse_s = mixed_least_s(families, mixed.prices, Freedom(), below_s=best.step_time_s)
    families = [families[at] for at in np.argsort(coarse_s, kind="stable")[:40]]
    bound_s = sharp_least_s(families, mixed.prices, Freedom(), below_s=best.step_time_s)
    shares = []
    for family, least_s in zip(families, bound_s, strict=True):
        table = option_table(family, mixed.prices, Freedom(), below_s=best.step_time_s)
        if table is None or (solved := solve_by_labels(table.instance, most_labels=20_000)).rows is None:
            continue
        priced = evaluate_stages(table.plans(solved.rows[None, :]), mixed.prices)
        assert bool(priced.fits[0])
        if priced.step_time_s[0] < best.step_time_s:
            assert least_s <= priced.step_time_s[0] * (1 + 1e-9)
            if solved.gap < 0.01:
                shares.append(least_s / priced.step_time_s[0])
    assert len(shares) >= 2
    assert np.median(shares) > close


@pytest.mark.parametrize("name", ["two types, tight", "two types, MoE", "MoE, named modules"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_stages_that_fit_work_no_less_than_that(name: str, data: st.DataObject) -> None:
    question = BY_NAME[name].question()
    if question.mixed is None:
        question = ask(BY_NAME[name].model, "1x2xH100+1x2xH100", BY_NAME[name].job, None, Options(
            memory_reserve_bytes=48 * 2**30, named_modules=True))  # fmt: skip
    mixed, free = _mixed(question), freedom(question)
    model = question.requests[0].model
    moe, prices = model.num_moe_layers > 0, mixed.prices
    config = data.draw(st.integers(0, len(prices.configs) - 1))
    stages, chunks = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 3))
    schedule = Schedule.ONE_F_ONE_B if chunks > 1 else data.draw(st.sampled_from(list(Schedule)))
    layers = data.draw(st.lists(st.integers(1, model.num_layers), min_size=stages, max_size=stages))
    full = [data.draw(st.integers(0, count)) for count in layers]
    selective = [data.draw(st.integers(0, count - more)) for count, more in zip(layers, full, strict=True)]
    kind = "moe" if moe else "dense"
    held, none = np.asarray([layers]), np.zeros((1, stages), dtype=np.int64)
    batch = StagePlanBatch.from_columns(
        [stages], np.full((1, stages), config), held, schedule=int(schedule), virtual_stages=chunks,
        num_microbatches=[int(prices.configs.plans.num_microbatches[config])],
        modules=data.draw(st.sampled_from(free.modules)),
        **{f"full_{kind}": np.asarray([full]), f"selective_{kind}": np.asarray([selective])},
    )  # fmt: skip
    priced = evaluate_stages(batch, prices, kinds=(none, held) if moe else (held, none))
    done = least_work(
        np.asarray([config]), prices, free, stages=stages, schedule=np.asarray([int(schedule)]),
        virtual_stages=np.asarray([chunks]), moe=moe, most_layers=model.num_layers, longest_s=np.asarray([1e9]),
    )  # fmt: skip
    fits = (priced.stage_memory_bytes <= priced.usable_bytes)[0]
    least_s = done.work_s[0, np.arange(stages), layers]
    assert (least_s[fits] <= priced.stages.work_s[0, fits] * (1 + 1e-9)).all()
    untouched = fits & (np.asarray(full) + np.asarray(selective) == 0)
    apart_s = 2 * prices.transfer_s.max() + chunks * question.requests[0].stack.microbatch_overhead_s
    assert (least_s[untouched] >= (priced.stages.work_s[0, untouched] - apart_s) * (1 - 1e-9)).all()


_MIXED: dict[str, Mixed] = {}


def _mixed(question: Question) -> Mixed:
    key = f"{question.requests[0].model.name} {question.cluster_name} {question.requests[0].named_modules}"
    if key not in _MIXED:
        _MIXED[key] = mixed_families(question, question.requests[0].pins)
    return _MIXED[key]


def test_bounds_that_there_was_no_time_for_say_nothing() -> None:
    question = BY_NAME["two types, loose"].question()
    mixed = mixed_families(question, question.requests[0].pins)
    whole_s = sharp_least_s(mixed.families(), mixed.prices, Freedom(), below_s=1.0)
    unknown = []
    for asks in (1, 10, 30, 60, 100, 1000):
        some_s = sharp_least_s(mixed.families(), mixed.prices, Freedom(), below_s=1.0, check_time=stopped_after(asks))
        assert ((some_s == whole_s) | (some_s == 0.0)).all()
        unknown.append(int((some_s == 0.0).sum()))
    assert unknown[0] == len(whole_s)
    assert unknown == sorted(unknown, reverse=True)
    assert unknown[-1] == 0
    assert (whole_s > 0).all()
    assert (sharp_least_s(mixed.families(), mixed.prices, Freedom(offload=True), below_s=1.0) == 0.0).all()
