"""The assignment problems that other planners solve, drawn from seeds, and how those planners solve them.

Only the shape of each problem is theirs: what is minimised, and the sizes they are known for. Costs are
drawn here. Where a planner's own rule is known to miss the best answer, the rule is stated in a few lines,
so that the tests can show instances on which it does.
"""

import itertools
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, Schedule
from planner.search.partition.problem import PartitionInstance, StageOptions, partition_time_s
from tests.search.chains import ChainInstance, chain_bytes, chain_time_s

MIST_SIZES = ((24, 2, 16), (32, 4, 16), (40, 8, 32), (64, 8, 32), (80, 16, 64))  # layers, stages, micro-batches
_PARETO = 30  # points per stage and number of layers


def is_partition(instance: PartitionInstance, rows: IntArray) -> BoolArray:
    """Whether choices cover the layers in order with the devices there are.

    Args:
        instance: The problem.
        rows: (N, S) options, stage by stage.

    Returns:
        (N,) verdicts.
    """
    options = instance.options
    layers = options.layers[rows]
    legal = (options.stage[rows] == np.arange(instance.num_stages)).all(axis=1)
    legal &= layers.sum(axis=1) == instance.num_layers
    if instance.placed:
        legal &= (options.first_layer[rows] == np.cumsum(layers, axis=1) - layers).all(axis=1)
    used = options.devices[rows].sum(axis=1)
    verdict: BoolArray = legal & (used <= np.asarray(instance.available_devices, dtype=np.int64)).all(axis=1)
    return verdict


def every_choice(instance: PartitionInstance) -> IntArray:
    """(N, S) all legal choices."""
    of_stage = [np.flatnonzero(instance.options.stage == stage) for stage in range(instance.num_stages)]
    grid = np.stack(np.meshgrid(*of_stage, indexing="ij"), axis=-1).reshape(-1, instance.num_stages)
    return grid[is_partition(instance, grid)]


def brute_force_s(instance: PartitionInstance) -> float:
    """The shortest step of all choices; infinite if none is legal."""
    rows = every_choice(instance)
    return float(partition_time_s(instance, rows).min()) if len(rows) else np.inf


