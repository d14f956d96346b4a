"""The plain-Python loop that the batch path is compared with: the same formulas, one plan at a time, on floats.

It composes what ``costmodels.step.step_time``, ``pipeline`` and ``memory`` compose: stage times, parts of the step,
bubble, exposed traffic, memory parts of every stage, peak and verdict. What they look up once per distinct shape
(kernel and collective prices, stage layouts, parameters and activations) is handed to the loop ready-made, so its rate
is an upper bound of what such a loop could reach. Restricted to what the benchmark prices: a dense model on
Megatron-Core without offloading, and so without zero bubble. ``report`` checks that both agree, so that this second
copy of the formulas cannot drift unseen; nothing but the benchmark uses it.
"""

from math import exp, log2
from typing import Any

import numpy as np

from costmodels.boundary_transfers import boundary_transfer_s
from costmodels.context import CostContext
from costmodels.data_parallel import data_parallel_traffic
from costmodels.gradient_formats import gradient_element_bytes
from costmodels.memory.communication import communicators
from costmodels.memory.model_state import end_gradient_bytes, state_bytes
from costmodels.memory.stage_activations import held_activations
from costmodels.memory.terms import logits_copies, memory_terms, working_bytes
from costmodels.optimizer import memory_seconds_per_byte, optimizer_s
from costmodels.plan import PlanBatch, Recompute, Schedule
from costmodels.stages.layers import stage_layers
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import stage_table
from costmodels.step.block_seconds import COMPONENTS
from costmodels.step.layer_costs import layer_costs

Row = dict[str, Any]
_COLUMNS = (
    "recompute", "recompute_layers", "schedule", "virtual_stages", "num_microbatches", "zero_stage", "shard_degree",
    "overlap_param_gather", "overlap_grad_reduce", "num_devices",
)  # fmt: skip
_FORWARD = ("forward", "core", "tensor_forward", "context_forward", "launch_forward")
_BACKWARD = ("input_gradient", "tensor_backward", "context_backward", "launch_backward")
_KERNELS = ("forward", "core", "input_gradient", "weight_gradient")


def prepare(plans: PlanBatch, context: CostContext) -> list[Row]:
    """Everything the loop reads, as Python numbers: one dictionary per plan, shared pieces shared."""
    stages = stage_table(plans, context.model)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    costs = layer_costs(plans, context)
    terms = memory_terms(plans, stages, parameters, context)
    held = held_activations(terms.activations, stage_layers(plans, stages, context.model), stages.in_flight)
    traffic = data_parallel_traffic(plans, stages, parameters, context)
    blocks = []
    for block in (costs.attention, costs.dense_mlp, costs.embedding, costs.head):
        shapes = [dict(zip(COMPONENTS, column, strict=True)) for column in block.seconds.T.tolist()]
        blocks.append([shapes[shape] for shape in block.of_row.tolist()])
    columns: dict[str, list[Any]] = {
        **{name: getattr(plans, name).tolist() for name in _COLUMNS},
        **{name: getattr(stages, name).tolist() for name in ("count", "layers", "has_embedding", "has_head")},
        "transfer_s": boundary_transfer_s(plans, context).tolist(),
        "traffic": [
            list(zip(*stage, strict=True))
            for stage in zip(
                *(
                    np.broadcast_to(each, stages.count.shape).tolist()
                    for each in (traffic.gradients_s, traffic.parameters_s, traffic.shared_s, traffic.replicas_s)
                ),
                strict=True,
            )
        ],
        "gathers": traffic.gathers_per_microbatch[:, 0].tolist(),
        "reduces": traffic.reduces_per_microbatch[:, 0].tolist(),
        "optimizer_s": optimizer_s(plans, parameters, context).tolist(),
        "parameters": parameters.dense.tolist(),
        "kept": held.kept.tolist(),
        "newest": held.newest.tolist(),
        "working": working_bytes(terms, held).tolist(),
        "logits": (terms.logits * logits_copies(plans.schedule, plans.num_microbatches)[:, None]).tolist(),
        "end_gradient": end_gradient_bytes(plans, context).tolist(),
        "communication": terms.communication.tolist(),
        "context": (context.stack.context_bytes + context.stack.communicator_bytes * communicators(plans)).tolist(),
        "blocks": list(zip(*blocks, strict=True)),
    }
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def price(rows: list[Row], context: CostContext) -> list[tuple[float, float, bool]]:
    """Step time, peak memory and verdict of every plan, with the parts in between."""
    byte_s = memory_seconds_per_byte(context)
    return [_price_one(row, context, byte_s) for row in rows]


