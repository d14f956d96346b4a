"""Dispatch of tokens to experts and combination of what they return, by kernels made for it (DeepEP).

Unlike an all-to-all of the collective library, the throughput kernels send a token once to every *rank* that holds
one of its experts, and across nodes once to every *node*, from where it goes on over the scale-up link
(arXiv:2412.19437, section 3.2.2); the low-latency kernels send a copy per *expert*. Copies are made by a few
multiprocessors, each of which moves so many bytes per second; what they read or write of the token itself counts as
further copies. Symbols: t tokens of a rank, h hidden size, k experts per token of E, g ranks.

    launch + max(t h bytes (copies + own) / min(multiprocessors * rate, efficiency * link),
                 t h bytes (node copies) (nodes - 1) / nodes / (network efficiency * network))

Experts are taken to be equally popular.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.kernels.calls import Basis, FloatArray, Prediction
from profiles.fits import CollectiveFits
from profiles.hardware import NodeSpec

USUAL_MULTIPROCESSORS = 20.0  # arXiv:2412.19437, section 3.2.2
# Kinds of exchange: whether a copy goes to every expert, and bytes per element (dispatches in 8 bits only there).
KINDS = {
    "deepep_normal_dispatch": (False, 2.0),
    "deepep_normal_combine": (False, 2.0),
    "deepep_ll_dispatch": (True, 1.0),
    "deepep_ll_combine": (True, 2.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanges:
    """K dispatches or combinations of one kind, columns of length K.

    Attributes:
        kind: Key of ``KINDS``.
        tokens: Tokens each rank holds.
        hidden: Elements of a token.
        topk, experts: Experts per token, and of the layer.
        ranks, nodes: Ranks that share the experts, and scale-up domains they are in.
        multiprocessors: That make the copies.
    """

    kind: str
    tokens: FloatArray
    hidden: FloatArray
    topk: FloatArray
    experts: FloatArray
    ranks: FloatArray
    nodes: FloatArray
    multiprocessors: FloatArray

    def __len__(self) -> int:
        return len(self.tokens)


def groups_hit(
    topk: FloatArray, experts: FloatArray, groups: FloatArray, *, router_groups: int = 1, groups_per_token: int = 1
) -> FloatArray:
    """Expected groups of ranks that hold at least one of ``topk`` distinct experts, of ``experts`` spread evenly.

    A group that holds n of e experts is missed with probability C(e - n, topk) / C(e, topk). A router that first
    chooses m of r groups of neighbouring experts (arXiv:2405.04434, section 2.2.2) draws from e m / r of them: a group
    of ranks inside a router's is chosen with probability m / r; one that spans several has j of the m chosen ones with
    the probability of a hypergeometric distribution.

    Args:
        topk: (K,) experts per token.
        experts: (K,) experts of the layer.
        groups: (K,) groups of ranks.
        router_groups: Groups r that the router divides the experts into.
        groups_per_token: Groups m of which a token's experts are.
    """
    held = experts / groups
    drawn = experts * groups_per_token / router_groups
    inside = groups >= router_groups
    missed_inside = 1 - groups_per_token / router_groups * (1 - _missed(drawn, held, topk))
    spanned = np.maximum(router_groups / groups, 1.0)
    missed_across = np.zeros_like(held)
    for chosen in range(groups_per_token + 1):
        ways = _log_choose(spanned, chosen) + _log_choose(router_groups - spanned, groups_per_token - chosen)
        odds = np.exp(ways - _log_choose(np.full_like(held, router_groups), groups_per_token))
        missed_across += odds * _missed(drawn, experts / router_groups * chosen, topk)
    return np.asarray(groups * (1 - np.where(inside, missed_inside, missed_across)), dtype=float)


def _missed(experts: FloatArray, held: FloatArray, topk: FloatArray) -> FloatArray:
    """Probability that none of ``held`` of the experts is among ``topk`` drawn ones."""
    return np.asarray(np.exp(_log_choose(experts - held, topk) - _log_choose(experts, topk)), dtype=float)


def _log_choose(items: FloatArray, drawn: FloatArray | float) -> FloatArray:
    """Logarithm of the ways to draw so many of the items; minus infinity where there are not as many."""
    from scipy.special import gammaln  # takes a third of what starting takes, and dense models do without

    possible = items >= drawn
    rest = np.where(possible, items, drawn)
    ways = gammaln(rest + 1) - gammaln(rest - drawn + 1) - gammaln(np.asarray(drawn) + 1.0)
    return np.asarray(np.where(possible, ways, -np.inf), dtype=float)


def groups_of_neighbours(topk: FloatArray, experts: FloatArray, groups: FloatArray) -> FloatArray:
    """Groups that hold ``topk`` neighbouring experts, where tokens take one such row of experts after the other.

    Rows begin at multiples of topk, modulo the experts: within a group of n at every multiple of gcd(topk, n), all
    equally often. So 1 + (topk - gcd) / n groups in the mean.

    Source:
        NVIDIA-NeMo/Automodel, components/moe/layers.py, FakeBalancedGate: arange(tokens * topk) % experts.
    """
    each = np.maximum(experts / groups, 1.0)
    step = np.gcd(np.rint(topk).astype(np.int64), np.rint(each).astype(np.int64))
    return np.asarray(np.minimum(1.0 + (topk - step) / each, groups), dtype=float)


def exchange_time_s(calls: Exchanges, fit: Mapping[str, float], node: NodeSpec) -> FloatArray:
    """Seconds of each exchange.

    Args:
        calls: What is exchanged.
        fit: ``launch_s``, what a network adds to it (``network_launch_s``), ``multiprocessor_bytes_per_s``,
            ``efficiency`` of the scale-up link, ``network_efficiency``, and ``own_copies``.
        node: Links.
    """
    low_latency, element_bytes = KINDS[calls.kind]
    token_bytes = calls.tokens * calls.hidden * element_bytes
    copies = calls.topk if low_latency else groups_hit(calls.topk, calls.experts, calls.ranks)
    node_copies = calls.topk if low_latency else groups_hit(calls.topk, calls.experts, calls.nodes)
    lanes = np.full(len(calls), fit["efficiency"] * node.scale_up.bandwidth_bytes_per_s)
    if not low_latency:
        lanes = np.minimum(calls.multiprocessors * fit["multiprocessor_bytes_per_s"], lanes)
    inside_s = token_bytes * (copies + fit["own_copies"]) / lanes
    network = fit["network_efficiency"] * node.scale_out_bytes_per_s
    across_s = token_bytes * node_copies * (calls.nodes - 1) / calls.nodes / network
    launch_s = fit["launch_s"] + np.where(calls.nodes > 1, fit["network_launch_s"], 0.0)
    return np.asarray(launch_s + np.maximum(inside_s, across_s), dtype=float)


def price_exchanges(calls: Exchanges, fits: CollectiveFits, node: NodeSpec) -> Prediction:
    """Seconds of each exchange, from what was fitted on this scale-up link or on all."""
    fit = fits.resolve(calls.kind, link=node.scale_up.name, kind=node.scale_up.kind)
    time_s = exchange_time_s(calls, fit.parameters, node)
    fewest, most = fit.domain.get("tokens", (0.0, np.inf))
    known = fit.scope == "link"
    return Prediction(
        time_s=time_s,
        low_s=time_s * fit.low_factor,
        high_s=time_s * fit.high_factor,
        basis=np.full(len(calls), int(Basis.ANALYTIC if known else Basis.ASSUMED)),
        extrapolated=(calls.tokens < fewest) | (calls.tokens > most),
    )
