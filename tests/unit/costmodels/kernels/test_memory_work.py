"""Bandwidth-bound work as it runs: kernels, what lies between them, what is read twice, who has seen it."""

import numpy as np
import pytest

from costmodels.calibration.additive_fit import fit_additive
from costmodels.calibration.training_rows import TrainingRows
from costmodels.kernels.additive import COEFFICIENTS, added_s, unmet
from costmodels.kernels.calls import KernelCallBatch, KernelFamily, KernelOp, concatenate, kernel_calls
from costmodels.kernels.device_features import device_format
from costmodels.kernels.implementations import REPLAYED, Engine, Library, code_of
from costmodels.kernels.memory_terms import memory_paths, memory_terms
from costmodels.kernels.memory_work import memory_work
from profiles.catalog import default_catalog

H100, A100 = (default_catalog().device(name) for name in ("H100-SXM-80GB", "A100-SXM-80GB"))


def work(
    family: KernelFamily,
    library: Library,
    passes: float,
    *,
    rows: float = 8192,
    width: float = 4096,
    element: float = 2,
) -> KernelCallBatch:
    return kernel_calls(
        1, op=KernelOp.MEMORY, family=family, m=rows, n=width, batch=1, bytes=passes * rows * width * element,
        element_bytes=element, implementation=code_of(Engine.PYTORCH, library),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "library", "passes", "kernels", "moved", "again"),
    [
        (KernelFamily.POINTWISE, Library.EAGER, 3, 1, 3, 0),
        (KernelFamily.NORM, Library.EAGER, 2, 1, 2, 1),
        (KernelFamily.NORM, Library.COMPILED, 4, 1, 4, 1),
        (KernelFamily.NORM, Library.SPELLED_OUT, 2, 8, 18, 0),
        (KernelFamily.NORM_BACKWARD, Library.EAGER, 3, 3, 5, 2),
        (KernelFamily.SOFTMAX, Library.EAGER, 2, 1, 2, 0),
        (KernelFamily.SOFTMAX, Library.EAGER, 3, 2, 6, 0),
        (KernelFamily.SOFTMAX, Library.REREAD_ROWS, 2, 1, 2, 2),
        (KernelFamily.SOFTMAX, Library.REREAD_ROWS, 3, 2, 6, 1),
        (KernelFamily.CROSS_ENTROPY, Library.EAGER, 1, 3, 7, 4),
        (KernelFamily.CROSS_ENTROPY, Library.EAGER, 2, 4, 11, 4),
        (KernelFamily.CROSS_ENTROPY, Library.CHUNKED, 2, 8 * 5, 13, 4),  # of 1,024 of 8,192 rows each
        (KernelFamily.ROTARY, Library.EAGER, 2, 5, 10, 0),
        (KernelFamily.GATED_ACTIVATION, Library.EAGER, 3, 2, 5, 0),
        (KernelFamily.GATED_ACTIVATION, Library.EAGER, 5, 3, 9, 0),
        (KernelFamily.GATED_ACTIVATION, Library.COMPILED, 5, 1, 5, 0),
        (KernelFamily.EMBEDDING, Library.EAGER, 1, 1, 2, 0),
        (KernelFamily.EMBEDDING, Library.ELEMENT_GATHER, 2, 1, 2, 0),
        (KernelFamily.EMBEDDING, Library.EAGER, 33, 14, 33 + 4, 0),  # sums of twice the width, written and read
    ],
)
def test_passes_are_those_of_the_code_that_runs(family, library, passes, kernels, moved, again):
    found = memory_work(work(family, library, passes))
    assert found.tensor_bytes == [8192 * 4096 * 2]
    assert found.kernels == [kernels]
    assert (found.least_bytes + found.between_bytes) / found.tensor_bytes == pytest.approx([moved])
    assert found.again_bytes / found.tensor_bytes == pytest.approx([again])


def test_an_optimizer_takes_its_parameters_tensor_by_tensor_and_piece_by_piece():
    elements = 1 << 26  # four tensors
    fused, foreach, master = (
        memory_work(work(KernelFamily.OPTIMIZER, library, passes, rows=1, width=elements, element=element))
        for library, passes, element in (
            (Library.FUSED_OPTIMIZER, 7, 4), (Library.FOREACH_OPTIMIZER, 7, 4), (Library.MASTER_OPTIMIZER, 14, 2),
        )
    )  # fmt: skip
    assert [found.kernels[0] for found in (fused, foreach, master)] == [1, 4 * 12, 4 * 3]
    moved = [(found.least_bytes[0] + found.between_bytes[0]) / elements for found in (fused, foreach, master)]
    assert moved == pytest.approx([28, 22 * 4, 40])
    assert fused.serial_bytes == [65536 * 28]


