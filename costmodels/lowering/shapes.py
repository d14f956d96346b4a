"""RankShape: the plan columns that decide what one rank computes in one layer."""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.context import CostContext
from costmodels.lowering.grouping import Groups, group_rows
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch
from profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShape:
    """K distinct rank shapes, columns of length K.

    Attributes:
        sequences: Sequences per micro-batch b.
        tokens: Tokens per rank T = b*s/c.
        sharded_tokens: T/t where sequence parallelism shards the tokens between blocks, else T.
        tensor, context: Degrees t and c.
        expert, expert_tensor: Degrees of the expert layers.
        context_kind: ``ContextKind`` codes.
        sequence_parallel: Megatron sequence parallelism.
        tensor_overlap: Tensor-parallel traffic runs under the GEMMs.
        kv_heads: Key/value heads per rank, at least one (replicated beyond).
        hooked: Hooks of modules gather parameters, in a stack where that takes time (``module_hooks_s``): under ZeRO-3
            and, where they gather whole layers, ZeRO-2, which FSDP does in the same way.
    """

    sequences: FloatArray
    tokens: FloatArray
    sharded_tokens: FloatArray
    tensor: IntArray
    context: IntArray
    expert: IntArray
    expert_tensor: IntArray
    context_kind: IntArray
    sequence_parallel: BoolArray
    tensor_overlap: BoolArray
    kv_heads: FloatArray
    hooked: BoolArray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def attention_groups(self) -> IntArray:
        """(K,) tensor-parallel groups, each with sequences of its own, that one set of experts is spread over."""
        return np.asarray(np.maximum(self.expert * self.expert_tensor // self.tensor, 1))

    def groups_apart(self, domain_devices: int) -> BoolArray:
        """(K,) whether attention groups that share experts are in several scale-up domains of so many devices."""
        return np.asarray((self.attention_groups > 1) & (self.expert * self.expert_tensor > domain_devices))


def of_model(shape: RankShape, model: ModelSpec) -> RankShape:
    """The same shapes with the key/value heads of another model."""
    return replace(shape, kv_heads=np.maximum(model.num_key_value_heads / shape.tensor, 1.0))


def rank_shapes(plans: PlanBatch, context: CostContext, *, experts: bool) -> tuple[RankShape, Groups]:
    """Distinct rank shapes of a batch, and which one each plan has.

    Args:
        plans: N plans.
        context: Model and sequence length are read.
        experts: Whether the expert degrees matter to the part that is lowered.
    """
    columns: list[IntArray] = [
        plans.micro_batch_size,
        plans.tensor_parallel,
        plans.context_parallel,
        plans.context_kind,
        plans.sequence_parallel.astype(np.int64),
        plans.tensor_parallel_overlap.astype(np.int64),
    ]
    gathers_from = 3 if context.stack.gathered_modules_per_layer else 2
    hooked = (plans.zero_stage >= gathers_from) & (context.stack.module_hooks_s > 0)
    if hooked.any():
        columns.append(hooked.astype(np.int64))
    if experts:
        columns += [plans.expert_parallel, plans.expert_tensor_parallel]
    groups = group_rows(*columns)
    b = plans.micro_batch_size[groups.first]
    t = plans.tensor_parallel[groups.first]
    c = plans.context_parallel[groups.first]
    tokens = b * context.job.sequence_length / c
    sequence_parallel = plans.sequence_parallel[groups.first]
    return RankShape(
        sequences=b.astype(np.float64),
        tokens=tokens,
        sharded_tokens=np.where(sequence_parallel, tokens / t, tokens),
        tensor=t,
        context=c,
        expert=plans.expert_parallel[groups.first],
        expert_tensor=plans.expert_tensor_parallel[groups.first],
        context_kind=plans.context_kind[groups.first],
        sequence_parallel=sequence_parallel,
        tensor_overlap=plans.tensor_parallel_overlap[groups.first],
        kv_heads=np.maximum(context.model.num_key_value_heads / t, 1.0),
        hooked=hooked[groups.first],
    ), groups
