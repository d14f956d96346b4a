"""Options of Megatron-LM as fields of Megatron-Bridge's configuration, in the words of Hydra.

Both configure Megatron-Core, so that what ``megatron_lm`` decides about a plan is said here in other words, and decided
nowhere else. Target: Megatron-Bridge 0.6 on megatron-core 0.19: ``src/megatron/bridge/training/config.py``
(``ConfigContainer``), ``models/gpt_provider.py``, and of ``megatron/core`` ``transformer/transformer_config.py``,
``model_parallel_config.py``, ``optimizer/optimizer_config.py``, ``distributed/distributed_data_parallel_config.py``.
"""

from collections.abc import Iterable

from profiles.model import ModelSpec

# Sections of options whose fields have their name; those of all others are of the model.
_SECTIONS = {
    "train": ("micro-batch-size", "global-batch-size"),
    "ddp": (
        *("overlap-grad-reduce", "use-megatron-fsdp", "data-parallel-sharding-strategy"),
        *("num-distributed-optimizer-instances", "megatron-fsdp-main-grads-dtype", "megatron-fsdp-main-params-dtype"),
    ),
    "optimizer": (
        *("optimizer", "optimizer-cpu-offload", "optimizer-offload-fraction", "use-precision-aware-optimizer"),
        *("main-params-dtype", "exp-avg-dtype", "exp-avg-sq-dtype"),
    ),
    "checkpoint": ("ckpt-format",),
    "dist": ("use-tp-pp-dp-mapping",),
}
_SECTION_OF = {f"--{name}": section for section, names in _SECTIONS.items() for name in names}
# Fields of another name, or several of them.
_FIELDS = {
    "--seq-length": ("model.seq_length", "dataset.seq_length"),
    "--num-experts": ("model.num_moe_experts",),
    "--num-virtual-stages-per-pipeline-rank": ("model.virtual_pipeline_model_parallel_size",),
    "--decoder-first-pipeline-num-layers": ("model.num_layers_in_first_pipeline_stage",),
    "--decoder-last-pipeline-num-layers": ("model.num_layers_in_last_pipeline_stage",),
    "--use-distributed-optimizer": ("ddp.use_distributed_optimizer", "optimizer.use_distributed_optimizer"),
    "--delay-wgrad-compute": ("model.delay_wgrad_compute", "ddp.delay_wgrad_compute"),
    "--overlap-param-gather": ("ddp.overlap_param_gather", "optimizer.overlap_param_gather"),
    "--fp8-format": ("model.fp8",),
    "--fp8-recipe": ("model.fp8_recipe", "optimizer.fp8_recipe"),
    "--fp8-param-gather": ("model.fp8_param", "ddp.fp8_param_gather"),
    "--reuse-grad-buf-for-mxfp8-param-ag": (
        *("ddp.reuse_grad_buf_for_mxfp8_param_ag", "optimizer.reuse_grad_buf_for_mxfp8_param_ag"),
    ),
    "--fp4-format": ("model.fp4",),
    "--cpu-offloading-num-layers": ("model.cpu_offloading_num_layers",),
}
# What an option says in several fields, whatever its value.
_SAID = {
    "--use-megatron-fsdp": {"dist.use_megatron_fsdp": "true"},
    "--cpu-offloading-num-layers": {"model.cpu_offloading": "true"},
    "--swiglu": {"model.gated_linear_unit": "true", "model.activation_func": "silu"},
    "--untie-embeddings-and-output-weights": {"model.share_embeddings_and_output_weights": "false"},
    "--disable-bias-linear": {"model.add_bias_linear": "false"},
    # A graph of the whole iteration draws random numbers by Transformer Engine's tracker (models/gpt_provider.py).
    "--cuda-graph-impl": {"model.use_te_rng_tracker": "true"},
    "--no-check-for-nan-in-loss-and-grad": {
        "ddp.check_for_nan_in_grad": "false",
        "rerun_state_machine.check_for_nan_in_loss": "false",
    },
}
_ONLY_SAID = (
    *("--swiglu", "--untie-embeddings-and-output-weights", "--disable-bias-linear"),
    "--no-check-for-nan-in-loss-and-grad",
)
# Said by other means: formats by ``precision``, kernels by ``attention_variables``, lengths by ``train_iters``; the
# number of key and value heads is enough, a table of positions is as long as the sequence, and what no model but that
# of a recipe has is refused or the recipe's.
_ELSEWHERE = (
    *("--bf16", "--fp16", "--grad-reduce-in-bf16", "--accumulate-allreduce-grads-in-fp32", "--attention-backend"),
    *("--train-samples", "--group-query-attention", "--max-position-embeddings", "--moe-layer-freq"),
    *("--multi-latent-attention", "--q-lora-rank", "--kv-lora-rank", "--qk-head-dim", "--qk-pos-emb-head-dim"),
    *("--v-head-dim", "--experimental-attention-variant", "--linear-attention-freq", "--linear-num-key-heads"),
    *("--linear-num-value-heads", "--linear-key-head-dim", "--linear-value-head-dim", "--linear-conv-kernel-dim"),
    *(
        "--dsa-indexer-n-heads",
        "--dsa-indexer-head-dim",
        "--dsa-indexer-topk",
        "--dsa-kernel-backend",
        "--no-rope-fusion",
    ),
)
_LISTS = ("--recompute-modules",)
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "uint8"}
# Formats that have no default to be converted to (``_apply_overrides`` of training/utils/omegaconf_utils.py).
_OBJECTS = ("--megatron-fsdp-main-grads-dtype",)
_NAMED_PRECISION = {("bf16", True): "bf16_mixed", ("fp16", False): "fp16_mixed"}  # training/mixed_precision.py
# What recipes of models set, as it is where a plan does not ask for it.
UNSAID = {
    "model.sequence_parallel": "false",
    "model.tp_comm_overlap": "false",
    "model.virtual_pipeline_model_parallel_size": "null",
    "model.pipeline_model_parallel_layout": "null",
    "model.num_layers_in_first_pipeline_stage": "null",
    "model.num_layers_in_last_pipeline_stage": "null",
    "model.account_for_embedding_in_pipeline_split": "false",
    "model.account_for_loss_in_pipeline_split": "false",
    "model.recompute_granularity": "null",
    "model.recompute_method": "null",
    "model.recompute_num_layers": "null",
    "model.recompute_modules": "null",
    "model.cross_entropy_loss_fusion": "false",
    "ddp.use_distributed_optimizer": "false",
    "ddp.overlap_grad_reduce": "false",
    "ddp.overlap_param_gather": "false",
    "optimizer.use_distributed_optimizer": "false",
    "optimizer.overlap_param_gather": "false",
    "optimizer.use_precision_aware_optimizer": "false",
    "optimizer.main_grads_dtype": "torch.float32",
    "optimizer.main_params_dtype": "torch.float32",
    "optimizer.exp_avg_dtype": "torch.float32",
    "optimizer.exp_avg_sq_dtype": "torch.float32",
}
_OF_MIXTURES = {
    "model.moe_grouped_gemm": "false",
    "model.moe_shared_expert_overlap": "false",
    "model.overlap_moe_expert_parallel_comm": "false",
    "model.delay_wgrad_compute": "false",
    "ddp.delay_wgrad_compute": "false",
}