def test_a_row_that_stays_in_registers_is_read_once():
    narrow, wide = (
        memory_work(work(KernelFamily.SOFTMAX, Library.REREAD_ROWS, 2, width=width)).again_bytes
        for width in (1024, 1032)
    )
    assert narrow == 0
    assert wide == 2 * 8192 * 1032 * 2


def test_threads_of_a_softmax_wait_and_work_in_turn_while_other_rows_move():
    def terms(width: float, rows: int = 1 << 16) -> dict[str, float]:
        calls = work(KernelFamily.SOFTMAX, Library.EAGER, 2, rows=rows, width=width)
        return {name: float(values[0]) for name, values in memory_terms(calls, device_format(calls, H100)).items()}

    # A load and two sums, of 64 rows of a warp each at once, or of two with 1,024 threads each.
    for width, held in ((2048, 64), (4096, 2)):
        waited_s = 3 * (1 << 16) / held / 132 * 0.6e-6
        issued_s, moved_s = 36 * (1 << 16) * width / (132 * 128 * 1.5e9), 2 * (1 << 16) * width * 2 / 3.35e12
        assert terms(width)["waits"] == pytest.approx(waited_s + issued_s - moved_s)
        assert terms(width)["rows"] == 0  # the sums are among the waits
    assert terms(4096, rows=1)["waits"] == pytest.approx(3 * 0.6e-6, rel=0.01)


def test_rows_are_reduced_as_many_at_once_as_their_threads_leave_room_for():
    def rows_s(library: Library, family: KernelFamily) -> float:
        calls = work(family, library, 2)
        return float(memory_terms(calls, device_format(calls, H100))["rows"][0])

    norm, loss, chain = (
        rows_s(Library.EAGER, KernelFamily.NORM), rows_s(Library.EAGER, KernelFamily.CROSS_ENTROPY),
        rows_s(Library.SPELLED_OUT, KernelFamily.NORM),
    )  # fmt: skip
    assert [norm, loss, chain] == pytest.approx([8192 / 132 / held * 1e-6 for held in (16, 2, 64)])


def test_what_lies_between_kernels_is_served_by_the_cache_where_it_fits():
    def terms(rows: float) -> dict[str, float]:
        calls = work(KernelFamily.ROTARY, Library.EAGER, 2, rows=rows)
        return {name: float(values[0]) for name, values in memory_terms(calls, device_format(calls, H100)).items()}

    large, small = terms(1 << 17), terms(128)
    assert large["memory"] == pytest.approx(10 * (1 << 17) * 4096 * 2 / 3.35e12, rel=1e-3)
    # The operands come from memory, whatever their size: a step touched them a layer ago.
    assert small["memory"] == pytest.approx(2 * 128 * 4096 * 2 / 3.35e12, rel=1e-3)
    assert small["cache"] == pytest.approx(8 * 128 * 4096 * 2 / (132 * 30e9), rel=1e-3)
    assert large["launch"] == small["launch"] == pytest.approx(5e-6)


def test_a_row_read_again_comes_from_memory_once_the_rows_in_flight_outgrow_the_cache():
    def again_s(library: Library, family: KernelFamily, passes: float, width: float) -> float:
        calls = work(family, library, passes, rows=1 << 16, width=width)
        return float(memory_terms(calls, device_format(calls, H100))["again"][0])

    # Sixteen rows of a norm a multiprocessor, 17 MB of the 50; two of a loss, 67 MB.
    tensor = (1 << 16) * 4096 * 2
    assert again_s(Library.EAGER, KernelFamily.NORM, 2, 4096) == pytest.approx(tensor / (132 * 30e9), rel=0.02)
    wide = (1 << 16) * 131072 * 2
    assert again_s(Library.EAGER, KernelFamily.CROSS_ENTROPY, 1, 131072) == pytest.approx(4 * wide / 3.35e12, rel=0.05)


def test_one_block_takes_its_row_or_piece_load_after_load():
    def alone_s(calls: KernelCallBatch) -> float:
        return float(memory_terms(calls, device_format(calls, H100))["alone"][0])

    # 128 threads load four elements each and wait for them; a row is read twice and written.
    norm_s = 3 * 4096 * 2 / (128 * 4 * 2) * 0.6e-6
    assert [alone_s(work(KernelFamily.NORM, Library.EAGER, 2, rows=rows)) for rows in (1, 8192)] == pytest.approx(
        [norm_s, norm_s]
    )
    assert alone_s(work(KernelFamily.POINTWISE, Library.EAGER, 3)) == 0
    # A piece of 65,536 parameters keeps so much in flight that the multiprocessor is the limit.
    fused = work(KernelFamily.OPTIMIZER, Library.FUSED_OPTIMIZER, 7, rows=1, width=1 << 26, element=4)
    assert alone_s(fused) == pytest.approx(65536 * 28 / 30e9)
    small = work(KernelFamily.OPTIMIZER, Library.FUSED_OPTIMIZER, 7, rows=1, width=1 << 12, element=4)
    assert alone_s(small) == pytest.approx(4096 * 28 / 30e9)


