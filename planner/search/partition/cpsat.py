"""Exact partitions by OR-Tools CP-SAT: one Boolean per option, pipeline formulas as linear constraints.

Seconds are rounded to whole ticks, as coarse as ``resolution`` allows; how much that can change the value
of a choice is worked out and reported, and the solver's bound is lowered by it. The value of the choice
found is worked out anew in floating point. Status and bound are read from the solver.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.plan import FloatArray, IntArray, Schedule
from planner.search.partition.cpsat_interleaving import longest_interleaved
from planner.search.partition.cpsat_play import longest_play
from planner.search.partition.problem import PartitionInstance, StageOptions, partition_time_s, undominated
from planner.search.partition.solved import Solved, Status

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel, CpSolver

RESOLUTION = 1e-6  # share of the step time that rounding may change
_SLACK = 2  # ticks that a value in floating point may lie beside the exact one


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When a solver stops; the answer then says what was proved so far.

    Attributes:
        work: CP-SAT's deterministic time, about seconds on one core: what makes answers
            the same on every machine.
        wall_time_s: Seconds after which it stops whatever it has done; answers may then differ.
        seed: Of the solver's random choices.
    """

    work: float = 30.0
    wall_time_s: float = 60.0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ticks:
    """The options in whole ticks.

    Attributes:
        per_s: Ticks per second.
        forward, backward, weight, once, update, path: (K,) ticks; weight gradients are part of the backward pass.
        hand_over: (C, C) ticks.
        error: Ticks by which rounding can change the value of a choice.
        most: No choice takes more ticks.
    """

    per_s: float
    forward: IntArray
    backward: IntArray
    weight: IntArray
    once: IntArray
    update: IntArray
    path: IntArray
    hand_over: IntArray
    error: float
    most: int


def solve_by_cpsat(
    instance: PartitionInstance,
    *,
    budget: Budget | None = None,
    hint: IntArray | None = None,
    resolution: float = RESOLUTION,
) -> Solved:
    """The best partition CP-SAT finds within its budget, and what it proves.

    Args:
        instance: The problem.
        budget: When to stop.
        hint: (S,) a legal choice to start from; nothing worse is returned.
        resolution: Share of the step time that rounding may change.

    Returns:
        The choice with its value in floating point, and the solver's bound less the rounding error.

    Raises:
        KeyboardInterrupt: If the user interrupts; by then the solver has stopped.
    """
    from ortools.sat.python import cp_model

    kept = undominated(instance)
    options = instance.options.take(kept)
    ticks = _ticks(instance, options, resolution)
    model = cp_model.CpModel()
    chosen = [model.new_bool_var("") for _ in range(len(options))]
    _cover(model, instance, options, chosen)
    objective = _step(model, instance, options, ticks, chosen)
    per_s, error = ticks.per_s * instance.chunks, ticks.error * instance.chunks  # of the objective
    known_s = np.inf
    if hint is not None:
        known_s = float(partition_time_s(instance, hint[None, :])[0])
        model.add(objective <= int(np.ceil(known_s * per_s + error)) + _SLACK)
        for row in range(len(options)):
            model.add_hint(chosen[row], bool(np.isin(kept[row], hint)))
    model.minimize(objective)
    solver = new_solver(budget or Budget())
    code = _run(solver, model)
    rows = _rows(solver, options, kept, chosen) if code in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None
    objective_s = np.inf if rows is None else float(partition_time_s(instance, rows[None, :])[0])
    if hint is not None and known_s <= objective_s:
        rows, objective_s = hint, known_s
    return answered(solver, code, rows=rows, objective_s=objective_s, error=error, per_s=per_s)


def _run(solver: "CpSolver", model: "CpModel") -> Any:
    """Solves on a thread of its own: where the solver runs, Python sees no interrupt until it has ended."""
    solver.parameters.catch_sigint_signal = False  # it would end this solve without a word
    with ThreadPoolExecutor(max_workers=1) as pool:
        solving = pool.submit(solver.solve, model)
        try:
            return solving.result()
        except KeyboardInterrupt:
            solver.stop_search()
            raise


def new_solver(budget: Budget) -> "CpSolver":
    """A solver that stops as the budget says."""
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    parameters = solver.parameters
    parameters.max_deterministic_time = budget.work
    parameters.max_time_in_seconds = budget.wall_time_s
    parameters.random_seed = budget.seed
    # Strategies in turn on one core: threads may answer otherwise from run to run among equals.
    parameters.num_workers, parameters.interleave_search = 1, True
    return solver


