"""What the targets' own parsers say of exports, where they are installed; no GPU is needed.

``pip install megatron-core deepspeed accelerate transformers torchtitan`` (megatron-core 0.19 on Python 3.12);
``verl==0.9.1`` with its dependencies.
"""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import planner
from costmodels.plan import ExecutionPlan
from planner.exporters.exported import Exported
from planner.results import Request
from tests.exported import QUESTIONS, export, plan_of, request_of, script_words, some_plans

pytestmark = pytest.mark.filterwarnings("ignore")
MOCK = "--mock-data --tokenizer-type NullTokenizer --vocab-size 32000 --lr 1e-4 --train-iters 20 --no-rope-fusion"


def expressible(format_: str) -> list[tuple[ExecutionPlan, Request, Exported]]:
    """Plans of every question of a format that it can say, eight at most of each."""
    found = []
    for question in QUESTIONS:
        if question[0] == format_:
            plans = [
                (plan, request, export(format_, plan, request)) for plan, request in some_plans(400, *question[1:])
            ]
            found += [item for item in plans if not item[2].unsupported][:8]
    return found


def megatron_arguments(exported: Exported, world: int, architecture: int = 9) -> Any:
    """Its parser, its checks and its transformer configuration, as on a GPU with Transformer Engine."""
    import torch
    from megatron.core.transformer import transformer_config
    from megatron.training import arguments

    words = script_words(exported)
    given = [*words[words.index("pretrain_gpt.py") :], *shlex.split(MOCK)]
    outside = {name: value for name, value in os.environ.items() if name != "CUDA_DEVICE_MAX_CONNECTIONS"}
    variables = {"WORLD_SIZE": str(world), "RANK": "0", **exported.environment}
    with (
        mock.patch.dict(os.environ, outside | variables, clear=True),
        mock.patch.object(sys, "argv", given),
        mock.patch.object(arguments, "get_device_arch_version", return_value=architecture),
        mock.patch.object(arguments, "is_te_min_version", return_value=True),
        mock.patch.object(transformer_config, "is_te_min_version", return_value=True),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(architecture, 0)),
    ):
        found = arguments.parse_args()
        arguments.validate_args(found)
        arguments.core_transformer_config_from_args(found)
    return found


def check_megatron(exported: Exported, plan: ExecutionPlan, request: Request) -> None:
    newer = request.cluster.device.architecture == "blackwell"
    found = megatron_arguments(exported, plan.num_devices, 10 if newer else 9)
    degrees = (found.tensor_model_parallel_size, found.pipeline_model_parallel_size, found.context_parallel_size)
    assert degrees == (plan.tensor_parallel, plan.pipeline_parallel, plan.context_parallel)
    assert found.data_parallel_size == plan.data_parallel
    assert (found.virtual_pipeline_model_parallel_size or 1) == plan.virtual_stages
    assert found.global_batch_size == plan.micro_batch_size * plan.num_microbatches * plan.data_parallel


def test_megatron_lm_accepts_what_plans_say() -> None:
    pytest.importorskip("megatron.training.arguments", exc_type=ImportError)
    for plan, request, exported in expressible("megatron_lm"):
        check_megatron(exported, plan, request)


