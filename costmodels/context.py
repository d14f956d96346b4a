"""CostContext: everything a price depends on besides the plan, gathered once at the edge."""

from dataclasses import dataclass

from costmodels.kernels.calls import KernelCostModel
from costmodels.linear_work import STATE_BYTES
from costmodels.links.collectives import CollectiveCostModel
from costmodels.workload import TrainingJob
from profiles.hardware import ClusterSpec
from profiles.model import ModelSpec
from profiles.stack import StackSpec
from profiles.weights import WeightFormat


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
        weights: How matrices of layers lie in memory where that is not the recipe's storage, as in checkpoints that
            engines serve. Without it an 8-bit recipe casts 16-bit weights as it goes.
        eight_bit_cache: Engines keep keys and values in 8 bits.
        implementation: Who runs the kernels (``costmodels.kernels.implementations``); 0: the training stack.
        norms_quantise: An engine's norms write the input of an 8-bit product in 8 bits.
        activations_quantise: So do its activation functions.
        own_all_reduce: Its sums over the devices of a domain are a kernel of its own
            (``costmodels.links.engine_reduce``).
        state_element_bytes: Of one number in a recurrent state that it keeps.
    """

    model: ModelSpec
    cluster: ClusterSpec
    job: TrainingJob
    stack: StackSpec
    kernels: KernelCostModel
    collectives: CollectiveCostModel
    forward_only: bool = False
    weights: WeightFormat | None = None
    eight_bit_cache: bool = False
    implementation: int = 0
    norms_quantise: bool = False
    activations_quantise: bool = False
    own_all_reduce: bool = False
    state_element_bytes: float = STATE_BYTES

    @property
    def by_engine(self) -> bool:
        """Whether a generation engine with kernels of its own runs it, and not a training stack."""
        return self.forward_only and self.implementation > 0

    @property
    def layers_apart(self) -> bool:
        """Whether queries, keys and values, and gate and up, which are priced as one product each, are several.

        So they are in Hugging Face's model code of Llama and what descends from it, told by its gated MLP.
        """
        return self.stack.transformers_models and self.model.gated_mlp

    def packed_bytes(self, *, experts: bool) -> float:
        """Bytes of a weight that kernels unpack as they multiply it, of experts or of other layers; 0 where none do."""
        weights = self.weights
        if weights is not None and weights.beside and experts:
            return weights.element_bytes
        if weights is None or weights.recipe == self.job.precision or (weights.experts_only and not experts):
            return 0.0
        return weights.element_bytes if experts else weights.dense_bytes

    @property
    def expert_format(self) -> str:
        """Format in which routed experts multiply: the job's, or 16 bits where these alone are unpacked to them.

        Source:
            Weights of 4 bits and inputs of 8 on data-centre Blackwell's tensor cores: DeepGEMM, whose fused experts of
            DeepSeek-V4 are "FP4 weights, FP8 activations" (SGLang documentation, DeepSeek-V4, MegaMoE); on Hopper
            vLLM and SGLang run Marlin's kernels, with 16-bit inputs (the same; NVIDIA Dynamo's recipes on H200).
        """
        name = self.job.numerics.gemm_format
        mixed = self.weights is not None and bool(self.weights.beside)
        return "bf16" if mixed and name == "fp8" and "fp4" not in self.cluster.device.peak_flops_per_s else name

    @property
    def sends_eight_bits(self) -> bool:
        """Whether tokens go to experts on other nodes in the 8 bits that these multiply."""
        return self.weights is not None and self.job.numerics.gemm_format == "fp8"

    @property
    def cache_element_bytes(self) -> float:
        """Bytes of one number among keys and values that an engine keeps."""
        return 1.0 if self.eight_bit_cache else self.job.numerics.storage_bytes

    @property
    def sequence_element_bytes(self) -> float:
        """The same of what is kept per sequence: keys of a window as the cache's, a convolution's inputs as stored."""
        windows = self.model.compressed_attention is not None
        return self.cache_element_bytes if windows else self.job.numerics.storage_bytes