def answered(
    solver: "CpSolver", code: Any, *, rows: IntArray | None, objective_s: float, error: float, per_s: float
) -> Solved:
    """What the solver says, with its bound lowered by what rounding may hide.

    Args:
        solver: After solving.
        code: What ``solve`` returned.
        rows: The choice; None without one.
        objective_s: Its value in floating point.
        error: Ticks by which rounding can change a value.
        per_s: Ticks per second.

    Raises:
        ValueError: If the solver calls the model invalid.
    """
    from ortools.sat.python import cp_model

    if code == cp_model.MODEL_INVALID:
        raise ValueError("CP-SAT calls the model invalid; are seconds or bytes out of range?")
    status = {cp_model.OPTIMAL: Status.OPTIMAL, cp_model.INFEASIBLE: Status.INFEASIBLE}.get(code, Status.UNKNOWN)
    if rows is not None and status != Status.OPTIMAL:
        status = Status.FEASIBLE
    bound_s = max(solver.best_objective_bound - error, 0.0) / per_s
    return Solved(
        status=status,
        rows=rows,
        objective_s=objective_s,
        bound_s=np.inf if status == Status.INFEASIBLE else min(bound_s, objective_s),
        rounding_error_s=error / per_s,
        wall_time_s=float(solver.wall_time),
        work=float(solver.deterministic_time),
        engine="cpsat",
    )


def linear(coefficients: Any, variables: list[Any]) -> Any:
    """The sum of variables times whole numbers."""
    from ortools.sat.python import cp_model

    return cp_model.LinearExpr.weighted_sum(variables, [int(each) for each in coefficients])


def _rows(solver: "CpSolver", options: StageOptions, kept: IntArray, chosen: list[Any]) -> IntArray:
    """(S,) chosen options, stage by stage, as rows of the whole table."""
    picked = np.flatnonzero([solver.boolean_value(variable) for variable in chosen])
    return kept[picked[np.argsort(options.stage[picked])]]


def _ticks(instance: PartitionInstance, options: StageOptions, resolution: float) -> _Ticks:
    """Rounds to ticks of which the shortest imaginable step has enough.

    Each rounded number is off by half a tick at most. The value of a choice is the longest of sums in which a
    stage's two passes count m times together with the turns spared, every other stage's twice at most (on the
    way there and back), with the hand-over behind each. What happens once, updates, what is put
    off and detours add a half each.
    """
    stages, m = instance.num_stages, instance.num_microbatches
    half_per_pass = 2 if instance.hand_over_s is not None else 1
    passes = 2 * (m + 2 * stages)
    error = 0.5 * (half_per_pass * passes + 3 + stages)
    stage_s = options.forward_s + options.backward_s
    least_s = np.full(stages, np.inf)
    np.minimum.at(least_s, options.stage, stage_s)
    shortest_s = max(float(np.where(np.isfinite(least_s), least_s, 0.0).max(initial=0.0)) * m, 1e-30)
    per_s = error / (resolution * shortest_s)

    def rounded(seconds: FloatArray) -> IntArray:
        return np.rint(seconds * per_s).astype(np.int64)

    crossing = np.zeros((1, 1)) if instance.hand_over_s is None else instance.hand_over_s
    slowest = 2 * (float(stage_s.max(initial=0.0)) + 2 * float(crossing.max()))
    most_s = 2 * (m + 2 * stages) * slowest + float(options.once_s.max(initial=0.0) + options.update_s.max(initial=0.0))
    most_s += stages * float(options.path_s.max(initial=0.0))
    return _Ticks(
        per_s=per_s,
        forward=rounded(options.forward_s),
        backward=rounded(options.backward_s),
        weight=rounded(options.weight_s),
        once=rounded(options.once_s),
        update=rounded(options.update_s),
        path=rounded(options.path_s),
        hand_over=rounded(crossing),
        error=error,
        most=int(np.ceil(most_s * per_s + error)) + _SLACK,
    )


def _cover(model: "CpModel", instance: PartitionInstance, options: StageOptions, chosen: list[Any]) -> None:
    """One option per stage; layers in order; devices there are."""
    for stage in range(instance.num_stages):
        model.add_exactly_one(chosen[row] for row in np.flatnonzero(options.stage == stage))
    if instance.placed:
        _in_order(model, instance, options, chosen)
    else:
        model.add(_sum(options.layers, chosen) == instance.num_layers)
    for group, available in enumerate(instance.available_devices):
        model.add(_sum(options.devices[:, group], chosen) <= available)


def _in_order(model: "CpModel", instance: PartitionInstance, options: StageOptions, chosen: list[Any]) -> None:
    """Each stage begins where the one before it ends: as many options end at a layer as begin there."""
    end = options.first_layer + options.layers
    for layer in range(instance.num_layers + 1):
        ends = [end == layer, options.first_layer == layer]
        for stage in range(instance.num_stages + 1):
            before = [chosen[row] for row in np.flatnonzero(ends[0] & (options.stage == stage - 1))]
            after = [chosen[row] for row in np.flatnonzero(ends[1] & (options.stage == stage))]
            entering = int(layer == 0) if stage == 0 else sum(before)
            leaving = int(layer == instance.num_layers) if stage == instance.num_stages else sum(after)
            if before or after or entering != leaving:
                model.add(entering == leaving)


def _sum(coefficients: IntArray, chosen: list[Any], rows: IntArray | None = None) -> Any:
    rows = np.flatnonzero(coefficients) if rows is None else rows
    return linear(coefficients[rows], [chosen[row] for row in rows])


