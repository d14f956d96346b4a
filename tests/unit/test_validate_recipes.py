"""What tables leave out because the recipes behind them say it."""

import pytest

from costmodels.plan import ContextKind, Recompute
from tests.unit.test_validate_mapping import mapped


def test_torchtitan_selective_repeats_half_of_the_layers() -> None:
    plan = mapped(recompute="selective", framework="torchtitan").plan
    assert (plan.recompute, plan.recompute_layers) == (Recompute.BLOCK, 24)


def test_torchtitan_saves_no_float8_products() -> None:
    cells = {"recompute": "selective", "framework": "torchtitan", "precision": "fp8", "gpu": "H100-80GB"}
    assert mapped(**cells).plan.recompute is Recompute.FULL
    by_layer = mapped(**cells, notes="AC=selective layer").plan
    assert (by_layer.recompute, by_layer.recompute_layers) == (Recompute.BLOCK, 24)


@pytest.mark.parametrize(("model", "gpus", "degree"), [("GPT 5B (Paxml)", 16, 8), ("GPT3 175B", 256, 128)])
def test_paxml_shards_over_the_nodes_of_its_recipe_and_runs_transformer_engine(model, gpus, degree) -> None:
    cells = {"tp": "1", "dp": str(gpus), "num_gpus": str(gpus), "global_batch_seqs": str(4 * gpus), "zero_stage": "3"}
    found = mapped(framework="Paxml", gpu="H100", model=model, precision="bf16", flash_attention="", **cells)
    assert (found.stack, found.job.attention) == ("paxml", "flash")
    assert (found.plan.zero_stage, found.plan.zero_shard_degree) == (3, degree)
    small = cells | {"dp": "8", "num_gpus": "8", "global_batch_seqs": "32"}
    assert mapped(framework="Paxml", gpu="H100", model=model, precision="bf16", **small).plan.zero_shard_degree == 0


def test_a_micro_batch_that_is_the_best_of_several_is_an_assumption_and_says_nothing_of_memory() -> None:
    found = mapped(notes="median over steps; batch size = best of 2/4/8 per device")
    assert found.assumptions == ("micro-batch printed as the best of several",)
    assert found.out_of_memory is None
    assert found.step_time_s == 1.1


def test_torchtitan_gathers_keys_and_values() -> None:
    plan = mapped(framework="torchtitan (FSDP2)", tp="4", cp="2", flash_attention="", precision="bf16").plan
    assert plan.context_kind is ContextKind.ALL_GATHER