MEGATRON = [
    ("llama-3-70b", "4x8xH100", {}, {"tp": 8, "pp": 2, "sp": True, "zero": 1, "recompute": "selective"}),
    ("llama-3-70b", "4x8xH100", {}, {"tp": 4, "pp": 4, "vpp": 2, "recompute": "block:4"}),
    ("llama-3-70b", "4x8xH100", {"sequence_length": 8192}, {"tp": 2, "cp": 4, "context_kind": "all_gather"}),
    ("llama-3-8b", "2x8xH100", {}, {"zero": 3, "hsdp": 8}),
    ("llama-3-8b", "2x8xH100", {}, {"zero": 2, "tp": 2, "sp": True}),
    ("llama-3-8b", "2x8xH100", {}, {"zero": 1, "tp": 2, "pp": 2, "axis_order": "tp_cp_pp_dp"}),
    ("llama-3-8b", "8xH100", {"precision": "fp8"}, {"zero": 1}),
    ("llama-3-8b", "8xB200", {"precision": "mxfp8"}, {"tp": 2, "zero": 1}),
    ("llama-3-8b", "8xB200", {"precision": "mxfp8"}, {"zero": 2}),
    ("llama-3-8b", "8xB200", {"precision": "mxfp8"}, {"zero": 1, "offload_optimizer": True}),
    ("llama-3-8b", "8xH100", {"precision": "fp8"}, {"zero": 1, "offload_optimizer": True}),
    ("llama-3-8b", "8xB200", {"precision": "nvfp4"}, {"tp": 2, "zero": 1}),
    ("gpt3-175b", "16x8xA100-80GB", {"precision": "fp16", "dropout": True}, {"tp": 8, "pp": 8}),
    ("gpt2-xl", "8xV100", {"precision": "fp32"}, {}),
    ("llama-2-7b", "8xA100", {"state_dtype": "bf16", "master_dtype": "fp16", "gradient_dtype": "bf16"}, {"zero": 1}),
    ("llama-2-7b", "8xA100", {"fused_cross_entropy": True}, {"offload_optimizer": True, "zero": 1}),
    ("qwen2.5-7b", "8xH100", {"optimizer": "sgd"}, {"zero": 1}),
    ("qwen3-30b-a3b", "2x8xH100", {}, {"ep": 8}),
    ("deepseek-v3", "64x8xH100", {}, {"pp": 16, "first_stage_layers": 3, "last_stage_layers": 2, "ep": 32}),
    ("deepseek-v3", "64x8xH100", {}, {"ep": 64, "recompute": "selective:mla_up_proj,moe_act,mlp"}),
]


@pytest.mark.parametrize(("model", "cluster", "job", "pins"), MEGATRON)
def test_megatron_lm_accepts(model: str, cluster: str, job: dict[str, Any], pins: dict[str, Any]) -> None:
    pytest.importorskip("megatron.training.arguments", exc_type=ImportError)
    request = request_of(model, cluster, "megatron", **job)
    plan = plan_of(request, **pins)
    exported = export("megatron_lm", plan, request)
    assert exported.unsupported == ()
    check_megatron(exported, plan, request)


@pytest.mark.parametrize("stack", ["ep-overlap", "token-drop", "hybrid-ep", "full-graphs"])
def test_megatron_lm_accepts_its_stacks(stack: str) -> None:
    pytest.importorskip("megatron.training.arguments", exc_type=ImportError)
    request = request_of("mixtral-8x7b", "2x8xH100", f"megatron-core-{stack}")
    plan = plan_of(request, ep=8)
    check_megatron(export("megatron_lm", plan, request), plan, request)


def test_deepspeed_reads_what_plans_say() -> None:
    config = pytest.importorskip("deepspeed.runtime.config")
    for plan, request, exported in expressible("deepspeed"):
        text = exported.files["ds_config.json"].replace('"auto"', "1e-4")
        with (
            mock.patch.object(config.dist, "is_initialized", return_value=True),
            mock.patch.object(config.dist, "get_rank", return_value=0),
            mock.patch.object(config.dist, "get_world_size", return_value=plan.num_devices),
        ):
            found = config.DeepSpeedConfig(json.loads(text))
        batch = (
            found.train_batch_size // plan.tensor_parallel,
            found.train_micro_batch_size_per_gpu,
            found.gradient_accumulation_steps,
        )
        assert batch == (request.job.global_batch_size, plan.micro_batch_size, plan.num_microbatches)
        assert found.zero_optimization_stage == plan.zero_stage


