"""Published iterations of reinforcement-learning systems, predicted."""

from dataclasses import replace

import numpy as np
import pytest

from planner.validate.dataflow.real import heuristic_calls_s, heuristic_s, read_real, real_cluster
from planner.validate.dataflow.times import decode_steps, heuristic_plan_times, packaged_constants
from profiles.engines import find_engine
from tests.places import DATA

RLHF = DATA / "rlhf"
pytestmark = [
    pytest.mark.accuracy,
    pytest.mark.skipif(not RLHF.is_dir(), reason="needs the folder of published runs (PLANNER_DATA)"),
]


def test_iterations_of_the_heuristic_are_predicted() -> None:
    found = heuristic_plan_times(RLHF)
    assert found.passed, found.findings
    assert len(found.rows) == 36
    assert found.findings[0].startswith("21 held-out iterations")


def test_decode_steps_of_the_heuristic_are_predicted() -> None:
    found = decode_steps(RLHF)
    assert found.passed, found.findings
    assert len(found.rows) == 24


def test_the_packaged_constants_are_the_best_on_the_fitted_series() -> None:
    rows = [row for row in read_real(RLHF) if row.mode == "scale_actor"]
    constants = packaged_constants()

    def squares(**changes: float) -> float:
        return sum(np.log(heuristic_s(row, replace(constants, **changes)) / row.time_s) ** 2 for row in rows)

    best = squares()
    factors = {"gemm_time_scale": 0.9, "collective_launch_s": 1.1}
    for name, factor in factors.items():
        assert squares(**{name: getattr(constants, name) * factor}) > best, (name, factor)


def test_the_gpus_of_a_node_share_one_adapter() -> None:
    node = real_cluster(16).node
    assert node.scale_out_bytes_per_s * node.devices_per_node == pytest.approx(25e9)  # 200 Gb/s


def test_generation_grows_with_the_output_and_training_does_not() -> None:
    short, long = (row for row in read_real(RLHF)[:12] if row.num_devices == 8 and row.output_tokens in (128, 896))
    parts = [heuristic_calls_s(row, packaged_constants()) for row in (short, long)]
    assert parts[1]["actor_generate"] > 4 * parts[0]["actor_generate"]
    assert parts[1]["actor_train"] == pytest.approx(parts[0]["actor_train"], rel=0.2)


def test_the_trainer_s_collectives_are_those_of_the_fit() -> None:
    assert find_engine("trainer").collective_launch_s == packaged_constants().collective_launch_s
