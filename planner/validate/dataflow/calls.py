"""The experiments on single calls of a dataflow, in the order of their names."""

from pathlib import Path

from planner.validate.dataflow.blind import blind_generation
from planner.validate.dataflow.engines import engine_benchmarks
from planner.validate.dataflow.hardware import fewest_gpus
from planner.validate.dataflow.own_steps import own_passes
from planner.validate.dataflow.phases import nemo_phases, openrlhf_phases
from planner.validate.dataflow.replicas import generation_by_replica_size
from planner.validate.dataflow.steps import disaggregated_steps
from planner.validate.dataflow.times import decode_steps, heuristic_plan_times
from planner.validate.dataflow.workflows import blind_workflows
from planner.validate.experiment import Experiment


def call_experiments(folder: Path) -> tuple[Experiment, ...]:
    """E3, E5, the generation part of E9, E10, E11 and E14 to E18.

    Args:
        folder: The published runs (``PLANNER_DATA``/rlhf).
    """
    return (
        heuristic_plan_times(folder),
        decode_steps(folder),
        own_passes(),
        generation_by_replica_size(folder),
        disaggregated_steps(folder),
        fewest_gpus(folder),
        nemo_phases(),
        openrlhf_phases(folder),
        engine_benchmarks(),
        blind_generation(),
        blind_workflows(),
    )
