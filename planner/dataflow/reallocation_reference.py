"""ReaLHF's own formula for reallocating parameters, to the microsecond; a check, not what plans are priced with.

Facts from openpsi-project/ReaLHF (``realhf/search_engine/param_realloc.py`` and ``impl/model/comm/param_realloc.py``
at commit 4c68d907): who sends what to whom, a broadcast's time at constant rates, and a constant per received
message. Mesh positions are no input: the source starts at rank 0, the target ends where the larger of both ends.
Neither pipelining over layers nor the sharing of a network card is modelled.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

_NODE_GPUS = 8
_BITS_PER_PARAMETER = 16
_LOCAL_BITS_PER_S = 1800 * 1024**3  # all receivers on the sender's node
_NETWORK_BITS_PER_S = 200 * 1024**3  # per node of receivers otherwise
_MESSAGE_S = 0.03  # per message received, wherever from


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSizes:
    """Parameters of the pieces a model is cut into: embedding, blocks, head.

    Attributes:
        counted: Parameters of each piece as the partition into stages counts them.
        sharded: Of those sent, the part that tensor parallelism divides.
        replicated: The part every tensor-parallel rank holds whole.
    """

    counted: tuple[int, ...]
    sharded: tuple[int, ...]
    replicated: tuple[int, ...]


def llama_layer_sizes(*, hidden: int, intermediate: int, layers: int, vocabulary: int, kv_width: int) -> LayerSizes:
    """Sizes of a Llama model; the norm before the head belongs to the last block.

    Args:
        hidden: Width of the model.
        intermediate: Width of the feed-forward part.
        layers: Blocks.
        vocabulary: Rows of the embedding and of the head.
        kv_width: Width of keys, and of values.
    """
    ends = vocabulary * hidden
    block = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * intermediate
    norms = [2 * hidden] * (layers - 1) + [3 * hidden]
    return LayerSizes(
        counted=(ends, *(block + norm for norm in norms), ends),
        sharded=(ends, *([block] * layers), ends),
        replicated=(0, *norms, 0),
    )


def reference_cost_us(sizes: LayerSizes, source: tuple[int, int, int], target: tuple[int, int, int]) -> int:
    """Microseconds to move a model between two layouts, rounded down as the reference's table is.

    Args:
        sizes: Parameters of the pieces of the model.
        source: Pipeline, tensor and data parallelism it comes from.
        target: The same for where it goes; one tensor parallelism divides the other.
    """
    stages_from, stages_to = (_stages(sizes.counted, layout[0]) for layout in (source, target))
    narrow = max(source[1], target[1])
    spent: dict[int, float] = defaultdict(float)
    for stage_from, pieces in enumerate(stages_from):
        for stage_to, others in enumerate(stages_to):
            common = sorted(set(pieces) & set(others))
            if not common:
                continue
            message = sum(sizes.sharded[piece] // narrow + sizes.replicated[piece] for piece in common)
            for senders, receivers in _pairs(source, target, stage_from, stage_to):
                _charge(spent, message, senders, receivers)
    return int(max(spent.values()) * 1000 * 1000)


def _pairs(
    source: tuple[int, int, int], target: tuple[int, int, int], stage_from: int, stage_to: int
) -> list[tuple[list[int], list[int]]]:
    """Ranks that hold each tensor-parallel shard, and ranks that need it, shard by shard of the source."""
    shift = max(0, _ranks(source) - _ranks(target))
    factor_up, factor_down = max(target[1] // source[1], 1), max(source[1] // target[1], 1)
    pairs = []
    for shard in range(source[1]):
        for part in range(factor_up):
            other = shard * factor_up + part if factor_up > 1 else shard // factor_down
            pairs.append((_holders(source, stage_from, shard, 0), _holders(target, stage_to, other, shift)))
    return pairs


def _ranks(layout: tuple[int, int, int]) -> int:
    return layout[0] * layout[1] * layout[2]


def _holders(layout: tuple[int, int, int], stage: int, shard: int, shift: int) -> list[int]:
    _, tensor, data = layout
    return [shift + (stage * data + replica) * tensor + shard for replica in range(data)]


def _charge(spent: dict[int, float], message: float, senders: Sequence[int], receivers: Sequence[int]) -> None:
    """Add one message to the ranks that take part; one sender per node, near receivers served by their own node."""
    from_nodes, to_nodes = _by_node(senders), _by_node(receivers)
    # The count of receivers served stays as it was at the start, so all far ones get the same, idlest node.
    idlest = min(from_nodes, key=lambda node: node in to_nodes)
    served: dict[int, list[int]] = defaultdict(list)
    for near in (True, False):
        for node, ranks in to_nodes.items():
            if (node in from_nodes) == near:
                served[node if near else idlest] += ranks
    for node, ranks in served.items():
        sender = next((rank for rank in from_nodes[node] if rank in ranks), from_nodes[node][0])
        reached = {rank // _NODE_GPUS for rank in ranks}
        local = reached == {node}
        rate = _LOCAL_BITS_PER_S if local else _NETWORK_BITS_PER_S
        broadcast_s = _BITS_PER_PARAMETER * message / rate * (1 if local else len(reached))
        for rank in ranks:
            if rank != sender:
                spent[rank] += broadcast_s
            spent[rank] += _MESSAGE_S
        if any(rank != sender for rank in ranks):
            spent[sender] += broadcast_s


def _by_node(ranks: Sequence[int]) -> Mapping[int, list[int]]:
    nodes: dict[int, list[int]] = {}
    for rank in sorted(ranks):
        nodes.setdefault(rank // _NODE_GPUS, []).append(rank)
    return nodes


@lru_cache(maxsize=256)
def _stages(counted: tuple[int, ...], stages: int) -> tuple[range, ...]:
    """Pieces of each stage.

    For every prefix of the pieces and every number of stages, one partition is kept: that with the smallest
    difference between its largest and smallest stage, the last found of equals. This greedy rule, rather than the
    best partition overall, is what the reference does; they differ at 14 stages.
    """
    total = [0.0]
    for count in counted:
        total.append(total[-1] + count)
    pieces = len(counted)
    # spread, largest stage, smallest stage, where the last stage begins
    kept = {(end, 1): (0.0, total[end], total[end], 0) for end in range(1, pieces + 1)}
    for stage in range(2, stages + 1):
        for end in range(stage, pieces + 1):
            found: tuple[float, float, float, int] | None = None
            for begin in range(stage - 1, end):
                spread, largest, smallest, _ = kept[begin, stage - 1]
                last = total[end] - total[begin]
                spread = max(spread, largest - last, last - smallest)
                if found is not None and spread > found[0]:
                    continue
                if spread == largest - last:
                    found = spread, largest, last, begin
                elif spread == last - smallest:
                    found = spread, last, smallest, begin
                else:
                    found = spread, largest, smallest, begin
            if found is not None:
                kept[end, stage] = found
    cuts = [pieces]
    for stage in range(stages, 0, -1):
        cuts.append(kept[cuts[-1], stage][3])
    cuts.reverse()
    return tuple(range(cuts[index], cuts[index + 1]) for index in range(stages))
