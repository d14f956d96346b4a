"""What tables leave out because the recipes behind them say it."""

import pytest

from costmodels.plan import ContextKind, Recompute
from tests.unit.planner.validate.test_validate_mapping import mapped


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_torchtitan_selects_products_unless_a_row_says_layers(precision) -> None:
    cells = {"framework": "torchtitan", "precision": precision, "gpu": "H100-80GB"}
    plan = mapped(recompute="selective", **cells).plan
    assert (plan.recompute, plan.recompute_layers) == (Recompute.SELECTIVE, 0)
    plan = mapped(recompute="selective layer", **cells).plan
    assert (plan.recompute, plan.recompute_layers) == (Recompute.BLOCK, 24)


@pytest.mark.parametrize(("model", "gpus", "degree"), [("GPT 5B (Paxml)", 16, 8), ("GPT3 175B", 256, 128)])
def test_paxml_shards_over_the_nodes_of_its_recipe_and_runs_transformer_engine(model, gpus, degree) -> None:
    cells = {"tp": "1", "dp": str(gpus), "num_gpus": str(gpus), "global_batch_seqs": str(4 * gpus), "zero_stage": "3"}
    cells |= {"framework": "Paxml", "gpu": "H100", "model": model, "precision": "bf16"}
    found = mapped(source="NVIDIA/dgxc-benchmarking", flash_attention="", **cells)
    assert (found.stack, found.job.attention) == ("paxml", "flash")
    assert (found.plan.zero_stage, found.plan.zero_shard_degree) == (3, degree)
    small = cells | {"dp": "8", "num_gpus": "8", "global_batch_seqs": "32"}
    assert mapped(source="NVIDIA/dgxc-benchmarking", **small).plan.zero_shard_degree == 0
    assert mapped(source="JAX-Toolbox", **cells).plan.zero_shard_degree == 0


def test_fsdp1_is_plain_model_code_and_sums_gradients_as_printed() -> None:
    cells = {"tp": "1", "dp": "8", "global_batch_seqs": "32", "zero_stage": "hsdp", "precision": "bf16", "gpu": "A100"}
    found = mapped(framework="PyTorch FSDP1", notes="gradients reduced in 16 bits", **cells)
    assert (found.stack, found.plan.zero_stage, found.job.gradient_dtype) == ("hf-fsdp", 3, "bf16")
    assert mapped(framework="PyTorch FSDP", **cells).job.gradient_dtype == ""


def test_a_micro_batch_that_is_the_best_of_several_is_an_assumption_and_says_nothing_of_memory() -> None:
    found = mapped(notes="median over steps; batch size = best of 2/4/8 per device")
    assert found.assumptions == ("micro-batch printed as the best of several",)
    assert found.out_of_memory is None
    assert found.step_time_s == 1.1


def test_torchtitan_gathers_keys_and_values() -> None:
    plan = mapped(framework="torchtitan (FSDP2)", tp="4", cp="2", flash_attention="", precision="bf16").plan
    assert plan.context_kind is ContextKind.ALL_GATHER


@pytest.mark.parametrize(("precision", "attention"), [("bf16", "flash"), ("fp32", "unfused"), ("tf32", "unfused")])
def test_flash_attention_takes_16_bits(precision: str, attention: str) -> None:
    assert mapped(precision=precision, flash_attention="yes", gpu="A100").job.attention == attention


def test_adapters_of_flagperf_ran_before_transformers_knew_fused_attention() -> None:
    cells = {
        "framework": "llama-recipes style PyTorch PEFT",
        "task": "lora",
        "flash_attention": "",
        "tp": "1",
        "dp": "8",
    }
    assert mapped(**cells, source="FlagPerf", global_batch_seqs="32").job.attention == "unfused"
    assert mapped(**cells, source="HF PEFT docs", global_batch_seqs="32").job.attention == "flash"


def test_a_step_of_vectorlm_is_one_of_many_micro_batches() -> None:
    cells = {"tp": "1", "dp": "8", "global_batch_seqs": "", "micro_batch": "4", "measured_step_time_s": ""}
    cells |= {"measured_tokens_per_s_total": "8192", "framework": "VectorLM (PyTorch FSDP)", "precision": "bf16"}
    found = mapped(**cells, source="VectorLM reference_throughput", notes="gradient_accumulation_steps 4", gpu="A100")
    assert found.plan.num_microbatches >= 1000  # so that no update is in what one of them takes
    per_micro_batch_s = 4 * 8 * found.job.sequence_length / 8192
    assert found.step_time_s == pytest.approx(found.plan.num_microbatches * per_micro_batch_s)
