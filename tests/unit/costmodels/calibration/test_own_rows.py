"""Our own timings as training rows, and how they judge."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration.learned_fit import train
from costmodels.calibration.learned_splits import own_folds
from costmodels.calibration.own_rows import DRAWN, LATTICE, kept_out, own_rows
from costmodels.kernels.calls import KernelOp, take
from costmodels.kernels.implementations import Engine, Library, code_of, is_bare, library_of
from costmodels.kernels.learned import FORMULA_OF, format_classes
from costmodels.kernels.roofline import OP_NAMES

BACKWARD = own_rows("attention_backward")


def test_every_kernel_of_ours_teaches_one_class() -> None:
    classes = ("gemm", "gemm_fp32", "grouped_alone", "attention_forward", "attention_backward", "attention_decode",
               "memory")  # fmt: skip
    assert not len(own_rows("grouped_gemm"))
    rows = {name: own_rows(name) for name in classes}
    assert sum(map(len, rows.values())) > 5000
    for name, part in rows.items():
        assert {OP_NAMES[KernelOp(op)] for op in np.unique(part.calls.op)} == {FORMULA_OF.get(name, name)}
        assert set(part.device) == {"H100-SXM-80GB", "H200-SXM-141GB"}
        assert set(part.source) <= {LATTICE, DRAWN}
    assert set(rows["attention_forward"].kind) == {"flash_2/pytorch", "cudnn/pytorch"}
    assert set(rows["gemm"].kind) == {""}
    assert {"norm/pytorch", "optimizer/pytorch", "cross_entropy/pytorch"} <= set(rows["memory"].kind)
    assert Library.LOOP not in library_of(rows["grouped_alone"].calls.implementation)


def test_fp8_products_of_ours_are_a_format_of_their_own() -> None:
    rows = own_rows("gemm")
    bare = is_bare(rows.calls)
    assert set(format_classes(take(rows.calls, bare))) == {"fp8-bare"}
    assert set(rows.format[~bare]) == {"16-bit", "tf32"}
    assert rows.take(bare).timings().format == "fp8"


def test_rows_kept_out_are_random_shapes() -> None:
    kept = kept_out(BACKWARD)
    assert set(BACKWARD.source[kept]) == {DRAWN}
    assert 0.25 < kept.sum() / (BACKWARD.source == DRAWN).sum() < 0.45


def test_what_is_kept_out_does_not_depend_on_how_implementations_are_told_apart() -> None:
    rows = own_rows("memory")
    norm = library_of(rows.calls.implementation) == Library.ROOT_MEAN_SQUARE
    eager = replace(rows.calls, implementation=np.where(norm, code_of(Engine.PYTORCH, Library.EAGER),
                                                        rows.calls.implementation))  # fmt: skip
    assert norm.sum() > 50
    assert (kept_out(rows) == kept_out(replace(rows, calls=eager))).all()


def test_random_shapes_are_judged_by_the_grid_and_by_the_packaged_model() -> None:
    fitted = BACKWARD.take(~kept_out(BACKWARD))
    trained = train(fitted, rounds=60)
    by_grid, by_all = own_folds(BACKWARD, trained, 8000)
    assert (by_grid.name, by_grid.situation, by_all.name, by_all.situation) == (
        "own random", "beyond", "own kept", "measured",
    )  # fmt: skip
    assert len(by_grid.rows) == (BACKWARD.source == DRAWN).sum()
    assert len(by_all.rows) == kept_out(BACKWARD).sum()
    error = np.abs(by_all.learned_s / by_all.rows.time_s - 1)[by_all.rows.time_s > 20e-6]
    assert error.mean() < 0.08
    assert not list(own_folds(BACKWARD.take(BACKWARD.source == LATTICE), trained, 8000))
