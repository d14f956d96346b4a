"""The space of plans whose stages differ: legality, canonical vectors, moves, prices, and mixed clusters."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.plan import Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import from_uniform
from costmodels.stage_plans.prices import StagePrices
from planner.answer.pricing import price_all
from planner.rules.base import Setting
from planner.search.agents.anneal import SimulatedAnnealing
from planner.search.agents.run import Budget, Search, run
from planner.search.agents.varied import VariedSpace
from planner.search.agents.varied_moves import MOVES
from planner.search.agents.varied_vectors import PLAN_KNOBS, STAGES, spread
from planner.search.stage_space import stage_space
from planner.space.enumeration import plan_space
from profiles.errors import SpecError
from tests.fakes import device, gpt, job, mixture, stack
from tests.search_spaces import rows, small_context

MIXED_KINDS = mixture(num_layers=8, moe={"first_dense_layers": 2})


def space(*, nodes: int = 2, framework: str = "megatron", **changes: Any) -> VariedSpace:
    own = {name: changes.pop(name) for name in ("offload", "max_stages", "modules") if name in changes}
    return varied([small_context(nodes=nodes, stack=stack(framework=framework), **changes)], **own)


def varied(contexts: list[CostContext], *, joint: Any = None, **own: Any) -> VariedSpace:
    settings = [
        Setting(model=each.model, job=each.job, num_devices=each.cluster.num_devices, framework=each.stack.framework)
        for each in contexts
    ]
    return VariedSpace(stages=stage_space(settings, contexts, joint=joint), **own)


def two_groups() -> VariedSpace:
    """One group twice as fast, with twice the memory, as the other."""
    slow = small_context(nodes=1, memory_bytes=2e9)
    quick = small_context(nodes=1, memory_bytes=4e9)
    kernels = replace(quick.kernels, flops_per_s=400e12, bytes_per_s=4e12)  # type: ignore[type-var]
    quick = replace(quick, kernels=kernels)
    joint = replace(slow, cluster=replace(slow.cluster, num_nodes=2))
    return varied([slow, quick], joint={(0, 1): joint})


SPACES = {
    "dense": lambda: space(model=gpt(num_layers=12), offload=True),
    "mixture": lambda: space(model=mixture(num_layers=6), nodes=3, job=job(global_batch_size=48)),
    "both kinds": lambda: space(model=MIXED_KINDS, offload=True),
    "modules": lambda: space(model=mixture(num_layers=6), modules=(1, 16, 34), job=job(attention="unfused")),
    "schedules": lambda: space(model=gpt(num_layers=8), framework="fsdp"),
    "one node": lambda: space(nodes=1),
    "two groups": two_groups,
}


@pytest.mark.parametrize("case", SPACES)
def test_drawn_and_moved_plans_are_legal_and_canonical(case: str) -> None:
    where, rng = SPACES[case](), np.random.default_rng(0)
    before = where.initial(300, rng)
    moves = rng.integers(0, len(where.moves), size=300)
    after = where.propose(before, moves, rng)
    for vectors in (before, after):
        assert (where.broken_rules(vectors) == 0).all()
        assert (where.settle(vectors) == vectors).all()
        plans = where.decode(vectors)
        assert (plans.layers.sum(axis=1) == where.layout.model.num_layers).all()
        assert ((plans.layers > 0) == plans.used).all()
        dense, moe = plans.kinds(where.layout.model)
        assert (plans.full_dense + plans.selective_dense <= dense).all()
        assert (plans.full_moe + plans.selective_moe <= moe).all()
        assert (plans.layers % plans.virtual_stages[:, None] == 0).all()
    changed = (after != before).any(axis=1)
    assert changed.mean() > 0.2
    assert len(rows(before)) > 100


@pytest.mark.parametrize("move", MOVES)
def test_every_kind_of_move_does_something(move: str) -> None:
    where, rng = SPACES["two groups"]() if move == "swap" else SPACES["dense"](), np.random.default_rng(1)
    before = where.initial(300, rng)
    after = where.propose(before, np.full(300, list(MOVES).index(move)), rng)
    assert (after != before).any(axis=1).mean() > 0.03


@pytest.mark.parametrize("case", SPACES)
def test_only_knobs_that_can_be_turned_are_knobs(case: str) -> None:
    where = SPACES[case]()
    model = where.layout.model
    names = {knob.name.rsplit("_", 1)[0] for knob in where.knobs[len(PLAN_KNOBS) :]}
    assert names == set(where.layout.names)
    assert ("full_dense" in names) == (where.layout.full and model.num_moe_layers < model.num_layers)
    assert ("full_moe" in names) == (where.layout.full and model.num_moe_layers > 0)
    assert {name in names for name in ("offloaded", "optimizer_offload", "parameter_offload")} == {where.offload}
    assert all(len(knob.labels) > 1 for knob in where.knobs[len(PLAN_KNOBS) :])
    vectors = where.initial(5, np.random.default_rng(0))
    assert vectors.shape[1] == where.layout.length == len(where.knobs)
    where.layout.stages(vectors)[:] = 7  # a view
    assert (vectors[:, len(PLAN_KNOBS) :] == 7).all()


def test_a_swap_exchanges_whole_stages() -> None:
    where, rng = SPACES["two groups"](), np.random.default_rng(3)
    before = where.initial(200, rng)
    after = where.propose(before, np.full(200, list(MOVES).index("swap")), rng)
    changed = (after != before).any(axis=1)
    assert changed.any()
    for old, new in zip(before[changed], after[changed], strict=True):
        stages = [sorted(map(tuple, where.layout.stages(row[None])[0].T.tolist())) for row in (old, new)]
        assert stages[0] == stages[1]


def test_typed_moves_change_what_they_name() -> None:
    where, rng = SPACES["dense"](), np.random.default_rng(2)
    before = where.initial(400, rng)
    layout = where.layout

    def moved(name: str) -> tuple[np.ndarray, np.ndarray]:
        after = where.propose(before, np.full(400, list(MOVES).index(name)), rng)
        changed = (after != before).any(axis=1)
        return before[changed], after[changed]

    old, new = moved("split")
    assert (new[:, STAGES] == old[:, STAGES] + 1).all()
    old, new = moved("merge")
    assert (new[:, STAGES] == old[:, STAGES] - 1).all()
    old, new = moved("shift")
    assert (new[:, layout.block("shape")] == old[:, layout.block("shape")]).all()
    assert ((new[:, layout.block("layers")] != old[:, layout.block("layers")]).sum(axis=1) == 2).all()
    old, new = moved("shape")
    assert ((new[:, layout.block("shape")] != old[:, layout.block("shape")]).sum(axis=1) == 1).all()
    same = where.choices.devices[new[:, layout.block("shape")]] == where.choices.devices[old[:, layout.block("shape")]]
    assert same.all()


def test_uniform_plans_are_in_the_space_at_their_price() -> None:
    where = SPACES["dense"]()
    context = where.stages.prices.context
    setting = Setting(model=context.model, job=context.job, num_devices=8, framework="megatron")
    plans = plan_space(setting, domain_devices=4, offload=False).plans
    plain = plans.take(np.flatnonzero((plans.pipeline_parallel > 1) & (plans.axis_order == 0)))
    vectors = where.encode(from_uniform(plain, context.model))
    assert (where.broken_rules(vectors) == 0).all()
    priced, outcome = price_all(plain, context), where.price(vectors)
    assert outcome.step_time_s == pytest.approx(priced.step_time_s, rel=1e-12)
    assert (outcome.feasible == priced.fits).all()


@pytest.mark.parametrize("case", ["dense", "both kinds", "modules", "two groups"])
def test_encoding_undoes_decoding(case: str) -> None:
    where, rng = SPACES[case](), np.random.default_rng(3)
    vectors = where.initial(100, rng)
    for _ in range(20):
        vectors = where.propose(vectors, np.full(100, list(MOVES).index("recompute")), rng)
    assert (where.encode((where.decode(vectors), where.choices.configs)) == vectors).all()


def test_stages_draw_every_set_of_modules_and_no_other() -> None:
    where, rng = SPACES["modules"](), np.random.default_rng(5)
    vectors = where.initial(100, rng)
    for _ in range(20):
        vectors = where.propose(vectors, np.full(100, list(MOVES).index("recompute")), rng)
    plans = where.decode(vectors)
    some = plans.selective_moe > 0
    assert set(plans.modules[some].tolist()) == {1, 16, 34}
    assert (plans.modules[~some] == 1).all()
    plain = space(model=mixture(num_layers=6), job=job(attention="unfused"))
    with pytest.raises(ValueError, match="modules that this space does not consider"):
        plain.encode((plans, where.choices.configs))


def test_prices_do_not_depend_on_what_is_priced_along_or_before() -> None:
    """A batch is priced by length, a plan at a time as it is: the same to the last bit."""
    where = SPACES["dense"]()
    vectors = where.initial(700, np.random.default_rng(4))
    together = where.price(vectors)
    fresh = StagePrices(configs=where.choices.configs, contexts=where.stages.prices.contexts)
    again = evaluate_stages(where.decode(vectors), fresh)
    assert (together.step_time_s == again.step_time_s).all()
    assert (together.excess["memory"] == again.overshoot).all()
    alone = [where.price(vectors[[row]]).step_time_s[0] for row in range(20)]
    assert (together.step_time_s[:20] == alone).all()


def test_annealing_beats_the_best_uniform_plan_where_stages_should_differ() -> None:
    """A large vocabulary weighs on the last stage: fewer layers there pay."""
    where = space(model=gpt(num_layers=8, vocab_size=262144), memory_bytes=2.5e9)
    context = where.stages.prices.context
    setting = Setting(model=context.model, job=context.job, num_devices=8, framework="megatron")
    priced = price_all(plan_space(setting, domain_devices=4).plans, context)
    uniform_s = priced.step_time_s[priced.fits].min()
    found = run(Search(space=where, agent=SimulatedAnnealing(space=where, seed=0), budget=Budget(evaluations=8000)))
    assert found.step_time_s < 0.99 * uniform_s
    assert found.vector is not None
    assert where.price(found.vector[None, :]).step_time_s[0] == found.step_time_s
    assert len(set(found.vector[where.layout.block("layers")][: found.vector[STAGES] + 1].tolist())) > 1 or (
        found.vector[where.layout.block("full_dense")].any()
    )


def test_two_groups_together_beat_either_alone_and_the_quicker_takes_more_layers() -> None:
    both = two_groups()
    alone = [varied([context]) for context in both.stages.prices.contexts]
    best_s = [
        run(Search(space=where, agent=SimulatedAnnealing(space=where, seed=1), budget=Budget(evaluations=3000)))
        for where in (both, *alone)
    ]
    assert best_s[0].step_time_s < min(best_s[1].step_time_s, best_s[2].step_time_s)
    assert best_s[0].vector is not None
    plans = both.decode(best_s[0].vector[None, :])
    group = both.choices.configs.group[plans.config[0]]
    per_stage = plans.layers[0] / np.maximum(both.choices.configs.num_devices[plans.config[0]], 1)
    used = plans.used[0]
    assert set(group[used]) == {0, 1}
    assert per_stage[used & (group == 1)].mean() > per_stage[used & (group == 0)].mean()


def test_devices_of_a_group_are_never_exceeded_but_may_be_left_idle() -> None:
    where = two_groups()
    vectors = where.initial(500, np.random.default_rng(5))
    plans = where.decode(vectors)
    devices = where.choices.configs.num_devices[plans.config] * plans.used
    group = where.choices.configs.group[plans.config]
    for number in (0, 1):
        taken = (devices * (group == number)).sum(axis=1)
        assert (taken <= 4).all()
        assert (taken < 4).any()


def test_a_shape_and_samples_name_a_configuration() -> None:
    choices = SPACES["mixture"]().choices
    configs = choices.configs
    assert (choices.samples * choices.num_microbatches == 48).all()
    shapes, columns = np.nonzero(choices.table >= 0)
    row = choices.table[shapes, columns]
    assert sorted(row.tolist()) == list(range(len(configs)))
    assert (configs.samples[row] == choices.samples[columns]).all()
    assert (configs.num_devices[row] == choices.devices[shapes]).all()
    assert (configs.plans.num_microbatches[row] == choices.num_microbatches[columns]).all()


def test_a_framework_with_one_schedule_has_one() -> None:
    assert SPACES["dense"]().layout.schedules.tolist() == [Schedule.ONE_F_ONE_B]
    assert SPACES["schedules"]().layout.schedules.tolist() == [Schedule.ONE_F_ONE_B, Schedule.GPIPE]


def test_layers_are_spread_by_weight_in_whole_chunks() -> None:
    used = np.asarray([[True, True, True], [True, True, False]])
    layers = spread(np.asarray([[1.0, 1.0, 2.0], [9.0, 1.0, 0.0]]) * 6, used, np.asarray([2, 1]), 12)
    assert layers.tolist() == [[4, 2, 6], [10, 2, 0]]  # of what weighs more than the one chunk that every stage has
    kept = np.asarray([[4, 6, 2], [5, 7, 0]])
    assert (spread(kept, used, np.asarray([2, 1]), 12) == kept).all()


def test_strangers_and_silly_sizes_are_refused() -> None:
    where = space(max_stages=2)
    deeper = space(nodes=2)
    vectors = deeper.initial(200, np.random.default_rng(6))
    long = vectors[vectors[:, STAGES] >= 2]
    with pytest.raises(ValueError, match="more than 2 stages"):
        where.encode((deeper.decode(long), deeper.choices.configs))
    with pytest.raises(SpecError, match="max_stages"):
        space(max_stages=0)


def test_a_device_without_room_makes_every_plan_exceed_memory() -> None:
    where = space(memory_bytes=1e8)
    outcome = where.price(where.initial(50, np.random.default_rng(7)))
    assert not outcome.feasible.any()
    assert (outcome.excess["memory"] > 0).all()
    assert device().usable_memory_bytes > 1e8