def _step(
    model: "CpModel", instance: PartitionInstance, options: StageOptions, ticks: _Ticks, chosen: list[Any]
) -> Any:
    """The step time in ticks times virtual stages, bounded from below by what ``pipeline.schedules`` adds up."""
    stages, m = range(instance.num_stages), instance.num_microbatches
    of_stage = [np.flatnonzero(options.stage == stage) for stage in stages]
    crossing = _crossings(model, instance, options, ticks, chosen)
    forward = [_sum(ticks.forward, chosen, of_stage[stage]) + crossing[stage + 1] for stage in stages]
    backward = [_sum(ticks.backward, chosen, of_stage[stage]) + crossing[stage] for stage in stages]
    time = [forward[stage] + backward[stage] for stage in stages]

    def at_least(*bounds: Any, least: int = 0) -> Any:
        variable = model.new_int_var(least, ticks.most * instance.chunks, "")
        for bound in bounds:
            model.add(variable >= bound)
        return variable

    once = at_least(
        *(
            _sum(ticks.once, chosen, of_stage[stage]) - (sum(time[:stage]) if instance.once_under_fill else 0)
            for stage in stages
        )
    )
    update = at_least(*(_sum(ticks.update, chosen, of_stage[stage]) for stage in stages))
    if instance.schedule == Schedule.GPIPE:
        spread = sum(time) + (m - 1) * (at_least(*forward) + at_least(*backward))
    elif instance.virtual_stages > 1:
        spread = longest_interleaved(instance, forward, backward, at_least)
    elif instance.puts_off:
        weight = [_sum(ticks.weight, chosen, of_stage[stage]) for stage in stages]
        spread = longest_play(instance, (forward, backward, weight), at_least)
    else:
        spread = _longest_chain(instance, forward, backward, at_least)
    return spread + instance.chunks * (once + update + _sum(ticks.path, chosen))


def _longest_chain(
    instance: PartitionInstance, forward: list[Any], backward: list[Any], at_least: Callable[..., Any]
) -> Any:
    """1F1B in ticks: at least every chain of work that ``costmodels.pipeline.schedules`` takes the longest of.

    A chain reaches stage h by way of a stage behind it, spending the turns it can spare at the slowest forward
    on its way, works on h for all turns left, and leaves likewise with forwards and backwards exchanged.
    """
    stages, m = instance.num_stages, instance.num_microbatches
    way = [sum(forward[: stage + 1]) + sum(backward[: stage + 1]) for stage in range(stages)]
    slowest = [[passes[0]] for passes in (forward, backward)]
    for stage in range(1, stages):
        for passes, longest in zip((forward, backward), slowest, strict=True):
            longest.append(at_least(longest[-1], passes[stage]))
    done: list[Any] = []
    behind: list[Any] = []
    for stage in range(stages - 1, -1, -1):
        spare, turns = min(stages - 1 - stage, m - 1), m - stages + stage
        straight = [way[stage] + spare * longest[stage] for longest in slowest]
        behind = [
            at_least(here, *beyond) for here, *beyond in zip(straight, *([behind] if behind else []), strict=True)
        ]
        if turns >= 0:
            done.append(sum(behind) - way[stage] + turns * (forward[stage] + backward[stage]))
    return at_least(*done)


def _crossings(
    model: "CpModel", instance: PartitionInstance, options: StageOptions, ticks: _Ticks, chosen: list[Any]
) -> list[Any]:
    """Ticks one way at every end of a stage: of the boundary there, or of the only one if there is none."""
    if instance.hand_over_s is None or instance.num_stages == 1:
        return [0] * (instance.num_stages + 1)
    kinds = np.unique(options.kind)
    on = [_on_kinds(model, options, chosen, stage, kinds) for stage in range(instance.num_stages)]
    crossing: list[Any] = []
    for before, after in itertools.pairwise(on):
        pairs = pair_variables(model, before, after)
        crossing.append(linear(ticks.hand_over[np.ix_(kinds, kinds)].ravel(), pairs))
    return [crossing[0], *crossing, crossing[-1]]


def _on_kinds(model: "CpModel", options: StageOptions, chosen: list[Any], stage: int, kinds: IntArray) -> list[Any]:
    """One Boolean per kind of device: whether the stage is on it."""
    on = []
    for kind in kinds:
        variable = model.new_bool_var("")
        rows = np.flatnonzero((options.stage == stage) & (options.kind == kind))
        model.add(sum(chosen[row] for row in rows) == variable)
        on.append(variable)
    return on


def pair_variables(model: "CpModel", before: list[Any], after: list[Any]) -> list[Any]:
    """One Boolean for every two choices of neighbours, true for the two chosen, the first varying slowest."""
    table = [[model.new_bool_var("") for _ in after] for _ in before]
    for choice, row in zip(before, table, strict=True):
        model.add(sum(row) == choice)
    for choice, column in zip(after, zip(*table, strict=True), strict=True):
        model.add(sum(column) == choice)
    return list(itertools.chain(*table))
