"""Rules on optimizers, checkpoints and weights that are on the host."""

from costmodels.plan import BoolArray, PlanBatch, Recompute
from planner.rules.base import (
    ACCELERATE_ALONE,
    ACCELERATE_COLUMNS,
    ARGUMENTS,
    DEEPSPEED,
    FRAMEWORK_TITLES,
    FSDP,
    HUGGINGFACE,
    MCORE,
    MEGATRON,
    NANOTRON,
    PRECISION_AWARE,
    Rule,
    Setting,
    accelerate_runs,
    accelerate_wants,
    columns,
    mask,
    recomputes_layers,
)
from planner.rules.formats import of_fsdp


def moves_together(plans: PlanBatch) -> BoolArray:
    """(N,) whether weights are on the host if the optimizer is, as FSDP2 moves them; gathered ones (2) stay."""
    return mask(plans.offload_parameters == (plans.offload_optimizer & (plans.zero_stage == 3)))


def trainer_runs_fsdp(plans: PlanBatch, setting: Setting) -> BoolArray:
    """(N,) whether the Trainer runs plans under FSDP2: weights are moved along with the optimizer, if at all."""
    several = setting.num_devices > 1  # accelerate launch starts a single process undistributed
    return mask(moves_together(plans) & (plans.zero_stage >= 2) & of_fsdp(setting.job) & several)


def fsdp_wants(setting: Setting) -> str:
    """What would let the Trainer run a sharded plan under FSDP2."""
    if not of_fsdp(setting.job):
        return "master_dtype fp32"
    return "zero 3 with offload_optimizer and offload_parameters both on, or both off"


FSDP_NEEDS = "fp32 master weights; weights (zero 3) and optimizer both on the host, or neither"


def _distributed_if_offloaded(plans: PlanBatch, setting: Setting) -> BoolArray:
    other = plans.zero_stage <= 1 if setting.own_optimizer else plans.zero_stage == 1
    return mask(~plans.offload_optimizer | (other & (setting.own_optimizer or setting.job.optimizer != "sgd")))


