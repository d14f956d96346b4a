"""Collective communication priced by latency and bandwidth of the links it crosses (alpha-beta).

Symbols: S message size as nccl-tests counts it; g ranks in the group; r of them in one scale-up domain
(NVLink, xGMI, PCIe); d = g / r domains. *Wire bytes* are what one rank sends: S times 2(g-1)/g for an
all-reduce, (g-1)/g for a gather, scatter or all-to-all, 1 for a broadcast or send. Bandwidth is per
device and direction, an efficiency is the bus bandwidth reached over it.

* Inside a domain: the better of two protocols, each ``launch + steps * hop + wire bytes / bandwidth``: the
  low-latency ones of NCCL (flags in the data, a fraction of the bandwidth) and the simple one. The simple one
  cuts a message into chunks that follow each other round the ring; with the best chunk the pipeline takes
  2 sqrt(ramp * transfer) longer than the transfer alone, so its bandwidth rises slowly with the size. For an
  all-reduce on a switch that can add, also that (NVLS): a rank sends S (1 + 1/g), not 2(g-1)/g of it (said by
  NCCL's authors in nccl-tests pull request 239).
* Across domains: a ring or tree over all ranks leaves each domain through the adapters of the r ranks
  it holds, so its bus bandwidth is r times the network bandwidth per device, never above the inside one;
  an all-to-all sends (g-r)/g of S through each rank's own share of the adapters (nccl-tests issue 130). On a fabric
  where NCCL finds rings through one adapter only, that one is what a group has at most. Rings and trees have the
  two protocols too; chunks wait for adapters as they wait for peers inside.
* Who pays for shared adapters: bandwidth per device is the node's adapters over its devices, which is what a
  group gets while the other devices of the node run the same collective in groups of their own (data parallelism
  next to tensor parallelism), or fewer adapters than devices serve one group. A group that has the node to
  itself could use more than its share; no plan has one, because every rank of a plan belongs to such a group.

Left out on purpose: stragglers, congestion by other jobs, and overlap with kernels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.kernels.calls import Basis, FloatArray, IntArray, Prediction
from costmodels.links.collectives import CollectiveCallBatch, CollectiveOp
from profiles.fits import CollectiveFits, Fit
from profiles.hardware import ClusterSpec, LinkSpec, NodeSpec

Parameters = Mapping[str, float]

MESH_SIZES = (2, 4, 8, 16)
PEAK_TOLERANCE = 1.05  # of a link's bandwidth, by which clocks and rounding may exceed it
RINGS = (CollectiveOp.ALL_REDUCE, CollectiveOp.ALL_GATHER, CollectiveOp.REDUCE_SCATTER)  # same chunks, same ring

OP_NAMES = {
    CollectiveOp.ALL_REDUCE: "all_reduce",
    CollectiveOp.ALL_GATHER: "all_gather",
    CollectiveOp.REDUCE_SCATTER: "reduce_scatter",
    CollectiveOp.ALL_TO_ALL: "all_to_all",
    CollectiveOp.SEND_RECV: "send_recv",
    CollectiveOp.BROADCAST: "broadcast",
}
OP_OF_NAME = {name: op for op, name in OP_NAMES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Collectives of one operation: message size, ranks, and ranks per scale-up domain, as floats."""

    op: CollectiveOp
    size_bytes: FloatArray
    ranks: FloatArray
    local: FloatArray


def wire_factor(op: CollectiveOp, ranks: FloatArray) -> FloatArray:
    """Bytes one rank sends, over the message size (nccl-tests' bus bandwidth factor)."""
    if op is CollectiveOp.ALL_REDUCE:
        return 2 * (ranks - 1) / ranks
    if op in (CollectiveOp.ALL_GATHER, CollectiveOp.REDUCE_SCATTER, CollectiveOp.ALL_TO_ALL):
        return (ranks - 1) / ranks
    return np.ones_like(ranks)


def beats_link(
    op: CollectiveOp, link: LinkSpec, *, ranks: float, size_bytes: FloatArray, time_s: FloatArray
) -> NDArray[np.bool_]:
    """Whether the bytes that one rank must send do not fit through its link in that time.

    Not asked of AMD's meshes: lanes inside a package do not count in their link's bandwidth.
    """
    ring = wire_factor(op, np.array(float(ranks)))
    sent = np.minimum(ring, 1 + 1 / ranks) if op is CollectiveOp.ALL_REDUCE else ring
    faster: NDArray[np.bool_] = sent * size_bytes / time_s > PEAK_TOLERANCE * link.bandwidth_bytes_per_s
    return faster & (link.kind != "xgmi")


