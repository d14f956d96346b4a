"""Seconds of one decode step: a token for every running sequence, on a grid of batch sizes and cache lengths.

A step is priced by the same lowering and price lists as training, once per distinct layout and batch size; attention
also for a few cache lengths, between which it is a straight line. Searches read values between grid points.

Where steps are not captured as graphs, the host issues kernels ahead of the device, and waits for it only once a step:
a layer takes the longer of the two.

Where a draft proposes tokens (``costmodels.serving.speculation``), its passes go before the step, which has several
tokens of every sequence.

With p pipeline stages a replica's sequences form p micro-batches that follow each other round the stages, so that a
step takes p times the slowest stage's time for its share; fewer sequences than stages leave some idle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import total
from costmodels.boundary_transfers import boundary_transfer_s
from costmodels.context import CostContext
from costmodels.lowering.boundary import lower_embedding
from costmodels.lowering.calls import CallList
from costmodels.lowering.grouping import group_rows
from costmodels.lowering.mlp import lower_dense_mlp, lower_expert_mlp
from costmodels.lowering.priced_calls import PartCosts
from costmodels.lowering.prices import price_parts
from costmodels.lowering.serving import lower_decode_attention, lower_sampling, lower_served_experts
from costmodels.lowering.shapes import RankShape, rank_shapes
from costmodels.plan import FloatArray, IntArray, PlanBatch
from costmodels.serving.speculation import Speculation
from costmodels.step.layer_costs import BlockCosts, LayerCosts, exposed_blocks
from costmodels.step.trust import half_widths, layer_opens, price_trust
from profiles.engines import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodePrices:
    """Priced decode steps of N plans with K distinct layouts.

    Attributes:
        layout: (N,) layout of each plan.
        batches: (B,) sequences per micro-batch, ascending powers of two.
        keys: (C,) tokens in the cache, ascending.
        layer_s: (K, B, C) one layer, averaged over the kinds of layers.
        ends_s: (K, B) embedding, head and sampling.
        head_s: (K, B) of these, head and sampling: what the last stage does beside its layers.
        layers: (N,) layers of the fullest stage.
        num_layers: Of the model.
        stages: (N,) pipeline stages.
        transfer_s: (N,) passing one micro-batch on to the next stage.
        engine: Its overheads are read.
        half_widths: (2, K, B) low and high half of the 90 % interval of log time.
        basis: (K, B) weakest ``Basis``.
        speculation: What proposes tokens; None where a step makes one of each sequence.
        drafting: Steps of the model that drafts; None without one.
    """

    layout: IntArray
    batches: FloatArray
    keys: FloatArray
    layer_s: FloatArray
    ends_s: FloatArray
    head_s: FloatArray
    layers: IntArray
    num_layers: int
    stages: IntArray
    transfer_s: FloatArray
    engine: EngineSpec
    half_widths: FloatArray
    basis: IntArray
    speculation: Speculation | None = None
    drafting: "DecodePrices | None" = None

    def take(self, rows: IntArray) -> "DecodePrices":
        """The same prices for the selected plans."""
        return replace(
            self,
            layout=self.layout[rows],
            layers=self.layers[rows],
            stages=self.stages[rows],
            transfer_s=self.transfer_s[rows],
            drafting=None if self.drafting is None else self.drafting.take(rows),
        )

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a step makes of each sequence, on average."""
        return 1.0 if self.speculation is None else self.speculation.tokens_per_step

    def token_s(self, running: FloatArray, keys: FloatArray) -> FloatArray:
        """(N, T) seconds of a step per token that it makes of each sequence; arguments as of ``step_s``."""
        return self.step_s(running, keys) / self.tokens_per_step

    def step_s(self, running: FloatArray, keys: FloatArray) -> FloatArray:
        """(N, T) seconds of a step.

        Args:
            running: (N, T) sequences a replica runs, at least 1; fractions are averages.
            keys: (T,) tokens in the cache per sequence.
        """
        host_s = self.engine.step_overhead_s + self.engine.sequence_overhead_s * running
        passes_s = self._passes_s(running, keys)
        if self.speculation is not None and self.drafting is not None:
            drafted_s = self.drafting._passes_s(running * self.speculation.branches, keys)
            passes_s = passes_s + self.speculation.draft_tokens * drafted_s
        return np.asarray(passes_s + host_s)

    def sampled_s(self, sequences: FloatArray) -> FloatArray:
        """(N, T) seconds of head and sampling where so many (N, T) sequences have a token drawn."""
        return self._at(sequences, self.keys[:1])[2]

    def _passes_s(self, running: FloatArray, keys: FloatArray) -> FloatArray:
        """(N, T) seconds of a step on the devices."""
        stages = self.stages[:, None]
        rounds = np.clip(running, 1.0, stages)
        layer_s, ends_s, head_s = self._at(running / rounds, keys)
        slowest_s = self.layers[:, None] * layer_s + np.where(stages > 1, head_s, ends_s)
        whole_s = self.num_layers * layer_s + ends_s
        transfer_s = self.transfer_s[:, None]
        return np.maximum(rounds * (slowest_s + transfer_s), whole_s + stages * transfer_s)

    def nearest(self, running: FloatArray) -> tuple[FloatArray, IntArray]:
        """(2, N) half-widths and (N,) basis of a step with so many sequences."""
        place = np.clip(np.searchsorted(self.batches, running / self.stages), 0, len(self.batches) - 1)
        return self.half_widths[:, self.layout, place], self.basis[self.layout, place]

    def _at(self, batch: FloatArray, keys: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(N, T) seconds of a layer, of both ends and of the head: linear between grid points."""
        row, row_share = _place(self.batches, batch)
        column, column_share = _place(self.keys, np.broadcast_to(keys, batch.shape))
        layout = self.layout[:, None]

        def between(low: FloatArray, high: FloatArray, share: FloatArray) -> FloatArray:
            return low + share * (high - low)

        fewer = between(self.layer_s[layout, row, column], self.layer_s[layout, row, column + 1], column_share)
        more = between(self.layer_s[layout, row + 1, column], self.layer_s[layout, row + 1, column + 1], column_share)
        return (
            between(fewer, more, row_share),
            between(self.ends_s[layout, row], self.ends_s[layout, row + 1], row_share),
            between(self.head_s[layout, row], self.head_s[layout, row + 1], row_share),
        )


def _place(grid: FloatArray, values: FloatArray) -> tuple[IntArray, FloatArray]:
    """Interval of an ascending grid each value lies in, and where in it; beyond the grid, its last interval goes on."""
    interval = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, len(grid) - 2)
    low = grid[interval]
    return interval, (values - low) / (grid[interval + 1] - low)


def decode_prices(
    plans: PlanBatch, context: CostContext, engine: EngineSpec, *, most_running: int, keys: Sequence[float]
) -> DecodePrices:
    """Price decode steps of every layout up to ``most_running`` sequences per replica.

    Args:
        plans: N plans; degrees are read.
        context: ``forward_only``, with the engine's stack and a job whose sequences are the tokens of a step, one or as
            many as are verified.
        engine: Who runs the steps.
        most_running: Largest batch to price.
        keys: At least two cache lengths, ascending.
    """
    groups = group_rows(plans.tensor_parallel, plans.expert_parallel, plans.expert_tensor_parallel)
    layouts = plans.take(groups.first)
    batches = 2 ** np.arange(max((max(most_running, 2) - 1).bit_length(), 1) + 1)
    grid = PlanBatch.from_columns(
        len(layouts) * len(batches),
        micro_batch_size=np.tile(batches, len(layouts)),
        **{
            name: np.repeat(getattr(layouts, name), len(batches))
            for name in ("tensor_parallel", "expert_parallel", "expert_tensor_parallel")
        },
    )
    attention, rest, issued = _priced(grid, context, engine, keys)
    size, model = (len(layouts), len(batches)), context.model
    mixed = model.num_moe_layers / model.num_layers
    mlp_s = (1 - mixed) * rest.dense_mlp.forward_s()
    if rest.expert_mlp is not None:
        mlp_s = mlp_s + mixed * rest.expert_mlp.forward_s()
    layer_s = [np.maximum(block.forward_s() + mlp_s, issued.layer_s(mixed)) for block in attention]
    head_s = np.maximum(rest.head.forward_s(), issued.head_s).reshape(size)
    trust, widths = price_trust(rest), half_widths(layer_opens(rest), context)
    transfer_s = boundary_transfer_s(plans, context)
    return DecodePrices(
        layout=groups.of_row,
        batches=batches.astype(np.float64),
        keys=np.asarray(keys, dtype=np.float64),
        layer_s=np.stack([seconds.reshape(size) for seconds in layer_s], axis=2),
        ends_s=np.maximum(rest.embedding.forward_s(), issued.embedding_s).reshape(size) + head_s,
        head_s=head_s,
        layers=-(-model.num_layers // plans.pipeline_parallel),
        num_layers=model.num_layers,
        stages=plans.pipeline_parallel,
        transfer_s=transfer_s,
        engine=engine,
        half_widths=widths.reshape(2, *size),
        basis=trust.basis.reshape(size),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Issued:
    """(N,) seconds in which the host issues the kernels and collectives of each block; 0 where graphs are captured."""

    attention_s: FloatArray
    dense_mlp_s: FloatArray
    embedding_s: FloatArray
    head_s: FloatArray
    expert_mlp_s: FloatArray

    def layer_s(self, mixed: float) -> FloatArray:
        """(N,) seconds of a layer, of which so large a share are mixtures of experts."""
        return self.attention_s + (1 - mixed) * self.dense_mlp_s + mixed * self.expert_mlp_s


def _priced(
    grid: PlanBatch, context: CostContext, engine: EngineSpec, keys: Sequence[float]
) -> tuple[list[BlockCosts], LayerCosts, _Issued]:
    """The attention block at every cache length, all blocks at the middle one, and what issuing them takes.

    Blocks are as the device runs them.
    """
    shape, groups = rank_shapes(grid, context, experts=True)
    lists = [lower_decode_attention(shape, context, keys=length) for length in keys]
    lists += [lower_dense_mlp(shape, context), lower_embedding(shape, context), lower_sampling(shape, context)]
    if context.model.moe is not None:
        lists.append(_lower_experts(shape, context, engine))
    parts = price_parts(lists)
    alone = replace(context, stack=replace(context.stack, kernel_launch_s=0.0, collective_launch_s=0.0))
    blocks = exposed_blocks(parts, shape, groups, alone)
    attention, (dense_mlp, embedding, head, *experts) = blocks[: len(keys)], blocks[len(keys) :]
    issued_s = [_issued_s(part, context)[groups.of_row] for part in parts[len(keys) - 1 :]]
    issued = _Issued(
        attention_s=issued_s[0],
        dense_mlp_s=issued_s[1],
        embedding_s=issued_s[2],
        head_s=issued_s[3],
        expert_mlp_s=issued_s[4] if experts else np.zeros(len(grid)),
    )
    costs = LayerCosts(
        attention=attention[len(keys) // 2],
        dense_mlp=dense_mlp,
        expert_mlp=experts[0] if experts else None,
        embedding=embedding,
        head=head,
    )
    return attention, costs, issued


def _issued_s(part: PartCosts, context: CostContext) -> FloatArray:
    """(K,) seconds the host takes to issue a part."""
    stack = context.stack
    seconds = total(part.launches) * stack.kernel_launch_s + total(part.collectives) * stack.collective_launch_s
    return np.asarray(seconds)


def _lower_experts(shape: RankShape, context: CostContext, engine: EngineSpec) -> CallList:
    lower = lower_served_experts if engine.fused_experts else lower_expert_mlp
    return lower(shape, context)