def trainer_arguments(words: list[str]) -> Any:
    """The Trainer's own reading of the arguments of ``train.py``."""
    transformers = pytest.importorskip("transformers")
    given = words[words.index("train.py") + 1 :]
    if "--deepspeed" in given:
        given = given[: given.index("--deepspeed")] + given[given.index("--deepspeed") + 2 :]
    parser = transformers.HfArgumentParser(transformers.TrainingArguments)
    return parser.parse_args_into_dataclasses([*given, "--output_dir", "out", "--use_cpu", "true"])[0]


@pytest.mark.parametrize("format_", ["deepspeed", "accelerate"])
def test_the_trainer_reads_its_arguments(format_: str) -> None:
    pytest.importorskip("transformers")
    for plan, _, exported in expressible(format_):
        words = script_words(exported)
        if words[0] != "deepspeed":
            found = trainer_arguments(words)
            assert found.per_device_train_batch_size == plan.micro_batch_size
            assert found.gradient_accumulation_steps == plan.num_microbatches


def test_accelerate_reads_what_plans_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = pytest.importorskip("accelerate.commands.launch")
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    monkeypatch.chdir(tmp_path)
    for plan, _, exported in expressible("accelerate"):
        Path("accelerate.yaml").write_text(exported.files["accelerate.yaml"])
        words = ["0" if "${" in word else word for word in script_words(exported)]
        arguments = launch._validate_launch_command(launch.launch_command_parser().parse_args(words[2:]))[0]
        assert (arguments.num_processes, arguments.use_fsdp) == (plan.num_devices, plan.zero_stage > 0)
        if not plan.zero_stage:
            continue
        variables = {name: value for name, value in prepare_multi_gpu_env(arguments).items() if name not in os.environ}
        with mock.patch.dict(os.environ, variables):
            fsdp, degrees = FullyShardedDataParallelPlugin(), ParallelismConfig()
        assert (fsdp.fsdp_version, fsdp.reshard_after_forward) == (2, plan.zero_stage == 3)
        assert degrees.dp_replicate_size * degrees.dp_shard_size == plan.data_parallel
        assert (degrees.tp_size, degrees.cp_size) == (plan.tensor_parallel, plan.context_parallel)


def check_torchtitan(exported: Exported, plan: ExecutionPlan) -> None:
    from torchtitan.config.manager import ConfigManager
    from torchtitan.distributed.parallel_dims import ParallelDims

    words = script_words(exported)
    found = ConfigManager().parse_args(words[words.index("torchtitan.train") + 1 :])
    degrees = ParallelDims.from_config(found.parallelism, plan.num_devices)
    assert (degrees.tp, degrees.pp, degrees.cp, degrees.ep) == (
        plan.tensor_parallel,
        plan.pipeline_parallel,
        plan.context_parallel,
        plan.expert_parallel,
    )
    assert degrees.dp_replicate * degrees.dp_shard == plan.data_parallel
    samples = plan.micro_batch_size * (plan.num_microbatches if plan.pipeline_parallel > 1 else 1)
    assert found.training.local_batch_size == samples
    assert found.training.enable_cpu_offload == plan.offload_optimizer


def test_torchtitan_accepts_what_plans_say() -> None:
    pytest.importorskip("torchtitan.config.manager")
    for plan, _, exported in expressible("torchtitan"):
        check_torchtitan(exported, plan)


TITAN = {
    "llama-3.1-70b": {"tp": 8, "sp": True, "pp": 2, "vpp": 2, "zero": 3, "recompute": "full"},
    "qwen3-0.6b": {"zero": 3, "hsdp": 8},
    "qwen3-1.7b": {"cp": 2, "zero": 3, "context_kind": "all_gather"},
    "qwen3-14b": {"pp": 4, "zero": 2, "schedule": "gpipe"},
    "qwen3-32b": {"pp": 4, "zero": 2, "schedule": "zb-v"},
    "deepseek-v2-lite": {"ep": 8, "zero": 3},
    "deepseek-v3": {"ep": 16, "zero": 3},
    "gpt-oss-20b": {"ep": 4, "zero": 3},
    "gpt-oss-120b": {"ep": 8, "zero": 3, "offload_optimizer": True, "offload_parameters": True},
}


