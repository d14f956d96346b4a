"""Tables of measured kernels: read by their header, mapped to calls whose work a reader can count."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from costmodels.kernels.calls import GemmLayout, KernelFamily, KernelOp
from costmodels.kernels.implementations import Engine, Library, copies_of, engine_of, is_bare, is_replayed, library_of
from costmodels.tables.gemm_rows import moe_rows
from costmodels.tables.mapping import kernel_rows
from costmodels.tables.read import SCHEMAS, read_table
from costmodels.tables.rows import KernelRows
from profiles.errors import SpecError
from profiles.precision import GEMM_FORMATS


def table(tmp_path: Path, schema: str, *rows: str) -> Path:
    path = tmp_path / f"{schema}.csv"
    path.write_text("\n".join([",".join(SCHEMAS[schema]), *rows]) + "\n", encoding="utf-8")
    return path


def mapped(tmp_path: Path, schema: str, *rows: str) -> KernelRows:
    return kernel_rows(read_table(table(tmp_path, schema, *rows)))


def matrices(tmp_path: Path, *rows: str) -> KernelRows:
    return moe_rows(read_table(table(tmp_path, "moe", *rows)))


def gemm(tmp_path: Path, *rows: str) -> KernelRows:
    return mapped(tmp_path, "gemm", *rows)


def test_a_gemm_row_is_one_call(tmp_path):
    rows = gemm(tmp_path, "here,A100,bf16,128,256,512,2,10.0,lib")
    calls = rows.calls
    assert rows.time_s[0] == pytest.approx(10e-6)
    assert calls.flops[0] == 2 * 2 * 128 * 256 * 512
    assert calls.bytes[0] == 2 * 2 * (128 * 512 + 512 * 256 + 128 * 256)
    assert (calls.m[0], calls.n[0], calls.k[0], calls.batch[0]) == (128, 256, 512, 2)
    assert GEMM_FORMATS[calls.gemm_format[0]] == "bf16"


@pytest.mark.parametrize(
    ("note", "layout"),
    [("TE;layout=TN;x", GemmLayout.FORWARD), ("op=NN;y", GemmLayout.INPUT_GRADIENT), ("layout=NT", 2), ("", 0)],
)
def test_blas_letters_name_the_pass(tmp_path, note, layout):
    calls = gemm(tmp_path, f"here,A100,bf16,8,16,32,1,10.0,{note}").calls
    assert calls.layout[0] == layout
    assert (calls.m[0], calls.n[0], calls.k[0]) == (8, 16, 32)


@pytest.mark.parametrize(
    ("gpu", "note", "n", "copies"),
    [
        ("L40S", "vllm-0.24.0;torch.nn.functional.linear", 4096, 6),
        ("L40S", "trtllm-1.3.0rc20;torch_flow", 1024, 5),  # 96 MiB of cache over 8 MiB of weights, at most 5
        ("L40S", "trtllm-1.3.0rc20;torch_flow", 4096, 3),
        ("L40S", "trtllm-1.3.0rc20;torch_flow", 16384, 1),
        ("unheard-of", "trtllm-1.3.0rc20;torch_flow", 4096, 1),
    ],
)
def test_a_collector_that_rotates_weights_says_how_many(tmp_path, gpu, note, n, copies):
    calls = gemm(tmp_path, f"aiconfigurator,{gpu},bf16,8,{n},4096,1,10.0,{note}").calls
    assert copies_of(calls.implementation).tolist() == [copies]
    assert copies_of(gemm(tmp_path, f"vidur,{gpu},bf16,8,{n},4096,1,10.0,{note}").calls.implementation).tolist() == [0]


def test_both_gradients_are_two_calls_of_the_forward_shape(tmp_path):
    rows = gemm(
        tmp_path, "here,A100,fp32,8,16,32,1,10.0,fwd;x", "here,A100,fp32,8,16,32,1,20.0,bwd(dgrad+wgrad);x",
        "here,A100,bf16,8,16,32,4,9.0,TE-grouped;stage=bwd_grad_w",
    )  # fmt: skip
    shapes = {
        (int(row), int(layout)): (m, n, k)
        for row, layout, m, n, k in zip(
            rows.row, rows.calls.layout, rows.calls.m, rows.calls.n, rows.calls.k, strict=True
        )
    }
    assert shapes == {(0, 0): (8, 16, 32), (1, 1): (8, 32, 16), (1, 2): (16, 32, 8), (2, 2): (16, 32, 8)}
    assert rows.calls.op[rows.row == 2][0] == KernelOp.GROUPED_GEMM
    assert rows.calls.element_bytes[rows.row == 0][0] == 4


def test_block_scales_are_told_from_whole_tensors(tmp_path):
    kinds = ("fp8", "fp8_block", "mxfp8", "nvfp4")
    calls = gemm(tmp_path, *(f"here,H100,{kind},8,16,32,1,10.0,x" for kind in kinds)).calls
    assert calls.scale_block.tolist() == [0, 128, 32, 16]
    assert [GEMM_FORMATS[code] for code in calls.gemm_format] == ["fp8", "fp8", "fp8", "fp4"]


def test_spellings_of_libraries_are_the_formats_they_name(tmp_path):
    kinds = ("bf16", "bfloat16", "torch.bfloat16", "BF16", "float16", "torch.float32", "float8_e4m3fn", "w4a16")
    calls = gemm(tmp_path, *(f"here,H100,{kind},8,16,32,1,10.0,x" for kind in kinds)).calls
    wanted = ["bf16", "bf16", "bf16", "bf16", "fp16", "fp32", "fp8", "bf16"]
    assert [GEMM_FORMATS[code] for code in calls.gemm_format] == wanted
    rows = mapped(tmp_path, "elementwise", "here,A100,torch.float32,add,4x8,384,9")
    assert rows.calls.element_bytes.tolist() == [4]
    rows = mapped(tmp_path, "attention", "here,H100,torch.float16,prefill,2,8,8,8,2,64,0,fa3,10")
    assert [GEMM_FORMATS[code] for code in rows.calls.gemm_format] == ["fp16"]


def test_a_slip_of_a_dtype_is_told_what_was_meant(tmp_path):
    kinds = ("bf61", "fp8block", "int8", "bf16")
    rows = gemm(tmp_path, *(f"here,H100,{kind},8,16,32,1,10.0,x" for kind in kinds))
    problems = [rows.problem.values[code] for code in rows.problem.codes]
    assert problems[0].startswith("unknown dtype 'bf61'; did you mean 'bf16'")
    assert problems[1].startswith("unknown dtype 'fp8block'; did you mean 'fp8_block'")
    assert problems[2:] == ["arithmetic that training does not use", ""]
    many = gemm(tmp_path, *(f"here,H100,odd{number},8,16,32,1,10.0,x" for number in range(200)))
    assert (many.problem.codes > 0).all()
    assert len(many.problem.values) < 40


def test_rows_that_cannot_be_priced_say_why_and_have_no_call(tmp_path):
    rows = gemm(
        tmp_path, "here,A100,int8_sq,8,16,32,1,10.0,x", "here,A100,bf16,0,16,32,1,10.0,x",
        "here,A100,bf16,8,16,32,1,0,x", "here,A100,bf16,8,16,32,1,,x", "here,A100,bf16,8,16,32,1,5,x",
    )  # fmt: skip
    assert [rows.problem.values[code] for code in rows.problem.codes] == [
        "arithmetic that training does not use",
        "m, n, k and batch must be at least 1",
        "time_us must be positive and below 86400 s",
        "time_us must be positive and below 86400 s",
        "",
    ]
    assert rows.row.tolist() == [4]


def test_attention_counts_what_a_causal_kernel_computes(tmp_path):
    rows = mapped(
        tmp_path, "attention",
        "here,H100,bf16,prefill,2,1024,1024,8,2,64,0,fa3,10", "here,H100,bf16,prefill,2,1024,1024,8,2,64,1,fa3,10",
        "here,H100,bf16,train_bwd,2,1024,1024,8,2,64,0,fa3,10", "here,H100,bf16/kvfp8,decode,4,1,4096,8,2,64,1,fa3,10",
    )  # fmt: skip
    full = 4 * 2 * 8 * 1024 * 1024 * 64
    calls = rows.calls
    assert calls.flops[:3] == pytest.approx([full, full * (1025 / 2048), 2.5 * full])
    # Two bytes for q and o, one each for the 8-bit keys and values.
    assert calls.bytes[3] == pytest.approx(4 * 2 * 64 * (2 * 8 + 4096 * 2 * 1))
    assert calls.bytes[0] == pytest.approx(2 * 2 * 2 * 64 * (1024 * 8 + 1024 * 2))
    assert calls.op.tolist() == [2, 2, 3, 5]
    assert calls.causal[3] == 1  # the newest token sees every key


def test_bandwidth_bound_rows_name_family_and_sides(tmp_path):
    rows = mapped(
        tmp_path, "elementwise", "here,A100,fp32,layernorm_bwd,4x8x16,4096,9", "here,A100,fp16,silu_mul,32x64,100,9",
        "here,A100,bf16->fp8,static_quant,odd,100,9", "here,A100,bf16,rmsnorm_eager,2x4,1,9",
    )  # fmt: skip
    calls = rows.calls
    families = [KernelFamily(code).name for code in calls.family]
    assert families == ["NORM_BACKWARD", "GATED_ACTIVATION", "QUANTISE", "NORM"]
    run_by = [Library(code) for code in library_of(calls.implementation)]
    assert run_by == [Library.EAGER, Library.UNKNOWN, Library.UNKNOWN, Library.SPELLED_OUT]
    assert list(zip(calls.m, calls.n, strict=True)) == [(32, 16), (32, 64), (0, 0), (2, 4)]
    assert calls.element_bytes.tolist() == [4, 2, 2, 2]
    assert calls.bytes.tolist() == [4096, 100, 100, 1]


def test_who_ran_bandwidth_bound_work_is_told_by_source_and_name(tmp_path):
    rows = mapped(
        tmp_path, "elementwise", "vidur,A100,fp16,norm,8x16,512,9", "vidur,A100,fp16,add,8x16,768,9",
        "kernelbench,H100,fp32,softmax_inductor,8x16,1024,9", "llmservingsim-v0,H100,bf16,silu,8x16,512,9",
        "here,H100,bf16,silu,8x16,512,9",
    )  # fmt: skip
    calls = rows.calls
    assert [Library(code).name for code in library_of(calls.implementation)] == [
        "NATIVE", "EAGER", "COMPILED", "EAGER", "EAGER",
    ]  # fmt: skip
    assert is_replayed(calls.implementation).all()
    # LLMServingSim's timer runs round the product with the other half, which is read as well.
    assert [KernelFamily(code).name for code in calls.family[3:]] == ["GATED_ACTIVATION", "ACTIVATION"]
    assert calls.bytes[3:].tolist() == [768, 512]


def test_embeddings_of_tables_gather_an_element_a_thread_and_scatter_into_rows_that_are_read(tmp_path):
    rows = mapped(
        tmp_path, "elementwise", "vidur,A100,fp16,embedding,8x16,512,9",
        "neusight-label,A100,fp32,embedding_bwd,1x8x16,1024,9",
    )  # fmt: skip
    assert rows.calls.family.tolist() == [KernelFamily.EMBEDDING] * 2
    assert set(library_of(rows.calls.implementation)) == {Library.ELEMENT_GATHER}
    assert rows.calls.bytes.tolist() == [512, 1.5 * 1024]


def test_the_version_of_a_softmax_is_told_by_source_and_maker(tmp_path):
    rows = mapped(
        tmp_path, "elementwise", "neusight,T4,fp32,softmax,8x2048,131072,9",
        "neusight,MI210,fp32,softmax,8x2048,131072,9",
        "neusight-label,MI210,fp32,softmax_bwd,8x2048,196608,9", "llmcompass,MI210,fp16,softmax,8x4096,131072,9",
        "kernelbench,H100,fp32,softmax,8x2048,131072,9",
    )  # fmt: skip
    assert [Library(int(code)).name for code in library_of(rows.calls.implementation)] == [
        "REREAD_ROWS", "SHARED_ROWS", "SHARED_ROWS", "REREAD_ROWS", "EAGER",
    ]  # fmt: skip


def test_a_norm_too_fast_for_a_chain_of_kernels_is_one(tmp_path):
    norm = "llmservingsim-v0,{},bf16,rmsnorm_eager,{},8192,{}"
    rows = mapped(
        tmp_path, "elementwise", norm.format("A100", "2x2048", 17), norm.format("A100", "2x2048", 16),
        norm.format("A100", "2x2048", 8), norm.format("A100", "4x2048", 8), norm.format("H100", "2x2048", 8),
    )  # fmt: skip
    chain, one = Library.SPELLED_OUT, Library.EAGER
    assert [Library(int(code)) for code in library_of(rows.calls.implementation)] == [chain, chain, one, chain, chain]


def test_products_that_a_tuner_timed_are_narrow_already(tmp_path):
    calls = gemm(
        tmp_path,
        "here,MI300X,fp8,8,16,32,1,10.0,best-tuned;triton",
        "here,H100,fp8,8,16,32,1,10.0,trtllm-1.0.0;torch_flow",
        "here,MI300X,bf16,8,16,32,1,10.0,best-tuned;asm",
    ).calls
    assert is_bare(calls).tolist() == [True, False, False]


def test_batched_products_of_a_tuner_that_knows_int8_alone_have_no_price(tmp_path):
    rows = mapped(
        tmp_path, "gemm", "aiter-tuned,MI300X,fp8,8,16,32,16,10.0,best-tuned;ck",
        "aiter-tuned,MI300X,bf16,8,16,32,16,10.0,best-tuned;ck", "aiter-tuned,MI300X,fp8,8,16,32,1,10.0,best-tuned;ck",
        "here,MI300X,fp8,8,16,32,16,10.0,best-tuned;ck",
    )  # fmt: skip
    assert (rows.problem.codes > 0).tolist() == [True, False, False, False]


def test_a_fused_expert_layer_runs_both_gemms_of_the_experts_at_hand(tmp_path):
    line = "here,H100,bf16,fused_moe,{tokens},64,32,2,8,2,{ep},balanced,lib,9"
    rows = matrices(tmp_path, line.format(tokens=4096, ep=1), line.format(tokens=4096, ep=4))
    gemms = rows.calls.op == KernelOp.GROUPED_GEMM
    flops = [rows.calls.flops[gemms & (rows.row == row)].sum() for row in range(2)]
    # Every token meets two experts; gate, up and down of width 32 / tp.
    assert flops == pytest.approx([2 * 4096 * 2 * 3 * 64 * 16, 2 * 4096 * 2 * 3 * 64 * 16 / 4])
    assert set(rows.calls.batch[gemms & (rows.row == 1)].round(6)) == {2.0}
    few = matrices(tmp_path, line.format(tokens=1, ep=1)).calls
    assert few.batch[0] == pytest.approx(2.0)  # one token wakes two experts
    assert few.m[0] == pytest.approx(1.0)


def test_a_skewed_routing_times_the_busiest_rank(tmp_path):
    line = "here,H100,bf16,fused_moe,4096,64,32,2,8,1,{ep},{how},lib,9"
    even, skewed, wide = (
        matrices(tmp_path, line.format(ep=ep, how=how)).calls.flops.sum() * ep
        for ep, how in ((1, "balanced"), (1, "power_law_1.2"), (8, "power_law_1.2"))
    )
    assert skewed / even == pytest.approx(1.05)
    assert wide / even == pytest.approx(1.05 + 3 * 0.055)


def test_a_fused_expert_layer_is_one_call_of_its_device(tmp_path):
    line = "here,H100,{dtype},fused_moe,4096,64,32,2,8,2,{ep},balanced,{impl},9"
    rows = mapped(
        tmp_path, "moe", line.format(dtype="bf16", ep=1, impl="vllm-0.1;vllm_triton"),
        line.format(dtype="fp8", ep=4, impl="nongated"),
    )  # fmt: skip
    calls = rows.calls
    assert calls.op.tolist() == [KernelOp.FUSED_EXPERTS] * 2
    # Every token meets two experts; gate, up and down of width 32 / tp, or up and down alone.
    assert calls.flops.tolist() == [2 * 4096 * 2 * 3 * 64 * 16, 2 * 4096 * 2 * 2 * 64 * 16 / 4]
    assert calls.batch.tolist() == [8, 2]
    # Weights in the format, tokens in 16 bits: four passes over the hidden width, three over the other.
    assert calls.bytes[1] == 2 * 2 * 64 * 16 + 2 * 2048 * (4 * 64 + 3 * 16)
    assert calls.implementation[0] - calls.implementation[1] == 32 * Engine.VLLM + Library.TRITON
    assert rows.problem.codes.tolist() == [0, 0]


def test_triton_s_experts_carry_along_what_tokens_have_elsewhere(tmp_path):
    line = "here,{gpu},bf16,fused_moe,4096,64,32,2,8,1,4,balanced,{impl},9"
    labels = ("sglang-0.5.14;sglang_fused_moe_triton", "trtllm-1.3.0rc20;moe_torch_flow_cutlass")
    lines = [line.format(gpu="H100", impl=label) for label in labels]
    lines.append(line.format(gpu="A100-SXM4-80GB", impl="sglang-0.5.10;sglang_fused_moe_triton"))
    calls = mapped(tmp_path, "moe", *lines).calls
    assert calls.m.tolist() == [2048, 2048, 4096]  # the last with both experts of every token that comes at hand
    each, weights = 2 * (4 * 64 + 3 * 32), 2 * 2 * 3 * 64 * 32
    assert calls.bytes.tolist() == [weights + 8192 * each, weights + 2048 * each, weights + 4096 * each]


def test_experts_of_packed_weights_are_read_packed(tmp_path):
    """Two experts of three matrices of 64 x 32 each, in 4 bits and a half-precision scale for 128 of them."""
    line = "here,H100,{dtype},fused_moe,4096,64,32,2,2,1,1,balanced,vllm;x,9"
    calls = mapped(tmp_path, "moe", *(line.format(dtype=dtype) for dtype in ("bf16", "w4a16"))).calls
    weights = 2 * 3 * 64 * 32
    assert calls.bytes[0] - calls.bytes[1] == pytest.approx((2.0 - calls.packed_bytes[1]) * weights)
    assert 0.5 <= calls.packed_bytes[1] < 0.6


@pytest.mark.parametrize(
    ("source", "gpu", "tokens", "hidden", "kept"),
    [
        ("aiconfigurator", "L40S", 1, 2048, True),
        ("aiconfigurator", "L40S", 4096, 2048, False),  # multiplying takes longer than reading
        ("aiconfigurator", "L40S", 1, 8192, False),  # 151 MB, more than one and a half caches
        ("here", "L40S", 1, 2048, False),
        ("aiconfigurator", "H100", 1, 2048, False),
    ],
)
def test_experts_that_a_cache_kept_are_no_timings_of_layers(tmp_path, source, gpu, tokens, hidden, kept):
    """Two of them, three matrices each of 1,536 x ``hidden`` in 16 bits; an L40S caches 100 MB."""
    line = f"{source},{gpu},bf16,fused_moe,{tokens},{hidden},1536,2,8,1,1,balanced,vllm;x,9"
    rows = mapped(tmp_path, "moe", line)
    problem = rows.problem.values[rows.problem.codes[0]]
    assert ("cache kept" in problem) == kept
    assert len(rows.calls) == (0 if kept else 1)


def test_tables_say_who_ran_a_kernel_and_that_it_was_replayed(tmp_path):
    line = "here,H100,bf16,prefill,2,1024,1024,8,2,64,0,{impl},10"
    calls = mapped(tmp_path, "attention", line.format(impl="vllm-0.24.0;vllm_flash_attn_fa3"), line.format(impl="?"))
    code = calls.calls.implementation
    assert engine_of(code).tolist() == [Engine.VLLM, Engine.UNKNOWN]
    assert library_of(code).tolist() == [Library.FLASH_3, Library.UNKNOWN]
    assert is_replayed(code).all()


def test_rows_taken_out_keep_their_own_calls(tmp_path):
    rows = gemm(
        tmp_path, "here,A100,fp32,8,16,32,1,1,fwd", "here,A100,fp32,8,16,64,1,2,bwd(dgrad+wgrad)",
        "here,A100,fp32,8,16,128,1,3,fwd",
    )  # fmt: skip
    part = rows.take(np.array([2, 1]))
    assert part.time_s == pytest.approx([3e-6, 2e-6])
    assert sorted(zip(part.row.tolist(), part.calls.flops.tolist(), strict=True)) == [
        (0, 2 * 8 * 16 * 128),
        (1, 2 * 8 * 16 * 64),
        (1, 2 * 8 * 16 * 64),
    ]


def test_gzip_is_read_and_further_columns_are_ignored(tmp_path):
    path = tmp_path / "gemm.csv.gz"
    text = ",".join([*SCHEMAS["gemm"], "more"]) + "\nhere,A100,bf16,8,16,32,1,10.0,x,y\n"
    path.write_bytes(gzip.compress(text.encode()))
    assert len(read_table(path)) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n", "has the header of no known table"),
        (",".join(SCHEMAS["gemm"]) + "\n", "holds no rows"),
        (",".join(SCHEMAS["gemm"]) + "\nx,A100,bf16,eight,1,1,1,1,x\n", "is not a readable table"),
        ("", "has the header of no known table"),
    ],
)
def test_what_is_no_table_is_refused_with_the_file(tmp_path, text, problem):
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=problem) as error:
        read_table(path)
    assert error.value.field == str(path)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        read_table(tmp_path / "none.csv")
