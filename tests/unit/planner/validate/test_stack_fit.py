"""Fitting stacks: known truths are recovered, and a source left out has no say in how it is judged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.validate import stack_fit
from planner.validate.stack_fit import PRIOR_STD, StackFit, fit_stacks, free_parameters, from_vector, to_vector
from profiles.stack import StackSpec

PRIOR = StackSpec(
    name="s", framework="megatron", description="synthetic",
    kernel_launch_s=1e-5, straggler_fraction_per_doubling=0.005, data_parallel_overlap=0.5,
)  # fmt: skip
TRUTH = replace(
    PRIOR,
    gemm_time_scale=1.2,
    memory_time_scale=1.6,
    kernel_launch_s=1.4e-5,
    scale_out_time_scale=0.7,
    data_parallel_overlap=0.7,
)


@dataclass
class World:
    """Runs whose step time is known in closed form, with the kinks of the real model."""

    sources: list[str]
    stacks: list[str]
    gemm_s: np.ndarray
    memory_s: np.ndarray
    network_s: np.ndarray
    launches: np.ndarray
    calls: int = 0

    @classmethod
    def of(cls, *sources: str, stacks: tuple[str, ...] = (), seed: int = 0) -> "World":
        draw = np.random.default_rng(seed)
        n = len(sources)
        return cls(
            sources=list(sources),
            stacks=list(stacks) or ["s"] * n,
            gemm_s=draw.uniform(0.3, 3, n),
            memory_s=draw.uniform(0.1, 1, n),
            network_s=draw.uniform(0.0, 1, n) * (draw.uniform(size=n) < 0.6),
            launches=draw.uniform(0.2e5, 2e5, n),
        )

    def predict(self, stacks: Mapping[str, StackSpec], rows: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.array([self.step_s(stacks[self.stacks[row]], row) for row in rows.tolist()])

    def step_s(self, stack: StackSpec, row: int) -> float:
        work = self.gemm_s[row] * stack.gemm_time_scale + self.memory_s[row] * stack.memory_time_scale
        network = self.network_s[row] * stack.scale_out_time_scale * (1 - stack.data_parallel_overlap)
        return max(work, self.launches[row] * stack.kernel_launch_s) + network

    def measured_s(self, truth: StackSpec = TRUTH) -> np.ndarray:
        return np.array([self.step_s(truth, row) for row in range(len(self.sources))])

    def predicted_s(self, fit: StackFit) -> np.ndarray:
        """With nothing left out."""
        return self.predict(fit.stacks, np.arange(len(self.sources)))

    def fit(self, measured_s: np.ndarray, priors: Mapping[str, StackSpec] | None = None) -> StackFit:
        return fit_stacks(
            priors or {"s": PRIOR},
            stack_of_row=self.stacks,
            source_of_row=self.sources,
            measured_s=measured_s,
            predict=self.predict,
        )


def several(count: int = 80, names: str = "abcd") -> World:
    return World.of(*(names[number % len(names)] for number in range(count)))


def objective(world: World, measured_s: np.ndarray, stack: StackSpec) -> float:
    """The fit's objective, written out a second time."""
    everything = np.arange(len(measured_s))
    error = np.abs(np.log(measured_s / world.predict({"s": stack}, everything)))
    huber = np.where(error < 0.2, error**2 / 2, 0.2 * error - 0.02) / 0.08**2
    share = [min(12, world.sources.count(name)) / world.sources.count(name) for name in world.sources]
    names = free_parameters(PRIOR)
    strain = (to_vector(stack, names) - to_vector(PRIOR, names)) / [PRIOR_STD[name] for name in names]
    return float((share * huber).sum() + (strain**2).sum() / 2)


def test_recovers_the_truth_up_to_the_pull_of_the_prior():
    world = several()
    fit = world.fit(world.measured_s())
    found = fit.stacks["s"]
    assert found.gemm_time_scale == pytest.approx(1.2, rel=0.03)
    assert found.memory_time_scale == pytest.approx(1.6, rel=0.08)
    assert found.kernel_launch_s == pytest.approx(1.4e-5, rel=0.03)
    # Only the product of what is sent and what shows of it is seen; the prior has 0.5, the truth 0.7 * 0.3.
    assert found.scale_out_time_scale * (1 - found.data_parallel_overlap) == pytest.approx(0.21, rel=0.3)
    assert world.predicted_s(fit) == pytest.approx(world.measured_s(), rel=0.02)
    assert fit.held_out_s == pytest.approx(world.measured_s(), rel=0.04)


