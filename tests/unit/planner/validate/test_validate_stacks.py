"""Which stack a row ran on, of which era, and what the stack does where a table does not say."""

import pytest

from tests.published import mapped


@pytest.mark.parametrize(
    ("framework", "stack", "zero"),
    [
        ("Megatron-DeepSpeed", "megatron-2021", 0), ("NeMo / Megatron-Core", "megatron-core", 1),
        ("xtuner (mmengine + DeepSpeed)", "xtuner", 3), ("torchtitan (FSDP2)", "fsdp", 3),
        ("DeepSpeed + HF", "deepspeed-2024", 3), ("llm-foundry/Composer FSDP", "fsdp-composer-triton", 3),
        ("PEFT 0.19", "hf-trainer", 0), ("nanotron", "nanotron", 0), ("Alpa/XLA zero_2", "alpa", 0),
        ("Alpa auto", "alpa", 2), ("DeepSpeed ZeRO-3", "deepspeed-2024", 3),
        ("VectorLM (PyTorch FSDP), torch 2.2.1", "hf-fsdp", 0), ("InternLM", "internlm", 1),
    ],
)  # fmt: skip
def test_stacks(framework: str, stack: str, zero: int) -> None:
    row = mapped(framework=framework, tp="1", dp="8", global_batch_seqs="32")
    assert (row.stack, row.plan.zero_stage) == (stack, zero)


def test_the_table_of_spring_2023_ran_another_attention() -> None:
    row = mapped(framework="llm-foundry/Composer FSDP", source="mosaicml/llm-foundry (May 2023 table)")
    assert row.stack == "fsdp-composer-2023"
    assert row.job.fused_cross_entropy


def test_rows_that_later_tables_repeat_from_it_ran_on_its_software() -> None:
    cells = {"framework": "llm-foundry/Composer FSDP", "source": "mosaicml/llm-foundry"}
    assert mapped(**cells, notes="grad_accum=4; Composer mixed_precision=PURE").stack == "fsdp-composer-2023"
    assert mapped(**cells, notes="grad_accum=2; Composer mixed_precision=DEFAULT").stack == "fsdp-composer-triton"


@pytest.mark.parametrize(
    ("gpu", "gpus", "stack"),
    [("H100-80GB", 128, "fsdp-composer"), ("H100-80GB", 64, "fsdp-composer-triton"),
     ("A100-80GB", 128, "fsdp-composer-triton")],
)  # fmt: skip
def test_composer_ran_flash_attention_2_on_many_h100(gpu: str, gpus: int, stack: str) -> None:
    cells = {"framework": "llm-foundry/Composer FSDP", "source": "mosaicml/llm-foundry", "gpu": gpu}
    row = mapped(**cells, num_gpus=str(gpus), tp="1", dp=str(gpus), global_batch_seqs=str(4 * gpus))
    assert row.stack == stack


def test_torchtitan_compiles_where_its_page_says_so() -> None:
    cells = {"framework": "torchtitan (FSDP2)", "tp": "1", "dp": "8", "global_batch_seqs": "32"}
    assert mapped(**cells, notes="AC=no; no extra optimisations listed").stack == "fsdp-eager"
    assert mapped(**cells, notes="torch.compile + Float8").stack == "fsdp"


@pytest.mark.parametrize(
    ("framework", "source", "stack", "attention"),
    [("Paxml", "NVIDIA/dgxc-benchmarking", "paxml", "flash"),
     ("Paxml", "JAX-Toolbox Paxml 23.10", "paxml-2023", "unfused"),
     ("Paxml (XLA alone)", "JAX-Toolbox Paxml 23.10", "paxml-xla", "unfused")],
)  # fmt: skip
def test_paxml_fuses_attention_since_2024(framework: str, source: str, stack: str, attention: str) -> None:
    cells = {"num_gpus": "128", "tp": "1", "dp": "128", "global_batch_seqs": "512", "model": "GPT 5B"}
    row = mapped(framework=framework, source=source, flash_attention="", **cells)
    assert (row.stack, row.job.attention) == (stack, attention)


def test_tinyllama_is_not_the_litgpt_it_grew_from() -> None:
    cells = {"framework": "Lit-GPT", "tp": "1", "dp": "8", "global_batch_seqs": "32"}
    assert mapped(**cells, source="TinyLlama").stack == "tinyllama"
    assert mapped(**cells, source="LitGPT").stack == "litgpt"


def test_automodel_s_table_is_of_tokens_dealt_out_in_turn() -> None:
    cells = {"framework": "AutoModel, first as FSDP2", "tp": "1", "dp": "8", "global_batch_seqs": "32"}
    assert mapped(**cells).stack == "nemo-automodel"
    assert mapped(**cells, notes="fake_balanced_gate").stack == "nemo-automodel-benchmark"