OFFLOAD_RULES = (
    Rule(
        name="offload_optimizer_needs_zero",
        frameworks=(DEEPSPEED, HUGGINGFACE),
        field="offload_optimizer",
        text="offloading the optimizer needs ZeRO 1, 2 or 3",
        source="deepspeed/runtime/zero/config.py offload_optimizer (ZeRO-Offload, arXiv:2101.06840)",
        columns=columns("zero_stage", "offload_optimizer"),
        holds=lambda plans, _setting: ~plans.offload_optimizer | (plans.zero_stage >= 1),
        complaint=lambda _plan, _setting: ("needs zero_stage >= 1", "zero 1, 2 or 3"),
    ),
    Rule(
        name="offload_optimizer_needs_fsdp",
        frameworks=(FSDP,),
        field="offload_optimizer",
        text="offloading the optimizer needs FSDP",
        source="torch.distributed.fsdp CPUOffloadPolicy; torchtitan training.enable_cpu_offload",
        columns=columns("zero_stage", "offload_optimizer"),
        holds=lambda plans, _setting: ~plans.offload_optimizer | (plans.zero_stage >= 2),
        complaint=lambda _plan, _setting: ("needs FSDP", "zero 2 or 3"),
    ),
    Rule(
        name="offload_optimizer_needs_distributed_optimizer",
        frameworks=(MEGATRON,),
        field="offload_optimizer",
        text="the optimizer is offloaded with the distributed optimizer (ZeRO 1) and Adam only",
        source=f"{ARGUMENTS}: the optimizer cpu offload must be used in conjunction with "
        f"--use-precision-aware-optimizer; {PRECISION_AWARE}; its Megatron-FSDP adapter does not currently support "
        "optimizer CPU offload",
        columns=columns("zero_stage", "offload_optimizer"),
        holds=_distributed_if_offloaded,
        complaint=lambda plan, _setting: (
            ("needs Adam in Megatron-LM", "optimizer adamw")
            if plan.zero_stage == 1
            else (f"needs the distributed optimizer (zero 1) in Megatron-LM; got zero {plan.zero_stage}", "zero 1")
        ),
    ),
    Rule(
        name="offload_exists",
        frameworks=(NANOTRON,),
        field="offload_optimizer",
        text="nothing is offloaded",
        source="nanotron has no offload option",
        columns=columns("offload_optimizer", "offload_activations"),
        holds=lambda plans, _setting: ~plans.offload_optimizer & ~plans.offload_activations,
        complaint=lambda _plan, _setting: ("nanotron offloads nothing", "offload off"),
        also=("offload_activations",),
    ),
    Rule(
        name="offload_activations_alone",
        frameworks=(MEGATRON,),
        field="offload_activations",
        text="activations are offloaded without pipeline stages and without recomputation",
        source=f"{MCORE}: no support for Pipeline parallelism with CPU offloading; "
        "CPU offloading does not work when activation recomputation is enabled",
        columns=columns("pipeline_parallel", "recompute", "offload_activations"),
        holds=lambda plans, _setting: (
            ~plans.offload_activations | ((plans.pipeline_parallel == 1) & (plans.recompute == int(Recompute.NONE)))
        ),
        complaint=lambda _plan, _setting: (
            "is not combined with pipeline stages or recomputation in Megatron-LM",
            "pp 1 and recompute none",
        ),
    ),
    Rule(
        name="offload_activations_needs_checkpoints",
        frameworks=(DEEPSPEED, FSDP, HUGGINGFACE),
        field="offload_activations",
        text="offloaded activations are the checkpoints of full or block recomputation",
        source="DeepSpeed activation_checkpointing.cpu_checkpointing; torch save_on_cpu around checkpointed blocks",
        columns=columns("recompute", "offload_activations"),
        holds=lambda plans, _setting: ~plans.offload_activations | recomputes_layers(plans),
        complaint=lambda _plan, setting: (
            f"needs recompute full{' or block:N' * (setting.framework == DEEPSPEED)}",
            "recompute full",
        ),
    ),
    Rule(
        name="offload_activations_is_accelerates",
        frameworks=(FSDP,),
        field="offload_activations",
        text=f"checkpoints go to the host with Accelerate, {ACCELERATE_ALONE}",
        source="torchtitan 0.3.0 has no such option; accelerate fsdp_activation_checkpointing_offload and "
        "ParallelismConfig, which has tensor, context and data parallelism",
        columns=ACCELERATE_COLUMNS | columns("offload_activations"),
        holds=lambda plans, setting: ~plans.offload_activations | accelerate_runs(plans, setting),
        complaint=lambda _plan, setting: (
            "is Accelerate's, not torchtitan's",
            "offload_activations off; or "
            + accelerate_wants(setting, "pp 1, ep 1, cp 1, hsdp 0, recompute full and tensor_parallel_overlap off"),
        ),
    ),
    Rule(
        name="offload_parameters_exists",
        frameworks=(MEGATRON, NANOTRON),
        field="offload_parameters",
        text="weights stay on the device",
        source="Transformer Engine get_cpu_offload_context: offloading weights is deprecated and has no effect; "
        "nanotron has no offload option",
        columns=columns("offload_parameters"),
        holds=lambda plans, _setting: ~plans.offload_parameters,
        complaint=lambda _plan, setting: (
            f"{FRAMEWORK_TITLES[setting.framework]} keeps weights on the device",
            "offload_parameters off, or DeepSpeed with zero 3",
        ),
    ),
    Rule(
        name="offload_parameters_needs_zero_3",
        frameworks=(DEEPSPEED, HUGGINGFACE),
        field="offload_parameters",
        text="offloading weights needs ZeRO 3",
        source="deepspeed/runtime/zero/config.py offload_param: valid only with stage 3",
        columns=columns("zero_stage", "offload_parameters"),
        holds=lambda plans, _setting: ~plans.offload_parameters | (plans.zero_stage == 3),
        complaint=lambda plan, _setting: (f"needs zero_stage 3; got {plan.zero_stage}", "zero 3"),
    ),
    Rule(
        name="offload_parameters_goes_with_optimizer",
        frameworks=(FSDP,),
        field="offload_parameters",
        text="with FSDP (ZeRO 3), weights are offloaded if and only if the optimizer is",
        source="torch.distributed.fsdp CPUOffloadPolicy: offloads parameters, gradients, and optimizer states; what "
        "stays gathered after the forward pass (2) is on the device when memory peaks",
        columns=columns("zero_stage", "offload_optimizer", "offload_parameters"),
        holds=lambda plans, _setting: moves_together(plans),
        complaint=lambda plan, _setting: (
            "needs FSDP (zero 3) with offload_optimizer" if plan.offload_parameters else "goes with offload_optimizer",
            "both on with zero 3, or both off",
        ),
    ),
    Rule(
        name="offload_activations_of_shards_is_fsdps",
        frameworks=(HUGGINGFACE,),
        field="offload_activations",
        text="checkpoints of sharded plans go to the host with FSDP2, which moves weights along with the optimizer",
        source="accelerate FullyShardedDataParallelPlugin activation_checkpointing_offload and cpu_offload "
        "(CPUOffloadPolicy of weights, gradients and states); under DeepSpeed transformers calls "
        "torch.utils.checkpoint, which keeps its inputs on the device; trl SFTConfig activation_offloading and "
        "unsloth's gradient checkpointing move them where nothing is sharded",
        columns=columns("zero_stage", "offload_optimizer", "offload_activations", "offload_parameters"),
        holds=lambda plans, setting: mask(
            ~plans.offload_activations | (plans.zero_stage == 0) | trainer_runs_fsdp(plans, setting)
        ),
        complaint=lambda plan, setting: (
            "is not combined with DeepSpeed (zero 1) in the Hugging Face Trainer"
            if plan.zero_stage < 2
            else f"goes with FSDP2: {FSDP_NEEDS}",
            f"offload_activations off, or {fsdp_wants(setting)}",
        ),
    ),
)
