"""Simulated annealing: chains side by side, moves that change several calls at once, temperature in units of cost.

A plan that does not fit costs more the further it is from fitting, so that chains can pass through it and find their
way out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.dataflow.solving.memory import pressure
from planner.dataflow.solving.orders import TaskGraph
from planner.dataflow.solving.problem import DataflowProblem
from planner.dataflow.solving.schedule import PlanRows
from planner.dataflow.solving.steady import duration_s
from planner.dataflow.solving.tree import Incumbent
from planner.dataflow.solving.units import Units

MOVES = ("one call", "same mesh", "shift", "swap meshes", "two calls apart", "join", "order")
_WEIGHTS = (0.24, 0.16, 0.12, 0.08, 0.2, 0.12, 0.08)
_FINALISTS = 8
_RESTART_SHARE = 0.5  # of the chains that start over from the best plan halfway


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnealOptions:
    """How long and how hot.

    Attributes:
        chains: Independent chains, each from its own start.
        steps: Proposals per chain.
        hot: Temperature at the start, as a share of the chain's cost.
        cold: Temperature at the end; in between it falls geometrically.
        seed: Same seed, same result.
    """

    chains: int = 64
    steps: int = 1500
    hot: float = 0.1
    cold: float = 2e-4
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnealResult:
    """What the chains found.

    Attributes:
        finalists: Different plans that fit, the fastest first; none if no chain met one.
        finalist_s: Their times. [finalists]
        evaluations: Plans simulated.
        accepted: Share of proposals accepted.
        accepted_by_move: The same for each kind of move.
        curve_s: Best time of each chain so far, at ``curve_steps`` points of the run. [points, chains]
        curve_steps: Step of each point.
    """

    finalists: PlanRows
    finalist_s: FloatArray
    evaluations: int
    accepted: float
    accepted_by_move: dict[str, float]
    curve_s: FloatArray
    curve_steps: IntArray

    @property
    def makespan_s(self) -> float:
        """Time of the fastest plan; infinite if no chain met one that fits."""
        return float(self.finalist_s[0]) if len(self.finalist_s) else np.inf

    @property
    def incumbents(self) -> list[Incumbent]:
        """The finalists one by one."""
        choices, orders, times = self.finalists.choice, self.finalists.order.tolist(), self.finalist_s.tolist()
        return [
            Incumbent(choice=choice, order=order, makespan_s=time_s)
            for choice, order, time_s in zip(choices, orders, times, strict=True)
        ]


def anneal(
    problem: DataflowProblem,
    graph: TaskGraph,
    units: Units,
    options: AnnealOptions | None = None,
    *,
    starts: IntArray | None = None,
    enough_s: float = 0.0,
    stop: Callable[[], bool] | None = None,
) -> AnnealResult:
    """Search by annealing.

    Args:
        problem: The problem, useless candidates dropped if that is wanted.
        graph: Its tasks and orders.
        units: Its units.
        options: Length and temperatures; the defaults if none.
        starts: Plans to start from, before those the search makes up itself. [plans, calls]
        enough_s: A plan of that time ends the search early.
        stop: Asked once per step; true ends the search early.
    """
    given = options or AnnealOptions()
    chains = _Chains(problem, graph, units, given, starts)
    points = max(1, given.steps // 64)
    curve = []
    for step in range(given.steps):
        if chains.best_s.min() <= enough_s or (stop and stop()):
            break
        chains.step(given.hot * (given.cold / given.hot) ** (step / max(given.steps - 1, 1)))
        if step == given.steps // 2:
            chains.gather()
        if (step + 1) % points == 0:
            curve.append(chains.best_s.copy())
    return chains.result(np.array(curve).reshape(-1, given.chains), np.arange(1, len(curve) + 1) * points)


class _Chains:
    """State of all chains. Costs of plans that do not fit are ``1.05 + 4 * (share of memory - 1)`` times their time."""

    def __init__(
        self,
        problem: DataflowProblem,
        graph: TaskGraph,
        units: Units,
        options: AnnealOptions,
        starts: IntArray | None,
    ) -> None:
        self.problem, self.graph, self.units = problem, graph, units
        self.rng = np.random.default_rng(options.seed)
        self.meshes = _MeshIndex(problem)
        self.plans = self._starts(options.chains, starts)
        self.cost, fits = self._price(self.plans)
        self.best_s = np.where(fits, self.cost, np.inf)
        self.best = PlanRows(choice=self.plans.choice.copy(), order=self.plans.order.copy())
        self.evaluations = options.chains
        self.tried = np.zeros(len(MOVES), dtype=np.int64)
        self.taken = np.zeros(len(MOVES), dtype=np.int64)

    def step(self, temperature: float) -> None:
        proposal, moves = self._propose()
        cost, fits = self._price(proposal)
        self.evaluations += len(cost)
        worse = np.maximum(cost - self.cost, 0) / (temperature * self.cost)
        accept = self.rng.random(len(cost)) < np.exp(-worse)
        self.tried += np.bincount(moves, minlength=len(MOVES))
        self.taken += np.bincount(moves[accept], minlength=len(MOVES))
        self.plans.choice[accept] = proposal.choice[accept]
        self.plans.order[accept] = proposal.order[accept]
        self.cost[accept] = cost[accept]
        better = fits & (cost < self.best_s)
        self.best_s[better] = cost[better]
        self.best.choice[better] = proposal.choice[better]
        self.best.order[better] = proposal.order[better]

    def gather(self) -> None:
        """Let the worst chains go on from the best plans of the others."""
        ranked = np.argsort(self.best_s, kind="stable")
        moving = ranked[len(ranked) - int(len(ranked) * _RESTART_SHARE) :]
        models = ranked[np.arange(len(moving)) % max(1, len(ranked) // 8)]
        models = np.where(np.isfinite(self.best_s[models]), models, moving)
        known = np.isfinite(self.best_s[models])
        moving, models = moving[known], models[known]
        self.plans.choice[moving] = self.best.choice[models]
        self.plans.order[moving] = self.best.order[models]
        self.cost[moving] = self.best_s[models]

    def result(self, curve: FloatArray, steps: IntArray) -> AnnealResult:
        fitting = np.flatnonzero(np.isfinite(self.best_s))
        _, first = np.unique(self.best.choice[fitting], axis=0, return_index=True)
        different = fitting[np.sort(first)]
        ranked = different[np.argsort(self.best_s[different], kind="stable")][:_FINALISTS]
        return AnnealResult(
            finalists=self.best.take(ranked),
            finalist_s=self.best_s[ranked],
            evaluations=self.evaluations,
            accepted=float(self.taken.sum()) / max(1, int(self.tried.sum())),
            accepted_by_move={
                name: taken / max(1, tried)
                for name, taken, tried in zip(MOVES, self.taken.tolist(), self.tried.tolist(), strict=True)
            },
            curve_s=curve,
            curve_steps=steps,
        )

    def _price(self, plans: PlanRows) -> tuple[FloatArray, BoolArray]:
        share = pressure(self.problem, self.units, plans.choice)
        time = duration_s(self.problem, self.graph, plans)
        fits = share <= 1
        return np.where(fits, time, time * (1.05 + 4 * (share - 1))), fits

    def _starts(self, chains: int, given: IntArray | None) -> PlanRows:
        """Given plans, every call as fast as it can be, every call as small as it can be, then at random."""
        calls = self.problem.calls
        fastest = np.array([int(call.time_s.argmin()) for call in calls])
        thrifty = np.array([int((call.time_s * call.size).argmin()) for call in calls])
        leanest = np.array([int(call.peak_bytes.argmin()) for call in calls])
        rows = np.stack([self.rng.integers(0, len(call), chains) for call in calls], axis=1)
        fixed = np.concatenate([*([] if given is None else [given]), np.stack([fastest, thrifty, leanest])])[:chains]
        rows[: len(fixed)] = fixed
        return PlanRows(choice=rows, order=self.rng.integers(0, len(self.graph.orders), chains))

    def _propose(self) -> tuple[PlanRows, IntArray]:
        choice, order = self.plans.choice.copy(), self.plans.order.copy()
        chains, calls = choice.shape
        moves: IntArray = self.rng.choice(np.arange(len(MOVES)), size=chains, p=_WEIGHTS)
        first: IntArray = self.rng.integers(0, calls, size=(chains,))
        second: IntArray = (first + self.rng.integers(1, max(calls, 2), size=(chains,))) % calls
        luck = self.rng.random((chains, 2))
        everywhere = np.arange(chains)
        mine = self.meshes.mesh(choice, first)
        other = self.meshes.mesh(choice, second)
        for move, name in enumerate(MOVES):
            rows = everywhere[moves == move]
            if not len(rows):
                continue
            a, b, r, s = first[rows], second[rows], luck[rows, 0], luck[rows, 1]
            if name == "one call":
                choice[rows, a] = self.meshes.anywhere(a, r)
            elif name == "same mesh":
                choice[rows, a] = self.meshes.within(a, mine[rows], r, choice[rows, a])
            elif name == "shift":
                choice[rows, a] = self.meshes.alike(a, choice[rows, a], r)
            elif name == "swap meshes":
                choice[rows, a] = self.meshes.within(a, other[rows], r, choice[rows, a])
                choice[rows, b] = self.meshes.within(b, mine[rows], s, choice[rows, b])
            elif name == "two calls apart":
                choice[rows, a] = self.meshes.anywhere(a, r)
                choice[rows, b] = self.meshes.beside(a, choice[rows, a], b, s, choice[rows, b])
            elif name == "join":
                choice[rows, a] = self.meshes.within(a, other[rows], r, choice[rows, a])
            else:
                order[rows] = (r * len(self.graph.orders)).astype(np.int64)
        return PlanRows(choice=choice, order=order), moves


class _MeshIndex:
    """Candidates of every call by mesh, laid out so that many chains can draw at once.

    Meshes are numbered over all calls. Candidates of all calls stand in one array, sorted by call and mesh.
    """

    def __init__(self, problem: DataflowProblem) -> None:
        calls = problem.calls
        bounds = np.concatenate([np.stack([call.start, call.size], axis=1) for call in calls])
        unique, number = np.unique(bounds, axis=0, return_inverse=True)
        self.sizes = np.array([len(call) for call in calls])
        self.offset = np.concatenate([[0], np.cumsum(self.sizes)])
        self.number = number.ravel()
        meshes = len(unique)
        owner = np.repeat(np.arange(len(calls)), self.sizes)
        key = owner * meshes + self.number
        self.sorted = np.argsort(key, kind="stable")
        self.first = np.searchsorted(key[self.sorted], np.arange(len(calls) * meshes + 1))
        self.meshes = meshes
        self._shapes(problem, owner)
        self._neighbours(unique, len(calls))

    def _shapes(self, problem: DataflowProblem, owner: IntArray) -> None:
        """Groups of candidates of one call with the same mesh size and layout: the same thing elsewhere."""
        shape = np.concatenate([np.stack([call.size, call.strategy_id], axis=1) for call in problem.calls])
        _, kind = np.unique(np.concatenate([owner[:, None], shape], axis=1), axis=0, return_inverse=True)
        self.kind = kind.ravel()
        self.by_kind = np.argsort(self.kind, kind="stable")
        self.kind_first = np.searchsorted(self.kind[self.by_kind], np.arange(self.kind.max() + 2))

    def _neighbours(self, unique: IntArray, calls: int) -> None:
        """Candidates of each call sorted by where their mesh starts, and by where it stops."""
        start, stop = unique[:, 0][self.number], unique.sum(axis=1)[self.number]
        owner = np.repeat(np.arange(calls), self.sizes)
        self.start, self.stop = start, stop
        span = int(stop.max()) + 1
        self.span = span
        self.by_start = np.argsort(owner * span + start, kind="stable")
        self.start_key = (owner * span + start)[self.by_start]
        self.by_stop = np.argsort(owner * span + stop, kind="stable")
        self.stop_key = (owner * span + stop)[self.by_stop]

    def mesh(self, choice: IntArray, calls: IntArray) -> IntArray:
        """Number of the mesh that one call of each row uses."""
        rows: IntArray = self.number[self.offset[calls] + choice[np.arange(len(choice)), calls]]
        return rows

    def anywhere(self, calls: IntArray, luck: FloatArray) -> IntArray:
        """Any candidate of the call of each row."""
        rows: IntArray = (luck * self.sizes[calls]).astype(np.int64)
        return rows

    def within(self, calls: IntArray, mesh: IntArray, luck: FloatArray, otherwise: IntArray) -> IntArray:
        """A candidate on the given mesh; the given candidate where the call has none there."""
        first = self.first[calls * self.meshes + mesh]
        count = self.first[calls * self.meshes + mesh + 1] - first
        place = np.minimum(first + (luck * count).astype(np.int64), len(self.sorted) - 1)
        return np.where(count > 0, self.sorted[place] - self.offset[calls], otherwise)

    def alike(self, calls: IntArray, rows: IntArray, luck: FloatArray) -> IntArray:
        """The same size and layout on another mesh, or the same one."""
        kind = self.kind[self.offset[calls] + rows]
        first, count = self.kind_first[kind], self.kind_first[kind + 1] - self.kind_first[kind]
        alike: IntArray = self.by_kind[first + (luck * count).astype(np.int64)] - self.offset[calls]
        return alike

    def beside(
        self, calls: IntArray, rows: IntArray, others: IntArray, luck: FloatArray, otherwise: IntArray
    ) -> IntArray:
        """A candidate of another call with a mesh wholly behind or before that of the first; else the given one."""
        here = self.offset[calls] + rows
        behind = np.searchsorted(self.start_key, others * self.span + self.stop[here])
        behind_count = self.offset[others + 1] - behind
        before_count = np.searchsorted(self.stop_key, others * self.span + self.start[here], side="right")
        before_count = before_count - self.offset[others]
        place = (luck * (behind_count + before_count)).astype(np.int64)
        late = place < behind_count
        last = len(self.by_start) - 1
        after = self.by_start[np.minimum(behind + place, last)]
        ahead = self.by_stop[np.clip(self.offset[others] + place - behind_count, 0, last)]
        found = np.where(late, after, ahead) - self.offset[others]
        return np.where(behind_count + before_count > 0, found, otherwise)
