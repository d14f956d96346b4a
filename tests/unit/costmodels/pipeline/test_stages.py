from itertools import product

import numpy as np
import pytest

from costmodels.plan import ExecutionPlan, PlanBatch, Schedule
from costmodels.stages.table import StageTable, stage_table
from tests.fakes import gpt, mixture

EVEN = gpt(num_layers=48)
# Patterns: DeepSeek (dense first layers), Llama-4 Maverick (every second layer), both, and all layers.
PATTERNS = {
    "dense": gpt(num_layers=24),
    "every": mixture(num_layers=24),
    "first_dense": mixture(num_layers=24, moe={"first_dense_layers": 5}),
    "alternate": mixture(num_layers=24, moe={"layer_interval": 2}),
    "both": mixture(num_layers=24, moe={"first_dense_layers": 2, "layer_interval": 3}),
}


def rows(table: StageTable, row: int) -> list[tuple[int, int, int]]:
    """(stages, layers, MoE layers) of the used columns of one plan."""
    columns = zip(table.count[row], table.layers[row], table.moe_layers[row], strict=True)
    return [(int(count), int(layers), int(moe)) for count, layers, moe in columns if count]


@pytest.mark.parametrize("first", [0, 2, 5])
@pytest.mark.parametrize("last", [0, 1, 3])
def test_every_layer_is_on_one_stage(first, last):
    layers = 48
    stages = np.arange(3 if first and last else 2, 41)
    plans = PlanBatch.from_columns(
        len(stages), pipeline_parallel=stages, first_stage_layers=first, last_stage_layers=last
    )
    for full in (False, True):
        table = stage_table(plans, EVEN, full=full)
        assert (table.count.sum(axis=1) == stages).all()
        assert ((table.count * table.layers).sum(axis=1) == layers).all()
    full = stage_table(plans, EVEN, full=True)
    if first:
        assert (full.layers[:, 0] == first).all()
    if last:
        assert (full.layers[np.arange(len(stages)), stages - 1] == last).all()


def test_a_single_stage_holds_everything():
    table = stage_table(PlanBatch.from_columns(1), EVEN)
    assert rows(table, 0) == [(1, 48, 0)]
    assert table.has_embedding.tolist() == [[True]]
    assert table.has_head.tolist() == [[True]]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (16, [3] * 16),
        # 48 = 5 * 9 + 3: the remainder goes to the middle stages, which hold no embedding and no head.
        (9, [5, 6, 6, 6, 5, 5, 5, 5, 5]),
        # More remainder than middle stages: the first stage takes what is left.
        (7, [7, 7, 7, 7, 7, 7, 6]),
        (25, [1, *[2] * 23, 1]),
    ],
    ids=["even", "remainder", "overflow", "sparse"],
)
def test_a_remainder_goes_to_the_middle(stages, expected):
    table = stage_table(PlanBatch.from_columns(1, pipeline_parallel=stages), EVEN, full=True)
    assert sum(expected) == 48
    assert table.layers[0].tolist() == expected


def test_alike_stages_share_a_column():
    table = stage_table(PlanBatch.from_columns(1, pipeline_parallel=16), EVEN)
    assert rows(table, 0) == [(1, 3, 0), (14, 3, 0), (1, 3, 0)]
    assert table.index.tolist() == [[0, 1, 15]]
    assert table.has_embedding.tolist() == [[True, False, False]]
    assert table.has_head.tolist() == [[False, False, True]]


def test_embedding_and_head_sit_at_the_ends_or_both_at_the_first_of_a_v():
    plans = PlanBatch.from_columns(2, pipeline_parallel=4, schedule=[Schedule.ONE_F_ONE_B, Schedule.ZERO_BUBBLE_V])
    table = stage_table(plans, EVEN, full=True)
    assert table.has_embedding.tolist() == [[True, False, False, False]] * 2
    assert table.has_head.tolist() == [[False, False, False, True], [True, False, False, False]]
    assert stage_table(plans, EVEN).has_head.sum(axis=1).tolist() == [1, 1]


