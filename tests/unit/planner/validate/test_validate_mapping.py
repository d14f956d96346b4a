"""From a table row to the planner's terms: one paper row checked by hand, then every convention."""

import dataclasses
from dataclasses import replace

import pytest

from costmodels.plan import ContextKind, Recompute, Schedule
from planner.validate.tables.mapping import average_repeats, map_row, map_rows
from planner.validate.tables.reader import Row
from planner.validate.tables.rows import MemoryKind
from profiles.errors import SpecError
from profiles.units import GIB
from tests.published import CATALOG, FINDER, GPT_22B, mapped, reason


def test_a_row_of_a_paper() -> None:
    row = mapped()
    assert (row.model.num_layers, row.model.hidden_size, row.model.ffn_hidden_size) == (48, 6144, 4 * 6144)
    assert row.model.tie_word_embeddings
    assert row.model.learned_positions == 2048
    assert (row.cluster.num_devices, row.cluster.device.name) == (8, "A100-SXM-80GB")
    assert (row.plan.tensor_parallel, row.plan.num_microbatches, row.plan.micro_batch_size) == (8, 1, 4)
    assert row.plan.recompute is Recompute.SELECTIVE
    assert row.plan.sequence_parallel
    assert (row.job.precision, row.job.attention, row.job.dropout) == ("fp16", "unfused", True)
    assert row.stack == "megatron-2021"
    assert row.step_time_s == 1.1
    assert row.tokens_per_s == pytest.approx(4 * 2048 / 1.1)
    assert row.assumptions == ()
    assert row.out_of_memory is False


def test_a_device_of_one_s_own_is_meant_by_its_name() -> None:
    name = "Our-H100-Like-96GB"  # of no family, whatever its name contains
    own = dataclasses.replace(CATALOG.devices["A100-SXM-80GB"], name=name)
    catalog = dataclasses.replace(CATALOG, devices={**CATALOG.devices, name: own})
    row = map_row(Row(file="t.csv", line=2, cells=GPT_22B | {"gpu": name, "gpu_mem_gb": ""}), catalog, FINDER)
    assert row.cluster.device == own
    assert row.assumptions == ()


def test_time_from_tokens_per_second_per_gpu() -> None:
    row = mapped(measured_step_time_s="", measured_tokens_per_s_per_gpu="1000")
    assert row.step_time_s == pytest.approx(4 * 2048 / (1000 * 8))


def test_time_from_hardware_tflops_by_the_96_formula() -> None:
    # arXiv:2104.04473 eq. 3 by hand, and a factor of 4/3 or 2 would show.
    batch, s, layers, h, vocab = 4, 2048, 48, 6144, 51200
    flops = 96 * batch * s * layers * h**2 * (1 + s / (6 * h) + vocab / (16 * layers * h))
    row = mapped(
        measured_step_time_s="", measured_tflops_per_gpu="140", recompute="full",
        notes="TFLOP/s by the 96-formula",
    )  # fmt: skip
    assert row.step_time_s == pytest.approx(flops / (140e12 * 8), rel=1e-3)


def test_tflops_without_a_known_convention_give_no_time() -> None:
    assert "convention is not known" in reason(measured_step_time_s="", measured_tflops_per_gpu="140")


def test_data_parallel_degree_is_derived() -> None:
    row = mapped(num_gpus="32", dp="", global_batch_seqs="32")
    assert (row.plan.data_parallel, row.plan.num_microbatches) == (4, 2)
    assert row.cluster.num_nodes == 4


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ({"tp": "", "pp": ""}, "plan not stated: tensor and pipeline parallel degree missing"),
        ({"dp": "3"}, "tp x pp x cp x dp = 24, not 8 GPUs"),
        ({"tp": "3", "dp": ""}, "does not divide 8 GPUs"),
        ({"micro_batch": ""}, "micro-batch not stated"),
        ({"micro_batch": "3"}, "batch 4 is not a multiple"),
        ({"gpu": "TPU-v5p"}, "not a GPU"),
        ({"gpu": "A800/H800"}, "mixed or undecidable GPUs"),
        ({"gpu": ""}, "GPU not stated"),
        ({"framework": "verl"}, "reinforcement learning"),
        ({"framework": "maxtext"}, "no stack model for 'maxtext'"),
        ({"framework": ""}, "framework not stated or unknown"),
        ({"model": "T5 11B"}, "not a decoder-only transformer"),
        ({"layers": "", "model": "house model"}, "model dimensions not given"),
        ({"notes": "CHECK the paper says otherwise"}, "marked as contradictory by its transcriber"),
        ({"offload": "nvme (params)"}, "offloaded to disk"),
        ({"task": "peft:boft"}, "fine-tuning method 'peft:boft' is not priced"),
        ({"optimizer": "Muon"}, "optimizer 'Muon' is not priced"),
        ({"measured_step_time_s": ""}, "measured neither time nor memory"),
        ({"measured_tokens_per_s_total": "99999"}, "tokens/s x step time is not batch x sequence"),
        ({"seq_len": ""}, "sequence length not stated"),
    ],
)
def test_reasons(cells: dict[str, str], text: str) -> None:
    assert text in reason(**cells)


