import numpy as np
import pytest

from costmodels.plan import (
    AxisOrder,
    ContextKind,
    ExecutionPlan,
    PlanBatch,
    Recompute,
    Schedule,
    chunks_per_stage,
    concatenate,
)

EVERY_KNOB = ExecutionPlan(
    tensor_parallel=4,
    pipeline_parallel=2,
    data_parallel=3,
    context_parallel=5,
    expert_parallel=6,
    expert_tensor_parallel=2,
    virtual_stages=7,
    zero_stage=3,
    zero_shard_degree=5,
    micro_batch_size=8,
    num_microbatches=9,
    recompute=Recompute.BLOCK,
    recompute_layers=10,
    schedule=Schedule.ZERO_BUBBLE_V,
    context_kind=ContextKind.ULYSSES,
    axis_order=AxisOrder.TP_CP_PP_DP,
    first_stage_layers=11,
    last_stage_layers=12,
    sequence_parallel=True,
    offload_optimizer=True,
    offload_activations=True,
    offload_parameters=True,
    overlap_grad_reduce=False,
    overlap_param_gather=False,
    tensor_parallel_overlap=True,
)


def test_every_column_survives_the_way_into_a_batch_and_back():
    batch = PlanBatch.from_plans([ExecutionPlan(), EVERY_KNOB])
    assert [batch.plan(row) for row in range(2)] == [ExecutionPlan(), EVERY_KNOB]


def test_a_default_batch_holds_default_plans():
    assert PlanBatch.from_columns(2).plan(1) == ExecutionPlan()


def test_scalars_are_broadcast_and_unknown_columns_refused():
    batch = PlanBatch.from_columns(3, tensor_parallel=2, data_parallel=[1, 2, 4])
    assert batch.tensor_parallel.tolist() == [2, 2, 2]
    assert len(batch) == 3
    with pytest.raises(TypeError, match=r"unknown plan columns: \['tensor_paralel'\]"):
        PlanBatch.from_columns(1, tensor_paralel=2)


def test_devices_are_the_product_of_four_axes_only():
    # Experts reuse data-parallel ranks: 4 * 2 * 3 * 5, whatever expert_parallel is.
    assert EVERY_KNOB.num_devices == 120
    assert PlanBatch.from_plans([EVERY_KNOB]).num_devices.tolist() == [120]


def test_zero_shards_over_data_and_context_ranks_unless_hybrid():
    batch = PlanBatch.from_columns(2, data_parallel=4, context_parallel=2, zero_shard_degree=[0, 2])
    assert batch.shard_degree.tolist() == [8, 2]


def test_take_keeps_rows_in_the_asked_order():
    batch = PlanBatch.from_columns(4, num_microbatches=[1, 2, 3, 4])
    assert batch.take([3, 1]).num_microbatches.tolist() == [4, 2]
    assert batch.take(slice(0, 2)).num_microbatches.tolist() == [1, 2]


@pytest.mark.parametrize("layers", [(3, 5), (0, 8, 0), (2, 2, 2, 2)])
def test_hand_laid_stages_survive_even_empty_ones(layers):
    plan = ExecutionPlan(pipeline_parallel=len(layers), stage_layers=layers)
    batch = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=5), plan])
    assert batch.plan(1) == plan
    assert batch.plan(0).stage_layers == ()


def test_concatenation_keeps_order_and_refuses_hand_laid_stages():
    first, second = PlanBatch.from_columns(2, tensor_parallel=2), PlanBatch.from_columns(1, tensor_parallel=4)
    assert concatenate([first, second]).tensor_parallel.tolist() == [2, 2, 4]
    laid = PlanBatch.from_plans([ExecutionPlan(pipeline_parallel=2, stage_layers=(3, 5))])
    with pytest.raises(TypeError, match="stage_layers"):
        concatenate([first, laid])


def test_zb_v_has_two_chunks_on_every_stage_and_others_what_they_are_given() -> None:
    names = ("ONE_F_ONE_B", "ONE_F_ONE_B", "GPIPE", "ZERO_BUBBLE_2P", "ZERO_BUBBLE_V")
    schedules = [Schedule[name] for name in names]
    given, wanted = [1, 3, 1, 1, 1], [1, 3, 1, 1, 2]
    assert [schedule.chunks(stages) for schedule, stages in zip(schedules, given, strict=True)] == wanted
    assert chunks_per_stage(np.asarray(schedules), np.asarray(given)).tolist() == wanted
