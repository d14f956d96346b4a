"""What publishers' own scripts and configurations say about rows that do not print it."""

from dataclasses import replace

import pytest

from costmodels.plan import Recompute, RecomputeModule
from planner.validate.tables.reader import Row
from planner.validate.tables.stack_choice import defaults_of
from profiles.stacks import load_stacks
from tests.published import mapped, reason

BRIDGE = {"source": "NVIDIA-NeMo/Megatron-Bridge perf summary", "framework": "Megatron-Bridge", "recompute": ""}


@pytest.mark.parametrize(
    ("cells", "kind", "verdict"),
    [
        ({}, Recompute.NONE, False),
        ({"notes": "Megatron-FSDP, FSDP column=8"}, Recompute.NONE, None),  # its presets offload activations besides
        ({"model": "DeepSeekV3"}, Recompute.SELECTIVE, None),  # parts of layers, not the core
    ],
)
def test_what_presets_recompute_is_not_guessed_from_memory(cells, kind, verdict) -> None:
    """No whole layer is recomputed because the plan looks too large; what parts keep cannot judge a verdict."""
    shape = (
        dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab"), "") if "model" in cells else {}
    )
    row = mapped(**BRIDGE | shape | cells)
    assert row.plan.recompute is kind
    assert not row.recompute_assumed
    assert any("publisher's presets" in text for text in row.assumptions)
    assert row.out_of_memory is verdict
    assert mapped(**BRIDGE | {"recompute": "full"}).plan.recompute is Recompute.FULL


NEMO = {
    "source": "NVIDIA NeMo docs", "framework": "NeMo / Megatron-Core", "recompute": "", "vpp": "", "tp": "4",
    "pp": "4", "dp": "1", "layers": "80", "num_gpus": "16", "global_batch_seqs": "32", "micro_batch": "1",
    "flash_attention": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "task", "chunks"),
    [
        ("LLAMA2-70B", "full_ft", 20),
        ("LLAMA3-70B", "pretrain", 5),
        ("LLAMA2-70B", "lora", 1),
        ("GPT3-20B", "pretrain", 1),
    ],
)
def test_nemo_scripts_interleave_and_recompute_nothing(model: str, task: str, chunks: int) -> None:
    row = mapped(**NEMO | {"model": model, "task": task})
    assert (row.plan.virtual_stages, row.plan.recompute, row.recompute_assumed) == (chunks, Recompute.NONE, False)
    assert (row.job.lora is not None and (row.job.lora.rank, row.job.lora.targets)) == (
        task == "lora" and (32, ("q", "k", "v"))
    )
    assert mapped(**NEMO | {"model": model, "vpp": "2"}).plan.virtual_stages == 2
    assert (row.job.master_dtype, row.job.state_dtype) == (("fp32",) * 2 if task == "pretrain" else ("none", "bf16"))


DEEPSEEK = dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab", "gpu_mem_gb"), "")
DEEPSEEK |= {"model": "DeepSeek-V3 671B", "framework": "NeMo / Megatron-Core", "recompute": ""}


@pytest.mark.parametrize(
    ("source", "gpu", "modules"),
    [
        ("NVIDIA/dgxc-benchmarking", "H100", RecomputeModule.MLA_UP_PROJ),
        ("NVIDIA/dgxc-benchmarking", "GB200", RecomputeModule.CORE_ATTN),
        (BRIDGE["source"], "H100", RecomputeModule.MLA_UP_PROJ | RecomputeModule.MLP),
        (BRIDGE["source"], "B200", RecomputeModule.MLA_UP_PROJ),
    ],
)
def test_scripts_say_which_modules_are_recomputed(source: str, gpu: str, modules: RecomputeModule) -> None:
    plan = mapped(**DEEPSEEK | {"source": source, "gpu": gpu}).plan
    assert (plan.recompute, plan.recompute_modules) == (Recompute.SELECTIVE, modules)