def test_a_contradiction_about_mfu_alone_harms_nothing() -> None:
    assert mapped(notes="CHECK printed mfu 38% is inflated").step_time_s == 1.1


def test_a_bad_cell_becomes_a_reason_with_its_place() -> None:
    result = map_rows([Row(file="t.csv", line=9, cells=GPT_22B | {"tp": "eight"})], CATALOG)
    assert result.unscorable[0].reason.startswith("t.csv:9:tp: not a number")


@pytest.mark.parametrize(
    ("text", "kind", "layers"),
    [("none", Recompute.NONE, 0), ("full (rematerialization)", Recompute.FULL, 0), ("block:21", Recompute.BLOCK, 21)],
)
def test_recompute(text: str, kind: Recompute, layers: int) -> None:
    plan = mapped(recompute=text).plan
    assert (plan.recompute, plan.recompute_layers) == (kind, layers)


def test_reserved_memory_is_read_beside_live_tensors() -> None:
    notes = "measured_peak_mem_gb = max_allocated GiB (max over ranks); reserved GiB=62.5"
    assert mapped(measured_peak_mem_gb="60", notes=notes).reserved_bytes == 62.5 * 2**30
    assert mapped(measured_peak_mem_gb="60").reserved_bytes is None


def test_v100_logs_of_bigscience_show_the_first_stage() -> None:
    assert mapped(source="BigScience tr3m 1.3B (Jean Zay V100)", measured_peak_mem_gb="16").first_stage_memory
    assert not mapped(source="BigScience tr11 prequel (Jean Zay A100)", measured_peak_mem_gb="16").first_stage_memory


def test_silent_recompute_is_a_stated_assumption() -> None:
    row = mapped(recompute="", framework="NeMo / Megatron-Core")
    assert row.plan.recompute is Recompute.NONE
    assert row.recompute_assumed
    assert "recomputation not printed" in row.assumptions[0]


@pytest.mark.parametrize(
    ("text", "stage", "degree"),
    [("fsdp full shard", 3, 0), ("hsdp", 3, 8), ("0 (FSDP NO_SHARD)", 0, 0), ("1 or 2", 1, 0)],
)
def test_zero_stages(text: str, stage: int, degree: int) -> None:
    cells = {"tp": "1", "dp": "16", "num_gpus": "16", "global_batch_seqs": "64"}
    plan = mapped(zero_stage=text, **cells).plan
    assert (plan.zero_stage, plan.zero_shard_degree) == (stage, degree)


def test_one_rank_runs_the_hooks_of_deepspeeds_zero_3_alone() -> None:
    cells = {"tp": "1", "pp": "1", "dp": "1", "num_gpus": "1", "global_batch_seqs": "8", "zero_stage": "3"}
    assert mapped(framework="DeepSpeed + HF", **cells).plan.zero_stage == 3
    assert mapped(framework="VectorLM (PyTorch FSDP)", **cells).plan.zero_stage == 0
    assert mapped(framework="DeepSpeed + HF", **(cells | {"zero_stage": "2"})).plan.zero_stage == 0


def test_zero_bubble_stages_hold_one_layer_less_at_the_ends() -> None:
    cells = {
        "layers": "46", "tp": "1", "pp": "16", "num_gpus": "16", "global_batch_seqs": "128",
        "notes": "first and last stage hold one layer fewer",
    }  # fmt: skip
    plan = mapped(framework="Megatron-LM ZB-2p", **cells).plan
    assert (plan.first_stage_layers, plan.last_stage_layers, plan.schedule) == (2, 2, Schedule.ZERO_BUBBLE_2P)
    plan = mapped(framework="Megatron-LM ZB-V", **cells).plan
    assert (plan.first_stage_layers, plan.last_stage_layers) == (1, 0)  # both ends of the V on the first stage