def scaled(log_error: float, *, sources: int = 1, predict: Callable[[float], float] = lambda scale: scale) -> float:
    """Log of the linear-layer scale fitted on runs that take exp(log_error) times one second."""
    rows = 12 * sources
    fit = fit_stacks(
        {"s": PRIOR},
        stack_of_row=["s"] * rows,
        source_of_row=[str(row % sources) for row in range(rows)],
        measured_s=np.full(rows, np.exp(log_error)),
        predict=lambda stacks, chosen: np.full(len(chosen), predict(stacks["s"].gemm_time_scale)),
    )
    return float(np.log(fit.stacks["s"].gemm_time_scale))


@pytest.mark.parametrize("log_error", [-0.6, -0.1, 0.1, 0.6], ids=lambda error: f"{error:+}")
@pytest.mark.parametrize("sources", [1, 4])
def test_data_and_prior_weigh_by_their_variances(log_error: float, sources: int):
    """Twelve effective rows a source at 8 % each against a prior of 15 %, in however many steps."""
    data, prior = 12 * sources / 0.08**2, 1 / 0.15**2
    assert scaled(log_error, sources=sources) == pytest.approx(log_error * data / (data + prior), rel=2e-3)


@pytest.mark.parametrize("together", [False, True])
def test_runs_tell_by_how_much_they_narrow_a_prior(together: bool):
    """Of one scale of a product, one told alone takes nearly all; two that only ever act together have to share."""
    fit = fit_stacks(
        {"s": PRIOR},
        stack_of_row=["s"] * 12,
        source_of_row=["a"] * 12,
        measured_s=np.ones(12),
        predict=lambda stacks, rows: np.full(
            len(rows), stacks["s"].gemm_time_scale * (stacks["s"].hopper_16bit_time_scale if together else 1.0)
        ),
    )
    data, prior = 12 / 0.08**2, 1 / 0.15**2
    share = data / (2 * data + prior) if together else data / (data + prior)
    expected = {"gemm_time_scale": share, "hopper_16bit_time_scale": share if together else 0.0}
    assert {name: fit.told["s"].get(name, 0.0) for name in expected} == pytest.approx(expected, rel=1e-6)
    assert fit.told["s"].get("memory_time_scale", 0.0) == 0.0


def test_a_step_over_a_kink_is_shortened():
    """Half the runs cannot get faster than 0.9; following their slope to the end would lose the others."""
    kinked = np.arange(24) % 2 == 0
    fit = fit_stacks(
        {"s": PRIOR},
        stack_of_row=["s"] * 24,
        source_of_row=["a"] * 24,
        measured_s=np.where(kinked, 0.6, 0.95),
        predict=lambda stacks, rows: (
            np.where(kinked[rows], np.maximum(stacks["s"].gemm_time_scale, 0.9), 1.0)
            * np.where(kinked[rows], 1.0, stacks["s"].gemm_time_scale)
        ),
    )
    assert 0.85 < fit.stacks["s"].gemm_time_scale < 0.97


def test_the_line_search_lowers_what_the_steps_lower():
    world = several()
    measured_s = world.measured_s() * np.exp(np.random.default_rng(3).normal(0, 0.3, 80))
    problem = stack_fit.Problem.of(
        PRIOR,
        rows=np.arange(80),
        sources=np.array(world.sources),
        measured_s=measured_s,
        predict=lambda stack, rows: world.predict({"s": stack}, rows),
    )
    for stack in (PRIOR, TRUTH):
        predicted = np.log(world.predict({"s": stack}, np.arange(80)))
        found = problem.objective(to_vector(stack, problem.names), predicted)
        assert found == pytest.approx(objective(world, measured_s, stack))


def test_what_no_run_depends_on_keeps_its_prior():
    world = several()
    found = world.fit(world.measured_s()).stacks["s"]
    felt = {"gemm_time_scale", "memory_time_scale", "kernel_launch_s", "scale_out_time_scale", "data_parallel_overlap"}
    for name in set(free_parameters(PRIOR)) - felt:
        assert getattr(found, name) == getattr(PRIOR, name), name
    assert replace(found, **{name: getattr(PRIOR, name) for name in felt}) == PRIOR


def test_the_minimum_is_one():
    """No parameter, moved a little either way, lowers the objective by more than the fit leaves on the table."""
    world = several()
    measured_s = world.measured_s() * np.exp(np.random.default_rng(1).normal(0, 0.1, 80))
    found = world.fit(measured_s).stacks["s"]
    names = free_parameters(found)
    least = objective(world, measured_s, found)
    assert least < 0.7 * objective(world, measured_s, PRIOR)
    for number in range(len(names)):
        for sign in (-1, 1):
            vector = to_vector(found, names)
            vector[number] += 0.02 * sign
            assert objective(world, measured_s, from_vector(found, names, vector)) > 0.99 * least


