"""What stages have to offload: held against every share of everything, on every stage."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from costmodels.plan import FloatArray, IntArray
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import CONTENT_COLUMNS, StagePrices
from planner.question.request import setting_of
from planner.search.families import Family, alike_families, least_once_s
from planner.search.freedom import EIGHTHS, Freedom
from planner.search.offloading import (
    fits_device,
    fits_host,
    host_is_slower,
    least_offloads,
    packed,
    price_ways,
)
from planner.search.once import once_s
from planner.search.partition.stage_table import option_table
from planner.space.enumeration import plan_space
from tests.search.small import Small, mixture, model

_JOB = {"sequence_length": 2048, "global_batch_size": 16}
TIGHT = Small(name="", model=model(4), cluster="4xA100-80GB", job=_JOB, reserve_gib=69.0, pins={"pp": 2, "mbs": 1})
CASES = {
    "dense": TIGHT,
    "sharded": replace(TIGHT, pins={"pp": 2, "mbs": 2, "tp": 1, "zero": 1}, reserve_gib=67.0),
    "loose": replace(TIGHT, reserve_gib=0.0),
    "MoE": replace(TIGHT, model=mixture(4), cluster="4xH100", reserve_gib=40.0),
}


def family_of(instance: Small) -> tuple[Family, StagePrices]:
    question = instance.question()
    request = question.requests[0]
    space = plan_space(setting_of(request), domain_devices=request.cluster.domain_devices, pins=request.pins)
    families, configs = alike_families(space.plans)
    return families[0], StagePrices(configs=configs, contexts=question.contexts)


def every_way(family: Family, prices: StagePrices, layers: int) -> tuple[IntArray, dict[str, IntArray]]:
    """Ways to recompute one, two ... layers of the model's kind, activations offloaded or not."""
    moe = prices.context.model.num_moe_layers > 0
    kind, other = ("moe", "dense") if moe else ("dense", "moe")
    rows = [
        (count, selective, full, moved * (full or count))
        for count in range(1, layers + 1)
        for selective, full in product(range(count + 1), repeat=2)
        if selective + full <= count
        for moved in (0, 1)
    ]
    count, selective, full, moved = np.asarray(rows).T
    nothing = np.zeros_like(count)
    columns = {
        kind: count, other: nothing, f"selective_{kind}": selective, f"selective_{other}": nothing,
        f"full_{kind}": full, f"full_{other}": nothing, "offloaded": moved, "optimizer_offload": nothing,
        "parameter_offload": nothing, "modules": nothing + 1,
    }  # fmt: skip
    return np.full(len(count), family.configs[0]), columns


def costs(
    family: Family, prices: StagePrices, config: IntArray, columns: dict[str, IntArray], stage: IntArray
) -> FloatArray:
    """(K,) seconds once per step of stages, with nothing to hide traffic under."""
    rows = prices.rows(
        config, dense=columns["dense"], moe=columns["moe"], has_embedding=stage == 0,
        has_head=stage == family.num_stages - 1,
    )  # fmt: skip
    sizes = family.num_microbatches, family.num_stages, family.virtual_stages
    m, p, v = (np.full(len(config), size) for size in sizes)
    shown_s, update_s = once_s(
        prices, config, rows, num_microbatches=m, num_stages=p, virtual_stages=v,
        forward_s=np.zeros(len(config)), backward_s=np.zeros(len(config)),
        optimizer_offload=columns["optimizer_offload"], parameter_offload=columns["parameter_offload"],
    )  # fmt: skip
    return shown_s + update_s


@pytest.mark.parametrize("case", CASES)
def test_no_share_that_fits_is_better_than_those_that_are_kept(case: str) -> None:
    """Every share of states and weights of every way: a kept way is no worse in passes and in what is once."""
    family, prices = family_of(CASES[case])
    config, columns = every_way(family, prices, 3)
    priced = price_ways(family, prices, config, columns)
    kept, cells = least_offloads(family, prices, config, columns, priced, shares=EIGHTHS, most_s=np.inf)
    kept_s = costs(family, prices, kept.config, kept.columns, kept.stage)
    assert cells > 0
    assert (kept.columns["parameter_offload"].max() > 0) == (case != "loose")
    seen = 0
    for states, weights in product(EIGHTHS, repeat=2):
        shares = {"optimizer_offload": np.full(len(config), states), "parameter_offload": np.full(len(config), weights)}
        there = price_ways(family, prices, config, columns | shares)
        way, stage = np.nonzero(fits_device(there) & fits_host(there))
        chosen = {name: column[way] for name, column in (columns | shares).items()}
        seen += len(way)
        found_s = costs(family, prices, config[way], chosen, stage)
        same = (kept.stage == stage[:, None]) & (
            kept.columns["dense"] + kept.columns["moe"] == (chosen["dense"] + chosen["moe"])[:, None]
        )
        for mine, theirs in (
            (kept.forward_s, there.stages.forward_s[way, stage]),
            (kept.backward_s, there.stages.backward_s[way, stage]),
            (kept_s, found_s),
        ):  # fmt: skip
            same &= mine <= theirs[:, None] * (1 + 1e-12)
        assert same.any(axis=1).all()
    assert seen > 500