def test_ulysses_is_a_kind_of_context_parallelism() -> None:
    cells = {"tp": "1", "cp": "8", "global_batch_seqs": "4"}
    plan = mapped(notes="cp column = Ulysses-style sequence_parallel_size", **cells).plan
    assert (plan.context_parallel, plan.context_kind) == (8, ContextKind.ULYSSES)


@pytest.mark.parametrize(("notes", "normed"), [("norms of queries and keys besides", True), ("", False)])
def test_norms_of_queries_and_keys_are_read_where_no_name_tells(notes: str, normed: bool) -> None:
    assert mapped(gated_mlp="yes", ffn_hidden="16384", notes=notes).model.qk_norm is normed


@pytest.mark.parametrize(
    "beside",
    [
        "n_shared_experts=1 first_k_dense_replace=3",
        "shared_experts=1 first_k_dense=3",
        "moe_shared_expert_intermediate_size=2048 dense_layers=3",
        "shared_expert_intermediate_size=2048 first_k_dense_replace=3",
    ],
)
def test_experts_from_quoted_configuration_keys(beside: str) -> None:
    row = mapped(
        model="some-moe", gated_mlp="yes", ffn_hidden="18432", tp="1", dp="8", ep="8", global_batch_seqs="32",
        framework="Megatron-Core",
        notes=f"moe: n_routed_experts=256 num_experts_per_tok=8 moe_intermediate_size=2048 {beside} "
        "q_lora_rank=1536 kv_lora_rank=512 qk_nope_head_dim=128 qk_rope_head_dim=64 "
        "v_head_dim=128",
    )  # fmt: skip
    moe, latent = row.model.moe, row.model.latent_attention
    assert moe is not None
    assert latent is not None
    assert (moe.num_experts, moe.experts_per_token, moe.ffn_hidden_size) == (256, 8, 2048)
    assert (moe.shared_ffn_hidden_size, moe.first_dense_layers) == (2048, 3)
    assert (latent.kv_lora_rank, latent.qk_rope_head_dim) == (512, 64)


@pytest.mark.parametrize(
    ("notes", "source", "kind", "unit"),
    [
        ("peak_mem column = Mem Res (torch max_memory_reserved, GiB, rank 0); Mem Alloc (max_memory_allocated) 3.5 GiB",
         "sweep", MemoryKind.RESERVED, GIB),
        ("measured_peak_mem_gb = max_allocated GiB", "SimuMax", MemoryKind.ALLOCATED, GIB),
        ("torch max_memory_allocated", "litgpt", MemoryKind.ALLOCATED, 1e9),
        ("Mem = nvidia-smi GB", "chronicle", MemoryKind.SMI, GIB),
        ("", "paper", MemoryKind.UNKNOWN, GIB),
    ],
)  # fmt: skip
def test_memory_kinds_and_units(notes: str, source: str, kind: MemoryKind, unit: float) -> None:
    row = mapped(notes=notes, source=source, measured_peak_mem_gb="40")
    assert (row.memory_kind, row.memory_bytes) == (kind, 40 * unit)
    assert row.first_stage_memory is ("rank 0" in notes)


def test_memory_above_capacity_is_not_used() -> None:
    row = mapped(measured_peak_mem_gb="146")
    assert row.memory_bytes is None
    assert "above the device's capacity" in row.memory_note


def test_memory_below_the_model_states_is_not_used() -> None:
    """22e9 parameters of 2 + 2 + 8 bytes on eight devices are 31 GiB at the least."""
    row = mapped(measured_peak_mem_gb="30")
    assert row.memory_bytes is None
    assert "below weights, gradients and moments" in row.memory_note
    assert mapped(measured_peak_mem_gb="32").memory_bytes == 32 * GIB
    assert mapped(measured_peak_mem_gb="30", offload="optimizer").memory_bytes == 30 * GIB


def test_a_death_needs_no_measurement() -> None:
    row = mapped(oom="yes", measured_step_time_s="")
    assert row.out_of_memory is True
    assert row.step_time_s is None


def test_runs_before_a_pipeline_fix_keep_their_memory_but_not_their_time() -> None:
    cells = {"tp": "4", "pp": "2", "framework": "nanotron", "measured_peak_mem_gb": "40"}
    row = mapped(notes="after_pp_fix=False", **cells)
    assert row.step_time_s is None
    assert row.memory_bytes == 40 * GIB
    assert row.out_of_memory is False
    assert mapped(notes="after_pp_fix=True", **cells).step_time_s == 1.1


