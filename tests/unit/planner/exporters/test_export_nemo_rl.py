"""``planner export --format nemo-rl``: the file says the plan, and what it cannot say is refused or planned anew."""

import json
from dataclasses import replace
from typing import Any

import jsonschema_rs
import pytest
import yaml

import planner
from costmodels.plan import Recompute
from planner.exporters.flow_api import FlowExportResult
from planner.exporters.flow_document import flow_export_schema
from planner.exporters.flow_target import is_apart, on_gpus
from planner.exporters.nemo_rl import FLOW, configuration
from planner.exporters.nemo_rl_checks import trained
from tests.command import Command
from tests.flow_exports import OUTSIDE, SMALL, plan_of, with_layout
from tests.nemo_rl import PIPELINE, asked, grpo

# Names of examples/configs/{grpo_math_1B,dpo,sft,rm}.yaml, and of the typed dictionaries behind them.
KNOWN = {
    "grpo": "num_prompts_per_step num_generations_per_prompt use_dynamic_sampling batch_multiplier normalize_rewards "
    "use_leave_one_out_baseline adv_estimator skip_reference_policy_logprobs_calculation async_grpo",
    "grpo.adv_estimator": "name normalize_rewards use_leave_one_out_baseline minus_baseline",
    "grpo.async_grpo": "enabled max_trajectory_age_steps in_flight_weight_updates "
    "recompute_kv_cache_after_weight_updates",
    "loss_fn": "reference_policy_kl_penalty use_importance_sampling_correction",
    "dpo": "val_global_batch_size val_micro_batch_size",
    "sft": "val_global_batch_size val_micro_batch_size",
    "rm": "val_global_batch_size val_micro_batch_size",
    "policy": "model_name tokenizer train_global_batch_size train_micro_batch_size logprob_batch_size "
    "max_total_sequence_length make_sequence_length_divisible_by precision offload_optimizer_for_logprob dtensor_cfg "
    "megatron_cfg dynamic_batching sequence_packing generation",
    "policy.tokenizer": "name",
    "policy.dtensor_cfg": "_v2 enabled tensor_parallel_size context_parallel_size sequence_parallel "
    "activation_checkpointing cpu_offload lora_cfg",
    "policy.dtensor_cfg.lora_cfg": "enabled match_all_linear dim",
    "policy.megatron_cfg": "enabled tensor_model_parallel_size pipeline_model_parallel_size context_parallel_size "
    "sequence_parallel num_layers_in_first_pipeline_stage num_layers_in_last_pipeline_stage activation_checkpointing "
    "recompute_granularity recompute_modules expert_model_parallel_size expert_tensor_parallel_size "
    "moe_token_dispatcher_type moe_router_load_balancing_type optimizer distributed_data_parallel_config",
    "policy.megatron_cfg.optimizer": "use_distributed_optimizer",
    "policy.megatron_cfg.distributed_data_parallel_config": "grad_reduce_in_fp32 overlap_grad_reduce "
    "overlap_param_gather",
    "policy.dynamic_batching": "enabled",
    "policy.sequence_packing": "enabled train_mb_tokens logprob_mb_tokens",
    "policy.generation": "backend max_new_tokens vllm_cfg vllm_kwargs colocated",
    "policy.generation.vllm_cfg": "async_engine tensor_parallel_size pipeline_parallel_size expert_parallel_size "
    "gpu_memory_utilization max_model_len enforce_eager",
    "policy.generation.vllm_kwargs": "max_num_seqs max_num_batched_tokens",
    "policy.generation.colocated": "enabled resources",
    "policy.generation.colocated.resources": "gpus_per_node num_nodes",
    "cluster": "gpus_per_node num_nodes",
}


def written(result: FlowExportResult) -> dict[str, Any]:
    assert result.exported is not None
    assert result.exported.unsupported == ()
    found: dict[str, Any] = yaml.safe_load(result.exported.files["planned.yaml"])
    assert found == configuration(result.flow.request, plan_of(result))
    check_names("", {name: value for name, value in found.items() if name != "defaults"})
    return found


def check_names(where: str, found: dict[str, Any]) -> None:
    if where:
        assert found.keys() <= set(KNOWN[where].split()), where
    for name, value in found.items():
        if isinstance(value, dict):
            check_names(f"{where}.{name}".lstrip("."), value)