@pytest.mark.parametrize("source", ["a", "b", "c", "d"])
@pytest.mark.parametrize(
    "change",
    [
        lambda own: own * 1.6,
        lambda own: own / 3,
        lambda own: own * np.linspace(0.5, 2, len(own)),
        lambda own: np.full(len(own), 1e4),
    ],
    ids=["slower", "faster", "tilted", "absurd"],
)
def test_a_source_has_no_say_in_its_own_prediction(source: str, change: Callable[[np.ndarray], np.ndarray]):
    """Bit for bit: not through where the fit starts, is linearised or stops either."""
    world = several()
    before = world.measured_s()
    own = np.array(world.sources) == source
    after = before.copy()
    after[own] = change(before[own])
    first, second = world.fit(before), world.fit(after)
    assert first.held_out_s[own].tobytes() == second.held_out_s[own].tobytes()
    assert first.held_out[source] == second.held_out[source]
    assert first.stacks != second.stacks
    assert first.held_out_s[~own].tobytes() != second.held_out_s[~own].tobytes()


def test_held_out_is_the_fit_of_the_others_alone():
    world = several()
    measured_s = world.measured_s()
    others = np.array(world.sources) != "b"
    rest = World(
        sources=[name for name in world.sources if name != "b"],
        stacks=["s"] * int(others.sum()),
        gemm_s=world.gemm_s[others],
        memory_s=world.memory_s[others],
        network_s=world.network_s[others],
        launches=world.launches[others],
    )
    held_out, alone = world.fit(measured_s).held_out["b"]["s"], rest.fit(measured_s[others]).stacks["s"]
    names = free_parameters(PRIOR)
    assert to_vector(held_out, names) == pytest.approx(to_vector(alone, names), abs=1e-9)


def test_held_out_errors_are_not_those_of_the_fit():
    """A source unlike the others is explained by a fit that saw it, and not by one that did not."""
    world = several()
    odd = np.array(world.sources) == "d"
    measured_s = world.measured_s(PRIOR) * np.where(odd, 1.5, 1.0)
    world = replace(world, sources=["d" if own else "a" for own in odd.tolist()])
    fit = world.fit(measured_s)
    assert fit.held_out_s[odd] == pytest.approx(world.measured_s(PRIOR)[odd], rel=1e-3)
    assert np.all(world.predicted_s(fit)[odd] > 1.05 * fit.held_out_s[odd])


def test_a_large_source_does_not_drown_small_ones():
    world = World.of(*["large"] * 600, *["b"] * 12, *["c"] * 12, *["d"] * 12)
    large = np.array(world.sources) == "large"
    measured_s = np.where(large, world.measured_s(PRIOR), world.measured_s(PRIOR) * 1.3)
    found = world.fit(measured_s)
    bias = np.log(world.predicted_s(found) / world.measured_s(PRIOR)).mean() / np.log(1.3)
    assert 0.6 < bias < 0.8  # three of four sources, less the pull of the prior; by rows it would be 0.06


def test_copies_of_a_source_add_no_weight_beyond_its_effective_rows():
    few, many = World.of(*["a"] * 12, *["b"] * 12), World.of(*["a"] * 12, *["b"] * 12)
    again = [*range(24), *range(12), *range(12)]
    many = World(
        sources=[few.sources[row] for row in again],
        stacks=["s"] * len(again),
        gemm_s=few.gemm_s[again],
        memory_s=few.memory_s[again],
        network_s=few.network_s[again],
        launches=few.launches[again],
    )
    measured_s = few.measured_s() * np.where(np.array(few.sources) == "a", 1.2, 0.9)
    names = free_parameters(PRIOR)
    assert to_vector(many.fit(measured_s[again]).stacks["s"], names) == pytest.approx(
        to_vector(few.fit(measured_s).stacks["s"], names), abs=1e-9
    )


def test_outliers_count_linearly():
    world = several()
    measured_s = world.measured_s()
    wrong = measured_s.copy()
    wrong[[3, 17, 42, 60]] *= [8, 0.1, 5, 20]
    found, clean = (world.fit(values).stacks["s"] for values in (wrong, measured_s))
    assert found.gemm_time_scale == pytest.approx(clean.gemm_time_scale, rel=0.04)
    assert found.kernel_launch_s == pytest.approx(clean.kernel_launch_s, rel=0.04)


