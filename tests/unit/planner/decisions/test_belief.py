"""What is believed of plans before they run: parameters with a spread, answers of step times, one law per plan."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from costmodels.context import CostContext
from costmodels.evaluate import evaluate
from costmodels.kernels.calls import KernelCallBatch, Prediction
from costmodels.links.collectives import CollectiveCallBatch
from costmodels.memory.peaks import memory_error_factor
from costmodels.plan import FloatArray, PlanBatch
from costmodels.uncertainty import NORMAL_90
from planner.answer.memory_law import MemoryLaw
from planner.calibrate_runs import FITTED_SHARE
from planner.decisions.belief import Belief, belief_about, candidate_subjects, prior
from planner.decisions.kinship import LENGTH, NOISE, SCALES, SPREAD, Traits, distance, kinship
from planner.decisions.parameters import Parameter, uncertain_parameters
from planner.decisions.responses import Responses
from planner.decisions.scenarios import draw
from planner.question.request import Options, cost_context, resolve_request
from planner.validate.stack_fit import PRIOR_STD
from profiles.hardware import ClusterSpec, DeviceSpec
from profiles.stack import StackSpec
from profiles.stacks import load_stacks

JOB = {"sequence_length": 2048, "global_batch_size": 128}
PLANS = PlanBatch.from_columns(
    4,
    tensor_parallel=[8, 4, 2, 8],
    pipeline_parallel=[1, 2, 4, 1],
    data_parallel=[2, 2, 2, 2],
    micro_batch_size=[1, 1, 1, 2],
    num_microbatches=[64, 64, 64, 32],
    zero_stage=1,
    sequence_parallel=True,
)


@cache
def context(cluster: str = "2x8xA100-80GB") -> CostContext:
    return cost_context(resolve_request("llama-2-13b", cluster, JOB, None, Options()))


@cache
def belief() -> Belief:
    return belief_about(PLANS, context())


class Wider:
    """Prices as another model, with intervals of so many standard deviations of the logarithm."""

    def __init__(self, base: object, std: float) -> None:
        self.base, self.factor = base, float(np.exp(NORMAL_90 * std))

    def predict(self, calls: KernelCallBatch | CollectiveCallBatch, where: DeviceSpec | ClusterSpec) -> Prediction:
        priced: Prediction = self.base.predict(calls, where)  # type: ignore[attr-defined]
        return replace(priced, low_s=priced.time_s / self.factor, high_s=priced.time_s * self.factor)


def stds(found: tuple[Parameter, ...]) -> dict[str, float]:
    return {parameter.name: parameter.std for parameter in found}


def test_hardware_parameters_have_the_spread_of_their_prices() -> None:
    wide = replace(context(), kernels=Wider(context().kernels, 0.2), collectives=Wider(context().collectives, 0.1))
    found = stds(uncertain_parameters(PLANS, wide))
    hardware = {name: std for name, std in found.items() if not name.startswith("stack.")}
    assert hardware == pytest.approx(
        {"kernels.gemm": 0.2, "kernels.attention": 0.2, "kernels.memory": 0.2, "links.scale_up": 0.1}
        | {"links.scale_out": 0.1}
    )


def test_stack_parameters_have_the_spread_calibration_starts_from() -> None:
    found = stds(uncertain_parameters(PLANS, context()))
    for name, std in found.items():
        if name.startswith("stack."):
            assert std == FITTED_SHARE * PRIOR_STD[name.removeprefix("stack.")]
    assert {p.kind for p in uncertain_parameters(PLANS, context())} == {"hardware", "stack"}


def test_links_between_nodes_matter_only_where_there_are_several() -> None:
    one = replace(context("8xA100-80GB"))
    plans = replace(PLANS, data_parallel=np.ones(4, dtype=np.int64))
    assert "links.scale_out" in stds(uncertain_parameters(PLANS, context()))
    assert "links.scale_out" not in stds(uncertain_parameters(plans, one))


STACK = load_stacks()["megatron-core"]


def sum_of_parts(stack: StackSpec) -> FloatArray:
    """Three plans whose time is a sum of scaled parts, and a kink where a transfer is hidden."""
    gemm, memory = np.array([1.0, 2.0, 0.5]), np.array([1.0, 0.0, 0.5])
    exposed = np.maximum(np.array([0.0, 0.0, 1.0]) - stack.data_parallel_overlap, 0.0)
    return gemm * stack.gemm_time_scale / STACK.gemm_time_scale + memory * stack.memory_time_scale + exposed


def test_responses_hold_what_was_priced_and_leave_out_what_nothing_feels() -> None:
    found = Responses.of(sum_of_parts, STACK, {"gemm_time_scale": 0.1, "collective_time_scale": 0.3})
    assert found.fields == ("gemm_time_scale",)
    for node in (-2.5, -1.0, 0.0, 1.0, 2.5):
        shifted = replace(STACK, gemm_time_scale=STACK.gemm_time_scale * np.exp(0.1 * node))
        assert found.log_times(np.array([[0.1 * node]]))[0] == pytest.approx(np.log(sum_of_parts(shifted)))
    # A part's share of the time is the slope of its logarithm.
    gemm_share = 1 - (sum_of_parts(STACK) - np.array([1.0, 2.0, 0.5])) / sum_of_parts(STACK)
    assert found.slopes[0] == pytest.approx(gemm_share, rel=0.01)


def test_responses_go_on_beyond_what_was_priced() -> None:
    found = Responses.of(sum_of_parts, STACK, {"gemm_time_scale": 0.1})
    steps = np.diff(found.log_times(np.array([[0.3], [0.4], [0.5]]))[:, 0])
    assert steps[0] == pytest.approx(steps[1])
    assert steps[0] > 0


def test_the_error_of_the_table_is_what_plans_do_not_share() -> None:
    found = Responses.of(sum_of_parts, STACK, {"gemm_time_scale": 0.1, "memory_time_scale": 0.1})
    shifts = np.array([[0.2, 0.2]])
    errors = np.abs(found.errors(sum_of_parts, shifts))
    assert 0 < errors.max() < 0.02
    twice = found.errors(lambda stack: 2 * sum_of_parts(stack), shifts)  # a level changes no choice
    assert np.abs(twice) == pytest.approx(errors)


def test_the_table_agrees_with_the_cost_path() -> None:
    found = belief()
    theta = np.random.default_rng(3).standard_normal((16, len(found.parameters))) * found.stds
    errors = found.responses.errors(
        lambda stack: evaluate(PLANS, replace(context(), stack=stack)).step_time_s, found.shifts(theta)
    )
    assert np.sqrt(np.mean(errors**2)) < 0.01
    assert np.abs(errors).max() < 0.05


def test_alike_plans_err_alike() -> None:
    traits = Traits.of(PLANS, tokens=1e6)
    steps = distance(traits, traits)
    assert steps.diagonal() == pytest.approx(np.zeros(4))
    assert steps[0, 1] == 2  # half the tensor parallelism, twice the pipeline
    assert steps[0, 3] == 1  # twice the micro-batch
    other = Traits.of(replace(PLANS, zero_stage=np.full(4, 3)), tokens=4e6)
    assert distance(traits, other).diagonal() == pytest.approx(np.full(4, 3.0))  # a choice and two doublings of a step
    assert kinship(traits, traits)[0, 3] == pytest.approx(np.exp(-1 / LENGTH))
    assert np.linalg.eigvalsh(kinship(traits, traits)).min() > 0
    assert len(traits.joined(other).doublings) == 8


def test_the_law_of_each_plan_is_its_stated_interval() -> None:
    estimate = evaluate(PLANS, context())
    stated = np.log(estimate.step_time_high_s / estimate.step_time_s) / NORMAL_90
    scenarios = draw(belief(), seed=1, draws=20_000)
    measured = scenarios.log_time_s + scenarios.noise[:, None]
    assert measured.std(axis=0) == pytest.approx(stated, rel=0.02)
    assert scenarios.noise.std() == pytest.approx(NOISE * np.sqrt(np.mean(SCALES**2)), rel=0.03)
    assert scenarios.log_time_s.mean(axis=0) == pytest.approx(np.log(estimate.step_time_s), abs=0.02)


def test_parts_that_say_more_than_is_stated_shrink_together() -> None:
    """A stack whose runs were foretold closely leaves less to every part, the priors of its parameters included."""
    subjects, parameters = candidate_subjects(PLANS, context()), uncertain_parameters(PLANS, context())
    wide, narrow = (prior(replace(subjects, log_std=np.full(4, std)), parameters, context()) for std in (0.4, 0.075))
    told = {parameter.name: parameter.std for parameter in parameters}
    assert wide.stds == pytest.approx([told[parameter.name] for parameter in wide.parameters])
    shrunk = narrow.stds / wide.stds
    assert np.ptp(shrunk) < 1e-9
    assert shrunk[0] < 0.6
    assert wide.scales == pytest.approx(SCALES)
    assert narrow.scales == pytest.approx(SCALES * shrunk[0])
    assert narrow.level_std > 0
    explained = ((narrow.slopes * narrow.stds[:, None]) ** 2).sum(axis=0)
    level = narrow.level_std * narrow.level_reach
    whole = explained + level**2 + narrow.mean_square * (narrow.own_std**2 + NOISE**2)
    assert np.sqrt(whole) == pytest.approx(np.full(4, 0.075), rel=1e-6)


def test_how_plans_differ_does_not_depend_on_how_well_the_level_is_known() -> None:
    """A stack whose level few sources tell, or many, scatters no less from plan to plan."""
    subjects, parameters = candidate_subjects(PLANS, context()), uncertain_parameters(PLANS, context())
    known, unknown = (prior(replace(subjects, log_std=np.full(4, std)), parameters, context()) for std in (0.25, 0.5))
    assert known.own_std == pytest.approx(np.full(4, SPREAD))
    assert unknown.own_std == pytest.approx(known.own_std)
    assert unknown.scales == pytest.approx(known.scales)
    assert unknown.level_std > 2 * known.level_std


def test_a_plan_with_a_wider_interval_feels_more_of_the_level() -> None:
    subjects, parameters = candidate_subjects(PLANS, context()), uncertain_parameters(PLANS, context())
    found = prior(replace(subjects, log_std=np.array([0.3, 0.3, 0.3, 0.5])), parameters, context())
    assert found.level_reach[3] > 1.5 * found.level_reach[0]
    assert np.sqrt(np.mean(found.level_reach**2)) == pytest.approx(1.0)
    assert np.ptp(found.own_std) == 0.0


def test_peaks_of_most_users_have_the_spread_of_the_stack_and_share_part_of_it() -> None:
    scenarios = draw(belief(), seed=1, draws=20_000)
    stack = context().stack
    near = scenarios.memory_log[scenarios.memory_shared_std == scenarios.memory_shared_std.min()]
    assert len(near) == 18_000
    assert near.std(axis=0) == pytest.approx(np.full(4, stack.memory_residual_log_std), rel=0.03)
    assert np.corrcoef(near.T).min() > 0.4


def test_peaks_of_one_user_in_ten_are_as_far_off_as_intervals_allow() -> None:
    scenarios = draw(belief(), seed=1, draws=20_000)
    stack = context().stack
    far = scenarios.memory_log[scenarios.memory_shared_std == scenarios.memory_shared_std.max()]
    assert len(far) == 2_000
    stated = np.log(memory_error_factor(stack)) / NORMAL_90
    assert far.std(axis=0) == pytest.approx(np.full(4, stated), rel=0.06)
    assert np.corrcoef(far.T).min() > 0.98  # by a level all their plans share
    assert (scenarios.memory_log > 0).mean(axis=0) == pytest.approx(
        MemoryLaw.of(stack).risk(belief().memory_log), abs=0.006
    )


def test_a_user_whose_runs_are_known_is_not_of_the_far_kind() -> None:
    law = MemoryLaw.of(replace(context().stack, memory_publisher_log_std=0.0))
    assert law.far_std == law.shared_std
    assert law.risk(np.array([0.0])) == pytest.approx([0.5])
    spread = context().stack.memory_residual_log_std
    assert law.risk(np.array([-spread])) == pytest.approx([0.15866], abs=1e-4)
    assert law.risk_given(np.array([-0.1]), np.array([[0.1]])) == pytest.approx(np.array([[0.5]]))


def test_shared_errors_make_differences_smaller_than_levels() -> None:
    scenarios = draw(belief(), seed=1, draws=20_000)
    near = (scenarios.log_time_s[:, 0] - scenarios.log_time_s[:, 3]).std()
    far = (scenarios.log_time_s[:, 0] - scenarios.log_time_s[:, 2]).std()
    assert near < far < scenarios.log_time_s[:, 0].std()


def test_the_same_seed_draws_the_same_worlds() -> None:
    first, again, other = (draw(belief(), seed=seed, draws=64) for seed in (5, 5, 6))
    assert (first.log_time_s == again.log_time_s).all()
    assert not (first.log_time_s == other.log_time_s).any()
    assert first.effective_draws == pytest.approx(64)
