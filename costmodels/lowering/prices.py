"""Prices of the calls of a layer's parts: what price lists say of them, and what a stack makes of that.

Price lists are asked once; stacks that differ in how fast they run what is called share the answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.context import CostContext
from costmodels.kernels.calls import COLUMNS, INTEGER_COLUMNS, KernelCallBatch, KernelOp, Prediction
from costmodels.links.collectives import CollectiveCallBatch
from costmodels.lowering.calls import CallList
from costmodels.lowering.priced_calls import PartCosts, PricedCalls
from costmodels.lowering.streams import as_run, in_turn
from costmodels.lowering.time_scales import kernel_time_scale
from costmodels.lowering.transfers import listed_collectives, stalled_s, time_on_stack
from costmodels.plan import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCalls:
    """The calls of several parts of a layer, all of one context, and what its price lists say of them.

    Attributes:
        lists: The calls by part.
        kernels: C kernels.
        rounds: (C,) of each, as the stack runs it.
        several: (C,) whether a call is as many kernels as its batch.
        kernels_listed: Their prices.
        transfers: Collectives.
        transfers_listed: Their prices.
        stalled_s: Least seconds of each on a cluster where they stall.
    """

    lists: Sequence[CallList]
    kernels: KernelCallBatch
    rounds: FloatArray
    several: BoolArray
    kernels_listed: Prediction
    transfers: CollectiveCallBatch
    transfers_listed: Prediction
    stalled_s: FloatArray

    @classmethod
    def of(cls, lists: Sequence[CallList]) -> "ListedCalls":
        """Ask the price lists for all calls in one go.

        The price of a call does not depend on its company; few long columns are priced faster than many short ones.
        """
        context = lists[0].context
        kernels = _kernels(lists)
        running, rounds = as_run(kernels, context)
        op, size_bytes, group, stride = _transfers(lists)
        transfers, transfers_listed = listed_collectives(
            context, op=op, size_bytes=size_bytes, group=group, stride=stride
        )
        return cls(
            lists=lists,
            kernels=kernels,
            rounds=rounds,
            several=(kernels.op == int(KernelOp.MEMORY)) | in_turn(kernels, context),
            kernels_listed=context.kernels.predict(running, context.cluster.device),
            transfers=transfers,
            transfers_listed=transfers_listed,
            stalled_s=stalled_s(context, op=op, group=group),
        )

    def on_stack(self, context: CostContext) -> list[PartCosts]:
        """Prices of every part as a stack runs it.

        Args:
            context: That of the lists, or one whose stack differs in time scales alone.
        """
        work, traffic = self._kernel_prices(context), self._transfer_prices(context)
        return [part.gather(*prices) for part, *prices in zip(self.lists, work, traffic, strict=True)]

    def _kernel_prices(self, context: CostContext) -> list[PricedCalls]:
        calls, listed = self.kernels, self.kernels_listed
        scale = np.where(calls.flops + calls.bytes > 0, self.rounds * kernel_time_scale(calls, context), 0.0)
        found = np.empty((5, len(calls)))
        found[0] = listed.time_s * scale
        found[1] = np.where(self.several, calls.batch, 1.0) * (scale > 0)
        found[2] = (listed.high_s - listed.low_s) / 2 * scale
        found[3] = np.where(listed.extrapolated, found[0], 0.0)
        found[4] = listed.basis
        return [
            PricedCalls(summed=part[:3], extrapolated_s=part[3], basis=part[4].astype(int))
            for part in _split(found, [(part.sites, part.shapes) for part in self.lists])
        ]

    def _transfer_prices(self, context: CostContext) -> list[PricedCalls]:
        calls = self.transfers
        priced = time_on_stack(context, calls, self.transfers_listed)
        launched = (calls.group_size > 1) & (calls.size_bytes > 0)
        found = np.empty((7, len(calls)))
        found[0], found[1], found[2] = priced.time_s, priced.low_s, priced.high_s
        found[3] = launched
        found[4] = launched * self.stalled_s
        found[5] = np.where(priced.extrapolated, priced.time_s, 0.0)
        found[6] = priced.basis
        return [
            PricedCalls(summed=part[:5], extrapolated_s=part[5], basis=part[6].astype(int))
            for part in _split(found, [(part.transfers, part.shapes) for part in self.lists])
        ]


def price_parts(lists: Sequence[CallList]) -> list[PartCosts]:
    """Price the calls of several parts of a layer, all of one context, in one go."""
    return ListedCalls.of(lists).on_stack(lists[0].context)


def _kernels(lists: Sequence[CallList]) -> KernelCallBatch:
    shapes = [(part.sites, part.shapes) for part in lists]
    table = np.zeros((len(COLUMNS), sum(sites * width for sites, width in shapes)))
    for part, place in zip(lists, _split(table, shapes), strict=True):
        part.fill_kernels(place)
    flat = dict(zip(COLUMNS, table, strict=True))
    typed: dict[str, Any] = flat | {name: flat[name].astype(np.int64) for name in INTEGER_COLUMNS}
    return KernelCallBatch(**typed)


def _transfers(lists: Sequence[CallList]) -> tuple[IntArray, FloatArray, IntArray, IntArray]:
    """(calls,) operation, bytes, ranks and how far these lie apart."""
    shapes = [(part.transfers, part.shapes) for part in lists]
    calls = sum(transfers * width for transfers, width in shapes)
    integers: IntArray = np.zeros((3, calls), dtype=np.int64)
    size = np.zeros((1, calls))
    for part, whole, sizes in zip(lists, _split(integers, shapes), _split(size, shapes), strict=True):
        part.fill_transfers(whole[0], sizes[0], whole[1:])
    op, group, stride = integers
    return op, size[0], group, stride


def _split(table: NDArray[Any], shapes: Sequence[tuple[int, int]]) -> list[NDArray[Any]]:
    """(rows, sites, K) views of the consecutive parts of a (rows, calls) table."""
    views, start = [], 0
    for sites, width in shapes:
        views.append(table[:, start : start + sites * width].reshape(len(table), sites, width))
        start += sites * width
    return views