@pytest.mark.parametrize(
    ("job", "notes", "stalls"),
    [
        ("13436302", "hopper-prod", False),
        ("14098776", "hopper-prod", True),
        ("14098777", "hopper-prod", False),
        ("14016386", "hopper-prod", False),
        ("14016422", "hopper-prod", True),
        ("14098776", "another cluster", False),
    ],
)
def test_a_cluster_stalls_in_some_batches_of_jobs(job: str, notes: str, stalls: bool) -> None:
    found = mapped(gpu="H100 80GB SXM", framework="nanotron", locator=f"line 16; job {job}", notes=notes)
    assert (found.cluster.node.collective_rank_s > 0) is stalls
    other = replace(found, cluster=replace(found.cluster, node=replace(found.cluster.node, collective_rank_s=1.0)))
    assert other.cluster_key != found.cluster_key


@pytest.mark.parametrize(
    ("source", "scale"),
    [("SimuMax v1.2 B200 release (real runs)", 1.6), ("own measurement", 1.0), ("somebody else", 0.0)],
)
def test_a_machine_that_was_timed_at_length_sustains_what_it_did_there(source: str, scale: float) -> None:
    found = mapped(source=source, gpu="B200", gpu_mem_gb="180")
    assert found.cluster.node.sustained_16bit_time_scale == scale
    other = replace(
        found, cluster=replace(found.cluster, node=replace(found.cluster.node, sustained_16bit_time_scale=3.0))
    )
    assert other.cluster_key != found.cluster_key


def test_fp32_faster_than_its_peak_is_tf32() -> None:
    # 22B, 8192 tokens in 1.1 s on 8 GPUs are 120 TFLOP/s each: above the 19.5 of FP32.
    assert mapped(precision="fp32").job.precision == "tf32"
    assert mapped(precision="fp32", measured_step_time_s="20").job.precision == "fp32"


def test_fine_tuning_in_16_bit_keeps_no_master_copy() -> None:
    job = mapped(framework="litgpt", precision="bf16 (bf16-true)", task="full_ft").job
    assert (job.master_dtype, job.state_dtype, job.gradient_dtype, job.task) == ("none", "bf16", "bf16", "full")


def test_adapters_and_four_bit_weights() -> None:
    job = mapped(
        framework="litgpt", task="lora", precision="bf16 compute, bnb.nf4 weights",
        notes="lora_r 32 q=true k=false v=true proj=true mlp=false head=false",
    ).job  # fmt: skip
    assert job.task == "qlora"
    assert job.lora is not None
    assert (job.lora.rank, job.lora.targets) == (32, ("q", "v", "o"))
    assert job.lora.dropout
    kept = mapped(framework="NeMo", task="lora").job.lora
    assert kept is not None
    assert not kept.dropout


@pytest.mark.parametrize(
    ("gpu", "memory", "name"),
    [
        ("V100", "16", "V100-SXM-16GB"), ("A100", "40", "A100-SXM-40GB"), ("NVIDIA H100-SXM5-80GB", "79.6", "H100"),
        ("NVIDIA Blackwell GPU (GB200)", "185.0", "GB200"), ("H200", "141", "H200"), ("A100", "", "A100-SXM-80GB"),
    ],
)  # fmt: skip
def test_devices(gpu: str, memory: str, name: str) -> None:
    assert mapped(gpu=gpu, gpu_mem_gb=memory).cluster.device.name.startswith(name)


def test_memory_in_another_unit_is_refused_and_zero_is_none() -> None:
    for memory in ("81920", "0.08", "1e308"):
        with pytest.raises(SpecError, match="gpu_mem_gb: must be between 1 and 4096; got"):
            mapped(gpu="A100", gpu_mem_gb=memory)
    assert mapped(gpu="A100", gpu_mem_gb="0").cluster.device.name == "A100-SXM-80GB"


@pytest.mark.parametrize(
    ("text", "gigabits_per_node"),
    [
        ("8 x 200 Gbps HDR IB per node (Selene)", 1600), ("RoCE 1600 Gbps", 1600), ("25 Gbps (AWS)", 25),
        ("800 Gbps per node", 800), ("Omni-Path", 400), ("RDMA 400 Gb/s per GPU", 3200),
        ("Storage: 2x ConnectX-7 IB NDR 400Gb/s, Compute: 8x ConnectX-7 IB NDR 400Gb/s", 3200),
    ],
)  # fmt: skip
def test_networks(text: str, gigabits_per_node: float) -> None:
    node = mapped(inter_node=text, num_gpus="16", dp="2", global_batch_seqs="8").cluster.node
    assert node.nic.bandwidth_bytes_per_s * node.nics_per_node * 8 / 1e9 == pytest.approx(gigabits_per_node)
    assert node.nic.kind == ("omnipath" if text == "Omni-Path" else "infiniband")