OVERLAPPED = {"grad_reduce_in_fp32": True, "overlap_grad_reduce": True, "overlap_param_gather": True}


def test_a_whole_file() -> None:
    """Groups of 8 on 64 prompts; two stages on four GPUs, engines of two."""
    result = grpo(mode="colocated", pins=PIPELINE)
    share = written(result)["policy"]["generation"]["vllm_cfg"]["gpu_memory_utilization"]
    generation = on_gpus(plan_of(result))["actor_gen"]
    reported = result.flow.request.cluster.groups[0].device.reported_memory_bytes
    held = generation.call.static_bytes + generation.call.active_bytes
    assert 0 <= share * reported - held <= 0.011 * reported
    scoring = on_gpus(plan_of(result))["actor_inf"].layout.micro_batch_size
    assert written(result) == {
        "defaults": "grpo_math_1B.yaml",
        "grpo": {"num_prompts_per_step": 64, "num_generations_per_prompt": 8, "async_grpo": {"enabled": False}},
        "policy": {
            "model_name": "Qwen/Qwen2.5-1.5B",
            "tokenizer": {"name": "Qwen/Qwen2.5-1.5B"},
            "train_global_batch_size": 512,
            "train_micro_batch_size": 4,
            "logprob_batch_size": scoring,
            "max_total_sequence_length": 768,
            "make_sequence_length_divisible_by": 1,
            "precision": "bfloat16",
            "dtensor_cfg": {"enabled": False},
            "megatron_cfg": {
                "enabled": True,
                "tensor_model_parallel_size": 1,
                "pipeline_model_parallel_size": 2,
                "context_parallel_size": 1,
                "sequence_parallel": False,
                "num_layers_in_first_pipeline_stage": None,
                "num_layers_in_last_pipeline_stage": None,
                "activation_checkpointing": False,
                "optimizer": {"use_distributed_optimizer": True},
                "distributed_data_parallel_config": OVERLAPPED,
            },
            "dynamic_batching": {"enabled": False},
            "sequence_packing": {
                "enabled": True,
                "train_mb_tokens": 4 * 768,
                "logprob_mb_tokens": scoring * 768,
            },
            "generation": {
                "backend": "vllm",
                "max_new_tokens": 512,
                "vllm_cfg": {
                    "async_engine": False,
                    "tensor_parallel_size": 2,
                    "pipeline_parallel_size": 1,
                    "expert_parallel_size": 1,
                    "gpu_memory_utilization": share,
                    "max_model_len": 768,
                    "enforce_eager": False,
                },
                "vllm_kwargs": {"max_num_seqs": generation.call.concurrent, "max_num_batched_tokens": 8192},
                "colocated": {"enabled": True},
            },
        },
        "cluster": {"gpus_per_node": 4, "num_nodes": 1},
    }


def test_the_script_runs_the_file() -> None:
    result = grpo(mode="colocated", pins=PIPELINE)
    assert result.exported is not None
    assert result.exported.launch == "uv run examples/run_grpo.py --config examples/configs/planned.yaml"
    assert sorted(result.exported.files) == ["planned.yaml", "train.sh"]
    assert any(words.startswith("planned.yaml goes into") for words in result.exported.left_to_you)
    held = replace(plan_of(result), calls=tuple(replace(call, holding="resident") for call in plan_of(result).calls))
    told = " ".join(FLOW.export(result.flow.request, held).left_to_you)
    assert "the plan keeps them on the GPUs, and has no such traffic" in told
    assert "weights of the reference wait on the host" in told
    out = replace(held, calls=tuple(replace(call, holding="all_out") for call in held.calls))
    assert "offload_before_refit" not in " ".join(FLOW.export(result.flow.request, out).left_to_you)


def test_micro_batches_have_tokens_of_mean_sequences_and_room_for_the_longest() -> None:
    lengths = "lognormal:mean=512,sigma=1,max=4096"
    result = grpo(mode="colocated", pins=PIPELINE, generate=lengths)
    found = written(result)["policy"]
    assert found["max_total_sequence_length"] == 256 + 4096
    mean = 256 + result.flow.request.output.mean
    assert found["sequence_packing"]["train_mb_tokens"] == max(round(4 * mean), 256 + 4096) == 256 + 4096
    assert found["sequence_packing"]["logprob_mb_tokens"] >= 256 + 4096