def _price_one(row: Row, context: CostContext, byte_s: float) -> tuple[float, float, bool]:
    stack, m = context.stack, row["num_microbatches"]
    per_micro = stack.microbatch_overhead_s * row["virtual_stages"]
    either = row["transfer_s"] + per_micro / 2
    forward, backward, weight = _stage_seconds(row, _accumulation_s(row, context, byte_s), either)
    pipeline_s, bubble_s, slowest = _pipeline_s(row, forward, backward, weight)
    pipeline_s = max(pipeline_s, 2 * m * row["virtual_stages"] * row["transfer_s"])  # what it sends
    parts = _parts(row, slowest)
    parts["bubble"], parts["pipeline_transfer"] = bubble_s, 2 * m * row["transfer_s"]
    parts["data_parallel"] = _traffic_s(row, stack.data_parallel_overlap, forward, backward, weight)
    parts["optimizer"] = row["optimizer_s"]
    known = pipeline_s + parts["data_parallel"] + parts["optimizer"]
    nodes = max(row["num_devices"] / context.cluster.node.devices_per_node, 1.0)
    per_step = stack.step_overhead_s + known * stack.straggler_fraction_per_doubling * log2(nodes)
    parts["overhead"] += per_step + m * per_micro
    peak = max(sum(part.values()) for part in _memory(row, context))
    spread = exp(1.645 * stack.memory_residual_log_std)
    interval = (peak / spread, peak * spread)
    return known + per_step, peak, interval[0] <= peak <= context.cluster.device.usable_memory_bytes


def _traffic_s(row: Row, hide: float, forward: list[float], backward: list[float], weight: list[float]) -> float:
    m, chunks = row["num_microbatches"], row["virtual_stages"]
    between = min(sum(row["count"]), m)
    longest_backward = max(b + w for b, w in zip(backward, weight, strict=True))
    most = 0.0
    for gradients_s, parameters_s, shown, replicas_s in row["traffic"]:  # beginning with what nothing hides
        back = gradients_s + (row["gathers"] > 1) * parameters_s
        for transfer, last, window, hides, often in (
            (parameters_s, parameters_s, max(forward), row["overlap_param_gather"], row["gathers"]),
            (back, back + replicas_s, longest_backward, row["overlap_grad_reduce"], row["reduces"]),
        ):
            apart, times = (1, m) if often and m > 1 else (chunks, 1)
            for sent, count in ((transfer, times - 1), (last, 1)):
                hidden = (hide if hides else 0.0) * sent
                under_one, under_several = sent - min(hidden, window), sent - min(hidden, between * window)
                shown += count * (under_several + (under_one - under_several) / apart)
        most = max(most, shown)
    return most


def _accumulation_s(row: Row, context: CostContext, byte_s: float) -> list[float]:
    gradient, stored = gradient_element_bytes(context.job, context.stack), context.job.numerics.storage_bytes
    each = 2 * gradient - stored if gradient > stored else 2 * gradient + stored
    m = row["num_microbatches"]
    rounds = (1.0 if gradient > stored else (m - 1) / m) * (row["zero_stage"] < 3)
    return [parameters * rounds * each * byte_s for parameters in row["parameters"]]


def _stage_seconds(row: Row, accumulate: list[float], either: float) -> tuple[list[float], list[float], list[float]]:
    """Forward, input-gradient and weight-gradient seconds of one micro-batch on every stage class."""
    ahead = [sum(block[name] for name in _FORWARD) for block in row["blocks"]]
    behind = [sum(block[name] for name in _BACKWARD) for block in row["blocks"]]
    grads = [block["weight_gradient"] for block in row["blocks"]]
    core = row["blocks"][0]["core"] if row["recompute"] == Recompute.SELECTIVE else 0.0
    forward, backward, weight = [], [], []
    for stage, layers in enumerate(row["layers"]):
        times = (layers, layers, row["has_embedding"][stage], row["has_head"][stage])
        again = _repeated(row, layers) * (ahead[0] + ahead[1]) + layers * core
        forward.append(sum(n * s for n, s in zip(times, ahead, strict=True)) + either)
        backward.append(sum(n * s for n, s in zip(times, behind, strict=True)) + again + either)
        weight.append(sum(n * s for n, s in zip(times, grads, strict=True)) + accumulate[stage])
    return forward, backward, weight


