"""The text networks learn and repeat themselves; the ablation holds out what it says it does."""

from functools import lru_cache

import numpy as np
import pytest

from costmodels.kernels.mlir.emit import emit
from costmodels.kernels.mlir.kernel import Kernel
from costmodels.kernels.mlir.parse import parse
from costmodels.kernels.mlir.tokens import Scheme, tokens

pytest.importorskip("pandas", reason="the extra fit is not installed")

from costmodels.calibration.text_models import MODELS, Samples, columns, errors, splits


@lru_cache(maxsize=1)
def samples() -> Samples:
    """Additions of many shapes on two devices, timed by a law."""
    kernels = [Kernel(op="add", m=64 * row, n=64 * width) for row in range(1, 21) for width in (1, 2, 4, 8, 16)]
    texts = [emit(kernel) for kernel in kernels] * 2
    features = [parse(text)[0] for text in texts]
    moved = np.asarray([kernel.bytes for kernel in features])
    bandwidth = np.repeat((1e12, 3e12), len(kernels))
    return Samples(
        texts=texts, features=features, device=np.log(np.column_stack([bandwidth] * 4)),
        names=np.repeat(("A100-SXM-80GB", "H100-SXM-80GB"), len(kernels)),
        groups=np.asarray([f"add {kernel.n}" for kernel in kernels] * 2),
        roofline_s=moved / bandwidth, time_s=2e-6 + 1.25 * moved / bandwidth,
    )  # fmt: skip


def test_whole_groups_are_held_out():
    found = samples()
    held = splits(found)
    assert set(held) == {"random", "unseen shapes", "unseen GPU"}
    unseen = held["unseen shapes"]
    assert not set(found.groups[unseen]) & set(found.groups[~unseen])
    assert set(found.names[held["unseen GPU"]]) == {"H100-SXM-80GB"}
    assert 0 < held["random"].sum() < len(found.time_s) / 2


def test_errors_are_relative_to_what_was_measured():
    assert errors(np.asarray([2.0, 3.0]), np.asarray([1.0, 3.0])) == (0.5, 0.25)


def test_columns_tell_kernels_apart_and_are_finite():
    table = columns(samples())
    assert np.isfinite(table).all()
    assert len(np.unique(table, axis=0)) == len(table)


def test_trees_on_parsed_numbers_beat_the_bound():
    found = samples()
    held = splits(found)["random"]
    bound = errors(MODELS["roofline"](found, held), found.time_s[held])[0]
    trees = errors(MODELS["parsed features, LightGBM, residual over roofline"](found, held), found.time_s[held])[0]
    assert trees < bound / 3


@pytest.mark.parametrize("kind", ["conv", "bag", "lstm"])
def test_a_network_learns_and_repeats_itself(kind):
    pytest.importorskip("torch", reason="the extra neural is not installed")
    from costmodels.kernels.mlir.text_model import train

    texts = [tokens(emit(Kernel(op=op, m=8, n=8)), Scheme.OPS) for op in ("add", "gelu", "softmax", "adamw")] * 16
    device = np.zeros((len(texts), 2))
    target = np.asarray([0.0, 1.0, 2.0, 3.0] * 16)
    models = [train(texts, device, target, kind=kind, epochs=30, seed=1) for _ in range(2)]
    found = [model.predict(texts[:4], device[:4]) for model in models]
    np.testing.assert_array_equal(found[0], found[1])
    assert np.corrcoef(found[0], target[:4])[0, 1] > 0.9


def test_without_torch_the_rest_still_imports():
    from costmodels.kernels.mlir.text_model import train

    assert callable(train)
