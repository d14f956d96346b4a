"""Experiments on workflows that are cheap enough to repeat; the rest is in ``docs/dataflow.md``."""

import pytest

from costmodels.model_calls import CallKind
from costmodels.plan import ExecutionPlan, PlanBatch
from planner.dataflow.solving.anneal import AnnealOptions, anneal
from planner.dataflow.solving.inputs import read_search_input
from planner.dataflow.solving.options import SearchOptions
from planner.dataflow.solving.orders import task_graph
from planner.dataflow.solving.pareto import useful_candidates
from planner.dataflow.solving.search import solve
from planner.dataflow.solving.units import units_of
from planner.validate.dataflow.formulas import throughputs
from planner.validate.dataflow.gain import estimated_bytes, real_problem
from planner.validate.dataflow.instances import InstanceOptions, synthetic_problem
from planner.validate.dataflow.real import RealRow, heuristic_s, read_real, real_model
from planner.validate.dataflow.reallocation import transitions
from planner.validate.dataflow.search import brute_force, without_calls
from planner.validate.dataflow.speed import with_versions
from planner.validate.dataflow.times import packaged_constants
from tests.places import DATA

RLHF = DATA / "rlhf"
needs_data = pytest.mark.skipif(not RLHF.is_dir(), reason="needs the folder of published runs (PLANNER_DATA)")
pytestmark = pytest.mark.accuracy


@needs_data
def test_throughputs_and_transitions_hold() -> None:
    for experiment in (throughputs(RLHF), transitions(RLHF)):
        assert experiment.passed, experiment.findings
        assert all(len(row) == len(experiment.header) for row in experiment.rows)


@needs_data
def test_annealing_meets_the_brute_force_optimum_on_eight_gpus() -> None:
    """E6, fewer and shorter runs."""
    problem = read_search_input(RLHF / "search_inputs" / "input_n1_a7_c7_b128.json")
    problem = problem.restrict(useful_candidates(problem))
    best_s = brute_force(problem)
    assert best_s == pytest.approx(3.483)
    graph, units = task_graph(problem), units_of(problem)
    for seed in range(5):
        run = anneal(problem, graph, units, AnnealOptions(chains=16, steps=400, seed=seed))
        assert run.makespan_s <= best_s * 1.01
        assert 0.05 < run.accepted < 0.95
        assert (run.curve_s[1:] <= run.curve_s[:-1]).all()


@needs_data
def test_the_searched_plan_gains_on_the_heuristic_what_was_measured() -> None:
    """E4, one of 36 pairs: 7B and 7B on 8 GPUs, 896 tokens, measured 1.69."""
    row = next(one for one in read_real(RLHF) if (one.num_devices, one.output_tokens) == (8, 896))
    constants = packaged_constants()
    found = solve(real_problem(row, constants), SearchOptions(most_children=1_000_000))
    gain = heuristic_s(row, constants) / (found.makespan_s + constants.overhead_s)
    assert gain == pytest.approx(1.69, rel=0.2)
    assert found.gap < 0.01


def test_what_fits_is_what_reallhf_estimates() -> None:
    """Llama-2-7B over two stages of two GPUs each, 512 sequences of 128 + 128 tokens, by hand."""
    parameters, hidden, layers, cache = 6_869_221_376, 4096, 32, 2 * 2
    row = RealRow(
        mode="",
        system="",
        num_devices=8,
        actor=7,
        critic=7,
        prompt_tokens=128,
        output_tokens=128,
        num_sequences=512,
        time_s=0.0,
    )
    plans = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=2, tensor_parallel=2, data_parallel=2)])
    found = {kind: estimated_bytes(row, kind, real_model(7), plans) for kind in CallKind}
    tokens = 512 * 256 / 2
    assert found[CallKind.INFERENCE][0] == pytest.approx(parameters)
    assert found[CallKind.INFERENCE][1] == 0
    assert found[CallKind.GENERATE][0] == pytest.approx(parameters)
    assert found[CallKind.GENERATE][1] == pytest.approx(tokens * cache * hidden * layers / 4)
    assert found[CallKind.TRAIN][0] == pytest.approx(parameters * (1 + 20 / 8))
    micro_batches, stages_full, bytes_each = 4, 2, 2
    assert found[CallKind.TRAIN][1] == pytest.approx(tokens / micro_batches * stages_full * bytes_each * hidden / 4)


@pytest.mark.parametrize(
    ("nodes", "inference", "training"), [(1, 22, 22), (2, 57, 53), (4, 164, 136), (8, 520, 356), (16, 2095, 1147)]
)
def test_made_up_inputs_have_as_many_candidates_as_reallhf_enumerates(
    nodes: int, inference: int, training: int
) -> None:
    problem = synthetic_problem(InstanceOptions(nodes=nodes, sequences=512))
    sizes = {call.name: len(call) for call in problem.calls}
    assert sizes["reference"] == inference
    assert sizes["actor_train"] == training


def test_made_up_inputs_of_128_gpus_are_solved_and_proven() -> None:
    found = solve(synthetic_problem(InstanceOptions(nodes=16, actor=10.2, critic=10.2, noise=0.1)))
    assert found.proven
    assert found.children < 20_000_000


def test_counting_out_and_leaving_out_calls() -> None:
    problem = without_calls(synthetic_problem(InstanceOptions(nodes=1, sequences=64)), (2, 3, 5))
    assert problem.names() == ("actor_generate", "actor_train", "reference")
    assert brute_force(problem) == pytest.approx(solve(problem).makespan_s)
    assert with_versions(synthetic_problem(InstanceOptions(nodes=1)), 3).iterations == 3
