"""Simulated annealing: many Markov chains that advance as one batch.

Each chain proposes a typed move of its plan, and takes it by Metropolis' rule. Temperature is in units of
the chain's current cost: at temperature T a plan slower by the share T is taken with probability 1/e
(Kirkpatrick et al. 1983, Science 220:671, with the relative instead of the absolute difference, so that
one setting serves steps of milliseconds and of minutes). It falls geometrically over a chain's schedule;
then the chain begins anew, from a random plan, from the best plan known, or where it is. Moves to plans
already priced are decided from memory and cost no evaluation; a chain that finds no new neighbour restarts
at once. No schedule depends on the budget, so a longer run begins exactly as a shorter one.

Plans over a limit are taken into account at a graded penalty, since the way from one feasible plan to
another often leads through plans that do not fit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from planner.search.agents.agent import Outcome, SearchSpace
from planner.search.agents.baselines import penalised
from planner.search.agents.memory import Keys, PriceMemory

_ROUNDS = 6  # proposals in a row without a new plan before a chain counts as stuck
_ENOUGH = 0.75  # share of the chains that wait for a price when a question goes out; the rest propose again later
_PROPOSED, _ACCEPTED, _IMPROVED, _RECALLED, _RESTARTS = range(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """How C chains behaved.

    Attributes:
        temperature: (C,) present temperature, in units of the current cost.
        proposed: (C,) moves considered, those to plans already priced included.
        accepted: (C,) moves taken.
        improved: (C,) moves taken that made the plan better.
        recalled: (C,) moves to plans already priced, which cost no evaluation.
        restarts: (C,) times the chain was put elsewhere.
        step_time_s: (C,) present cost, penalty included.
        move_proposed: Kind of move to how often it was considered.
        move_accepted: Kind of move to how often it was taken.
    """

    temperature: FloatArray
    proposed: IntArray
    accepted: IntArray
    improved: IntArray
    recalled: IntArray
    restarts: IntArray
    step_time_s: FloatArray
    move_proposed: Mapping[str, int]
    move_accepted: Mapping[str, int]

    @property
    def acceptance_rate(self) -> FloatArray:
        """(C,) share of moves taken."""
        return self.accepted / np.maximum(self.proposed, 1)


@dataclass(slots=True, kw_only=True)
class SimulatedAnnealing:
    """The annealer.

    Attributes:
        space: Where to search.
        seed: Of its random numbers.
        chains: Chains that advance together; also the most plans per question.
        initial_temperature: At the start of a chain's schedule, in units of its current cost.
        final_temperature: At its end.
        cycle: Moves a chain's first schedule takes.
        growth: Each of its schedules is so many times as long as the one before.
        restart_share: Probability that a schedule begins from a random plan.
        elite_share: Probability that it begins from the best plan known.
        penalty: See ``penalised``.
        start: (n, K) plans to start from; random ones fill the other chains.
    """

    space: SearchSpace
    seed: int = 0
    chains: int = 64
    initial_temperature: float = 0.04
    final_temperature: float = 0.0005
    cycle: int = 32
    growth: float = 1.0
    restart_share: float = 0.5
    elite_share: float = 0.125
    penalty: float = 1.0
    start: IntArray | None = None
    name: str = field(default="anneal", init=False)
    _rng: np.random.Generator = field(init=False)
    _memory: PriceMemory = field(init=False)
    _here: IntArray = field(init=False)
    _energy_s: FloatArray = field(init=False)
    _fresh: BoolArray = field(init=False)  # chains whose plan has no price yet
    _vain: IntArray = field(init=False)  # proposals in a row without a new plan
    _asked: IntArray = field(init=False)  # chains that wait for a price
    _keys: Keys = field(init=False)  # of the plans they wait for
    _moves: IntArray = field(init=False)
    _best: IntArray | None = field(default=None, init=False)
    _best_s: float = field(default=np.inf, init=False)
    _step: IntArray = field(init=False)  # (C,) moves since the chain's schedule began
    _length: IntArray = field(init=False)  # (C,) moves its schedule takes
    _counts: IntArray = field(init=False)
    _move_counts: IntArray = field(init=False)

    def __post_init__(self) -> None:
        if self.chains < 1 or self.cycle < 2 or not 0 < self.final_temperature <= self.initial_temperature:
            raise ValueError("needs chains >= 1, cycle >= 2 and 0 < final_temperature <= initial_temperature")
        self._rng = np.random.default_rng(self.seed)
        self._memory = PriceMemory(len(self.space.knobs))
        self._step = np.zeros(self.chains, dtype=np.int64)
        self._length = np.full(self.chains, self.cycle)
        self._energy_s = np.full(self.chains, np.inf)
        self._fresh = np.ones(self.chains, dtype=np.bool_)
        self._vain = np.zeros(self.chains, dtype=np.int64)
        self._asked = np.zeros(0, dtype=np.int64)
        self._keys = np.zeros(self.chains, dtype=np.uint64)
        self._moves = np.zeros(self.chains, dtype=np.int64)
        self._counts = np.zeros((5, self.chains), dtype=np.int64)
        self._move_counts = np.zeros((2, len(self.space.moves)), dtype=np.int64)
        self._here = self.space.initial(self.chains, self._rng)
        if self.start is not None:
            given = self.start[: self.chains]
            self._here[: len(given)] = given

    @property
    def batch_size(self) -> int:
        """One move of every chain."""
        return self.chains

    @property
    def temperature(self) -> FloatArray:
        """(C,) of every chain, in units of its current cost."""
        part = np.minimum(self._step / (self._length - 1), 1.0)
        return self.initial_temperature * (self.final_temperature / self.initial_temperature) ** part

    def hyperparameters(self) -> dict[str, float | int | str]:
        """Everything that shapes a run besides space and seed."""
        names = ("chains", "initial_temperature", "final_temperature", "cycle", "growth")
        return {name: getattr(self, name) for name in (*names, "restart_share", "elite_share", "penalty")}

    def ask(self, count: int) -> IntArray:
        """A neighbour that has no price yet for every chain; where a chain restarts, the plan it starts from."""
        proposals, waiting = self._here.copy(), self._fresh.copy()
        self._keys[waiting] = self._memory.keys(self._here[waiting])
        self._memory.claim(self._keys[waiting])
        for _ in range(_ROUNDS):
            rows = np.flatnonzero(~waiting)
            if len(rows) <= (1 - _ENOUGH) * self.chains:
                break
            unknown, vectors, keys = self._wander(rows)
            self._keys[rows[unknown]] = keys[unknown]
            proposals[rows[unknown]] = vectors[unknown]
            waiting[rows[unknown]] = True
            self._vain[rows] += 1
        self._vain[waiting] = 0
        stuck = np.flatnonzero(self._vain >= _ROUNDS)
        self._asked = np.flatnonzero(waiting)[:count]
        if len(self._asked) < waiting.sum():
            self._memory.disclaim(self._keys[np.flatnonzero(waiting)[count:]])
        if len(stuck):
            self._restart(stuck)
        return proposals[self._asked]

    def _wander(self, rows: IntArray) -> tuple[BoolArray, IntArray, Keys]:
        """Propose a move for some chains and decide those whose price is remembered.

        Returns:
            (n,) which proposals have no price yet and are asked for by no other chain, the (n, K) proposals, and their
            keys.
        """
        self._moves[rows] = self._rng.integers(0, len(self.space.moves), size=len(rows))
        vectors = self.space.propose(self._here[rows], self._moves[rows], self._rng)
        keys = self._memory.keys(vectors)
        energy_s = self._memory.recall(keys)
        unknown = np.isnan(energy_s)
        known = np.flatnonzero(~unknown)
        self._decide(rows[known], vectors[known], energy_s[known])
        self._counts[_RECALLED, rows[known]] += 1
        unknown[unknown] = self._memory.claim(keys[unknown])
        return unknown, vectors, keys

    def tell(self, vectors: IntArray, outcome: Outcome) -> None:
        """Take or leave every proposal, cool down, and begin anew where a schedule has ended."""
        energy_s, rows = penalised(outcome, self.penalty), self._asked[: len(vectors)]
        self._memory.remember(self._keys[rows], energy_s)
        if len(rows):
            begun = self._fresh[rows]
            self._here[rows[begun]], self._energy_s[rows[begun]] = vectors[begun], energy_s[begun]
            self._fresh[rows[begun]] = False
            moved = ~begun
            self._decide(rows[moved], vectors[moved], energy_s[moved])
            best = int(energy_s.argmin())
            if energy_s[best] < self._best_s:
                self._best, self._best_s = vectors[best].copy(), float(energy_s[best])
        self._step += 1
        self._renew(np.flatnonzero(self._step >= self._length))

    def chain_report(self) -> ChainReport:
        """How the chains behaved so far."""
        names = self.space.moves
        return ChainReport(
            temperature=self.temperature,
            proposed=self._counts[_PROPOSED].copy(),
            accepted=self._counts[_ACCEPTED].copy(),
            improved=self._counts[_IMPROVED].copy(),
            recalled=self._counts[_RECALLED].copy(),
            restarts=self._counts[_RESTARTS].copy(),
            step_time_s=self._energy_s.copy(),
            move_proposed=dict(zip(names, self._move_counts[0].tolist(), strict=True)),
            move_accepted=dict(zip(names, self._move_counts[1].tolist(), strict=True)),
        )

    def _decide(self, rows: IntArray, vectors: IntArray, energy_s: FloatArray) -> None:
        """Metropolis' rule on relative differences; what has no price is never taken."""
        here_s = self._energy_s[rows]
        priced = np.isfinite(here_s)
        base = np.where(priced, here_s, 1.0)
        change = np.where(priced, np.minimum(energy_s, 1e300) / base - 1.0, 0.0)
        lucky = self._rng.random(len(rows)) < np.exp(-np.maximum(change, 0.0) / self.temperature[rows])
        taken = np.isfinite(energy_s) & lucky
        self._counts[_PROPOSED, rows] += 1
        self._counts[_ACCEPTED, rows] += taken
        self._counts[_IMPROVED, rows] += taken & (energy_s < here_s)
        kinds = len(self.space.moves)
        self._move_counts[0] += np.bincount(self._moves[rows], minlength=kinds)
        self._move_counts[1] += np.bincount(self._moves[rows[taken]], minlength=kinds)
        self._here[rows[taken]] = vectors[taken]
        self._energy_s[rows[taken]] = energy_s[taken]

    def _restart(self, rows: IntArray) -> None:
        """Put chains on random plans, at the temperature they have."""
        self._vain[rows] = 0
        self._counts[_RESTARTS, rows] += 1
        self._here[rows] = self.space.initial(len(rows), self._rng)
        energy_s = self._memory.recall(self._memory.keys(self._here[rows]))
        self._fresh[rows] = np.isnan(energy_s)
        self._energy_s[rows] = np.where(np.isnan(energy_s), np.inf, energy_s)

    def _renew(self, rows: IntArray) -> None:
        """Begin new schedules: some from the best plan known, some from random ones, the rest where they are."""
        if not len(rows):
            return
        self._step[rows] = 0
        self._length[rows] = np.ceil(self._length[rows] * self.growth).astype(np.int64)
        draw = self._rng.random(len(rows))
        if self._best is not None:
            copied = rows[draw < self.elite_share]
            self._counts[_RESTARTS, copied] += 1
            self._here[copied], self._energy_s[copied], self._fresh[copied] = self._best, self._best_s, False
        anew = rows[(draw >= self.elite_share) & (draw < self.elite_share + self.restart_share)]
        if len(anew):
            self._restart(anew)
