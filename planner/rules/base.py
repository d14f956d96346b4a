"""Rule and Setting: one legality condition, evaluated on a whole batch of plans at once.

A rule says which plan columns it reads, so that the search can apply it as soon as those columns are
decided, and so that nothing has to be enumerated below a layout that is already illegal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np

from costmodels.eager_attention import widest_unfused
from costmodels.plan import BoolArray, ExecutionPlan, PlanBatch, Recompute
from costmodels.workload import TrainingJob
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES
from profiles.model import ModelSpec
from profiles.stack import StackSpec

# Places in the frameworks that several rules cite.
ARGUMENTS = "Megatron-LM megatron/training/arguments.py validate_args"
MCORE = "megatron.core.transformer.TransformerConfig.__post_init__"
PRECISION_AWARE = (
    "megatron.core.optimizer.OptimizerConfig.__post_init__: --use-precision-aware-optimizer only supported with adam, "
    "and only supported with distributed optimizer"
)
TITAN_DIMS = "torchtitan/distributed/parallel_dims.py ParallelDims"

MEGATRON, DEEPSPEED, FSDP, NANOTRON = "megatron", "deepspeed", "fsdp", "nanotron"
HUGGINGFACE = "huggingface"
FRAMEWORKS = (MEGATRON, DEEPSPEED, FSDP, NANOTRON, HUGGINGFACE)
FRAMEWORK_TITLES = {
    MEGATRON: "Megatron-LM",
    DEEPSPEED: "DeepSpeed",
    FSDP: "PyTorch FSDP (torchtitan)",
    NANOTRON: "nanotron",
    HUGGINGFACE: "Hugging Face Trainer",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What rules may look at besides the plan.

    Attributes:
        model: The model.
        job: What is trained.
        num_devices: Devices the plan has to fill.
        framework: Whose rules apply.
        joined_devices: Devices that faster links than PCIe join; what is not about one cluster has no bound.
        free_layout: Whether the framework takes any layout of layers over pipeline chunks.
        overlaps_experts: Whether it hides the exchange of tokens with experts under another micro-batch.
        transformers_models: Whether it runs Hugging Face's model code, which was written for one device.
        own_optimizer: Whether the optimizer is another's than the framework's.
        shards_weights: Whether its code bears sharded weights.
        widest_unfused_head: Width of heads of the model that are too wide for its fused attention; 0 for none.
    """

    model: ModelSpec
    job: TrainingJob
    num_devices: int
    framework: str
    joined_devices: int = MAX_DEVICES
    free_layout: bool = False
    overlaps_experts: bool = False
    transformers_models: bool = False
    own_optimizer: bool = False
    shards_weights: bool = True
    widest_unfused_head: int = 0

    @classmethod
    def of_stack(
        cls,
        model: ModelSpec,
        job: TrainingJob,
        stack: StackSpec,
        *,
        num_devices: int,
        joined_devices: int = MAX_DEVICES,
    ) -> "Setting":
        """What rules look at where a stack trains the model: its framework, and what its own code asks for."""
        return cls(
            model=model,
            job=job,
            num_devices=num_devices,
            framework=stack.framework,
            joined_devices=joined_devices,
            free_layout=stack.free_layout,
            overlaps_experts=stack.expert_parallel_overlap > 0,
            transformers_models=stack.transformers_models,
            own_optimizer=stack.own_optimizer,
            shards_weights=stack.shards_weights,
            widest_unfused_head=widest_unfused(model, stack),
        )

    @cached_property
    def key_value_heads(self) -> tuple[int, ...]:
        """Key/value heads tensor parallelism splits, of every kind of layers; latent attention expands them to all."""
        latent = self.model.latent_attention is not None
        return (self.model.num_attention_heads,) if latent else self.model.key_value_heads


def overlaps_tensor(columns: Mapping[str, Any], setting: Setting) -> Any:
    """(N,) whether tensor-parallel traffic runs under the GEMMs of a plan that says nothing of it: where it may."""
    if setting.framework == DEEPSPEED:
        return np.zeros_like(columns["sequence_parallel"])
    if setting.framework == MEGATRON and not splits_products(setting.job):
        return np.zeros_like(columns["sequence_parallel"])
    joined = setting.joined_devices if setting.framework == MEGATRON else MAX_DEVICES
    return columns["sequence_parallel"] * (columns["tensor_parallel"] <= joined)


def splits_products(job: TrainingJob) -> bool:
    """Whether Transformer Engine runs traffic under products in the format of a job, which it does not in 4 bits."""
    return job.numerics.gemm_format != "fp4"