@pytest.mark.parametrize(
    ("release", "precision", "modules"),
    [
        ("26.02.01", "mxfp8", RecomputeModule.MLA_UP_PROJ),
        ("26.04", "bf16", RecomputeModule.MLA_UP_PROJ),
        ("26.04.01", "mxfp8", RecomputeModule.MLP),
        ("26.06", "mxfp8", RecomputeModule.MLA_UP_PROJ),
    ],
)
def test_releases_of_megatron_bridge_recompute_different_modules(
    release: str, precision: str, modules: RecomputeModule
) -> None:
    cells = {"source": BRIDGE["source"], "gpu": "GB200", "precision": precision, "num_gpus": "4", "tp": "1", "dp": "4"}
    cells |= {"gpus_per_node": "4", "global_batch_seqs": "32", "notes": f"{release} NeMo Container; model TFLOP/s"}
    for printed in ("", "selective"):
        assert mapped(**DEEPSEEK | cells | {"recompute": printed}).plan.recompute_modules == modules
    assert mapped(**DEEPSEEK | cells | {"recompute": "none"}).plan.recompute is Recompute.NONE


@pytest.mark.parametrize(
    ("source", "gpu", "stages", "layers"),
    [
        ("NVIDIA/dgxc-benchmarking", "GB200", 4, (15, 16, 16, 14)),
        (BRIDGE["source"], "H100", 8, (7, *[8] * 6, 6)),
        (BRIDGE["source"], "GB200", 4, (16, 16, 16, 13)),
        (BRIDGE["source"], "GB200", 1, ()),
        ("paper", "GB200", 4, ()),
    ],
)
def test_scripts_lay_out_the_stages_of_deepseek_v3(source: str, gpu: str, stages: int, layers: tuple[int, ...]) -> None:
    cells = {"pp": str(stages), "tp": "1", "dp": "1", "num_gpus": str(stages), "global_batch_seqs": "8"}
    found = mapped(**DEEPSEEK | cells | {"source": source, "gpu": gpu, "gpus_per_node": ""}).plan.stage_layers
    assert found == layers
    assert sum(found) in (0, 61)


def test_only_nvidia_s_adapters_of_mlperf_are_known_to_recompute_nothing() -> None:
    cells = {"source": "MLPerf Training v5.0", "framework": "NeMo", "recompute": "", "task": "lora"}
    assert not mapped(**cells, notes="config env: FP8_DPA=1 SP=0").recompute_assumed
    assert mapped(**cells, notes="config env: SP=0").recompute_assumed


def test_printed_tensor_degree_of_experts_is_taken() -> None:
    cells = {
        "model": "some-moe",
        "tp": "4",
        "dp": "2",
        "ep": "2",
        "framework": "Megatron-Core",
        "gated_mlp": "yes",
        "ffn_hidden": "18432",
        "global_batch_seqs": "8",
    }
    notes = "moe: n_routed_experts=8 num_experts_per_tok=2 moe_intermediate_size=2048"
    plans = [mapped(**cells, notes=text).plan for text in (notes, f"ETP=1; {notes}", f"ETP=2; {notes}")]
    assert [plan.expert_tensor_parallel for plan in plans] == [4, 1, 2]


@pytest.mark.parametrize(
    ("model", "gpu", "stack"),
    [
        ("Qwen3_235B_a22B", "H100", "megatron-core-ep-overlap"),
        ("Qwen3_235B_a22B (tokendrop)", "H100", "megatron-core-token-drop"),
        ("Qwen3_235B_a22B", "B200", "megatron-core"),
        ("Qwen3_30B_a3B", "GB200", "megatron-core-hybrid-ep"),
        ("LLAMA3_70B", "GB200", "megatron-core"),
        ("DeepSeekV3", "H100", "megatron-core-hybrid-ep"),
    ],
)
def test_how_megatron_bridge_moves_tokens_to_their_experts(model: str, gpu: str, stack: str) -> None:
    row = Row(file="t.csv", line=2, cells={"model": model, "gpu": gpu, "source": "NVIDIA-NeMo/Megatron-Bridge perf"})
    assert defaults_of(row).stack == stack