@pytest.mark.parametrize("name", PATTERNS)
def test_classes_and_single_stages_tell_the_same(name):
    """Same sums, and the same peak of any cost that grows with layers, MoE layers, ends and in-flight."""
    model = PATTERNS[name]
    plans = [
        ExecutionPlan(pipeline_parallel=p, virtual_stages=v, num_microbatches=m, first_stage_layers=first, schedule=how)
        for p, v, m, first, how in product((1, 2, 3, 4, 5, 6, 8, 12, 24), (1, 2, 3), (2, 7, 64), (0, 1, 2), Schedule)
        if p * v <= 24 and (p > 1 or first == 0)
    ]
    batch = PlanBatch.from_plans(plans)
    classes, full = stage_table(batch, model), stage_table(batch, model, full=True)
    rng = np.random.default_rng(0)
    for _ in range(5):
        layer, moe, embedding, head = rng.random(4)

        def cost(table: StageTable, weights=(layer, moe, embedding, head)) -> np.ndarray:
            columns = (table.layers, table.moe_layers, table.has_embedding, table.has_head)
            return sum(weight * column for weight, column in zip(weights, columns, strict=True))

        assert (cost(classes) * classes.in_flight).max(axis=1) == pytest.approx(
            (cost(full) * full.in_flight).max(axis=1)
        )
        assert (cost(classes) * (classes.count > 0)).max(axis=1) == pytest.approx(
            (cost(full) * (full.count > 0)).max(axis=1)
        )
        assert (cost(classes) * classes.count).sum(axis=1) == pytest.approx((cost(full) * full.count).sum(axis=1))


def placement(layers: int, stages: int, chunks: int) -> list[list[int]]:
    """Layers of each stage under Megatron-LM's interleaving: chunk after chunk, stage after stage."""
    size = layers // (stages * chunks)
    owner = [(index // size) % stages for index in range(layers)]
    return [[index for index in range(layers) if owner[index] == stage] for stage in range(stages)]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize(("stages", "chunks"), [(2, 1), (4, 1), (2, 3), (3, 4), (4, 2), (6, 2), (12, 2), (8, 3)])
def test_moe_layers_follow_the_interleaved_placement(name, stages, chunks):
    model = PATTERNS[name]
    table = stage_table(
        PlanBatch.from_columns(1, pipeline_parallel=stages, virtual_stages=chunks, num_microbatches=64),
        model,
        full=True,
    )
    expected = [sum(model.layer_is_moe[index] for index in own) for own in placement(24, stages, chunks)]
    assert table.moe_layers[0].tolist() == expected


def test_a_v_shaped_placement_folds_back():
    model = PATTERNS["first_dense"]  # layers 0 to 4 are dense
    plans = PlanBatch.from_columns(1, pipeline_parallel=4, schedule=Schedule.ZERO_BUBBLE_V)
    # Chunks of three layers: stage 0 has 0-2 and 21-23, stage 1 has 3-5 and 18-20.
    assert stage_table(plans, model, full=True).moe_layers.tolist() == [[3, 4, 6, 6]]


@pytest.mark.parametrize("name", PATTERNS)
def test_moe_layers_are_conserved(name):
    model = PATTERNS[name]
    plans = PlanBatch.from_plans(
        [
            ExecutionPlan(pipeline_parallel=p, virtual_stages=v, last_stage_layers=last, schedule=how)
            for p, v, last, how in product(
                range(2, 13), (1, 2, 3, 4), (0, 1), (Schedule.ONE_F_ONE_B, Schedule.ZERO_BUBBLE_V)
            )
            if how == Schedule.ONE_F_ONE_B or v == 1
        ]
    )
    for full in (False, True):
        table = stage_table(plans, model, full=full)
        found = (table.count * table.moe_layers).sum(axis=1)
        assert (found == model.num_moe_layers).all()
        assert (table.moe_layers <= table.layers).all()
        assert (table.layers - table.moe_layers <= model.num_layers - model.num_moe_layers).all()


def test_hand_laid_stages_are_taken_as_given_beside_automatic_ones():
    plans = PlanBatch.from_plans(
        [
            ExecutionPlan(pipeline_parallel=4, stage_layers=(10, 14, 14, 10)),
            ExecutionPlan(pipeline_parallel=4),
            ExecutionPlan(pipeline_parallel=2, stage_layers=(20, 28)),
        ]
    )
    full = stage_table(plans, EVEN, full=True)
    assert full.layers.tolist() == [[10, 14, 14, 10], [12, 12, 12, 12], [20, 28, 0, 0]]
    assert [rows(stage_table(plans, EVEN), row) for row in range(3)] == [
        [(1, 10, 0), (2, 14, 0), (1, 10, 0)],
        [(1, 12, 0), (2, 12, 0), (1, 12, 0)],
        [(1, 20, 0), (1, 28, 0)],
    ]


def test_groups_name_the_plans_with_equal_layouts():
    plans = PlanBatch.from_columns(4, pipeline_parallel=[2, 4, 2, 4], data_parallel=[1, 2, 3, 4])
    table = stage_table(plans, EVEN)
    assert table.groups.of_row[0] == table.groups.of_row[2] != table.groups.of_row[1] == table.groups.of_row[3]


def test_unused_columns_hold_nothing():
    table = stage_table(PlanBatch.from_columns(2, pipeline_parallel=[1, 4], num_microbatches=8), EVEN)
    unused = table.count == 0
    assert unused.sum() == 2
    for column in (table.layers, table.moe_layers, table.in_flight, table.has_embedding, table.has_head):
        assert not column[unused].any()