def overrides(options: Iterable[list[str]]) -> dict[str, str]:
    """Field to its value of Megatron-LM's options.

    Args:
        options: Options, each with its values; one entry may hold several.
    """
    found: dict[str, str] = {}
    for name, values in _flags(options).items():
        if name in _ELSEWHERE:
            continue
        found |= _SAID.get(name, {})
        if name in _ONLY_SAID:
            continue
        own = name.removeprefix("--").replace("-", "_")
        for field in _FIELDS.get(name, (f"{_SECTION_OF.get(name, 'model')}.{own}",)):
            found[field] = _value(name, values)
    return found


def with_defaults(found: dict[str, str], model: ModelSpec) -> dict[str, str]:
    """Overrides, and what recipes set otherwise where these do not say it."""
    unsaid = UNSAID | (_OF_MIXTURES if model.moe is not None else {})
    return found | {field: value for field, value in unsaid.items() if field not in found}


def precision(options: Iterable[list[str]]) -> dict[str, str]:
    """Formats: one of Megatron-Bridge's names, or no name and fields where it has none that says the same.

    Its names of 8 and 4 bits keep and gather weights in these, too, whatever the plan; fields do where that was priced.
    """
    flags = _flags(options)
    name = "fp16" if "--fp16" in flags else "bf16" if "--bf16" in flags else "fp32"
    longer = "--accumulate-allreduce-grads-in-fp32" in flags or (
        name != "fp16" and "--grad-reduce-in-bf16" not in flags and "--use-megatron-fsdp" not in flags
    )
    longer |= flags.get("--megatron-fsdp-main-grads-dtype") == ["fp32"]
    low = {"--fp8-format", "--fp4-format"} & flags.keys()
    named = None if low else _NAMED_PRECISION.get((name, longer))
    if named is not None:
        return {"mixed_precision": named}
    held = f"torch.{_DTYPES[name]}"
    formats = {
        f"{part}.{each}": str(each == name).lower() for part in ("model", "optimizer") for each in ("bf16", "fp16")
    }
    return {
        "mixed_precision": "null",
        **formats,
        "model.params_dtype": held,
        "model.pipeline_dtype": held,
        "optimizer.params_dtype": held,
        "ddp.grad_reduce_in_fp32": str(longer).lower(),
    }


def attention_variables(options: Iterable[list[str]]) -> dict[str, str]:
    """Variables by which Transformer Engine picks a kernel, as ``LanguageModule._set_attention_backend`` sets them.

    It compares the field with members of an enumeration, which an override cannot name.
    """
    asked = _flags(options)["--attention-backend"][0]
    kernels = ("flash", "fused", "unfused")
    return {f"NVTE_{name.upper()}_ATTN": str(int(name == asked)) for name in kernels} if asked in kernels else {}


def shape_defaults(model: ModelSpec) -> dict[str, str]:
    """What ``pretrain_gpt.py`` has and a bare provider has not: fused kernels (megatron/training/arguments.py)."""
    return {
        "model.bias_activation_fusion": str(model.gated_mlp or model.mlp_bias).lower(),
        "model.bias_dropout_fusion": "true",
        "model.persist_layer_norm": "true",
        "model.apply_rope_fusion": str(not model.learned_positions).lower(),
    }


def _flags(options: Iterable[list[str]]) -> dict[str, list[str]]:
    """Option to its values."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in (word for option in options for word in option):
        if word.startswith("--"):
            name = word
            found[name] = []
        else:
            found[name].append(word)
    return found


def _value(name: str, values: list[str]) -> str:
    if name in _LISTS:
        return f"[{','.join(values)}]"
    if not values:
        return "true"
    (value,) = values
    if name == "--window-size":
        return f"[{value}]"
    if not name.endswith("-dtype"):
        return value
    held = f"torch.{_DTYPES[value]}"
    return f"{{_target_:{held},_call_:false}}" if name in _OBJECTS or value == "fp8" else held