@pytest.mark.parametrize(
    ("release", "model", "gpu", "precision", "captured"),
    [
        ("26.06", "DeepSeekV3", "GB200", "mxfp8", True),
        ("26.08", "Qwen3_30B_a3B", "GB200", "mxfp8", True),
        ("26.04.01", "DeepSeekV3", "GB200", "mxfp8", False),
        ("26.06", "DeepSeekV3", "GB200", "bf16", False),
        ("26.06", "DeepSeekV3", "H100", "mxfp8", False),
        ("26.06", "Qwen3_235B_a22B", "B200", "mxfp8", False),
        ("26.06.01", "Qwen3_235B_a22B", "B200", "mxfp8", True),
        ("26.06", "LLAMA3_70B", "GB200", "mxfp8", False),
    ],
)
def test_releases_of_megatron_bridge_that_capture_whole_iterations_of_experts(
    release: str, model: str, gpu: str, precision: str, captured: bool
) -> None:
    cells = {"model": model, "gpu": gpu, "precision": precision, "source": BRIDGE["source"]}
    row = Row(file="t.csv", line=2, cells=cells | {"notes": f"{release} NeMo Container; model TFLOP/s as printed"})
    assert (defaults_of(row).stack == "megatron-core-full-graphs") is captured
    assert load_stacks()["megatron-core-full-graphs"].captures_iterations


@pytest.mark.parametrize(
    ("release", "gpu", "model", "attention"),
    [
        ("v25.05", "GB200", "DeepSeekV3", "unfused"),
        ("v25.05", "H100", "DeepSeekV3", "flash"),
        ("v25.08", "GB200", "DeepSeekV3", "flash"),
        ("v25.05", "GB200", "LLAMA3-70B", "flash"),
    ],
)
def test_nothing_fused_trained_latent_attention_on_the_first_blackwells(
    release: str, gpu: str, model: str, attention: str
) -> None:
    shape = dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "ffn_hidden", "vocab", "flash_attention"), "")
    cells = {"source": "NVIDIA/dgxc-benchmarking", "framework": "NeMo / Megatron-Core", "gpu": gpu, "recompute": ""}
    row = mapped(**shape | cells | {"model": model, "gpu_mem_gb": "", "notes": f"release {release}; ETP=1"})
    assert row.job.attention == attention


def test_paddle_norms_are_those_of_its_model_code_unless_it_fuses_them() -> None:
    fused, plain = (
        defaults_of(Row(file="t.csv", line=2, cells={"framework": "PaddleNLP", "notes": f"use_fused_rms_norm={on}"}))
        for on in (True, False)
    )
    stacks = load_stacks()
    assert (stacks[fused.stack].norm, stacks[plain.stack].norm) == ("patched", "module")
    assert replace(plain, stack=fused.stack) == fused
    assert stacks[plain.stack].gemm_time_scale == stacks[fused.stack].gemm_time_scale


def test_litgpt_of_2023_took_the_longest_sample_first() -> None:
    hub = mapped(framework="litgpt").stack
    assert (hub, mapped(framework="litgpt", source="litgpt resource-tables").stack) == ("litgpt", "litgpt-2023")
    first, later = load_stacks()["litgpt-2023"], load_stacks()["litgpt"]
    assert (first.keeps_quantised_inputs, later.keeps_quantised_inputs) == (1, 2)
    assert first.kernel_launch_s == later.kernel_launch_s


def test_litgpt_caps_the_logits_of_gemma_2_op_by_op() -> None:
    cells = {"framework": "litgpt", "flash_attention": "", "model": "gemma-2b"}
    assert mapped(**cells).job.attention == "flash"
    assert mapped(**cells, notes="config path is gemma2-2b").job.attention == "unfused"


def test_litgpt_never_ties_its_head() -> None:
    assert mapped().model.tie_word_embeddings
    assert not mapped(framework="litgpt").model.tie_word_embeddings


def test_runs_of_litgpts_hub_used_as_many_gpus_as_their_configuration_says() -> None:
    hub = {"source": "litgpt config_hub", "framework": "litgpt", "num_gpus": "4", "tp": "1", "dp": "4", "task": "lora",
           "micro_batch": "1"}  # fmt: skip
    assert "fewer GPUs" in reason(**hub)
    assert "fewer GPUs" in reason(**hub | {"model": "stablelm-base-alpha-3b", "task": "full_ft"})
    assert mapped(**hub | {"model": "gemma-2b", "task": "full_ft"}).cluster.num_devices == 4
    assert mapped(**hub | {"num_gpus": "1", "dp": "1"}).cluster.num_devices == 1