def test_kempner_forge_shards_over_one_rank_too() -> None:
    cells = {"tp": "4", "dp": "1", "num_gpus": "4", "global_batch_seqs": "8", "zero_stage": "fsdp"}
    row = mapped(framework="KempnerForge FSDP2, first as fsdp", **cells)
    assert (row.stack, row.plan.zero_stage) == ("kempner-forge", 3)
    eager = mapped(framework="KempnerForge FSDP2, first as fsdp-eager", **cells | {"tp": "1", "num_gpus": "1"})
    assert eager.stack == "kempner-forge-eager"
    assert mapped(framework="torchtitan", **cells).plan.zero_stage == 0


def test_forced_balance_deals_deepep_s_tokens_out_in_turn() -> None:
    cells = {"tp": "1", "dp": "8", "global_batch_seqs": "32"}
    assert mapped(framework="torchtitan with DeepEP, first as fsdp", **cells).stack == "torchtitan-deepep-benchmark"
    assert mapped(framework="torchtitan", **cells).stack == "fsdp"


def test_gpt_in_paddle_drops_out_and_llama_does_not() -> None:
    jobs = {name: mapped(framework="PaddleNLP / Paddle 2.5.1", model=name).job for name in ("GPT3-6.7B", "LLaMA-7B")}
    assert {name: job.dropout for name, job in jobs.items()} == {"GPT3-6.7B": True, "LLaMA-7B": False}


@pytest.mark.parametrize(("gpu", "bits"), [("A100-80GB", 4 * 100), ("H100-80GB", 8 * 400)])
def test_torchtitan_s_a100_are_of_a_cloud_that_has_them_in_one_kind_of_host(gpu: str, bits: int) -> None:
    cells = {"framework": "torchtitan (FSDP2)", "source": "torchtitan docs/performance.md (2024)", "gpu": gpu}
    node = mapped(**cells, num_gpus="16", tp="1", dp="16", global_batch_seqs="64").cluster.node
    assert node.nics_per_node * node.nic.bandwidth_bytes_per_s == pytest.approx(bits * 1e9 / 8)
    assert node.device.name.startswith(gpu[:4])


@pytest.mark.parametrize(
    ("framework", "stack", "master"),
    [
        ("ms-swift (HF transformers + PEFT), torch 2.1.1", "hf-trainer-2024", "none"),
        ("PEFT + TRL/Accelerate", "hf-trainer-2024", "none"),
        ("PEFT 0.19.2.dev0, torch 2.13.0+cu130", "hf-trainer", "fp32"),
        ("transformers Trainer, PEFT", "hf-trainer", "fp32"),
    ],
)
def test_adapters_are_fp32_since_peft_of_mid_2024(framework: str, stack: str, master: str) -> None:
    rows = {task: mapped(framework=framework, notes="lora r=8", task=task) for task in ("full", "lora")}
    assert {row.stack for row in rows.values()} == {stack}
    assert (rows["full"].job.master_dtype, rows["lora"].job.master_dtype) == ("none", master)


def test_flash_attention_makes_a_megatron_of_today() -> None:
    assert mapped(flash_attention="yes").stack == "megatron-core"


def test_zero_3_of_early_2021_waits_for_its_parameters() -> None:
    """In the comparison of that spring: a stage alone says nothing of when."""
    cells = {"tp": "1", "dp": "8", "global_batch_seqs": "32", "source": "SC21 Megatron-LM (arXiv 2104.04473) Table 2"}
    rows = [mapped(framework=name, **cells) for name in ("DeepSpeed ZeRO-3", "DeepSpeed Azure")]
    assert {row.stack for row in rows} == {"deepspeed-megatron"}
    assert [row.plan.overlap_param_gather for row in rows] == [False, True]
    assert all(row.plan.overlap_grad_reduce and row.plan.zero_stage == 3 for row in rows)
    assert mapped(**cells | {"framework": "DeepSpeed ZeRO-3", "source": "a blog"}).stack == "deepspeed-2024"


def test_ulysses_of_hugging_face_s_trainer_runs_transformers_5() -> None:
    cells = {"tp": "1", "dp": "8", "global_batch_seqs": "32"}
    blog = mapped(**cells, framework="DeepSpeed ZeRO-3 (SFTTrainer)", source="Hugging Face blog on Ulysses")
    assert (blog.stack, blog.plan.zero_stage) == ("deepspeed", 3)
    assert mapped(**cells, framework="DeepSpeed-Ulysses", source="a blog of 2023").stack == "deepspeed-2024"