@pytest.mark.parametrize("case", CASES)
def test_what_is_kept_fits_and_costs_what_it_says(case: str) -> None:
    family, prices = family_of(CASES[case])
    config, columns = every_way(family, prices, 3)
    priced = price_ways(family, prices, config, columns)
    kept, _ = least_offloads(family, prices, config, columns, priced, shares=(0, 3, 8), most_s=np.inf)
    again = price_ways(family, prices, kept.config, kept.columns)
    rows = np.arange(len(kept.stage))
    assert (fits_device(again) & fits_host(again))[rows, kept.stage].all()
    assert kept.forward_s.tolist() == again.stages.forward_s[rows, kept.stage].tolist()
    assert kept.backward_s.tolist() == again.stages.backward_s[rows, kept.stage].tolist()
    assert set(kept.columns["optimizer_offload"].tolist()) <= {0, 3, 8}
    limit = float(np.median(kept.forward_s + kept.backward_s))
    quick, _ = least_offloads(family, prices, config, columns, priced, shares=(0, 3, 8), most_s=limit)
    assert 0 < len(quick.stage) < len(kept.stage)
    assert (quick.forward_s + quick.backward_s <= limit).all()


def test_a_full_host_takes_no_more() -> None:
    """Of the host's memory only what is there: ways that need more of it are not kept."""
    question = TIGHT.question()
    cluster = question.requests[0].cluster
    node = replace(cluster.node, host_memory_bytes=20e9)
    context = replace(question.contexts[0], cluster=replace(cluster, node=node))
    family, prices = family_of(TIGHT)
    poor = StagePrices(configs=prices.configs, contexts=(context,))
    config, columns = every_way(family, prices, 2)
    rich, some = (
        least_offloads(
            family, each, config, columns, price_ways(family, each, config, columns), shares=EIGHTHS, most_s=np.inf
        )[0]
        for each in (prices, poor)
    )
    assert 0 < len(some.stage) < len(rich.stage)
    there = price_ways(family, poor, some.config, some.columns)
    assert fits_host(there)[np.arange(len(some.stage)), some.stage].all()


def test_tables_of_some_ways_on_some_stages() -> None:
    cells = np.array([[True, False], [True, True], [False, False], [True, False]])
    assert packed(np.array([4, 4, 4, 7]), cells).tolist() == [[0, 1], [1, -1], [3, -1]]


def test_options_are_not_called_exhaustive_where_a_host_updates_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    family, prices = family_of(TIGHT)
    table = option_table(family, prices, Freedom(offload=True), below_s=np.inf)
    assert table is not None
    assert table.exhaustive
    assert host_is_slower(prices)
    prices.content[CONTENT_COLUMNS.index("device_step_s")] *= 1e6  # the update on the device
    assert not host_is_slower(prices)
    table = option_table(family, prices, Freedom(offload=True), below_s=np.inf)
    assert table is not None
    assert not table.exhaustive


@pytest.mark.parametrize("case", CASES)
def test_no_stage_spends_less_once_than_a_family_is_said_to(case: str) -> None:
    family, prices = family_of(CASES[case])
    table = option_table(family, prices, Freedom(offload=True), below_s=np.inf)
    assert table is not None
    sizes = family.num_stages, family.num_microbatches, family.virtual_stages
    p, m, v = (np.asarray([size]) for size in sizes)
    options = table.instance.options
    longest_s = float((options.forward_s + options.backward_s).max())
    least_s = float(least_once_s(prices, family.configs, p, m, v, np.asarray([longest_s]))[0])
    most = options.layers >= prices.context.model.num_layers / family.num_stages
    assert least_s > 0
    assert least_s <= (options.once_s + options.update_s)[most].min() * (1 + 1e-9)


def test_plans_of_options_fit() -> None:
    family, prices = family_of(TIGHT)
    table = option_table(family, prices, Freedom(offload=True), below_s=np.inf)
    assert table is not None
    options = table.instance.options
    rows = [np.flatnonzero((options.stage == stage) & (options.layers == 2)) for stage in range(2)]
    plans: StagePlanBatch = table.plans(np.asarray(list(product(*rows))))
    assert evaluate_stages(plans, prices).fits.all()
    assert (plans.parameter_offload > 0).any()
