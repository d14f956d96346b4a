"""EstimateBatch: what pricing a batch of plans yields, as arrays."""

from dataclasses import dataclass

from costmodels.kernels.calls import Basis
from costmodels.memory.peaks import TensorMemory
from costmodels.plan import BoolArray, FloatArray, IntArray
from costmodels.stages.table import StageTable

# Parts of a step on its critical path; they add up to the step time.
TIME_PARTS = (
    "forward",  # layers of the slowest stage, all micro-batches
    "backward",  # the same, input and weight gradients
    "recompute",  # forward work repeated in the backward pass
    "embedding_and_loss",  # embedding, output head and loss on the slowest stage
    "tensor_parallel",  # exposed communication, by the axis that causes it
    "context_parallel",
    "expert_parallel",
    "pipeline_transfer",
    "data_parallel",
    "bubble",  # the slowest stage waits for the others
    "optimizer",
    "offload",  # exposed traffic with host memory
    "overhead",  # launches that nothing hides, per micro-batch and per step, and stragglers
)

# Parts of the peak device memory of one rank of a stage.
MEMORY_PARTS = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "communication",  # unsharded parameters, gradient buckets
    "reserve",  # what the allocator holds beyond what is allocated
    "context",  # CUDA context, library workspaces, communicators (what PyTorch does not count)
)

# Prices that may lie outside the range their model was fitted on.
EXTRAPOLATED = ("kernels", "collectives")

# What prices rest on, surest first.
BASES = tuple(basis.name.lower() for basis in Basis)


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateBatch:
    """N priced plans.

    Attributes:
        step_time_s: (N,) seconds per optimizer step.
        step_time_low_s, step_time_high_s: (N,) 90 % interval.
        time_parts_s: Part name to (N,) exposed seconds; they add up to ``step_time_s``.
        communication_total_s: Axis, or ``offload``, to (N,) seconds of traffic per step, hidden or not.
        stage_time_s: (N, S) one micro-batch through each stage, forward and backward.
        stages: The (N, S) stages the memory columns refer to.
        tensors: What the tensors of these stages take, what a stack adds to it left out.
        memory_parts_bytes: Part name to (N, S) bytes.
        stage_memory_bytes: (N, S) their sum; 0 in unused columns.
        peak_memory_bytes: (N,) the fullest stage.
        peak_memory_low_bytes, peak_memory_high_bytes: (N,) 90 % interval.
        host_memory_bytes: (N,) per node, for offloaded states.
        fits: (N,) whether the peak is within usable device memory and offload within host memory.
        basis: (N,) weakest ``kernels.calls.Basis`` among the prices a plan rests on.
        extrapolated_share: ``EXTRAPOLATED`` to (N,) share of a layer's unhidden time priced outside the fitted domain.
        basis_share: ``BASES`` to (N,) share of that time whose price rests on each; they add up to 1.
        model_flops: FLOPs of the model per step, no recomputation, causal attention counted in half.
        hardware_flops: (N,) the same with recomputation.
    """

    step_time_s: FloatArray
    step_time_low_s: FloatArray
    step_time_high_s: FloatArray
    time_parts_s: dict[str, FloatArray]
    communication_total_s: dict[str, FloatArray]
    stage_time_s: FloatArray
    stages: StageTable
    tensors: TensorMemory
    memory_parts_bytes: dict[str, FloatArray]
    stage_memory_bytes: FloatArray
    peak_memory_bytes: FloatArray
    peak_memory_low_bytes: FloatArray
    peak_memory_high_bytes: FloatArray
    host_memory_bytes: FloatArray
    fits: BoolArray
    basis: IntArray
    extrapolated_share: dict[str, FloatArray]
    basis_share: dict[str, FloatArray]
    model_flops: float
    hardware_flops: FloatArray

    def __len__(self) -> int:
        return len(self.step_time_s)