def mist(layers: int, stages: int, microbatches: int, seed: int) -> PartitionInstance:
    """Mist (EuroSys'25): stages of avg - 2 to avg + 2 layers, Pareto points of steady time and extra time.

    Minimises (G - 1) max t + sum t + max_i (d_i - sum of t before i).
    """
    rng = np.random.default_rng(seed)
    average = layers // stages
    counts = np.arange(max(1, average - 2), average + 3)
    stage, count, _ = (axis.ravel() for axis in np.indices((stages, len(counts), _PARETO)))
    per_layer = rng.uniform(0.9, 1.1, (stages, len(counts)))[stage, count]
    share = rng.uniform(0.0, 1.0, len(stage))
    ends = 0.5 * (stage == 0) + 1.5 * (stage == stages - 1)
    steady_s = counts[count] * per_layer * (1.0 + 0.6 * share + 0.05 * rng.uniform(size=len(stage))) + ends
    extra_s = counts[count] * per_layer * (2.0 * (1.0 - share) ** 2 + 0.1 * rng.uniform(size=len(stage)))
    options = StageOptions.from_columns(
        stage=stage, layers=counts[count], forward_s=steady_s, backward_s=0.0, once_s=extra_s
    )
    return PartitionInstance(
        num_layers=layers, num_stages=stages, num_microbatches=microbatches, options=options,
        schedule=Schedule.GPIPE, once_under_fill=True,
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AmpInstance:
    """Layers of unequal cost, and a transfer that depends on where the model is cut and on the cut's number."""

    layer_s: FloatArray
    transfer_s: FloatArray  # (L, k - 1): cut behind layer l, between stage j and j + 1
    microbatches: int

    @property
    def num_stages(self) -> int:
        return self.transfer_s.shape[1] + 1


def amp(seed: int, layers: int = 9, stages: int = 3) -> AmpInstance:
    """AMP (NeurIPS'22): minimises sum t + (m - 1) max t + transfers."""
    rng = np.random.default_rng(seed)
    return AmpInstance(
        layer_s=rng.uniform(1.0, 10.0, layers),
        transfer_s=rng.uniform(0.0, 20.0, (layers, stages - 1)),
        microbatches=int(rng.integers(2, 9)),
    )


def amp_partition(problem: AmpInstance) -> PartitionInstance:
    """The same as an instance of ours: an option for every run of layers, its transfer a detour."""
    layers, stages = len(problem.layer_s), problem.num_stages
    before = np.concatenate([[0.0], np.cumsum(problem.layer_s)])
    runs = np.asarray([(s, a, b) for s in range(stages) for a, b in itertools.combinations(range(layers + 1), 2)])
    stage, first, end = runs.T
    last = stage == stages - 1
    time_s = before[end] - before[first]
    options = StageOptions.from_columns(
        stage=stage, first_layer=first, layers=end - first, forward_s=time_s, backward_s=0.0,
        path_s=np.where(last, 0.0, problem.transfer_s[end - 1, np.minimum(stage, stages - 2)]),
    )  # fmt: skip
    return PartitionInstance(
        num_layers=layers, num_stages=stages, num_microbatches=problem.microbatches, options=options,
        schedule=Schedule.GPIPE,
    )  # fmt: skip


def amp_value_s(problem: AmpInstance, ends: tuple[int, ...]) -> float:
    """Step time of stages that end behind the given layers."""
    times = np.diff(np.concatenate([[0.0], np.cumsum(problem.layer_s)])[[0, *ends]])
    transfers = sum(problem.transfer_s[end - 1, cut] for cut, end in enumerate(ends[:-1]))
    return float(times.sum() + (problem.microbatches - 1) * times.max() + transfers)


def amp_rule_s(problem: AmpInstance) -> float:
    """What AMP's dynamic program settles on: it forgets a cut's transfer once the cut has won.

    A prefix is remembered without the transfer behind it, and the next candidate, transfer included, has to
    beat that smaller number.
    """
    before = np.concatenate([[0.0], np.cumsum(problem.layer_s)])
    more = problem.microbatches - 1

    @cache
    def best(layers: int, stages: int, longest_s: float) -> tuple[float, tuple[int, ...]]:
        if stages == 1:
            return more * max(0.0, before[layers] - longest_s), (layers,)
        value_s, ends = np.inf, ()
        for cut in range(stages - 1, layers):
            last_s = before[layers] - before[cut]
            prefix_s, earlier = best(cut, stages - 1, max(longest_s, last_s))
            transfer_s = problem.transfer_s[cut - 1, stages - 2]
            candidate_s = prefix_s + more * max(0.0, last_s - longest_s) + transfer_s
            if candidate_s < value_s:
                value_s, ends = candidate_s - transfer_s, (*earlier, layers)
        return value_s, ends

    return amp_value_s(problem, best(len(problem.layer_s), problem.num_stages, 0.0)[1])


def chain(seed: int, operators: int = 6, ways: int = 3) -> ChainInstance:
    """nnScaler (OSDI'24): kept memory, the larger of two moments, and the two largest buffers.

    The capacity is between what no choice needs less than and what three choices in ten fit; one instance in
    twenty fits nothing.
    """
    rng = np.random.default_rng(seed)
    shape = (operators, ways)
    drawn = ChainInstance(
        time_s=rng.uniform(1.0, 10.0, shape),
        transfer_s=rng.uniform(0.0, 5.0, (operators - 1, ways, ways)),
        kept_bytes=rng.integers(1, 20, shape),
        backward_bytes=rng.integers(0, 40, shape),
        optimizer_bytes=rng.integers(0, 40, shape),
        buffer_bytes=rng.integers(0, 60, shape),
        capacity_bytes=0,
    )
    held = chain_bytes(drawn, every_way(drawn))
    capacity = int(np.quantile(held, rng.choice([0.0, 0.02, 0.1, 0.3])))
    return replace(drawn, capacity_bytes=int(held.min()) - 1 if rng.random() < 0.05 else capacity)


def every_way(instance: ChainInstance) -> IntArray:
    """(P^N, N) all choices."""
    nodes, ways = instance.time_s.shape
    return np.stack(np.meshgrid(*[np.arange(ways)] * nodes, indexing="ij"), axis=-1).reshape(-1, nodes)


def chain_brute_force_s(instance: ChainInstance) -> float:
    """The fastest choice that fits; infinite if none does."""
    ways = every_way(instance)
    fits = chain_bytes(instance, ways) <= instance.capacity_bytes
    return float(chain_time_s(instance, ways[fits]).min()) if fits.any() else np.inf


def chain_front_rule_s(instance: ChainInstance) -> float:
    """What a dynamic program finds that keeps, per last way, prefixes on the front of time and peak memory."""
    nodes, ways = instance.time_s.shape
    kept = [np.asarray([[way]]) for way in range(ways)]
    for node in range(1, nodes):
        prefixes = np.concatenate(kept) if any(map(len, kept)) else np.zeros((0, node), dtype=np.int64)
        kept = []
        for way in range(ways):
            longer = np.column_stack([prefixes, np.full(len(prefixes), way)])
            time_s, held = chain_time_s(instance, longer), chain_bytes(instance, longer)
            order = np.lexsort((held, time_s))
            order = order[held[order] <= instance.capacity_bytes]
            least = np.concatenate([[np.inf], np.minimum.accumulate(held[order])[:-1]]) if len(order) else order
            kept.append(longer[order[held[order] < least]])
    complete = np.concatenate(kept)
    return float(chain_time_s(instance, complete).min()) if len(complete) else np.inf


METIS_LAYERS, _METIS_DEVICES = 10, 4


def two_types(seed: int, stages: int, microbatches: int) -> PartitionInstance:
    """Metis (ATC'24): two types of four devices, every stage on one, two or four of one type, its own TP.

    The second type is about three times as fast and has less memory; stages of different types are further
    apart. Memory grows with the micro-batches in flight, so that early stages hold fewer layers.
    """
    rng = np.random.default_rng(seed)
    degrees = np.asarray([(n, t) for n in (1, 2, 4) for t in (1, 2, 4) if t <= n])
    stage, kind, degree, layers = (
        axis.ravel() for axis in np.indices((stages, 2, len(degrees), METIS_LAYERS))
    )  # fmt: skip
    layers = layers + 1
    devices, tensor = degrees[degree].T
    layer_s = rng.uniform(0.8, 1.2, (2, len(degrees)))[kind, degree] * np.asarray([1.0, 0.35])[kind]
    time_s = layers * layer_s * (4 / devices) * (1.0 + 0.1 * np.log2(tensor)) + 0.6 * (stage == stages - 1)
    in_flight = np.minimum(stages - stage, microbatches)
    memory = layers * (6.0 / tensor + 1.5 * in_flight * devices / tensor / 4)
    rows = np.flatnonzero(memory <= np.asarray([90.0, 60.0])[kind])
    once_s = 0.2 * layers * devices / tensor
    taken = np.zeros((len(rows), 2), dtype=np.int64)
    taken[np.arange(len(rows)), kind[rows]] = devices[rows]
    options = StageOptions.from_columns(
        stage=stage[rows], layers=layers[rows], kind=kind[rows], devices=taken,
        forward_s=time_s[rows] / 3, backward_s=time_s[rows] * 2 / 3, once_s=once_s[rows],
    )  # fmt: skip
    return PartitionInstance(
        num_layers=METIS_LAYERS, num_stages=stages, num_microbatches=microbatches, options=options,
        available_devices=(_METIS_DEVICES, _METIS_DEVICES), hand_over_s=np.asarray([[0.05, 0.2], [0.2, 0.02]]),
    )  # fmt: skip


METIS_OUTER = tuple((stages, microbatches) for stages in (1, 2, 3) for microbatches in (2, 4, 8, 16, 32, 64, 128, 256))