def test_engines_apart_have_whole_nodes_or_gpus_of_the_only_one() -> None:
    one = grpo(mode="disaggregated")
    found = written(one)["policy"]
    engine = on_gpus(plan_of(one))["actor_gen"].call.num_gpus
    assert found["generation"]["colocated"] == {
        "enabled": False,
        "resources": {"gpus_per_node": engine, "num_nodes": 1},
    }
    assert engine + trained(plan_of(one)).call.num_gpus == 4
    assert found["offload_optimizer_for_logprob"] in (True, False)
    two = grpo("2x8xH100-80GB", mode="disaggregated")
    assert written(two)["policy"]["generation"]["colocated"]["resources"] == {"gpus_per_node": 8, "num_nodes": 1}
    assert written(two)["cluster"] == {"gpus_per_node": 8, "num_nodes": 2}


@pytest.mark.parametrize(("keep", "anew"), [(False, True), (True, False)])
def test_running_ahead(keep: bool, anew: bool) -> None:
    result = grpo(mode="async", staleness=2, rollout="in_flight", keep_cache=keep)
    found = written(result)
    assert found["grpo"]["async_grpo"] == {
        "enabled": True,
        "max_trajectory_age_steps": 2,
        "in_flight_weight_updates": True,
        "recompute_kv_cache_after_weight_updates": anew,
    }
    assert found["loss_fn"] == {"use_importance_sampling_correction": True}
    assert found["policy"]["generation"]["vllm_cfg"]["async_engine"] is True
    assert is_apart(plan_of(result))


def test_fsdp_shards_weights_of_all_that_the_workers_run() -> None:
    result = grpo(mode="colocated", framework="hf-fsdp")
    found = written(result)["policy"]
    assert found["megatron_cfg"] == {"enabled": False}
    assert (found["dtensor_cfg"]["enabled"], found["dtensor_cfg"]["tensor_parallel_size"]) == (True, 1)
    for name in ("actor_train", "actor_inf", "ref_inf"):
        assert on_gpus(plan_of(result))[name].layout.zero_stage == 3


def test_experts() -> None:
    result = asked("grpo", "qwen3-30b-a3b", "2x8xH100-80GB", json.dumps(OUTSIDE), mode="colocated")
    found, layout = written(result)["policy"], trained(plan_of(result)).layout
    assert found["megatron_cfg"]["expert_model_parallel_size"] == layout.expert_parallel > 1
    assert found["megatron_cfg"]["moe_token_dispatcher_type"] == "alltoall"
    assert layout.recompute in (Recompute.NONE, Recompute.FULL, Recompute.SELECTIVE)
    engine = found["generation"]["vllm_cfg"]
    assert engine["expert_parallel_size"] % engine["tensor_parallel_size"] == 0


