"""CostContext: everything a price depends on besides the plan, gathered once at the edge."""

from dataclasses import dataclass

from costmodels.collectives import CollectiveCostModel
from costmodels.kernels.calls import KernelCostModel
from costmodels.linear_work import STATE_BYTES
from costmodels.workload import TrainingJob
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.stack import StackSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CostContext:
    """What is constant over a batch of plans.

    Attributes:
        model: The model.
        cluster: The devices and links.
        job: What is trained.
        stack: The framework that runs it.
        kernels: Prices kernel calls.
        collectives: Prices collective calls.
        forward_only: Nothing is differentiated: calls of backward passes are neither lowered nor priced.
        eight_bit_weights: Matrices of layers lie in 8 bits, as in checkpoints that engines serve, and products read
            them so; embedding, norms and head do not. Without it an 8-bit recipe casts 16-bit weights as it goes.
        eight_bit_cache: Engines keep keys and values in 8 bits.
        implementation: Who runs the kernels (``costmodels.kernels.implementations``); 0: the training stack.
        norms_quantise: An engine's norms write the input of an 8-bit product in 8 bits.
        activations_quantise: So do its activation functions.
        state_element_bytes: Of one number in a recurrent state that it keeps.
    """

    model: ModelSpec
    cluster: ClusterSpec
    job: TrainingJob
    stack: StackSpec
    kernels: KernelCostModel
    collectives: CollectiveCostModel
    forward_only: bool = False
    eight_bit_weights: bool = False
    eight_bit_cache: bool = False
    implementation: int = 0
    norms_quantise: bool = False
    activations_quantise: bool = False
    state_element_bytes: float = STATE_BYTES

    @property
    def by_engine(self) -> bool:
        """Whether a generation engine with kernels of its own runs it, and not a training stack."""
        return self.forward_only and self.implementation > 0

    @property
    def cache_element_bytes(self) -> float:
        """Bytes of one number among keys and values that an engine keeps."""
        return 1.0 if self.eight_bit_cache else self.job.numerics.storage_bytes
