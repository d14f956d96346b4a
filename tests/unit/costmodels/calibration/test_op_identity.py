"""The baseline that knows operations by name."""

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration.learned_fit import grown
from costmodels.calibration.learned_splits import folds
from costmodels.calibration.op_identity import families, named_columns
from costmodels.calibration.training_rows import TrainingRows
from costmodels.kernels.booster import Booster
from costmodels.kernels.calls import KernelFamily, KernelOp, kernel_calls

NAMES = np.array(["norm", "softmax"])


def rows(count: int = 1200) -> TrainingRows:
    """Three operations that reach a half, a quarter and an eighth of the bandwidth of an A100."""
    random = np.random.default_rng(0)
    which = np.arange(count) % 3
    family = np.array([KernelFamily.NORM, KernelFamily.SOFTMAX, KernelFamily.ROTARY])[which]
    tokens, width = 2.0 ** random.integers(12, 16, count), 2.0 ** random.integers(10, 14, count)
    moved = 4.0 * tokens * width
    calls = kernel_calls(
        count, op=KernelOp.MEMORY, family=family, m=tokens, n=width, bytes=moved, batch=1, element_bytes=2
    )
    return TrainingRows(
        op_class="memory", calls=calls, time_s=moved / 2.039e12 * np.array([2.0, 4.0, 8.0])[which],
        device=np.full(count, "A100-SXM-80GB"), source=np.full(count, "lab"),
        kind=np.array(["norm/pytorch", "softmax", "rotary"])[which],
    )  # fmt: skip


def test_an_operation_has_a_column_and_an_unknown_one_none():
    part = rows(6)
    assert families(part).tolist() == ["norm", "softmax", "rotary"] * 2
    assert named_columns(part, NAMES)[:3, :2].tolist() == [[1, 0], [0, 1], [0, 0]]
    sizes = named_columns(part, NAMES)[:, 2:]
    assert np.isfinite(sizes).all()
    assert (sizes[:, -1] == sizes[0, -1]).all()


def test_names_tell_known_operations_apart():
    part = rows()
    every = np.unique(families(part))
    target = np.log(part.time_s / (part.calls.bytes / 2.039e12))
    matrix = named_columns(part, every)
    text = grown(matrix, target, np.ones(len(part)), [f"c{i}" for i in range(matrix.shape[1])], rounds=60)
    factors = np.exp(Booster(text).predict(matrix))
    assert factors[:3] == pytest.approx([2.0, 4.0, 8.0], rel=0.1)


def test_families_held_out_are_also_priced_by_name():
    part = rows()
    held = {fold.name: fold for fold in folds(part, part, few_shot=False) if fold.name.startswith("kind ")}
    assert set(held) == {"kind norm", "kind softmax", "kind rotary"}
    assert {fold.situation for fold in held.values()} == {"unmet"}
    rotary = held["kind rotary"]
    assert rotary.named_s is not None
    # What it has met takes two to four times the roofline, so of eight it must fall short by half or more.
    assert (rotary.named_s / rotary.rows.time_s < 0.6).all()