def test_pairs_are_counted_as_pairs_and_not_packed() -> None:
    """512 pairs are 1024 sequences; the reference has the micro-batches of training, of whole pairs."""
    result = asked("dpo", "qwen3-8b", "8xH100-80GB", batch=512)
    found, calls = written(result), on_gpus(plan_of(result))
    assert found["defaults"] == "dpo.yaml"
    assert found["policy"]["train_global_batch_size"] == 512
    sizes = {calls[name].layout.micro_batch_size for name in ("actor_train", "ref_inf")}
    assert sizes == {2 * found["policy"]["train_micro_batch_size"]}
    assert found["policy"]["sequence_packing"] == {"enabled": False}
    assert "logprob_batch_size" not in found["policy"]
    assert "generation" not in found["policy"]
    assert not calls["actor_train"].layout.tensor_parallel_overlap
    ranks = calls["actor_train"].layout.data_parallel
    assert found["dpo"] == {"val_global_batch_size": -(-32 // ranks) * ranks, "val_micro_batch_size": 1}
    assert result.exported is not None
    assert "# Planned with --framework megatron-core." in result.exported.files["planned.yaml"]


def test_full_layers_are_recomputed_where_blocks_were_best() -> None:
    result = asked("sft", "qwen3-30b-a3b", "2x8xH100-80GB", batch=512, prompt=1024, generate=1024)
    assert result.searched is not None
    assert result.in_the_way[0].field == "plan.actor_train.recompute"
    found = written(result)["policy"]["megatron_cfg"]
    assert found["activation_checkpointing"] is True
    assert "recompute_granularity" not in found  # which is full
    assert result.exported is not None
    assert "--pin actor_train.recompute=full" in result.exported.files["train.sh"].replace("\n#  ", "")
    some = with_layout(plan_of(result), "train", recompute=Recompute.SELECTIVE)
    said = configuration(result.flow.request, some)["policy"]["megatron_cfg"]
    assert (said["recompute_granularity"], said["recompute_modules"]) == ("selective", ["core_attn"])


def test_the_plan_written_is_the_answer_with_the_options_it_names() -> None:
    result = grpo("2x8xH100-80GB", mode="hybrid")
    assert result.searched is not None
    pins: dict[str, Any] = {}
    for name, pin in result.flow.request.pins.items():
        pins[name] = dict(pin.columns) | ({} if pin.engine is None else {"engine": pin.engine})
        if pin.num_gpus is not None:
            first = pin.first_gpu or 0
            pins[name]["gpus"] = f"{first}-{first + pin.num_gpus - 1}"
    options = SMALL | {"settings": OUTSIDE, "mode": result.flow.request.mode, "pins": pins}
    again = planner.plan_dataflow("grpo", "qwen2.5-1.5b", "2x8xH100-80GB", **options)
    assert again.plan is not None
    assert again.plan.steady_s == plan_of(result).steady_s
    assert again.plan.steady_s >= 0.999 * result.searched.steady_s


@pytest.mark.parametrize("job", FLOW.workflows)
def test_every_workflow_is_written(job: str) -> None:
    settings = OUTSIDE if job in ("grpo", "rloo", "reinforce++") else {}
    result = asked(job, "qwen2.5-1.5b", "4xH100-80GB", json.dumps(settings))
    found = written(result)
    assert found["cluster"] == {"gpus_per_node": 4, "num_nodes": 1}
    assert result.exported is not None
    text = result.exported.files["planned.yaml"]
    assert text.startswith("# Written by planner export for NeMo-RL 0.7.\n")
    # Its reward models run under FSDP alone, which is taken unasked.
    assert ("# Planned with --framework hf-fsdp." in text) == (job == "rm")
    sequences, items = trained(plan_of(result)).call.sequences, 2 if job in ("dpo", "rm") else 1
    steps = trained(plan_of(result)).call.mini_batches
    assert found["policy"]["train_global_batch_size"] * steps * items == sequences
    if job == "dapo":
        assert found["grpo"]["batch_multiplier"] == 3.0
        assert found["loss_fn"] == {"reference_policy_kl_penalty": 0.0}
    if job == "reinforce++":
        assert found["grpo"]["adv_estimator"] == {"name": "reinforce_plus_plus", "minus_baseline": False}


def test_adapters() -> None:
    settings = json.dumps({"task": "lora", "lora_rank": 32})
    found = written(asked("sft", "qwen2.5-1.5b", "4xH100-80GB", settings, framework="hf-fsdp"))
    assert found["policy"]["dtensor_cfg"]["lora_cfg"] == {"enabled": True, "match_all_linear": True, "dim": 32}


BASE = ("--model", "actor=qwen2.5-1.5b", "--gpus", "4xH100-80GB", "--batch", "64")


def test_the_command_line_says_the_same(command: Command) -> None:
    words = ("export", "--format", "nemo-rl", "--job", "grpo", *BASE, "--set", "reward=external", "--json")
    code, out, _ = command(*words)
    assert code == 0
    document = json.loads(out)
    jsonschema_rs.validate(flow_export_schema(), document)
    assert yaml.safe_load(document["files"]["planned.yaml"])["grpo"]["num_prompts_per_step"] == 64


def test_the_command_line_refuses(command: Command) -> None:
    code, _, err = command("export", "--format", "nemo-rl", "--job", "grpo", *BASE)
    assert code == 2
    assert err.startswith("error: settings.reward: NeMo-RL 0.7 cannot express it: a reward model has GPUs of its own")
    assert "Hint: --set reward=external" in err
