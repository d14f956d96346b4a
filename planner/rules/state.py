"""Rules on ZeRO and FSDP, recomputation, overlap and the order of the axes."""

import numpy as np

from costmodels.plan import AxisOrder, BoolArray, ExecutionPlan, PlanBatch, Recompute
from planner.rules.base import (
    ALL_OR_NONE,
    ARGUMENTS,
    DEEPSPEED,
    FRAMEWORK_TITLES,
    FRAMEWORKS,
    FSDP,
    HUGGINGFACE,
    MCORE,
    MEGATRON,
    NANOTRON,
    TITAN_DIMS,
    Rule,
    Setting,
    all_recomputed_or_none,
    columns,
    divisors,
    mask,
    one_of,
    splits_products,
)
from planner.rules.modules import CORE, module_names, overlapping, present_modules, unrepeatable_modules
from planner.rules.offload import FSDP_NEEDS, fsdp_wants, trainer_runs_fsdp

NO_QLORA = ("Megatron's parallel layers have no 4-bit weights", "task lora, or framework hf-trainer")

_TITAN_PARALLELIZE = "torchtitan parallelize_llama"
_SHARDING = columns("data_parallel", "context_parallel", "zero_stage", "zero_shard_degree")


def _ddp_alone(plans: PlanBatch, _setting: Setting) -> BoolArray:
    """Torchtitan replicates with DDP only when nothing else is parallel; else it is HSDP or FSDP."""
    model_degree = plans.tensor_parallel * plans.pipeline_parallel * plans.context_parallel
    replicas = plans.data_parallel * plans.context_parallel
    return mask((plans.zero_stage > 0) | (replicas == 1) | (model_degree == 1))


def _shards_divide(plans: PlanBatch, _setting: Setting) -> BoolArray:
    degree = plans.zero_shard_degree
    ranks = plans.data_parallel * plans.context_parallel
    return mask((degree == 0) | ((ranks % np.maximum(degree, 1) == 0) & (plans.zero_stage > 0)))


def _shards_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    ranks = plan.data_parallel * plan.context_parallel
    if plan.zero_stage == 0 and ranks % plan.zero_shard_degree == 0:
        return "needs zero_stage > 0", f"zero {1 if setting.framework == MEGATRON else 3}, or no shard degree"
    return f"must divide dp x cp = {ranks}; got {plan.zero_shard_degree}", one_of(divisors(ranks))


def _sharded_in_groups_by_fsdp(plans: PlanBatch, setting: Setting) -> BoolArray:
    return mask((plans.zero_shard_degree == 0) | trainer_runs_fsdp(plans, setting))