def ring_steps(op: CollectiveOp, ranks: FloatArray) -> FloatArray:
    """Dependent messages of a ring; all-to-all and send/receive post theirs at once."""
    if op is CollectiveOp.ALL_REDUCE:
        return 2 * (ranks - 1)
    if op is CollectiveOp.SEND_RECV:
        return np.ones_like(ranks)
    return ranks - 1


def reach(fit: Parameters, local: FloatArray, *, loss: str = "pair_loss") -> FloatArray:
    """Share of a device's link bandwidth that ``local`` ranks reach together.

    Few ranks cannot use every lane (``pair_loss``, or another ``loss``: the low-latency protocols lose more), or in a
    mesh only those that lead to one another (``lanes_of_2`` to ``lanes_of_16``: shares of all lanes, in between by
    interpolation), or compete for the bridges of a bus (``sharing`` exponent).
    """
    share: FloatArray = 1 - fit[loss] / local
    lanes = [fit[f"lanes_of_{size}"] for size in MESH_SIZES]
    if any(lane != 1 for lane in lanes):
        share = np.interp(local, MESH_SIZES, lanes) * share
    if fit["sharing"]:
        share = share * (np.maximum(local, 2) / 2) ** -fit["sharing"]
    return share


def inside_time_s(groups: Groups, fit: Parameters, bytes_per_s: float) -> FloatArray:
    """Seconds of collectives whose ranks share one scale-up domain.

    Args:
        groups: Calls; only ``local`` ranks count.
        fit: ``launch_s``, ``hop_s``, ``efficiency``, ``ramp_s`` of the simple protocol; ``low_launch_s``,
            ``low_hop_s``, ``low_efficiency`` of the low-latency one; what ``reach`` reads; ``switch_hop_s`` per
            rank and ``switch_efficiency`` of in-switch reduction (0: none).
        bytes_per_s: Link bandwidth per device and direction.
    """
    local = groups.local
    steps = ring_steps(groups.op, local)
    wire_bytes = groups.size_bytes * wire_factor(groups.op, local)
    usable, low_usable = (
        np.maximum(reach(fit, local, loss=loss), 1e-3) * bytes_per_s for loss in ("pair_loss", "low_pair_loss")
    )
    simple_s = fit["launch_s"] + steps * fit["hop_s"] + _in_chunks_s(wire_bytes / (usable * fit["efficiency"]), fit)
    low_s = fit["low_launch_s"] + steps * fit["low_hop_s"] + wire_bytes / (low_usable * fit["low_efficiency"])
    best_s = np.minimum(simple_s, low_s)
    if groups.op is CollectiveOp.ALL_REDUCE and fit["switch_efficiency"] > 0:
        wire_bytes = groups.size_bytes * (1 + 1 / local)
        switch_s = _in_chunks_s(wire_bytes / (bytes_per_s * fit["switch_efficiency"]), fit)
        best_s = np.where(local > 2, np.minimum(best_s, local * fit["switch_hop_s"] + switch_s), best_s)
    return best_s