def _repeated(row: Row, layers: int) -> int:
    kind = row["recompute"]
    return layers if kind == Recompute.FULL else min(row["recompute_layers"], layers) if kind == Recompute.BLOCK else 0


def _pipeline_s(row: Row, forward: list[float], backward: list[float], weight: list[float]) -> tuple[float, float, int]:
    used = [1 if count > 0 else 0 for count in row["count"]]
    stage_s = [u * (f + b + w) for u, f, b, w in zip(used, forward, backward, weight, strict=True)]
    slowest = max(range(len(stage_s)), key=stage_s.__getitem__)
    stages = max(sum(row["count"]), 1)
    kind, m = row["schedule"], row["num_microbatches"]
    runs = [(f, b + w, n) for f, b, w, n in zip(forward, backward, weight, row["count"], strict=True) if n > 0]
    if stages == 1:
        fill = 0.0
    elif kind == Schedule.GPIPE:
        through = sum((f + b) * n for f, b, n in runs)
        fill = through + (m - 1) * (max(f for f, _, _ in runs) + max(b for _, b, _ in runs)) - m * stage_s[slowest]
    elif kind == Schedule.ONE_F_ONE_B and row["virtual_stages"] > 1:
        fill = max(_interleaved_s(runs, stages, m, row["virtual_stages"]) - m * stage_s[slowest], 0.0)
    else:
        fill = max(_one_f_one_b_s(runs, stages, m) - m * stage_s[slowest], 0.0)
    return m * stage_s[slowest] + fill, fill, slowest


def _one_f_one_b_s(runs: list[tuple[float, float, int]], stages: int, m: int) -> float:
    """Seconds of 1F1B: the longest chain, through the ends of every run of equal stages."""
    points, way_forward, way_back, most_forward, most_back, before = [], 0.0, 0.0, 0.0, 0.0, 0
    for forward, backward, count in runs:
        most_forward, most_back = max(most_forward, forward), max(most_back, backward)
        first = min(max(stages - m - before + 1, 1), count)
        for steps in (first, count - first):
            way_forward, way_back, before = way_forward + steps * forward, way_back + steps * backward, before + steps
            spare = min(stages - before, m - 1)
            reach, leave = way_forward + spare * most_forward, way_back + spare * most_back
            turns = m - stages + before - 1
            chain = turns * (forward + backward) - way_forward - way_back
            points.append((turns, reach + way_back, leave + way_forward, chain))
    longest, reach, leave = 0.0, 0.0, 0.0
    for turns, to_here, from_here, chain in reversed(points):
        reach, leave = max(reach, to_here), max(leave, from_here)
        if turns >= 0:
            longest = max(longest, reach + leave + chain)
    return longest


def _interleaved_s(runs: list[tuple[float, float, int]], stages: int, m: int, v: int) -> float:
    """Seconds of interleaved 1F1B whose micro-batches the stages divide, as in ``costmodels.pipeline.interleaving``."""
    points, ahead, behind, before = [], 0.0, 0.0, 0
    for forward, backward, count in runs:
        middle = stages - 1 - stages // 2 - before
        last = count - 1
        for at in (0, min(max(middle, 0), last), min(max(middle + 1, 0), last), last) if count > 1 else (0,):
            f, b = forward / v, backward / v
            points.append((f, b, ahead + (at + 1) * f, behind + (at + 1) * b, before + at))
        ahead, behind, before = ahead + count * forward / v, behind + count * backward / v, before + count
    warm = [min(2 * (stages - 1 - point[4]) + (v - 1) * stages, m * v - 1) for point in points]
    there = _ways(points, warm, stages, m, v)
    back = _ways([(b, f, behind, ahead, at) for f, b, ahead, behind, at in points], warm, stages, m, v)
    longest = 0.0
    for (f, b, *_), ahead_of, to_here, from_here in zip(points, warm, there, back, strict=True):
        turns = m * v - 1 - ahead_of
        second = (v + 1) * stages - ahead_of
        own, straight, *around = to_here
        last, leaving, *round_again = from_here
        if m < 2 * stages:
            ways = straight + leaving if turns else max(own + leaving, straight + last)
        else:
            ways = max(straight + leaving, max(around) + leaving, straight + max(round_again))
            fits = ((2 * stages < turns, v > 2), (v > 2, 2 * second <= turns))
            for one, way in enumerate(around):
                for other, away in enumerate(round_again):
                    if m > 2 * stages or fits[one][other]:
                        ways = max(ways, way + away)
        longest = max(longest, ways + turns * (f + b))
    return longest


