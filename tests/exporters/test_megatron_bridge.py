"""What Megatron-Core and Hydra say of exports to Megatron-Bridge, where they are installed; no GPU is needed.

``pip install megatron-core hydra-core`` (megatron-core 0.19 on Python 3.12). Megatron-Bridge itself needs Transformer
Engine to be imported.
"""

import dataclasses
from typing import Any
from unittest import mock

import pytest

from costmodels.plan import ExecutionPlan
from planner.exporters.exported import Exported
from planner.exporters.megatron_bridge import BARE
from planner.results import Request
from tests.exported import QUESTIONS, export, overrides, plan_of, request_of, script_words, some_plans

pytestmark = pytest.mark.filterwarnings("ignore")
# Fields of Megatron-Bridge's GPTModelProvider that its base, Megatron-Core's TransformerConfig, has not.
PROVIDERS = {"position_embedding_type", "seq_length", "share_embeddings_and_output_weights", "use_te_rng_tracker"}
# What a recipe knows of a model, as far as it constrains a plan.
SHAPE = ("num_layers", "hidden_size", "num_attention_heads")
JOB: dict[str, Any] = {"sequence_length": 4096, "global_batch_size": 512}
MORE = [
    ("llama-2-13b", "8xA100", "megatron", {"state_dtype": "bf16", "master_dtype": "fp16"}, {"zero": 1}),
    ("llama-2-13b", "8xB200", "megatron", {"precision": "mxfp8"}, {"zero": 1, "tp": 2}),
    ("llama-2-13b", "8xB200", "megatron", {"precision": "nvfp4"}, {"zero": 1}),
    ("llama-2-13b", "8xH100", "megatron", {"precision": "fp8"}, {"zero": 3}),
    ("mixtral-8x7b", "2x8xH100", "megatron-core-hybrid-ep-overlap", {}, {"ep": 8}),
    ("mixtral-8x7b", "2x8xH100", "megatron-core-token-drop", {}, {"ep": 8}),
    ("llama-2-13b", "2x8xH100", "megatron-core-full-graphs", {}, {"zero": 1}),
    ("gpt3-13b", "2x8xA100-80GB", "megatron", {"sequence_length": 2048, "dropout": True}, {"pp": 2}),
]


def exports() -> list[tuple[ExecutionPlan, Request, Exported]]:
    pairs = [pair for each in QUESTIONS if each[0] == "megatron_bridge" for pair in some_plans(40, *each[1:])]
    for model, cluster, framework, job, pins in MORE:
        request = request_of(model, cluster, framework, **JOB | job)
        pairs.append((plan_of(request, **pins), request))
    made = [(plan, request, export("megatron_bridge", plan, request)) for plan, request in pairs]
    return [each for each in made if not each[2].unsupported]


def test_hydra_reads_every_override() -> None:
    parser = pytest.importorskip("hydra.core.override_parser.overrides_parser")
    for _, _, exported in exports():
        words = [word for word in script_words(exported) if "=" in word]
        read = parser.OverridesParser.create().parse_overrides(words)
        found = {each.key_or_group: each.value() for each in read}
        assert found.keys() == overrides(words).keys()
        assert isinstance(found["model.tensor_model_parallel_size"], int)


def values(exported: Exported) -> dict[str, dict[str, Any]]:
    """Section to fields, as ``process_config_with_overrides`` of Megatron-Bridge has them."""
    import torch
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = [word for word in script_words(exported) if "=" in word]
    found: dict[str, dict[str, Any]] = {}
    for each in OverridesParser.create().parse_overrides(words):
        section, _, name = each.key_or_group.rpartition(".")
        value = each.value()
        if isinstance(value, dict):
            value = value["_target_"]
        if isinstance(value, str) and value.startswith("torch."):
            value = getattr(torch, value.removeprefix("torch."))
        found.setdefault(section, {})[name] = value
    if found[""]["mixed_precision"] == "bf16_mixed":
        formats = {"bf16": True, "params_dtype": torch.bfloat16}
        found["model"] |= formats | {"pipeline_dtype": torch.bfloat16}
        found["optimizer"] |= formats
        found["ddp"]["grad_reduce_in_fp32"] = True
    return found


def check(plan: ExecutionPlan, request: Request, exported: Exported) -> None:
    """Megatron-Core's own classes take the fields, and check them."""
    import torch
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig
    from megatron.core.transformer import transformer_config

    found = values(exported)
    model = {name: value for name, value in found["model"].items() if name not in PROVIDERS}
    model.pop("attention_backend")
    model.pop("apply_rope_fusion", None)  # wants Transformer Engine
    if "activation_func" in model:
        model["activation_func"] = getattr(torch.nn.functional, model["activation_func"])
    if f"--recipe {BARE} " not in exported.launch:
        model |= {name: getattr(request.model, name) for name in SHAPE}
        if request.model.moe is not None:
            model |= {"num_moe_experts": request.model.moe.num_experts, "add_bias_linear": False}
    with (
        mock.patch.object(transformer_config, "is_te_min_version", return_value=True),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
    ):
        built = transformer_config.TransformerConfig(**model)
    assert built.tensor_model_parallel_size == plan.tensor_parallel
    assert (built.virtual_pipeline_model_parallel_size or 1) == plan.virtual_stages
    assert built.bf16 == (request.job.precision not in ("fp16", "fp32"))
    if not found["optimizer"]["use_precision_aware_optimizer"]:  # which wants Transformer Engine's Adam
        OptimizerConfig(**found["optimizer"])
    assert found["optimizer"].keys() <= {field.name for field in dataclasses.fields(OptimizerConfig)}
    assert DistributedDataParallelConfig(**found["ddp"]).use_distributed_optimizer == (plan.zero_stage > 0)
    known = {field.name for field in dataclasses.fields(transformer_config.TransformerConfig)}
    assert found["model"].keys() - PROVIDERS <= known


def test_megatron_core_takes_what_plans_say() -> None:
    pytest.importorskip("hydra")
    pytest.importorskip("megatron.core.transformer.transformer_config", exc_type=ImportError)
    for plan, request, exported in exports():
        check(plan, request, exported)
