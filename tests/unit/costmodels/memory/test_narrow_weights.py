"""Copies of weights in 8 and 4 bits: what they take, of which weights, and where there are none."""

import numpy as np
import pytest

from costmodels.memory.narrow_weights import narrow_weight_bytes
from costmodels.plan import ExecutionPlan, PlanBatch
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from planner import api
from profiles.hardware import ClusterSpec
from profiles.parameters import layer_parameters
from profiles.stacks import load_stacks
from tests.fakes import context, device, gpt, job, node, stack

LAYERS = 8 * layer_parameters(gpt(), moe=False).total


def copies(precision: str, architecture: str = "hopper", *, narrow: str = "kept", zero_stage: int = 1) -> float:
    where = context(
        cluster=ClusterSpec(name="fake", node=node(device=device(architecture=architecture)), num_nodes=1),
        job=job(precision=precision),
        stack=stack(narrow_weights=narrow),
    )
    plans = PlanBatch.from_plans([ExecutionPlan(data_parallel=8, zero_stage=zero_stage)])
    stages = stage_table(plans, where.model, full=True)
    found = narrow_weight_bytes(plans, stages, stage_parameters(plans, stages, where.model, where.job), where)
    return 0.0 if found is None else float(np.asarray(found)[0, 0])


@pytest.mark.parametrize(
    ("precision", "architecture", "bytes_each"),
    [
        ("fp8", "hopper", 2.0),
        ("fp8", "ada", 2.0),
        ("fp8", "blackwell", 1.0),
        ("mxfp8", "blackwell", 2 * (1 + 1 / 32)),
        ("nvfp4", "blackwell", 2 * (1 / 2 + 1 / 16)),
        ("bf16", "hopper", 0.0),
    ],
)
def test_weights_of_layers_have_copies_in_one_or_two_layouts(
    precision: str, architecture: str, bytes_each: float
) -> None:
    assert copies(precision, architecture) == pytest.approx(bytes_each * LAYERS, rel=2e-3)  # but for a last norm


def test_where_nothing_is_kept_there_are_none() -> None:
    assert copies("fp8", narrow="") == 0
    assert copies("fp8", zero_stage=3) == 0
    assert copies("fp8", narrow="whole", zero_stage=3) == pytest.approx(LAYERS, rel=2e-3)  # in one layout, unsharded
    assert load_stacks()["megatron-2024"].narrow_weights == "kept"
    assert load_stacks()["megatron-core"].narrow_weights == "live"
    assert not load_stacks()["fsdp"].narrow_weights


@pytest.mark.parametrize(
    ("precision", "architecture", "bytes_each"),
    [
        ("fp8", "hopper", 2.0),
        ("fp8", "blackwell", 1.0),
        ("mxfp8", "blackwell", 2 * (1 + 1 / 32)),
        ("nvfp4", "blackwell", 2.0),  # none live in 4 bits
        ("bf16", "blackwell", 2.0),
    ],
)
def test_weights_that_live_in_8_bits_take_just_these(precision: str, architecture: str, bytes_each: float) -> None:
    besides = copies(precision, architecture, narrow="live")
    assert besides == pytest.approx((bytes_each - 2) * LAYERS, rel=2e-3, abs=1.0)


@pytest.mark.parametrize(("devices", "measured_gib"), [(8, (71, 74)), (16, (62, 64))])
def test_eight_bits_take_more_memory_than_sixteen_as_flagperf_measured(
    devices: int, measured_gib: tuple[int, int]
) -> None:
    """Llama-3-8B on H100s, nvidia-smi: published beside each other, alike but for the format."""
    plan = {"tp": 2, "pp": 1, "dp": devices // 2, "micro_batch_size": 1, "zero_stage": 1, "recompute": "selective"}
    asked = {"sequence_length": 8192, "global_batch_size": 512}
    peaks = [
        api.estimate("llama-3-8b", f"{devices}xH100", asked | {"precision": name}, plan=plan, framework="megatron-2024")
        for name in ("bf16", "fp8")
    ]
    wide, narrow = (found.best.peak_memory_bytes / 2**30 for found in peaks if found.best is not None)
    assert narrow - wide == pytest.approx(measured_gib[1] - measured_gib[0], abs=2)