def _ways(
    points: list[tuple[float, float, float, float, int]], warm: list[int], stages: int, m: int, v: int
) -> list[tuple[float, float, float, float]]:
    """Seconds to the first turn of every stage: on its own, straight, around by the backwards and by the forwards."""
    whole, most, slowest = points[-1][2], max(point[0] for point in points), 0.0
    own, beyond, straight = [], 0.0, []
    for (f, _, ahead, _, _), steps in zip(points, warm, strict=True):
        slowest = max(slowest, f)
        way, spare = ahead + steps * slowest, steps - stages
        if spare >= 0:
            first = min(spare, (v - 1) * stages - 1)
            way = max(way, whole + ahead + first * most + (spare - first) * slowest)
        own.append(way)
    for (_, _, _, behind, _), way in zip(reversed(points), reversed(own), strict=True):
        beyond = max(beyond, way + behind)
        straight.append(beyond - behind)
    straight.reverse()
    if m < 2 * stages:
        return [(way, line, 0.0, 0.0) for way, line in zip(own, straight, strict=True)]
    turns = [v * stages - steps for steps in warm]
    last = max(
        line + spare * (f + b) - ahead
        for (f, b, ahead, _, _), spare, line in zip(points, turns, straight, strict=True)
        if spare >= 0
    )
    return [
        (
            way,
            line,
            beyond + points[-1][3] - behind - stages * (f + b),
            last + whole + ahead - (spare + stages) * (f + b),
        )
        for (f, b, ahead, behind, _), spare, way, line in zip(points, turns, own, straight, strict=True)
    ]


def _parts(row: Row, stage: int) -> dict[str, float]:
    """Seconds per step of the slowest stage, by cause."""
    m, layers = row["num_microbatches"], row["layers"][stage]
    share = _repeated(row, layers) / max(layers, 1)
    attention, mlp, embedding, head = row["blocks"]
    ends = [(embedding, row["has_embedding"][stage]), (head, row["has_head"][stage])]
    sums = {name: layers * (attention[name] + mlp[name]) for name in COMPONENTS}
    again = share * (sums["forward"] + sums["core"])
    for name in ("tensor_forward", "context_forward", "launch_forward"):
        sums[name] *= 1 + share
    for name in COMPONENTS:
        if name not in _KERNELS:
            sums[name] += sum(times * block[name] for block, times in ends)
    core = sums["core"] if row["recompute"] == Recompute.SELECTIVE else 0.0
    return {
        "forward": m * (sums["forward"] + sums["core"]),
        "backward": m * (sums["input_gradient"] + sums["weight_gradient"]),
        "recompute": m * (again + core),
        "embedding_and_loss": m * sum(times * block[name] for block, times in ends for name in _KERNELS),
        "tensor_parallel": m * (sums["tensor_forward"] + sums["tensor_backward"]),
        "context_parallel": m * (sums["context_forward"] + sums["context_backward"]),
        "overhead": m * (sums["launch_forward"] + sums["launch_backward"]),
    }


def _memory(row: Row, context: CostContext) -> list[dict[str, float]]:
    """Memory parts of every stage class that is used."""
    each, stack, shard = state_bytes(context.job, context.stack), context.stack, row["shard_degree"]
    zero, stages = row["zero_stage"], []
    for stage, count in enumerate(row["count"]):
        if count == 0:
            continue
        parameters, kept = row["parameters"][stage], row["kept"][stage]
        start = kept + row["working"][stage] + row["logits"][stage]
        last = row["end_gradient"] if row["has_embedding"][stage] else 0.0
        parts = {
            "weights": parameters * each.weight / (shard if zero >= 3 else 1),
            "gradients": parameters * each.gradient / (shard if zero >= 2 else 1)
            + max(last + kept - row["newest"][stage] - start, 0.0),
            "optimizer": parameters * (each.master + each.moments) / (shard if zero >= 1 else 1),
            "activations": kept + row["working"][stage] + start * stack.temporary_fraction,
            "logits": row["logits"][stage],
            "communication": row["communication"][stage],
            "reserve": start * stack.fragmentation_fraction + stack.reserve_bytes,
            "context": row["context"],
        }
        room = context.cluster.device.usable_memory_bytes - sum(parts.values()) - 2 * 2**20
        parts["reserve"] += min(max(room, 0.0), start * stack.cache_fraction)
        stages.append(parts)
    return stages
