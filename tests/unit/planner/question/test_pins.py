"""Pins: every way to fix a plan dimension, and every mistake in doing so."""

from typing import Any

import numpy as np
import pytest

import planner
from costmodels.plan import PLAN_COLUMNS, AxisOrder, ContextKind, ExecutionPlan, Recompute, Schedule
from planner.question.pins import ALIASES, parse_pins
from profiles.errors import SpecError


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ({"tp": None}, {}),
        ({"tp": 8, "pipeline_parallel": 2}, {"tensor_parallel": 8, "pipeline_parallel": 2}),
        ({"TP": 8}, {"tensor_parallel": 8}),
        ({"zero": 0, "hsdp": 0}, {"zero_stage": 0, "zero_shard_degree": 0}),
        ({"sp": True}, {"sequence_parallel": 1}),
        ({"recompute": "full"}, {"recompute": Recompute.FULL}),
        ({"recompute": "block:4"}, {"recompute": Recompute.BLOCK, "recompute_layers": 4}),
        ({"recompute": "Block"}, {"recompute": Recompute.BLOCK}),
        ({"recompute": Recompute.SELECTIVE}, {"recompute": Recompute.SELECTIVE}),
        ({"schedule": "1F1B"}, {"schedule": Schedule.ONE_F_ONE_B}),
        ({"schedule": "zb-v"}, {"schedule": Schedule.ZERO_BUBBLE_V}),
        ({"schedule": Schedule.GPIPE}, {"schedule": Schedule.GPIPE}),
        ({"context_kind": "all-gather"}, {"context_kind": ContextKind.ALL_GATHER}),
        ({"axis_order": "tp_cp_pp_dp"}, {"axis_order": AxisOrder.TP_CP_PP_DP}),
    ],
    ids=str,
)
def test_what_is_understood(given: Any, expected: dict[str, int]) -> None:
    assert parse_pins(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tensor_paralel": 8}, "plan.tensor_paralel: unknown field. Hint: did you mean 'tensor_parallel'"),
        ({"tp": 8, "tensor_parallel": 8}, "plan.tensor_parallel: is given twice. Hint: give one of its names"),
        ({"tp": 0}, "plan.tensor_parallel: must be between 1 and 1048576; got 0"),
        ({"tp": 10**30}, "plan.tensor_parallel: must be between 1 and 1048576; got 1000000000000000000000000000000"),
        ({"tp": 2.5}, "plan.tensor_parallel: must be a whole number; got 2.5"),
        ({"tp": "8"}, "plan.tensor_parallel: must be a whole number; got '8'"),
        ({"tp": True}, "plan.tensor_parallel: must be a whole number; got True"),
        ({"zero": 4}, "plan.zero_stage: must be between 0 and 3; got 4"),
        ({"vpp": 4097}, "plan.virtual_stages: must be between 1 and 4096; got 4097"),
        ({"sp": 1}, "plan.sequence_parallel: must be true or false; got 1"),
        (
            {"recompute": "block:x"},
            "plan.recompute: unknown value 'block:x'. Hint: none, selective, selective:MODULE, ",
        ),
        (
            {"recompute": "full:3"},
            "plan.recompute: unknown value 'full:3'. Hint: none, selective, selective:MODULE, ",
        ),
        ({"recompute": "block:0"}, "plan.recompute: unknown value 'block:0'"),
        ({"recompute": "selective:"}, "plan.recompute: unknown name ''. Hint: known: core_attn"),
        ({"recompute": "block:"}, "plan.recompute: unknown value 'block:'. Hint: none, selective"),
        (
            {"recompute_layers": 3, "recompute": "block:4"},
            "plan.recompute_layers: is given twice. Hint: give them once",
        ),
        ({"recompute": "ful"}, "plan.recompute: unknown value 'ful'. Hint: did you mean 'full'?"),
        ({"schedule": "1f2b"}, "plan.schedule: unknown value '1f2b'. Hint: did you mean '1f1b'?"),
        ({"schedule": 99}, "plan.schedule: unknown value 99. Hint: known: 1f1b, gpipe, zb-1p, zb-2p, zb-v"),
        ({"context_kind": "spiral"}, "plan.context_kind: unknown value 'spiral'."),
        ({"axis_order": []}, "plan.axis_order: unknown value an empty list."),
    ],
    ids=str,
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_pins(given)
    assert str(error.value).startswith(message)


def test_every_plan_field_can_be_fixed() -> None:
    assert set(PLAN_COLUMNS) == set(ExecutionPlan.__dataclass_fields__) - {"stage_layers"}
    assert set(ALIASES.values()) <= set(PLAN_COLUMNS)


@pytest.mark.parametrize("two", [2, 2.0, np.float64(2), np.int64(2)])
def test_whole_numbers_may_be_written_with_a_point(two: Any) -> None:
    """As the columns of a table with a gap in it have them."""
    job = {"sequence_length": 1024 * two, "global_batch_size": 32 * two}
    result = planner.plan("llama-3-8b", "8xH100", job, pins={"tp": two})
    assert result.request.pins == {"tensor_parallel": 2}
    assert (result.request.job.sequence_length, result.request.job.global_batch_size) == (2048, 64)
    assert isinstance(result.request.job.sequence_length, int)