@pytest.mark.parametrize("model", TITAN)
def test_torchtitan_accepts_every_recipe(model: str) -> None:
    pytest.importorskip("torchtitan.config.manager")
    request = request_of(model, "4x8xH100", "fsdp", sequence_length=4096, global_batch_size=128)
    plan = plan_of(request, **TITAN[model])
    exported = export("torchtitan", plan, request)
    assert exported.unsupported == ()
    check_torchtitan(exported, plan)


@pytest.mark.parametrize(
    ("model", "precision"), [("llama-3.1-405b", "fp8"), ("deepseek-v3", "fp8"), ("llama-3.1-8b", "mxfp8")]
)
def test_torchtitan_accepts_its_eight_bit_recipes(model: str, precision: str) -> None:
    """Which look for a GPU, and for torchao."""
    pytest.importorskip("torchao")
    float8 = pytest.importorskip("torchtitan.components.quantization.float8")
    mx = pytest.importorskip("torchtitan.components.quantization.mx")
    job = {"sequence_length": 4096, "global_batch_size": 128, "precision": precision}
    request = request_of(model, "4x8xB200", "fsdp", **job)
    plan = plan_of(request, zero=3, recompute="full")
    exported = export("torchtitan", plan, request)
    assert exported.unsupported == ()
    with (
        mock.patch.object(float8, "has_cuda_capability", return_value=True),
        mock.patch.object(mx, "has_cuda_capability", return_value=True),
    ):
        check_torchtitan(exported, plan)


VERL = [
    ("grpo", "qwen2.5-1.5b", "4xH100-80GB", {"settings": {"reward": "external"}}),
    ("ppo", "qwen2.5-1.5b", "2x8xH100-80GB", {}),
    ("dapo", "qwen3-30b-a3b", "2x8xH100-80GB", {}),
    ("rloo", "llama-3-70b", "4x8xH100-80GB", {"generate": 4096}),
    ("reinforce++", "qwen2.5-1.5b", "4xH100-80GB", {"framework": "hf-fsdp"}),
    ("ppo", "qwen2.5-1.5b", "8xH100-80GB", {"framework": "hf-fsdp", "settings": {"reward": "external"}}),
]


@pytest.mark.parametrize(("job", "model", "cluster", "options"), VERL)
def test_verl_accepts(job: str, model: str, cluster: str, options: dict[str, Any]) -> None:
    """Its Hydra tree, its dataclasses, and what it checks before a run; models are not loaded."""
    pytest.importorskip("verl.workers.config", exc_type=ImportError)
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    result = planner.export_dataflow(job, model, cluster, format="verl", batch=64, **options)
    assert result.exported is not None
    assert result.flow.plan is not None
    words = script_words(result.exported)
    with initialize_config_module("verl.trainer.config", version_base=None):
        found = compose("ppo_trainer", overrides=words[words.index("verl.trainer.main_ppo") + 1 :])
    OmegaConf.resolve(found)
    OmegaConf.set_struct(found, False)
    found.critic.pop("model")  # loads a tokenizer
    names = {call.name for call in result.flow.plan.calls}
    assert need_critic(found) == ("critic_train" in names)
    assert need_reference_policy(found) == ("ref_inf" in names)
    validate_config(found, need_reference_policy(found), need_critic(found))
    rollout = omega_conf_to_dataclass(found.actor_rollout_ref.rollout)
    actor = omega_conf_to_dataclass(found.actor_rollout_ref.actor)
    train = next(call for call in result.flow.plan.calls if call.name == "actor_train")
    assert train.plan is not None
    assert actor.engine.strategy == ("fsdp" if "framework" in options else "megatron")
    assert actor.ppo_micro_batch_size_per_gpu == train.plan.micro_batch_size
    assert actor.ppo_mini_batch_size * rollout.n * train.mini_batches == train.sequences
    assert found.trainer.nnodes * found.trainer.n_gpus_per_node == train.num_gpus