Check = Callable[[PlanBatch, Setting], BoolArray]
Complaint = Callable[[ExecutionPlan, Setting], tuple[str, str]]
Blame = Callable[[ExecutionPlan, Setting, Mapping[str, int]], tuple[str, str, str]]
# Of parallelism, in the order in which tables and errors tell them.
DEGREES = ("tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel", "expert_parallel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One condition a framework puts on a plan.

    Attributes:
        name: Key under which rejected plans are counted.
        frameworks: Who imposes it.
        field: Plan field named in an error message; ``job.`` or ``model.`` and the name of a field of these where that
            is to blame, whatever the plan.
        text: The condition, in words.
        source: Where the framework says so.
        columns: Plan columns it reads; none where no plan of the framework satisfies it.
        holds: (N,) whether each plan satisfies it.
        complaint: Problem and hint for one plan that does not.
        also: Fields named instead where the user fixed them and not ``field``; the complaint suits them as well.
        blame: Field, problem and hint where the smallest change depends on which of its columns the user fixed.
    """

    name: str
    frameworks: tuple[str, ...]
    field: str
    text: str
    source: str
    columns: frozenset[str]
    holds: Check
    complaint: Complaint
    also: tuple[str, ...] = ()
    blame: Blame | None = None

    def error(self, plan: ExecutionPlan, setting: Setting, pins: Mapping[str, int] | None = None) -> SpecError:
        """The error a plan that breaks this rule deserves.

        Args:
            plan: The plan.
            setting: What it is for.
            pins: What the user fixed of it, where the rest was searched; else all of it is theirs.
        """
        if self.blame is not None and pins:
            field, problem, hint = self.blame(plan, setting, pins)
            return SpecError(f"plan.{field}", problem, hint)
        problem, hint = self.complaint(plan, setting)
        if self.of_the_job:
            return SpecError(self.field, problem, hint)
        return SpecError(f"plan.{self._asked_for(pins or {})}", problem, hint)

    def _asked_for(self, pins: Mapping[str, int]) -> str:
        """Of the fields the complaint suits, the first that the user fixed; a degree of 1 asks for nothing."""
        named = (self.field, *self.also)
        return next((name for name in named if pins.get(name, 0) > (name in DEGREES)), self.field)

    @property
    def of_the_job(self) -> bool:
        """Whether the job, or the model, asks for what the framework does not do."""
        return self.field.startswith(("job.", "model."))


def mask(values: Any) -> BoolArray:
    """Comparison results as a plain boolean array."""
    return np.asarray(values, dtype=np.bool_)


ACCELERATE_ALONE = (
    "without stages, experts over ranks, recomputation in part, split tensor-parallel traffic, windows over context "
    "ranks, products in 8 bits and 16-bit states"
)
ACCELERATE_COLUMNS = frozenset(
    (
        *DEGREES,
        *("zero_stage", "zero_shard_degree", "tensor_parallel_overlap", "recompute"),
    )
)
# In fp8 it swaps other layers by a recipe of its own (accelerate/utils/ao.py) than torchtitan's, which is priced.
ACCELERATE_PRECISIONS = ("bf16", "fp16", "fp32", "tf32")


def accelerate_has(job: TrainingJob) -> bool:
    """Whether Accelerate has the formats of a job: products in 16 bits or more; weights, gradients and moments fp32."""
    moments = job.state_dtype == "fp32" or job.optimizer != "adamw"
    states = moments and job.master_dtype == "fp32" and job.gradient_dtype in ("", "fp32")
    return states and job.precision in ACCELERATE_PRECISIONS


def accelerate_wants(setting: Setting, of_the_plan: str) -> str:
    """What would let Accelerate run a plan."""
    if accelerate_has(setting.job):
        return of_the_plan
    formats = "master_dtype, state_dtype and gradient_dtype fp32"
    return formats if setting.job.precision in ACCELERATE_PRECISIONS else f"precision bf16, {formats}"


def accelerate_runs(plans: PlanBatch, setting: Setting) -> BoolArray:
    """(N,) whether Accelerate runs plans of FSDP, for what torchtitan has not; it holds weights and moments in fp32.

    It refuses windows where a context is shared (``big_modeling.py``), tensor parallelism without FSDP2, and with
    either parallelism replicas that share nothing out among data-parallel ranks (``ParallelismConfig``).
    """
    t, c = plans.tensor_parallel, plans.context_parallel
    undivided = (plans.pipeline_parallel == 1) & (plans.expert_parallel == 1)
    whole = (t == 1) | ~plans.tensor_parallel_overlap
    attends = (c == 1) | (not setting.model.sliding_window)
    alone = (plans.zero_shard_degree == c) & (plans.data_parallel > 1)
    shared = (t * c == 1) | ((plans.zero_stage > 0) & ~alone)
    layers = all_recomputed_or_none(plans, setting)
    return mask(undivided & whole & attends & shared & layers & accelerate_has(setting.job))


ALL_OR_NONE = "all layers are recomputed or none"


def recomputes_layers(plans: PlanBatch) -> BoolArray:
    """(N,) whether whole layers are recomputed: all, or some of each stage."""
    return mask((plans.recompute == int(Recompute.FULL)) | (plans.recompute == int(Recompute.BLOCK)))


def all_recomputed_or_none(plans: PlanBatch, _setting: Setting) -> BoolArray:
    """Whether all layers are recomputed or none: where frameworks have one switch for all of them."""
    return mask((plans.recompute == int(Recompute.NONE)) | (plans.recompute == int(Recompute.FULL)))


def columns(*names: str) -> frozenset[str]:
    """A set of plan columns."""
    return frozenset(names)


def divisors(number: int) -> list[int]:
    """All divisors of a positive integer, ascending."""
    small = [k for k in range(1, int(number**0.5) + 1) if number % k == 0]
    return small + [number // k for k in reversed(small) if k * k != number]


def one_of(numbers: list[int]) -> str:
    """``1, 2 or 4``; long lists lose their middle, and of none nothing is said."""
    if not numbers:
        return ""
    words = [str(number) for number in numbers]
    if len(words) > 9:
        words = [*words[:7], "...", words[-1]]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" or {words[-1]}"


def must_divide(what: str, total: int, got: int, num_devices: int) -> tuple[str, str]:
    """Problem and hint for a degree that has to divide a dimension, and the number of devices as all degrees do."""
    return f"must divide {what}={total}; got {got}", one_of(divisors(gcd(total, num_devices)))
