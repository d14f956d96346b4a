"""Plans that NVIDIA publishes for its own GPUs: rows of ``data/expert_plans.csv`` as questions to the planner.

A row holds what a preset of Megatron-Bridge's performance recipes sets; its address names the commit. What presets of a
family share stands in the scripts beside them (NVIDIA-NeMo/Megatron-Bridge, scripts/performance/configs):

- sequence lengths: set_llama3_common_configs and set_qwen3_common_configs (llama3_llm_pretrain.py at 2a0d46e,
  qwen3_llm_pretrain.py at 05c0c90), llama3_llm_finetune.py at 0b928cd, gpt_oss.py at 07b4a58;
- gradients are summed in bf16 (grad_reduce_in_fp32 False, ibidem) and the loss is Transformer Engine's, which makes no
  fp32 logits (cross_entropy_fusion_impl, scripts/performance/utils/overrides.py);
- moments of DeepSeek-V3 are bf16 (recipes/deepseek/deepseek_v3.py at 05d003f), Kimi K2 has Muon, which keeps one
  (recipes/kimi/kimi_k2.py at 0350b4e): asked as SGD with momentum, which has as many;
- embedding and loss count as a layer each in Llama-3.1-405B and Qwen3-235B (account_for_embedding_in_pipeline_split),
  layouts of DeepSeek-V3 and Kimi K2 are listed in their recipes (layout_map, _get_kimi_k2_pipeline_layout);
- NVFP4, DeepSeek-V3 and Qwen3-235B on H100 split no tensor-parallel traffic (tp_comm_overlap False, ibidem);
- adapters have rank 16 and sit on all linear layers (llama3_70b_finetune_config in recipes/llama/llama3.py).

``recompute_layers_per_chunk`` is ``recompute_num_layers`` of method ``block``, which counts in every model chunk,
``ep`` the degree of experts, whose tensors are whole (expert_tensor_parallel_size 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from planner.validate.tables.published import optional_int, packaged_rows

TABLE = "expert_plans.csv"
_NUMBERS = ("num_gpus", "sequence_length", "global_batch", "micro_batch", "tp", "pp", "vpp", "cp", "ep")
_OPTIONAL = ("recompute_layers_per_chunk", "first_stage_layers", "last_stage_layers", "offloaded_layers")
_ONE_MOMENT = {"muon": "sgd"}  # optimizers that the planner has not, and one with as many moments
# Dispatchers of tokens whose kernels the stack stands for; "flex" leaves open which.
_OWN_KERNELS = ("hybridep", "deepep", "flex")
_FAMILIES = {"llama": "Llama 3", "qwen3": "Qwen3", "deepseek": "DeepSeek-V3", "gpt-oss": "gpt-oss", "kimi": "Kimi K2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPlan:
    """One published plan.

    Attributes:
        recipe: Name of the preset.
        address: Where it stands.
        family: Of the model, for people.
        gpu: Short name of the GPU.
        offloaded_layers: Layers whose activations go to the host; None where none do.
        framework: Stack that runs it.
        question: ``model``, ``cluster`` and ``job`` as ``planner.plan`` takes them.
        pins: What the preset fixes of the plan.
        names_modules: Whether it recomputes named modules of layers.
    """

    recipe: str
    address: str
    family: str
    gpu: str
    offloaded_layers: int | None
    framework: str
    question: Mapping[str, Any]
    pins: Mapping[str, Any]
    names_modules: bool


@lru_cache(maxsize=2)
def expert_plans(table: str = TABLE) -> tuple[ExpertPlan, ...]:
    """All rows of a table of plans, in its order."""
    return tuple(_plan(cells) for cells in packaged_rows(table))


def _plan(cells: Mapping[str, str]) -> ExpertPlan:
    numbers = {name: int(cells[name]) for name in _NUMBERS}
    optional = {name: optional_int(cells[name]) for name in _OPTIONAL}
    model = cells["model"]
    return ExpertPlan(
        recipe=cells["recipe"],
        address=cells["address"],
        family=next(name for word, name in _FAMILIES.items() if model.startswith(word)),
        gpu=cells["gpu"],
        offloaded_layers=optional["offloaded_layers"],
        framework=_framework(cells),
        question={
            "model": model,
            "cluster": f"{numbers['num_gpus']}x{cells['gpu']}",
            "job": _job(cells, numbers),
        },
        pins=_pins(cells, numbers, optional),
        names_modules=cells["recompute"] not in ("", "block"),
    )


def _framework(cells: Mapping[str, str]) -> str:
    words = ["megatron-core"]
    if cells["dispatcher"] in _OWN_KERNELS:
        words.append("hybrid-ep")
    elif cells["expert_overlap"]:
        words.append("ep")
    return "-".join([*words, *(["overlap"] if cells["expert_overlap"] else [])])


def _job(cells: Mapping[str, str], numbers: Mapping[str, int]) -> Mapping[str, Any]:
    job = {
        "task": cells["task"],
        "precision": cells["precision"],
        "sequence_length": numbers["sequence_length"],
        "global_batch_size": numbers["global_batch"],
        "optimizer": _ONE_MOMENT.get(cells["optimizer"], cells["optimizer"]),
        "state_dtype": cells["moments"],
        "gradient_dtype": "bf16",
        "fused_cross_entropy": True,
    }
    return job | ({"lora_rank": 16} if cells["task"] == "lora" else {})


def _pins(
    cells: Mapping[str, str], numbers: Mapping[str, int], optional: Mapping[str, int | None]
) -> Mapping[str, Any]:
    pins: dict[str, Any] = {name: numbers[name] for name in ("tp", "pp", "vpp", "cp", "ep", "micro_batch")}
    replicas = numbers["num_gpus"] // (numbers["tp"] * numbers["pp"])  # those of a context-parallel group among them
    pins |= {"sp": numbers["tp"] > 1, "zero": 3 if cells["fsdp"] else int(replicas > 1)}
    if cells["tensor_overlap"] == "no":
        pins["tensor_parallel_overlap"] = False
    if numbers["ep"] > 1:
        pins["etp"] = 1
    each = optional["recompute_layers_per_chunk"]
    if each is not None:
        pins["recompute"] = f"block:{each * numbers['vpp']}"
    else:
        pins["recompute"] = f"selective:{cells['recompute']}" if cells["recompute"] else "none"
    pins |= {name: optional[name] for name in ("first_stage_layers", "last_stage_layers") if optional[name]}
    if optional["offloaded_layers"]:
        pins["offload_activations"] = True  # of all layers, where the recipe offloads some
    return pins