def test_places_are_divided_out_of_their_number_where_operands_are_broadcast_or_strided():
    def indexed(family: KernelFamily, library: Library, passes: float) -> float:
        return float(memory_work(work(family, library, passes)).indexed[0]) / (8192 * 4096)

    assert indexed(KernelFamily.NORM, Library.SPELLED_OUT, 2) == 2  # by the scale of a row, by the weight
    assert indexed(KernelFamily.NORM, Library.EAGER, 2) == 0
    assert indexed(KernelFamily.ROTARY, Library.EAGER, 2) == 3.5
    calls = work(KernelFamily.NORM, Library.SPELLED_OUT, 2)
    found = memory_terms(calls, device_format(calls, H100))["indexed"][0]
    assert found == pytest.approx(40 * 2 * 8192 * 4096 / (132 * 128 * 1.5e9))


def test_a_family_nobody_timed_takes_what_the_same_code_reaches_on_the_generation():
    norm = work(KernelFamily.NORM, Library.EAGER, 2)
    path = [str(level[0]) for level in memory_paths(norm, device_format(norm, H100))]
    assert path == ["all", "pytorch", "pytorch/g5", "eager/norm", "eager/norm/g5"]
    names = list(memory_terms(norm, device_format(norm, H100)))

    def only(launches: float) -> dict[str, float]:
        return {name: launches if name == "launch" else 0.0 for name in names}

    groups = {"": only(9), "pytorch": only(7), "pytorch/g5": only(5), "eager/norm": only(3)}
    calls = concatenate([norm, work(KernelFamily.SOFTMAX, Library.EAGER, 2)])
    seconds, steps = added_s("memory", calls, H100, {COEFFICIENTS: groups})
    assert seconds == pytest.approx([3e-6, 5e-6])
    assert unmet("memory", steps).tolist() == [False, True]
    # Timed on Hopper, a norm is foreign to another generation, not unmet.
    seconds, steps = added_s("memory", norm, A100, {COEFFICIENTS: groups})
    assert (seconds[0], bool(unmet("memory", steps)[0])) == (pytest.approx(3e-6), False)


def test_the_reference_says_what_an_unseen_family_takes():
    """Rates of two families on one device, of which a third is a chain of kernels."""
    rows, rng = 200, np.random.default_rng(3)
    families = np.array([int(KernelFamily.POINTWISE), int(KernelFamily.ACTIVATION)])[np.arange(rows) % 2]
    height = rng.integers(2000, 60_000, rows).astype(float)
    passes = np.where(families == KernelFamily.POINTWISE, 3.0, 2.0)
    calls = kernel_calls(
        rows, op=KernelOp.MEMORY, family=families, m=height, n=4096, batch=1, element_bytes=2,
        bytes=passes * height * 4096 * 2, implementation=code_of(Engine.PYTORCH, Library.EAGER),
    )  # fmt: skip
    device, source = np.full(rows, H100.name), np.full(rows, "made up")
    time_s = 3e-6 + 1.2 * calls.bytes / 3.35e12
    known = TrainingRows(
        op_class="memory", calls=calls, time_s=time_s, device=device, source=source, kind=families.astype(np.str_)
    )
    gated = work(KernelFamily.GATED_ACTIVATION, Library.EAGER, 3, rows=65536)
    seconds, steps = added_s("memory", gated, H100, fit_additive(known))
    assert unmet("memory", steps).all()
    assert seconds[0] == pytest.approx(2 * 3e-6 + 1.2 * 5 * 65536 * 4096 * 2 / 3.35e12, rel=0.03)


def test_replaying_a_call_does_not_change_who_ran_it():
    cold = work(KernelFamily.ROTARY, Library.EAGER, 2)
    replayed = kernel_calls(
        1, op=KernelOp.MEMORY, family=KernelFamily.ROTARY, m=8192, n=4096, batch=1, bytes=cold.bytes, element_bytes=2,
        implementation=cold.implementation + REPLAYED,
    )  # fmt: skip
    assert memory_work(replayed).between_bytes == memory_work(cold).between_bytes