def test_repeats_are_averaged_and_counted() -> None:
    twice = average_repeats([mapped(), mapped(measured_step_time_s="1.3"), mapped(micro_batch="2")])
    assert [(row.repeats, row.step_time_s) for row in twice] == [(2, pytest.approx(1.2)), (1, 1.1)]
    assert [row.repeat_times_s for row in twice] == [(1.1, 1.3), ()]


def test_repeats_without_memory_join_those_with_it() -> None:
    peaks = {"measured_peak_mem_gb": "75", "notes": "max_memory_allocated"}
    with_memory, without = mapped(**peaks), mapped(measured_step_time_s="1.3")
    assert with_memory.memory_kind != without.memory_kind
    (joined,) = average_repeats([without, with_memory])
    assert (joined.repeats, joined.step_time_s) == (2, pytest.approx(1.2))
    assert (joined.memory_bytes, joined.memory_kind) == (with_memory.memory_bytes, with_memory.memory_kind)
    other = mapped(**peaks | {"notes": "nvidia-smi"})
    assert len(average_repeats([with_memory, other])) == 2


def test_groups() -> None:
    left, right = mapped(), mapped(micro_batch="2", recompute="full")
    assert left.plan_group == right.plan_group
    assert left.pick_group == mapped(seq_len="1024").pick_group
    for changes in (
        *({"seq_len": "1024"}, {"layers": "24"}, {"hidden": "8192"}, {"heads": "48"}, {"kv_heads": "8"}),
        *({"ffn_hidden": "8192"}, {"global_batch_seqs": "8"}, {"precision": "bf16"}, {"framework": "Megatron-Core"}),
    ):
        assert mapped(**changes).plan_group != left.plan_group, changes
    # A source may print the vocabulary as the plan pads it, and name one model in several ways.
    assert mapped(vocab="51328", model="GPT A").plan_group == mapped(model="GPT B").plan_group


def test_what_a_source_tells_apart_is_neither_averaged_nor_ranked_together() -> None:
    """Jean Zay's nodes were set up better on February 25 of tr11's tests."""
    tests = {"source": "BigScience tr11 prequel (Jean Zay A100)", "framework": "Megatron-DeepSpeed"}
    days = [mapped(**tests, notes=f"date {day}; iteration 2") for day in ("02-21", "02-24", "02-25", "02-28")]
    assert [row.period for row in days] == ["before 02-25"] * 2 + ["from 02-25"] * 2
    assert [row.repeats for row in average_repeats(days)] == [2, 2]
    assert len({row.plan_group for row in days}) == 2
    assert mapped(notes="date 02-21").period == ""


@pytest.mark.parametrize(
    ("gpu", "num_gpus", "per_node", "node"),
    [
        ("NVIDIA L40S", "64", "4", "l40s-4x"),
        ("NVIDIA L40S", "64", "8", "g6e.48xlarge"),
        ("NVIDIA L40S", "4", "4", "g6e.48xlarge"),  # may be half of a larger host
        ("NVIDIA L40S", "64", "2", "g6e.48xlarge"),  # no such host is known
    ],
)
def test_hosts_go_by_their_number_of_devices(gpu: str, num_gpus: str, per_node: str, node: str) -> None:
    found = mapped(
        gpu=gpu, gpu_mem_gb="", num_gpus=num_gpus, gpus_per_node=per_node, tp="1", dp="", global_batch_seqs="1024"
    )
    assert found.cluster.node.name == node


@pytest.mark.parametrize(("layers", "linear"), [("24", 18), ("4", 3), ("2", 1)])
def test_fewer_layers_have_as_large_a_share_of_linear_attention(layers: str, linear: int) -> None:
    cells = {"model": "qwen3-next-80b-a3b", "layers": layers, "hidden": "", "heads": "", "ffn_hidden": "", "vocab": "",
             "measured_step_time_s": "0.2"}  # fmt: skip
    found = mapped(**cells).model.linear_attention
    assert (found.layers if found else 0) == linear