def _block_layers(plans: PlanBatch, setting: Setting) -> BoolArray:
    per_stage = -(-setting.model.num_layers // plans.pipeline_parallel)
    inside = (plans.recompute_layers >= 1) & (plans.recompute_layers <= per_stage)
    block = plans.recompute == int(Recompute.BLOCK)
    return mask(np.where(block, inside, plans.recompute_layers == 0))


def _modules_there(plans: PlanBatch, setting: Setting) -> BoolArray:
    there = int(present_modules(setting.model))
    exist = (
        ((plans.recompute_modules & ~there) == 0)
        & (plans.recompute_modules > 0)
        & ~overlapping(plans.recompute_modules)
    )
    return mask(np.where(plans.recompute == int(Recompute.SELECTIVE), exist, plans.recompute_modules == CORE))


def _modules_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    there = module_names(present_modules(setting.model))
    if plan.recompute != Recompute.SELECTIVE:
        return "needs recompute selective", f"selective:{there[-1]}"
    missing = [name for name in module_names(plan.recompute_modules) if name not in there]
    problem = f"{setting.model.name} has no {missing[0]}" if missing else "moe includes moe_act and shared_experts"
    return problem, " or ".join(there)


def _keeps_inputs(plans: PlanBatch, setting: Setting) -> BoolArray:
    repeated = (plans.recompute_modules & int(unrepeatable_modules(setting.job))) > 0
    return mask((plans.recompute != int(Recompute.SELECTIVE)) | ~repeated)


def _inputs_complaint(plan: ExecutionPlan, setting: Setting) -> tuple[str, str]:
    kept = int(unrepeatable_modules(setting.job))
    names, others = module_names(plan.recompute_modules & kept), module_names(plan.recompute_modules & ~kept)
    instead = f"selective:{','.join(others)}" if others else "none or full"
    return f"{' and '.join(names)} cannot be recomputed in fp8 with delayed scaling", f"recompute {instead}; or bf16"


def _stage_rule(name: str, framework: str, *, stages: tuple[int, ...], text: str, source: str, hint: str) -> Rule:
    """ZeRO stages a framework has at all."""
    return Rule(
        name=name,
        frameworks=(framework,),
        field="zero_stage",
        text=text,
        source=source,
        columns=columns("zero_stage"),
        holds=lambda plans, _setting: np.isin(plans.zero_stage, stages),
        complaint=lambda plan, _setting: (f"{text}; got {plan.zero_stage}", hint),
    )


STATE_RULES = (
    _stage_rule(
        "zero_stage_exists_nanotron",
        NANOTRON,
        stages=(0, 1),
        text="nanotron has ZeRO stages 0 and 1",
        source="nanotron optimizer.zero_stage and ZeroDistributedOptimizer",
        hint="zero 0 or 1",
    ),
    _stage_rule(
        "zero_stage_exists_fsdp",
        FSDP,
        stages=(0, 2, 3),
        text="PyTorch has DDP (0), FSDP kept gathered after forward (2) and FSDP (3)",
        source="torch.distributed.fsdp.fully_shard reshard_after_forward",
        hint="zero 0, 2 or 3",
    ),
    Rule(
        name="megatron_fsdp_excludes_pipeline",
        frameworks=(MEGATRON,),
        field="zero_stage",
        text="ZeRO 2 and 3 (Megatron-FSDP) are not combined with pipeline stages",
        source=f"{ARGUMENTS}: --use-torch-fsdp2 is not supported with pipeline parallelism; "
        "Megatron-FSDP presets use pp 1",
        columns=columns("pipeline_parallel", "zero_stage"),
        holds=lambda plans, _setting: (plans.zero_stage <= 1) | (plans.pipeline_parallel == 1),
        complaint=lambda plan, _setting: (
            f"{plan.zero_stage} is not combined with pipeline_parallel={plan.pipeline_parallel} in Megatron-LM",
            "zero 1 (the distributed optimizer), or pp 1",
        ),
    ),
    Rule(
        name="deepspeed_zero_excludes_pipeline",
        frameworks=(DEEPSPEED,),
        field="zero_stage",
        text="ZeRO 2 and 3 are not combined with pipeline stages",
        source="deepspeed/runtime/pipe/engine.py: ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism",
        columns=columns("pipeline_parallel", "zero_stage"),
        holds=lambda plans, _setting: (plans.zero_stage <= 1) | (plans.pipeline_parallel == 1),
        complaint=lambda plan, _setting: (
            f"{plan.zero_stage} is not combined with pipeline_parallel={plan.pipeline_parallel} in DeepSpeed",
            "zero 1, or pp 1",
        ),
    ),
    Rule(
        name="ddp_stands_alone",
        frameworks=(FSDP,),
        field="zero_stage",
        text="DDP (stage 0) is not combined with tensor, pipeline or context parallelism",
        source=f"{_TITAN_PARALLELIZE}: DDP has not supported > 1D parallelism",
        columns=columns("tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel", "zero_stage"),
        holds=_ddp_alone,
        complaint=lambda _plan, _setting: ("0 (DDP) is not combined with other parallelism", "zero 2 or 3"),
    ),
    Rule(
        name="shard_degree_divides",
        frameworks=(MEGATRON, FSDP, HUGGINGFACE),
        field="zero_shard_degree",
        text="the shard degree divides the dp x cp ranks, and there is something to shard",
        source="Megatron-LM --num-distributed-optimizer-instances; torchtitan data_parallel_shard_degree",
        columns=_SHARDING,
        holds=_shards_divide,
        complaint=_shards_complaint,
    ),
    Rule(
        name="shards_span_context",
        frameworks=(FSDP,),
        field="zero_shard_degree",
        text="a set of shards spans whole groups of context-parallel ranks",
        source=f"{TITAN_DIMS}: fsdp = self.dp_shard * self.cp; accelerate ParallelismConfig: dp_shard_cp",
        columns=columns("context_parallel", "zero_shard_degree"),
        holds=lambda plans, _setting: plans.zero_shard_degree % plans.context_parallel == 0,
        complaint=lambda plan, _setting: (
            f"must be a multiple of context_parallel={plan.context_parallel}; got {plan.zero_shard_degree}",
            f"hsdp {plan.context_parallel * -(-plan.zero_shard_degree // plan.context_parallel)}, or no shard degree",
        ),
    ),
    Rule(
        name="shard_degree_is_fsdps",
        frameworks=(HUGGINGFACE,),
        field="zero_shard_degree",
        text="a shard degree is FSDP2's (ZeRO 2 or 3), which moves weights along with the optimizer",
        source="accelerate ParallelismConfig dp_replicate_size and dp_shard_size; DeepSpeed 0.19.7 has no MiCS",
        columns=_SHARDING | columns("offload_optimizer", "offload_parameters"),
        holds=_sharded_in_groups_by_fsdp,
        complaint=lambda plan, setting: (
            f"is FSDP2's in the Hugging Face Trainer, with zero 2 or 3; got zero {plan.zero_stage}"
            if plan.zero_stage < 2
            else f"is FSDP2's: {FSDP_NEEDS}",
            f"no shard degree, or {fsdp_wants(setting)}",
        ),
    ),
    Rule(
        name="shard_degree_exists",
        frameworks=(DEEPSPEED, NANOTRON),
        field="zero_shard_degree",
        text="states are sharded over all data-parallel ranks",
        source="DeepSpeed 0.19.7, which has no MiCS (runtime/zero/mics.py) any more; nanotron ZeroDistributedOptimizer",
        columns=columns("zero_shard_degree"),
        holds=lambda plans, _setting: plans.zero_shard_degree == 0,
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} shards over all data-parallel ranks",
            "no shard degree, or framework megatron, fsdp or huggingface",
        ),
    ),
    Rule(
        name="recompute_block_divides_chunks",
        frameworks=(MEGATRON,),
        field="recompute_layers",
        text="with virtual stages, block:N recomputes as many layers of each of them: N is a multiple of vpp",
        source="Megatron-LM --recompute-num-layers with --recompute-method block: the number of layers per virtual "
        "pipeline stage (megatron/core/recompute.py, once for every model chunk)",
        columns=columns("virtual_stages", "recompute", "recompute_layers"),
        holds=lambda plans, _setting: mask(
            (plans.recompute != int(Recompute.BLOCK)) | (plans.recompute_layers % plans.virtual_stages == 0)
        ),
        complaint=lambda plan, _setting: (
            f"must be a multiple of virtual_stages={plan.virtual_stages}; got {plan.recompute_layers}",
            f"block:{plan.virtual_stages * -(-plan.recompute_layers // plan.virtual_stages)}, or vpp 1",
        ),
    ),
    Rule(
        name="recompute_block_exists",
        frameworks=(FSDP,),
        field="recompute",
        text="every layer is recomputed, or a part of each, or none",
        source="torchtitan/distributed/activation_checkpoint.py of 0.3.0: full and selective wrap every layer; "
        "accelerate fsdp_activation_checkpointing wraps all that it shards",
        columns=columns("recompute"),
        holds=lambda plans, _setting: mask(plans.recompute != int(Recompute.BLOCK)),
        complaint=lambda _plan, _setting: ("torchtitan recomputes all layers alike", "none, selective or full"),
    ),
    Rule(
        name="recompute_exists",
        frameworks=(NANOTRON, HUGGINGFACE),
        field="recompute",
        text="recomputation is none or full",
        source="nanotron parallelism.recompute_layer: bool; transformers gradient_checkpointing: bool",
        columns=columns("recompute"),
        holds=all_recomputed_or_none,
        complaint=lambda _plan, _setting: (ALL_OR_NONE, "none or full"),
    ),
    Rule(
        name="recompute_modules_named",
        frameworks=(DEEPSPEED, FSDP, NANOTRON, HUGGINGFACE),
        field="recompute_modules",
        text="selective recomputation repeats the attention core, with torchtitan all but every other product",
        source="Megatron-Core alone has --recompute-modules; torchtitan selective_ac_option",
        columns=columns("recompute_modules"),
        holds=lambda plans, _setting: plans.recompute_modules == CORE,
        complaint=lambda _plan, setting: (f"{setting.framework} cannot be told which modules", "core_attn"),
    ),
    Rule(
        name="recompute_modules_there",
        frameworks=(MEGATRON,),
        field="recompute_modules",
        text="modules are recomputed by recompute selective, exist in the model, and are named once",
        source=f"{MCORE}: mla_up_proj is only supported with multi_latent_attention; shared_experts and moe_act need "
        "them; moe includes both",
        columns=columns("recompute", "recompute_modules"),
        holds=_modules_there,
        complaint=_modules_complaint,
    ),
    Rule(
        name="delayed_scaling_keeps_inputs",
        frameworks=(MEGATRON,),
        field="recompute_modules",
        text="in fp8 (delayed scaling) neither norms nor activations of experts are recomputed",
        source=f"{MCORE}: Delayed scaling does not support moe_act and layernorm recompute for fp8; fp8_recipe is "
        "delayed unless given",
        columns=columns("recompute", "recompute_modules"),
        holds=_keeps_inputs,
        complaint=_inputs_complaint,
    ),
    Rule(
        name="recompute_block_within_stage",
        frameworks=FRAMEWORKS,
        field="recompute_layers",
        text="block:N names 1 to all layers of a stage; other modes name none",
        source="Megatron-LM --recompute-method block --recompute-num-layers",
        columns=columns("pipeline_parallel", "recompute", "recompute_layers"),
        holds=_block_layers,
        complaint=lambda plan, setting: (
            f"must be between 1 and the {-(-setting.model.num_layers // plan.pipeline_parallel)} layers of a stage; "
            f"got {plan.recompute_layers}"
            if plan.recompute == Recompute.BLOCK
            else f"must be 0 with recompute {plan.recompute.name.lower()}; got {plan.recompute_layers}",
            "block:1, or full",
        ),
    ),
    Rule(
        name="tensor_overlap_needs_sequence_parallel",
        frameworks=(MEGATRON, NANOTRON),
        field="tensor_parallel_overlap",
        text="overlapping tensor-parallel communication needs sequence parallelism",
        source=f"{ARGUMENTS}: overlap can happen only when sequence parallelism is enabled; "
        "nanotron tp_linear_async_communication with REDUCE_SCATTER",
        columns=columns("sequence_parallel", "tensor_parallel_overlap"),
        holds=lambda plans, _setting: ~plans.tensor_parallel_overlap | plans.sequence_parallel,
        complaint=lambda _plan, _setting: ("needs sequence_parallel", "sequence_parallel on"),
    ),
    Rule(
        name="tensor_overlap_needs_nvlink",
        frameworks=(MEGATRON,),
        field="tensor_parallel_overlap",
        text="overlapping tensor-parallel communication needs NVLink within the tensor-parallel group",
        source="NVIDIA/TransformerEngine examples/pytorch/comm_gemm_overlap/README.md: tensor-parallel GPUs must be on "
        "a single node, and connected over NVLink/NVSwitch",
        columns=columns("tensor_parallel", "tensor_parallel_overlap"),
        holds=lambda plans, setting: ~plans.tensor_parallel_overlap | (plans.tensor_parallel <= setting.joined_devices),
        complaint=lambda plan, setting: (
            f"needs NVLink between {plan.tensor_parallel} devices; it joins {setting.joined_devices}",
            "tensor_parallel_overlap off",
        ),
    ),
    Rule(
        name="tensor_overlap_has_formats",
        frameworks=(MEGATRON,),
        field="tensor_parallel_overlap",
        text="tensor-parallel communication is not overlapped in 4 bits",
        source="NVIDIA/TransformerEngine transformer_engine/pytorch/module/base.py: Unsupported quantizer for "
        "Userbuffers; NVIDIA-NeMo/Megatron-Bridge llama3_llm_pretrain.py: tp_comm_overlap False with nvfp4",
        columns=columns("tensor_parallel_overlap"),
        holds=lambda plans, setting: ~plans.tensor_parallel_overlap | splits_products(setting.job),
        complaint=lambda _plan, setting: (
            f"Transformer Engine overlaps none in {setting.job.precision}",
            "tensor_parallel_overlap off",
        ),
    ),
    Rule(
        name="axis_order_exists",
        frameworks=(DEEPSPEED, FSDP, NANOTRON, HUGGINGFACE),
        field="axis_order",
        text="pipeline stages are the outermost axis",
        source="DeepSpeed PipeModelDataParallelTopology (pipe, data, model); torchtitan mesh (pp, dp, cp, tp); "
        "nanotron ParallelContext",
        columns=columns("axis_order"),
        holds=lambda plans, _setting: plans.axis_order == int(AxisOrder.TP_CP_DP_PP),
        complaint=lambda _plan, setting: (
            f"{setting.framework} places pipeline stages outermost",
            "tp_cp_dp_pp",
        ),
    ),
    Rule(
        name="weights_are_read_whole",
        frameworks=(HUGGINGFACE,),
        field="zero_stage",
        text="Unsloth does not run with sharded weights (ZeRO 3)",
        source="LLaMA-Factory, src/llamafactory/hparams/parser.py: Unsloth is incompatible with DeepSpeed ZeRO-3; "
        "unsloth/kernels/fast_lora.py reads proj.weight past what gathers it",
        columns=columns("zero_stage"),
        holds=lambda plans, setting: mask((plans.zero_stage <= 2) | setting.shards_weights),
        complaint=lambda _plan, _setting: (
            "3 shards weights, which Unsloth's kernels read whole",
            "zero 0 to 2, or framework huggingface",
        ),
    ),
    Rule(
        name="qlora_is_not_of_megatron",
        frameworks=(MEGATRON,),
        field="job.task",
        text="adapters go on weights in 16 bits",
        source="Megatron-Bridge, src/megatron/bridge/peft/lora.py, LoRA.transform: bitsandbytes' quant_state is looked "
        "for on torch's and Transformer Engine's plain linears, not on the parallel ones of Megatron's models",
        columns=columns(),
        holds=lambda plans, setting: np.full(len(plans), setting.job.task != "qlora", dtype=np.bool_),
        complaint=lambda _plan, _setting: NO_QLORA,
    ),
    Rule(
        name="qlora_not_model_parallel",
        frameworks=(DEEPSPEED, FSDP, HUGGINGFACE),
        field="tensor_parallel",
        text="4-bit base weights are split neither over tensor ranks nor over pipeline stages, nor are experts spread",
        source="Hugging Face PEFT documentation: QLoRA with FSDP or DeepSpeed ZeRO (bitsandbytes)",
        columns=columns("tensor_parallel", "pipeline_parallel", "expert_parallel"),
        holds=lambda plans, setting: mask(
            (plans.tensor_parallel * plans.pipeline_parallel * plans.expert_parallel == 1)
            | (setting.job.task != "qlora")
        ),
        complaint=lambda _plan, _setting: ("4-bit weights are not split over tp, pp or ep", "tp 1, pp 1 and ep 1"),
        also=("pipeline_parallel", "expert_parallel"),
    ),
)