def _in_chunks_s(transfer_s: FloatArray, fit: Parameters) -> FloatArray:
    """Seconds of a transfer in the chunks that minimise it: n chunks take (n + steps) (alpha + transfer / n)."""
    return np.asarray(transfer_s + 2 * np.sqrt(fit["ramp_s"] * transfer_s), dtype=float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """What crosses domains: latency and bytes/s of an adapter, bytes/s per device over the network and inside."""

    latency_s: float
    adapter_bytes_per_s: float
    out_bytes_per_s: float
    in_bytes_per_s: float

    @classmethod
    def of(cls, node: NodeSpec) -> "Network":
        """The network of a node type."""
        return cls(
            latency_s=node.nic.latency_s,
            adapter_bytes_per_s=node.nic.bandwidth_bytes_per_s,
            out_bytes_per_s=node.scale_out_bytes_per_s,
            in_bytes_per_s=node.scale_up.bandwidth_bytes_per_s,
        )


def across_time_s(groups: Groups, inside: Parameters, across: Parameters, network: Network) -> FloatArray:
    """Seconds of collectives over several domains.

    Args:
        groups: Calls.
        inside: As in ``inside_time_s``.
        across: ``launch_s``; ``efficiency`` of the network bandwidth in rings, ``hops``, adapter latencies per
            domain of a ring; ``ramp_hops``, adapter latencies that a pipeline of chunks waits, as ``ramp_s`` inside;
            ``low_share`` of that efficiency and ``low_hops`` of the low-latency protocol; ``tree_share`` of that
            efficiency over more than two domains (0: no trees) and ``tree_hops`` per level; ``ring_adapters`` of a
            node that a group's rings and trees use (0: all that its ranks have).
        network: Latency and bandwidths.
    """
    ranks, local = groups.ranks, np.maximum(groups.local, 1.0)
    ramp = {"ramp_s": across["ramp_hops"] * network.latency_s}
    out_bytes_per_s = network.out_bytes_per_s * across["efficiency"]
    hop_s = across["hops"] * network.latency_s
    if groups.op is CollectiveOp.SEND_RECV:
        sent_s = np.asarray(groups.size_bytes / out_bytes_per_s, dtype=float)
        return np.asarray(across["launch_s"] + hop_s + _in_chunks_s(sent_s, ramp), dtype=float)
    in_bytes_per_s = _in_bytes_per_s(local, inside, network)
    if groups.op is CollectiveOp.ALL_TO_ALL:
        out_s = groups.size_bytes * (ranks - local) / ranks / out_bytes_per_s
        in_s = groups.size_bytes * (local - 1) / ranks / in_bytes_per_s
        posts_s = (ranks - local) * hop_s + (local - 1) * inside["hop_s"]
        return np.asarray(across["launch_s"] + posts_s + _in_chunks_s(np.maximum(out_s, in_s), ramp), dtype=float)
    domains = ranks / local
    bytes_per_s = np.minimum(in_bytes_per_s, _group_bytes_per_s(local, across, network))
    sent_s = groups.size_bytes * wire_factor(groups.op, ranks) / bytes_per_s
    # A ring has one way less than ranks: with one rank a domain it crosses d - 1 times, with many d times.
    turns = (2.0 if groups.op is CollectiveOp.ALL_REDUCE else 1.0) * (ranks - 1) / ranks
    ring_s = turns * (domains * hop_s + (ranks - domains) * inside["hop_s"]) + _in_chunks_s(sent_s, ramp)
    low_s = turns * (domains * across["low_hops"] * network.latency_s + (ranks - domains) * inside["low_hop_s"])
    low_s += sent_s / across["low_share"]
    best_s = np.minimum(ring_s, low_s)
    if groups.op is CollectiveOp.ALL_REDUCE and across["tree_share"] > 0:
        best_s = np.minimum(best_s, _tree_time_s(groups, inside, across, network))
    return np.asarray(across["launch_s"] + best_s, dtype=float)


def _in_bytes_per_s(local: FloatArray, inside: Parameters, network: Network) -> FloatArray:
    """Bandwidth of a ring or chain of so many ranks inside a domain; of one there is none to wait for."""
    share = np.maximum(reach(inside, np.maximum(local, 2)), 1e-3)
    return np.where(local > 1, network.in_bytes_per_s * inside["efficiency"] * share, np.inf)


def _group_bytes_per_s(local: FloatArray, across: Parameters, network: Network) -> FloatArray:
    """Bandwidth between domains of a group with so many ranks in each."""
    shares = local * network.out_bytes_per_s
    if across["ring_adapters"]:
        shares = np.minimum(shares, across["ring_adapters"] * network.adapter_bytes_per_s)
    return np.asarray(shares * across["efficiency"], dtype=float)


def _tree_time_s(groups: Groups, inside: Parameters, across: Parameters, network: Network) -> FloatArray:
    """Seconds of all-reduces in double binary trees over the domains, and chains or in-switch sums inside them.

    Of d domains, one sends 2 (d-1)/d of S on average: half of it along each of the d-1 edges of both trees, up
    and down. Two domains have one peer each and use their adapters like a ring; of more, some receive from two
    children at once (``tree_share``). Inside a domain S passes up and down a chain of the ranks, 2 S for each,
    unless a switch adds. The parts are pipelined.
    """
    local, size_bytes = groups.local, groups.size_bytes
    domains = groups.ranks / local
    in_bytes_per_s = _in_bytes_per_s(local, inside, network)
    out_bytes_per_s = _group_bytes_per_s(local, across, network)
    out_bytes_per_s = out_bytes_per_s * np.where(domains > 2, across["tree_share"], 1.0)
    sent_s = size_bytes * 2 * (domains - 1) / domains / out_bytes_per_s
    chain_s = 2 * size_bytes / in_bytes_per_s
    levels_s = 2 * np.log2(np.maximum(domains, 2)) * network.latency_s
    low_s = levels_s * across["low_hops"] + 2 * (local - 1) * inside["low_hop_s"]
    low_s += np.maximum(chain_s, sent_s) / across["low_share"]
    in_s = chain_s + 2 * (local - 1) * inside["hop_s"]
    if inside["switch_efficiency"] > 0:
        in_s = np.where(local > 2, inside_time_s(groups, inside, network.in_bytes_per_s), in_s)
    ramp = {"ramp_s": across["ramp_hops"] * network.latency_s}
    simple_s = levels_s * across["tree_hops"] + _in_chunks_s(np.maximum(in_s, sent_s), ramp)
    return np.asarray(np.minimum(simple_s, low_s), dtype=float)


def local_ranks(calls: CollectiveCallBatch, cluster: ClusterSpec) -> FloatArray:
    """(K,) ranks of each call that share a scale-up domain: fewer than take part where it crosses domains."""
    most = np.minimum(np.maximum(calls.group_size, 1).astype(float), cluster.domain_devices)
    return np.asarray(np.minimum(np.maximum(calls.ranks_per_domain, 1), most))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Calls of one operation, inside a domain or across: rows, link kind, price, records, how well known.

    ``known`` tells which calls are known how well, in the words of ``profiles.fits.Spread``.
    """

    rows: IntArray
    groups: Groups
    kind: str
    price_s: FloatArray
    fits: tuple[Fit, ...]
    outside: NDArray[np.bool_]
    known: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class LinkCollectiveModel:
    """Prices collectives by latency and bandwidth of the links they cross.

    Attributes:
        fits: Parameters per link and operation (``profiles.fits.default_fits().collectives``).
        in_switch_sums: Whether switches may add; they cannot add 8-bit integers.
    """

    fits: CollectiveFits
    in_switch_sums: bool = True

    def predict(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Prediction:
        """Seconds for each call; zero for groups of one (except copies to the host)."""
        size = len(calls)
        time_s, low_s, high_s = np.zeros(size), np.zeros(size), np.zeros(size)
        basis = np.full(size, int(Basis.ANALYTIC), dtype=np.int64)
        extrapolated = np.zeros(size, dtype=np.bool_)
        for part in self._parts(calls, cluster):
            rows, low, high = part.rows, *self._factors(part)
            time_s[rows], low_s[rows], high_s[rows] = part.price_s, part.price_s * low, part.price_s * high
            known = all(fit.scope != "global" and fit.card.rows > 0 for fit in part.fits)
            basis[rows] = int(Basis.ANALYTIC if known else Basis.ASSUMED)
            extrapolated[rows] = part.outside
        return Prediction(time_s=time_s, low_s=low_s, high_s=high_s, basis=basis, extrapolated=extrapolated)

    def _parts(self, calls: CollectiveCallBatch, cluster: ClusterSpec) -> Iterator[_Part]:
        ranks = np.maximum(calls.group_size, 1).astype(float)
        local = local_ranks(calls, cluster)
        real = (calls.size_bytes > 0) & (ranks > 1)
        crosses = local < ranks
        kinds = 2 * calls.op + crosses
        for kind in np.flatnonzero(np.bincount(kinds[real])).tolist():
            op, across = CollectiveOp(kind // 2), kind % 2 == 1
            rows = np.flatnonzero(real & (kinds == kind))
            groups = Groups(op=op, size_bytes=calls.size_bytes[rows], ranks=ranks[rows], local=local[rows])
            price_s, fits = self._price(groups, cluster, across=across)
            outside = _outside(groups, fits[-1])
            own = _is_own(op, fits, cluster.node)
            yield _Part(
                rows=rows,
                groups=groups,
                kind=cluster.node.nic.kind if across else _kind(cluster.node.scale_up),
                price_s=price_s,
                fits=fits,
                outside=outside,
                known={"own": ~outside, "beyond": outside} if own else {"kin": np.ones(len(rows), dtype=np.bool_)},
            )

    def _price(self, groups: Groups, cluster: ClusterSpec, *, across: bool) -> tuple[FloatArray, tuple[Fit, ...]]:
        node = cluster.node
        # Nobody timed broadcasts: a pipelined ring passes every byte on once, as a gather does.
        name = "all_gather" if groups.op is CollectiveOp.BROADCAST else OP_NAMES[groups.op]
        inside = self._inside(name, node.scale_up)
        parameters = {**inside.parameters, **_wiring(node.scale_up)}
        if not self.in_switch_sums:
            parameters["switch_efficiency"] = 0.0
        if not across:
            return inside_time_s(groups, parameters, node.scale_up.bandwidth_bytes_per_s), (inside,)
        outside = self.fits.resolve(f"{name}_across", link=node.nic.name, kind=node.nic.kind)
        return across_time_s(groups, parameters, outside.parameters, Network.of(node)), (inside, outside)

    def _inside(self, name: str, link: LinkSpec) -> Fit:
        """The record of an operation on a scale-up link.

        Want of the operation is bridged by the all-reduce of the same link, then by the full-width link of its
        generation (an H800 has fewer lanes of NVLink 4), then by its kind, before records of other kinds: bus
        bandwidths of one link are alike.
        """
        records, kind = self.fits.records, _kind(link)
        names = [link.name, *([link.name.split("-")[0]] if link.kind == "nvlink" else [])]
        wanted = [(op, "link", one) for one in names for op in (name, "all_reduce")]
        for key in (*wanted, (name, "kind", kind), ("all_reduce", "kind", kind)):
            if key in records:
                return records[key]
        return self.fits.resolve(name, link=link.name, kind=kind)

    def _factors(self, part: _Part) -> tuple[FloatArray | float, FloatArray | float]:
        """Low and high end of the 90 % interval over the price, per call.

        By how well a call is known (``Spread``); records that rest on no rows state their own.
        """
        if not self.fits.spreads or part.fits[-1].card.rows == 0:
            return min(fit.low_factor for fit in part.fits), max(fit.high_factor for fit in part.fits)
        where = "across" if len(part.fits) > 1 else "inside"
        low, high = np.ones(len(part.rows)), np.ones(len(part.rows))
        for spread in self.fits.spreads:
            if spread.where == where and spread.kind in ("", part.kind) and spread.known in part.known:
                rows = part.known[spread.known] & (part.groups.size_bytes >= spread.least_bytes)
                low[rows], high[rows] = spread.low_factor, spread.high_factor
        return low, high


def _is_own(op: CollectiveOp, fits: tuple[Fit, ...], node: NodeSpec) -> bool:
    """Whether the operation was timed on this very link (inside a domain) or kind of fabric (across).

    What stages messages is the memory of a host and how it is set up, which the name of a link does not tell.
    """
    last, link = fits[-1], node.scale_up
    if last.op.removesuffix("_across") != OP_NAMES[op]:
        return False
    if len(fits) > 1:
        return last.scope == "kind"
    return (last.scope, last.name) == ("link", link.name) and (link.peer_to_peer or link.one_host)


def _wiring(link: LinkSpec) -> dict[str, float]:
    """What wires between all pairs change of a link's record: there is no switch, and few ranks use few lanes."""
    if not link.mesh_devices:
        return {}
    lanes = {f"lanes_of_{size}": min((size - 1) / (link.mesh_devices - 1), 1.0) for size in MESH_SIZES}
    return {**lanes, "switch_efficiency": 0.0}


def _kind(link: LinkSpec) -> str:
    """Link kind; PCIe without peer access is one of its own."""
    return link.kind if link.peer_to_peer else f"{link.kind}-staged"


def _outside(groups: Groups, fit: Fit) -> NDArray[np.bool_]:
    """Whether each call lies outside the fitted sizes and group sizes."""
    low, high = fit.domain.get("size_bytes", (0.0, np.inf))
    fewest, most = fit.domain.get("ranks", (0.0, np.inf))
    sizes = (groups.size_bytes < low) | (groups.size_bytes > high)
    return sizes | (groups.ranks < fewest) | (groups.ranks > most)