def test_without_measurements_the_prior_holds():
    world = several()
    idle = replace(PRIOR, name="idle", gemm_time_scale=1.37)
    fit = world.fit(world.measured_s(), {"s": PRIOR, "idle": idle})
    assert fit.stacks["idle"] == idle
    assert all(stacks["idle"] == idle for stacks in fit.held_out.values())
    alone = World.of(*["a"] * 20)
    assert alone.fit(alone.measured_s()).held_out["a"]["s"] == PRIOR


def test_few_measurements_move_the_prior_little():
    one, many = World.of("a"), World.of(*["a"] * 12)
    moved = [
        np.log(np.prod(world.predicted_s(world.fit(world.measured_s(PRIOR) * 1.1)) / world.measured_s(PRIOR)))
        / len(world.sources)
        for world in (one, many)
    ]
    assert 0.0 < moved[0] < moved[1] < np.log(1.1)


def test_perfect_priors_stay():
    world = several()
    fit = world.fit(world.measured_s(PRIOR))
    assert fit.stacks["s"].gemm_time_scale == pytest.approx(1.0, abs=1e-9)
    assert fit.held_out_s == pytest.approx(world.measured_s(PRIOR), rel=1e-9)


def test_stacks_do_not_influence_one_another():
    sources = [*"abcd" * 10, *"cdef" * 10]
    world = World.of(*sources, stacks=("s",) * 40 + ("t",) * 40)
    priors = {"s": PRIOR, "t": replace(PRIOR, name="t")}
    before = world.measured_s()
    after = before * np.where(np.arange(80) < 40, 1.0, 1.5)
    first, second = world.fit(before, priors), world.fit(after, priors)
    assert first.stacks["s"] == second.stacks["s"]
    assert first.stacks["t"] != second.stacks["t"]
    # "c" ran on both: left out of both. "a" ran on one: the other's fit never saw it.
    assert first.held_out["c"]["t"] != first.stacks["t"] != first.held_out["e"]["t"]
    assert first.held_out["a"]["t"] == first.stacks["t"]


@given(seed=st.integers(0, 2**16), spread=st.sampled_from([0.05, 0.3, 1.0]))
def test_no_fit_is_worse_than_its_prior(seed, spread):
    """Steps that overshoot a kink are shortened, or not taken."""
    world = World.of(*"abc" * 4, seed=seed)
    measured_s = world.measured_s() * np.exp(np.random.default_rng(seed).normal(0, spread, 12))
    found = world.fit(measured_s).stacks["s"]
    assert objective(world, measured_s, found) <= objective(world, measured_s, PRIOR) * (1 + 1e-12)  # rounding


def test_every_step_taken_lowers_the_objective(monkeypatch: pytest.MonkeyPatch):
    world = several()
    measured_s = world.measured_s() * np.exp(np.random.default_rng(5).normal(0, 0.2, 80))
    losses = []
    for iterations in range(5):
        monkeypatch.setattr(stack_fit, "ITERATIONS", iterations)
        losses.append(objective(world, measured_s, world.fit(measured_s).stacks["s"]))
    assert losses[0] == pytest.approx(objective(world, measured_s, PRIOR))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_same_input_same_output():
    first, second = (several().fit(several().measured_s()) for _ in range(2))
    assert first.stacks == second.stacks
    assert first.held_out == second.held_out
    assert first.held_out_s.tobytes() == second.held_out_s.tobytes()


def test_number_of_processes_does_not_matter():
    world = several(24)
    gemm_s, memory_s = world.gemm_s, world.memory_s

    def predict(stacks, rows):  # holds nothing of this module, which other processes cannot import
        return gemm_s[rows] * stacks["s"].gemm_time_scale + memory_s[rows] * stacks["s"].memory_time_scale

    one, two = (
        fit_stacks(
            {"s": PRIOR},
            stack_of_row=world.stacks,
            source_of_row=world.sources,
            measured_s=world.measured_s(),
            predict=predict,
            jobs=jobs,
        )
        for jobs in (1, 2)
    )
    assert one.held_out == two.held_out
    assert one.held_out_s.tobytes() == two.held_out_s.tobytes()
    assert one.stacks["s"] != PRIOR


def test_order_of_the_rows_does_not_matter():
    world = several()
    order = np.random.default_rng(2).permutation(80)
    mixed = World(
        sources=[world.sources[row] for row in order],
        stacks=["s"] * 80,
        gemm_s=world.gemm_s[order],
        memory_s=world.memory_s[order],
        network_s=world.network_s[order],
        launches=world.launches[order],
    )
    first, second = world.fit(world.measured_s()), mixed.fit(world.measured_s()[order])
    assert second.held_out_s == pytest.approx(first.held_out_s[order], rel=1e-6)
