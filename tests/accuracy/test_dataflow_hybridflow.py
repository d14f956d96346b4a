"""HybridFlow's placements from what its paper says of the machines, without a fit."""

import numpy as np
import pytest

from costmodels.model_calls import CallKind
from planner.validate.dataflow.hybridflow import (
    FASTEST,
    SCRIPT,
    SEQUENCES,
    MicroBatches,
    hybridflow_call,
    hybridflow_engine,
    hybridflow_setting,
    priced_call,
    training_plans,
)
from planner.validate.dataflow.placement import _options, iteration_s, measured_s
from planner.validate.dataflow.replicas import predicted_s
from profiles.engines import find_engine
from tests.places import DATA

RLHF = DATA / "rlhf"
needs_data = pytest.mark.skipif(not RLHF.is_dir(), reason="needs the folder of published runs (PLANNER_DATA)")
pytestmark = pytest.mark.accuracy


def test_machines_share_one_adapter() -> None:
    node = hybridflow_setting(128).cluster.node
    assert node.scale_out_bytes_per_s * node.devices_per_node == pytest.approx(25e9)  # 200 Gb/s


def test_the_engine_captures_no_graphs_and_makes_no_text() -> None:
    stock, ours = find_engine("vllm-0.3"), hybridflow_engine()
    assert stock.captures_graphs
    assert not ours.captures_graphs
    assert ours.graph_bytes == 0
    assert stock.sequence_overhead_s - ours.sequence_overhead_s == pytest.approx(26e-6)


def test_frozen_weights_stay_on_the_gpus() -> None:
    """13B in 16 bits over eight GPUs: 3.25 GB of each of reference and reward model; the critic's values need none."""
    for name in ("reference", "reward"):
        table = _options("13B", name, 8, SCRIPT)
        assert table.static_bytes.min() == pytest.approx(26e9 / 8, rel=0.03)
    assert not _options("13B", "values", 8, SCRIPT).static_bytes.any()
    assert not _options("13B", "generate", 8, SCRIPT).static_bytes.any()


def test_replicas_of_one_gpu_run_out_of_cache() -> None:
    """13B on one GPU: 26 GB of weights leave room for a few sequences; on four it is room for dozens."""
    four, two, one = (predicted_s("13B", tensor) for tensor in (4, 2, 1))
    assert four < two < one
    assert one > 1.8 * four


@pytest.mark.parametrize(
    ("name", "size", "degrees"),
    [
        ("13B", 128, (8, 1, 16)),
        ("34B", 128, (8, 4, 4)),
        ("34B", 48, (8, 2, 3)),  # four stages do not divide six machines
        ("34B", 8, (8, 1, 1)),
        ("13B", 4, (4, 1, 1)),
    ],
)
def test_layouts_are_the_published_ones_where_they_divide(name: str, size: int, degrees: tuple[int, int, int]) -> None:
    plans = training_plans(name, size)
    found = np.stack([plans.tensor_parallel, plans.pipeline_parallel, plans.data_parallel])
    assert (found == np.asarray(degrees)[:, None]).all()
    assert (plans.num_devices == size).all()
    # Eight updates see every sequence; no micro-batch is empty.
    seen = plans.micro_batch_size * plans.num_microbatches * plans.data_parallel * 8
    assert (seen >= SEQUENCES).all()
    assert ((plans.num_microbatches - 1) * plans.micro_batch_size * plans.data_parallel * 8 < SEQUENCES).all()


@pytest.mark.parametrize(
    ("name", "size", "per_rank"),
    [("13B", 8, 16), ("13B", 64, 2), ("13B", 128, 1), ("34B", 32, 16), ("34B", 128, 4), ("34B", 96, 5)],
)
def test_ranks_share_the_micro_batch_of_the_script(name: str, size: int, per_rank: int) -> None:
    """16 sequences over all ranks, rounded down as its code does: 8 micro-batches per update on any number of ranks."""
    plans = training_plans(name, size, SCRIPT)
    assert set(plans.micro_batch_size) == {per_rank}
    if 16 % plans.data_parallel[0] == 0:
        assert set(plans.num_microbatches) == {8}


def test_other_micro_batches_are_per_rank_or_any() -> None:
    assert set(training_plans("34B", 128, MicroBatches(per_rank=8)).micro_batch_size) == {8}
    assert set(training_plans("13B", 128, MicroBatches(per_rank=64)).micro_batch_size) == {8}  # there are no more
    assert set(training_plans("34B", 64, FASTEST).micro_batch_size) == {1, 2, 4, 8, 16, 32}
    call = hybridflow_call(CallKind.TRAIN)
    of_script, fastest = (priced_call("34B", call, 64, one).time_s.min() for one in (SCRIPT, FASTEST))
    assert fastest <= of_script


def test_gradients_over_one_adapter_keep_training_from_scaling() -> None:
    """13B on 16 times the ranks: reductions alone take fp32 gradients of 1/8 model over 3 GB/s, eight times."""
    call = hybridflow_call(CallKind.TRAIN)
    on_8, on_128 = (priced_call("13B", call, size).time_s.min() for size in (8, 128))
    reductions_s = 8 * 13e9 / 8 * 4 * 15 / 16 / (25e9 / 8)
    assert on_128 > on_8 / 16 + reductions_s
    assert on_128 < on_8 / 16 + 3 * reductions_s


@needs_data
def test_splitting_pays_on_many_gpus_only() -> None:
    measured = measured_s(RLHF)
    for num_devices, together in ((32, True), (128, False)):
        predicted = {name: iteration_s("13B", num_devices, name) for name in ("Colocate", "Split")}
        theirs = measured["13B", num_devices]
        assert (predicted["Colocate"] < predicted["Split"]) == together
        assert (theirs["Colocate"] < theirs["Split"]) == together
        for name, seconds in predicted.items():
            assert seconds == pytest.approx(theirs[name], rel=0.4)