DGXC = {"source": "NVIDIA/dgxc-benchmarking", "framework": "NeMo / Megatron-Core", "recompute": "", "sp": "",
        "flash_attention": ""}  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "fused"),
    [
        ({}, False),
        (BRIDGE, True),
        (DGXC | {"notes": "release v25.04; table"}, False),
        (DGXC | {"notes": "release v25.05.02; table"}, True),
    ],
)
def test_recipes_that_run_transformer_engines_loss(cells: dict[str, str], fused: bool) -> None:
    assert mapped(**cells).job.fused_cross_entropy is fused


@pytest.mark.parametrize(
    ("cells", "tensor", "data"),
    [
        (DGXC | {"notes": "release v25.02; "}, True, True),
        (BRIDGE, True, True),
        (BRIDGE | {"precision": "nvfp4", "gpu": "GB200"}, False, True),
        ({"framework": "Megatron-Core 0.6.0 + TE", "source": "FlagPerf"}, False, False),
        ({"framework": "FlagScale (Megatron-LM)", "source": "FlagPerf"}, False, False),
        ({"framework": "Megatron-LM", "source": "MegaScale (NSDI24, arXiv 2402.15627)"}, False, False),
    ],
)
def test_only_recipes_that_ask_for_it_overlap_communication(cells: dict[str, str], tensor: bool, data: bool) -> None:
    plan = mapped(**cells).plan
    overlaps = (plan.tensor_parallel_overlap, plan.overlap_grad_reduce, plan.overlap_param_gather)
    assert overlaps == (tensor, data, data)


@pytest.mark.parametrize(("release", "overlaps"), [("v24.11.1", False), ("v25.02", False), ("v25.05", True)])
def test_grok_in_dgxc_benchmarking_drops_tokens_and_overlaps_since_nemo_2(release: str, overlaps: bool) -> None:
    row = mapped(**DGXC | {"model": "Grok-1 314B", "gated_mlp": "yes", "ffn_hidden": "32768", "ep": "1",
                           "notes": f"release {release}; ETP=1; moe: experts=8 topk=2"})  # fmt: skip
    assert (row.stack, row.plan.tensor_parallel_overlap) == ("megatron-core-token-drop", overlaps)


def test_experts_of_fixed_capacity_are_waited_for_by_nobody() -> None:
    stacks = load_stacks()
    plain, dropping, exchanging = (stacks[f"megatron-core{ending}"] for ending in ("", "-token-drop", "-hybrid-ep"))
    assert (plain.fixed_capacity, dropping.fixed_capacity) == (False, True)
    assert (plain.sorts_arrivals, exchanging.sorts_arrivals) == (True, False)
    assert plain.expert_streams == dropping.expert_streams == 4
    for other in (dropping, exchanging):
        assert other.fp8_time_scale == plain.fp8_time_scale


@pytest.mark.parametrize(
    ("model", "modules"),
    [
        ("GPT 5B (Paxml)", RecomputeModule.CORE_ATTN),
        ("GPT3 175B", RecomputeModule.CORE_ATTN | RecomputeModule.MLP),
    ],
)
def test_paxml_saves_products_but_not_fused_attention(model: str, modules: RecomputeModule) -> None:
    cells = DGXC | {"framework": "Paxml", "tp": "1", "dp": "8", "global_batch_seqs": "32", "zero_stage": "3"}
    plan = mapped(**cells | {"model": model}).plan
    assert (plan.recompute, plan.recompute_modules) == (Recompute.SELECTIVE, modules)


LORA = {"source": "MLPerf Training v5.0", "framework": "NeMo", "task": "lora", "precision": "fp8", "num_gpus": "8",
        "micro_batch": "1", "global_batch_seqs": "8", "flash_attention": "yes"}  # fmt: skip


@pytest.mark.parametrize(
    ("cells", "settings", "kept"),
    [
        ({"tp": "1", "dp": "8"}, "FP8_DPA=1 LORA_A2A=1 NVTE_FP8_DPA_BWD=1", (True, True)),
        ({"tp": "2", "dp": "4"}, "FP8_DPA=1 LORA_A2A=1 NVTE_FP8_DPA_BWD=1", (False, True)),
        ({"tp": "2", "dp": "4"}, "FP8_ACTIVATION=True FP8_DPA=1 NVTE_FP8_DPA_BWD=1", (True, True)),
        ({"tp": "1", "dp": "8"}, "FP8_ACTIVATION=True FP8_DPA=0 NVTE_FP8_DPA_BWD=1", (True, False)),
        ({"tp": "1", "dp": "8", "source": "MLPerf Training v5.1"}, "FP8_DPA=1 NVTE_FP8_DPA_BWD=1", (False, True)),
        ({"tp": "1", "dp": "8", "task": "pretrain"}, "FP8_ACT=1 FP8_DPA=1 NVTE_FP8_DPA_BWD=1", (False, False)),
    ],
)
def test_scripts_say_what_is_kept_in_8_bits(cells: dict[str, str], settings: str, kept: tuple[bool, bool]) -> None:
    job = mapped(**LORA | cells, notes=f"config env: {settings}").job
    assert (job.fp8_activation, job.fp8_attention) == kept


