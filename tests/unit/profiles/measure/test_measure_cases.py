"""Cases: rows that the timing schema accepts, and work that agrees with what it computes from a row."""

import json
from typing import Any

import numpy as np
import pytest

from profiles.measure import cases, models
from profiles.measure.cases import Case
from profiles.measure.grid import collective_grid, kernel_grid
from profiles.measure.models import ModelShape, generation, step_grid, train_step
from profiles.timing_ops import COLLECTIVES
from profiles.timing_work import flops, traffic_bytes
from profiles.timings import check_table, table_of_rows

GROUPS = ((2, 1), (8, 1), (16, 2))
EVERYTHING = (*kernel_grid(gpu=True, eight_bit=True), *step_grid(), *collective_grid(GROUPS, library="nccl"))


def row(case: Case, **more: Any) -> dict[str, Any]:
    measured = {"device": "H100-SXM-80GB", "method": "graph", "statistic": "median", "time_s": 1e-3}
    return case.columns() | measured | more


def test_every_case_is_a_sound_row_of_the_schema() -> None:
    table = check_table(table_of_rows([row(case) for case in EVERYTHING]))
    assert len(table) == len(EVERYTHING)


def test_work_is_what_the_schema_computes_from_the_row() -> None:
    kernels = [case for case in EVERYTHING if case.kind == "kernel"]
    table = table_of_rows([{name: value for name, value in row(case).items() if name != "bytes"} for case in kernels])
    mine = np.array([case.flops for case in kernels])
    # A causal mask keeps the diagonal: (n + 1) / 2n of the scores, not one half.
    np.testing.assert_allclose(mine, flops(table), rtol=2e-3)
    theirs = traffic_bytes(table)
    known = ~np.isnan(theirs) & (table.op != "embedding_backward")
    assert known.sum() > 0.9 * len(kernels)
    np.testing.assert_allclose(np.array([case.bytes for case in kernels])[known], theirs[known])


def test_no_case_is_listed_twice() -> None:
    assert len({case.label for case in EVERYTHING}) == len(EVERYTHING)


def test_the_grid_covers_what_the_published_tables_lack() -> None:
    ops = {(case.op, case.dtype, case.layout) for case in EVERYTHING}
    assert {("gemm", "bf16", "NN"), ("gemm", "bf16", "TN"), ("attention_backward", "bf16", "")} <= ops
    assert {case.kernel for case in EVERYTHING if case.op == "adamw"} == set(cases.ADAMW_BYTES)
    assert any(case.op == "cross_entropy_backward" for case in EVERYTHING)
    cpu = kernel_grid(gpu=False)
    assert not {case.kernel for case in cpu} & {"torch_flash", "torch_cudnn", "bitsandbytes_8bit"}


def test_a_linear_layer_has_three_products_of_equal_work() -> None:
    forward, dgrad, wgrad = cases.linear("bf16", 2048, 4096, 11008)
    assert [case.layout for case in (forward, dgrad, wgrad)] == ["NT", "NN", "TN"]
    assert forward.flops == dgrad.flops == wgrad.flops == 2.0 * 2048 * 4096 * 11008
    assert (forward["m"], forward["n"], forward["k"]) == (2048, 11008, 4096)
    assert (dgrad["m"], dgrad["n"], dgrad["k"]) == (2048, 4096, 11008)
    assert (wgrad["m"], wgrad["n"], wgrad["k"]) == (11008, 4096, 2048)


def test_an_adamw_step_moves_seven_words_per_fp32_parameter() -> None:
    assert cases.adamw("torch_fused", 1000).bytes == 7 * 4 * 1000


def test_collectives_come_in_every_size_and_group() -> None:
    found = collective_grid(GROUPS, library="nccl")
    assert {case.op for case in found} == set(COLLECTIVES)
    assert {(case["group_size"], case["num_nodes"]) for case in found} == set(GROUPS)
    sizes = sorted({case["size_bytes"] for case in found})
    assert (sizes[0], sizes[-1]) == (1024, 512 << 20)


def test_a_model_has_the_parameters_of_its_matrices() -> None:
    llama = ModelShape(
        name="llama-2-7b", layers=32, hidden=4096, heads=32, kv_heads=32, ffn=11008, vocab=32000, gated=True
    )
    norms = 65 * 4096
    assert llama.parameters + norms == 6_738_415_616  # meta-llama/Llama-2-7b


@pytest.mark.parametrize("recompute", [False, True])
def test_a_training_step_does_six_flops_per_weight_and_token(recompute: bool) -> None:
    case = train_step(models.LLAMA_1B, sequence=2048, micro_batch=2, micro_batches=3, recompute=recompute)
    shape, tokens = models.LLAMA_1B, 3 * 2 * 2048
    weights = shape.layers * shape.block_parameters + shape.hidden * shape.vocab
    scores = shape.layers * 4.0 * 1024 * shape.hidden
    passes = 4 if recompute else 3
    assert case.flops == pytest.approx(passes * tokens * (2 * weights + scores))
    settings = json.loads(case.config)
    assert (settings["recompute"], settings["micro_batch"], case["batch"]) == (["none", "full"][recompute], 2, 3)


def test_decoding_reads_weights_and_cache_once() -> None:
    case = generation("decode_step", models.LLAMA_1B, batch=8, context=2048)
    shape = models.LLAMA_1B
    cache = 2 * 2 * shape.layers * 8 * 2049 * shape.kv_heads * shape.head_dim
    assert case.bytes == 2 * shape.parameters + cache


def test_a_config_fits_its_column() -> None:
    assert max(len(case.config) for case in step_grid()) < 400
