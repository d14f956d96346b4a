"""Exports to torchtitan and of FSDP: what they are told."""

from dataclasses import replace
from typing import Any

import pytest

from costmodels.plan import PlanBatch
from costmodels.stages.table import stage_table
from tests.exported import export, options, plan_of, request_of, script_words

JOB: dict[str, Any] = {"sequence_length": 2048, "global_batch_size": 64}


def test_torchtitan_takes_all_micro_batches_of_a_pipeline_at_once() -> None:
    request = request_of("llama-3.1-8b", "2x8xH100", "fsdp", **JOB)
    plan = plan_of(request, pp=4, tp=2, sp=True, zero=2, vpp=2, mbs=2, recompute="selective")
    exported = export("torchtitan", plan, request)
    words = script_words(exported)
    read = options(words, values=1)
    assert exported.unsupported == ()
    assert read["--training.local_batch_size"] == ["32"]
    assert read["--parallelism.pipeline_parallel_microbatch_size"] == ["2"]
    assert read["--parallelism.pipeline_parallel_schedule"] == ["Interleaved1F1B"]
    assert read["--parallelism.pipeline_parallel_layers_per_stage"] == ["4"]
    assert words[-1] == "activation-checkpoint:selective"
    assert exported.files["train.sh"].splitlines()[-2:] == ['  "$@" \\', "  activation-checkpoint:selective"]


@pytest.mark.parametrize(
    ("pins", "ranks"),
    [
        ({"pp": 16, "vpp": 3, "zero": 2}, [3, 4]),
        ({"pp": 4, "schedule": "zb-v", "zero": 2}, [15, 16]),
        ({"pp": 8, "zero": 2}, [7, 8]),
    ],
    ids=str,
)
def test_torchtitan_is_told_which_layers_where_its_rule_cuts_otherwise(pins: dict[str, Any], ranks: list[int]) -> None:
    request = request_of("deepseek-v3", "16x8xH100", "fsdp", sequence_length=4096, global_batch_size=512)
    plan = plan_of(request, **pins)
    exported = export("torchtitan", plan, request)
    words = script_words(exported)
    at = words.index("--parallelism.module_fqns_per_model_part") + 1
    parts = words[at : next(i for i in range(at, len(words)) if words[i].startswith("--"))]  # and not to the end
    names = [part.split(",") for part in parts]
    layers = [f"layers.{layer}" for layer in range(61)]
    assert [name for part in names for name in part] == ["tok_embeddings", *layers, "norm", "lm_head"]
    assert not any("per_stage" in word or "less_layers" in word for word in words)
    held = [sum(name.startswith("layers.") for name in part) for part in names]
    p = plan.pipeline_parallel
    order = (
        [range(p), reversed(range(p))] if plan.schedule.name == "ZERO_BUBBLE_V" else [range(p)] * plan.virtual_stages
    )
    owners = [rank for ranks_of_chunk in order for rank in ranks_of_chunk]
    of_rank = [sum(count for count, owner in zip(held, owners, strict=True) if owner == rank) for rank in range(p)]
    priced = stage_table(PlanBatch.from_plans([plan]), request.model, full=True).layers[0].tolist()
    assert of_rank == priced
    assert sorted(set(of_rank)) == ranks
    assert exported.unsupported == ()


def test_torchtitan_trains_in_bf16_alone() -> None:
    halves = {"gradient_dtype": "bf16", "master_dtype": "none", "state_dtype": "bf16"}
    request = request_of("llama-3.1-8b", "8xH100", "fsdp", **JOB | halves)
    exported = export("torchtitan", plan_of(request, zero=3), request)
    assert exported.unsupported == ()
    assert options(script_words(exported), values=1)["--training.dtype"] == ["bfloat16"]
    longer = replace(request, job=replace(request.job, state_dtype="fp32"))
    missing = export("torchtitan", plan_of(request, zero=3), longer).unsupported
    assert [gap.field for gap in missing] == ["job.gradient_dtype", "job.master_dtype"]


def test_fsdp_moves_gathered_weights_nowhere() -> None:
    """At stage 2 the optimizer alone is on the host when memory peaks: both formats say so by the one switch."""
    request = request_of("llama-3.1-8b", "8xH100", "fsdp", **JOB)
    plan = plan_of(request, zero=2, offload_optimizer=True, recompute="full")
    for format_, said in (("torchtitan", "--training.enable_cpu_offload"), ("accelerate", "fsdp_offload_params: true")):
        exported = export(format_, plan, request)
        assert exported.unsupported == ()
        assert any(said in text for text in exported.files.values())