@pytest.mark.parametrize(
    ("source", "model", "gpu", "device"),
    [
        ("FlagPerf", "llama3_8B", "A100", "A800-SXM-80GB"),
        ("FlagPerf", "llama3_8B", "H100", "H100-SXM-80GB"),
        ("FlagPerf", "llama2_7b", "A100", "A100-SXM-80GB"),
        ("paper", "llama3_8B", "A100", "A100-SXM-80GB"),
    ],
)
def test_flagperf_s_llama_3_ran_on_the_machine_it_describes(source: str, model: str, gpu: str, device: str) -> None:
    assert mapped(source=source, model=model, gpu=gpu, framework="Megatron-Core").cluster.device.name == device


def test_aquila_ran_without_sequence_parallelism() -> None:
    cells = {"framework": "FlagScale (Megatron-LM) ed55532", "tp": "2", "dp": "1", "num_gpus": "2", "sp": ""}
    assert mapped(**cells).plan.sequence_parallel
    assert not mapped(**cells, model="aquila2_7b").plan.sequence_parallel
    assert mapped(**cells | {"sp": "yes"}, model="aquila2_7b").plan.sequence_parallel


@pytest.mark.parametrize(
    ("framework", "stack"),
    [
        ("FlagScale (Megatron-LM) ed55532", "megatron-2023"),
        ("FlagScale (Megatron-LM)", "megatron-2023-plain-norms"),
        ("Megatron-Core 0.6.0 + TE", "megatron-2024"),
        ("Megatron-Core", "megatron-core"),
        ("Unsloth (LLaMA-Factory of April 2024)", "unsloth"),
        ("LLaMA-Factory (transformers + PEFT)", "hf-trainer-2024"),
    ],
)
def test_code_of_its_time(framework: str, stack: str) -> None:
    assert defaults_of(Row(file="t.csv", line=2, cells={"framework": framework})).stack == stack


@pytest.mark.parametrize(
    ("source", "notes", "waits"),
    [
        ("BigScience tr11 prequel (Jean Zay A100)", "date 02-17; iteration 2", False),
        ("BigScience tr11 prequel (Jean Zay A100)", "date 02-20; iteration 2", True),
        ("BigScience BLOOM-176B production run", "", True),
        ("BigScience tr8 104B (Jean Zay V100)", "", False),
        ("MT-NLG 530B (arXiv 2201.11990)", "", False),
    ],
)
def test_bloom_waited_for_every_kernel(source: str, notes: str, *, waits: bool) -> None:
    cells = {"framework": "Megatron-DeepSpeed", "source": source, "notes": notes}
    name = defaults_of(Row(file="t.csv", line=2, cells=cells)).stack
    assert name == ("megatron-deepspeed-blocking" if waits else "megatron-deepspeed")
    assert load_stacks()[name].blocking_launches is waits


def test_accumulation_in_brackets_settles_the_micro_batch_that_is_printed_once() -> None:
    printed = (
        '"LLAMA3_70B | 8 | 128 | 2 | 8192 | 64 (0) | 1 (2) | 1 (4) | 1 | 1 (5) | 1 | 1 (32) | 3986 (3546) | 1791 (15)"'
    )
    cells = BRIDGE | {"tp": "2", "pp": "1", "dp": "4", "num_gpus": "8", "micro_batch": "2", "global_batch_seqs": "128"}
    inside = mapped(**cells, notes=f"value inside parentheses of the printed row {printed}").plan
    assert (inside.micro_batch_size, inside.num_microbatches) == (1, 32)
    outside = mapped(**cells, notes=f"value outside parentheses of the printed row {printed}").plan
    assert (outside.micro_batch_size, outside.num_microbatches) == (2, 16)
