"""Price plans whose stages differ: look-ups in ``StagePrices``, then the sums that price every other plan.

A plan that treats its stages alike costs the same here as in ``costmodels.evaluate``: both compose the same
prices with the same functions. Stages of one plan may differ in all but the samples of a micro-batch. What differs
between them is taken as follows: crossing a boundary takes as long as for the slower of both sides, over the link
between their device groups; data-parallel traffic, the optimizer step and offloading take as long as on the stage
where they take longest, under the passes of the slowest stage.
"""

from dataclasses import dataclass, replace

import numpy as np

from costmodels.arrays import largest, total
from costmodels.autocast import casts_weights
from costmodels.context import CostContext
from costmodels.data_parallel import DataParallelTraffic, exposed_traffic_s
from costmodels.memory.peaks import TensorMemory, host_bytes_per_optimizer_byte, paging_bytes, with_overheads
from costmodels.memory.stage_activations import ActivationUnits, LayerUnits, StageActivations, held_activations
from costmodels.memory.terms import MemoryTerms, composed, logits_copies
from costmodels.optimizer import paging_s
from costmodels.pipeline.schedules import HostTraffic, Passes, Scheduled, in_flight_microbatches, scheduled
from costmodels.plan import BoolArray, FloatArray, IntArray, chosen_modules, chunks_per_stage
from costmodels.stage_plans.crossing import crossing_s, longest_crossing_s, shared_sums_s
from costmodels.stage_plans.estimate import StageEstimateBatch
from costmodels.stage_plans.once import stage_step_parts, stage_traffic
from costmodels.stage_plans.plan import OFFLOAD_PARTS, StagePlanBatch
from costmodels.stage_plans.prices import CONTENT_COLUMNS, OFFLOAD_COLUMNS, WIDTH_COLUMNS, StagePrices
from costmodels.stages.layers import LayerGroup, StageLayers, layer_kinds
from costmodels.stages.table import one_layer
from costmodels.step.stage_seconds import RecomputeUnits, recomputation_s
from costmodels.step.step_time import per_step_overhead_s
from costmodels.step.trust import half_widths, pipeline_opens, step_opens
from profiles.model import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looked:
    """Prices of the stages of N plans: columns (N, S) by name.

    Attributes:
        content: Those of whole stages.
        unit: Those of configurations asked for so far.
        prices: Where the others are.
        plans: The plans.
        used: (N, S) whether a column is a stage.
    """

    content: dict[str, FloatArray]
    unit: dict[str, FloatArray]
    prices: StagePrices
    plans: StagePlanBatch
    used: BoolArray

    def __getitem__(self, name: str) -> FloatArray:
        if name in self.content:
            return self.content[name]
        if name not in self.unit:
            self.unit[name] = np.take(self.prices.unit[name], self.plans.config.T).T
        return self.unit[name]

    def selective(self, kind: str, unit: str) -> FloatArray:
        """(N, S) what the modules that a stage recomputes drop (``bytes``) or take (``s``), in one layer of a kind."""
        return chosen_modules(self.plans.modules, lambda module: self[f"{kind}_{module.name}_{unit}".lower()])


def evaluate_stages(
    plans: StagePlanBatch,
    prices: StagePrices,
    *,
    kinds: tuple[IntArray, IntArray] | None = None,
    played_s: FloatArray | None = None,
    intervals: bool = False,
) -> StageEstimateBatch:
    """Price plans whose stages may differ.

    Args:
        plans: N legal plans (legality is the planner's business).
        prices: Prices of their stages.
        kinds: (N, S) dense and MoE layers of every stage, for stages looked at one by one; from their
            positions in the model if not given.
        played_s: (N,) seconds of forward and backward passes where they are known from the schedule played out
            (``costmodels.stage_plans.replay``); by the formulas of ``costmodels.pipeline.schedules`` if not given.
        intervals: Whether to say how sure step times are, which no search asks for.

    Returns:
        Estimates in the order of the plans.
    """
    context, model = prices.context, prices.context.model
    dense, moe = plans.kinds(model) if kinds is None else kinds
    looked = _look_up(plans, prices, dense, moe, intervals=intervals)
    layers = _layers(plans, model, dense, moe)
    passes = _passes(plans, prices, looked, layers)
    beside = one_layer(looked["overlaps"] > 0, layers.total)
    held = held_activations(_activation_units(looked, context), layers, in_flight(plans, beside))
    tensors = _tensors(plans, looked, held, context)
    memory = with_overheads(tensors, context.stack)
    paged = paging_bytes(tensors, memory)
    step_s, parts, passes, opens = _step(plans, prices, looked, passes, held, played_s, paged)
    return StageEstimateBatch(
        step_time_s=step_s,
        time_parts_s=parts,
        stages=passes,
        memory_parts_bytes=memory,
        stage_memory_bytes=total(memory.values()),
        usable_bytes=looked["usable_bytes"],
        host_memory_bytes=_host_bytes(plans, prices, looked, held, paged),
        host_usable_bytes=looked["host_memory_bytes"],
        half_widths=None if opens is None else half_widths(opens, context),
    )


def _look_up(plans: StagePlanBatch, prices: StagePrices, dense: IntArray, moe: IntArray, *, intervals: bool) -> _Looked:
    config, used = plans.config.T, plans.used
    has_embedding, has_head = plans.ends()
    rows = prices.rows(config, dense=dense.T, moe=moe.T, has_embedding=(has_embedding & used).T, has_head=has_head.T)
    offloads = plans.optimizer_offload.any() or plans.parameter_offload.any()
    spared = 0 if intervals else len(WIDTH_COLUMNS) + (0 if offloads else len(OFFLOAD_COLUMNS))
    names = CONTENT_COLUMNS[: len(CONTENT_COLUMNS) - spared]
    content = np.take(prices.content[: len(names)], rows, axis=1)
    return _Looked(
        content={name: values.T for name, values in zip(names, content, strict=True)},
        unit={},
        prices=prices,
        plans=plans,
        used=used,
    )


def _layers(plans: StagePlanBatch, model: ModelSpec, dense: IntArray, moe: IntArray) -> StageLayers:
    """How many layers of each kind there are, recomputed and offloaded."""
    columns = {
        False: (dense, plans.selective_dense, plans.full_dense),
        True: (moe, plans.selective_moe, plans.full_moe),
    }
    groups = tuple(
        LayerGroup(moe=kind, layers=columns[kind][0], selective=columns[kind][1], full=columns[kind][2])
        for kind in layer_kinds(model)
    )
    found = StageLayers(
        groups=groups,
        recomputes_modules=np.zeros((1, 1), dtype=np.bool_),
        recomputes_layers=np.zeros((1, 1), dtype=np.bool_),
        offloaded=plans.offloaded if plans.offloaded.any() else None,
    )
    modules = found.with_modules
    return StageLayers(
        groups=groups,
        recomputes_modules=found.recomputes_modules if modules is None else modules > 0,
        recomputes_layers=found.recomputed > 0,
        offloaded=found.offloaded,
    )


def _passes(plans: StagePlanBatch, prices: StagePrices, looked: _Looked, layers: StageLayers) -> Passes:
    """What every stage spends on one micro-batch."""
    kinds = ["moe" if group.moe else "dense" for group in layers.groups]
    units = RecomputeUnits(
        layer_s=tuple(looked[f"{kind}_layer_s"] for kind in kinds),
        selective_s=tuple(looked.selective(kind, "s") for kind in kinds),
    )
    there_s, back_s = crossing_s(plans, prices)
    per_micro = (prices.context.stack.microbatch_overhead_s * plans.virtual_stages / 2)[:, None]
    used = looked.used
    again_s = recomputation_s(units, layers)
    return Passes(
        forward_s=(looked["forward_s"] + (there_s + per_micro)) * used,
        input_gradient_s=(looked["input_gradient_s"] + again_s + (back_s + per_micro)) * used,
        weight_gradient_s=looked["weight_gradient_s"] * used,
    )


def in_flight(plans: StagePlanBatch, beside: FloatArray | None = None) -> FloatArray:
    """(N, S) micro-batches held by every stage at its peak, with those of passes ``beside`` one another."""
    held = in_flight_microbatches(
        plans.schedule,
        stage=np.arange(plans.width)[:, None],
        stages=plans.num_stages,
        virtual_stages=plans.virtual_stages,
        num_microbatches=plans.num_microbatches,
        beside=0.0 if beside is None else beside.T,
    )
    return np.maximum(held, 0.0).T


def _activation_units(looked: _Looked, context: CostContext) -> ActivationUnits:
    kinds = ["moe" if moe else "dense" for moe in layer_kinds(context.model)]
    casts = casts_weights(context.job, context.stack)
    waits = context.stack.keeps_input_gradients and context.job.trains_adapters_only
    return ActivationUnits(
        layers=tuple(
            LayerUnits(
                whole=looked[f"{kind}_whole_bytes"],
                selective=looked.selective(kind, "bytes"),
                layer_input=looked[f"{kind}_input_bytes"],
                backward=looked[f"{kind}_backward_bytes"],
                casts=looked[f"{kind}_casts_bytes"] if casts else None,
                waiting=looked[f"{kind}_waiting_bytes"] if waits else None,
            )
            for kind in kinds
        ),
        ends=looked["ends_bytes"],
    )


def _step(
    plans: StagePlanBatch,
    prices: StagePrices,
    looked: _Looked,
    passes: Passes,
    held: StageActivations,
    played_s: FloatArray | None,
    paged: FloatArray | None,
) -> tuple[FloatArray, dict[str, FloatArray], Passes, FloatArray | None]:
    """(N,) step time and its parts, the passes with what they wait for, and (2, N) what prices leave open, if asked."""
    stack, m, used = prices.context.stack, plans.num_microbatches, looked.used
    weights_s, crossed_s = _weights_s(plans, looked), longest_crossing_s(plans, prices, prices.transfer_s)
    step = scheduled(
        plans.schedule,
        passes,
        count=used.astype(np.int64),
        virtual_stages=plans.virtual_stages,
        num_microbatches=m,
        crossing_s=crossed_s,
        traffic=_host_traffic(looked, held, weights_s),
    )
    on_host = plans.optimizer_offload / OFFLOAD_PARTS if plans.optimizer_offload.any() else None
    traffic = stage_traffic(looked, weights_s=weights_s, optimizer_on_host=on_host, num_microbatches=m[:, None])
    traffic = replace(
        traffic,
        gradients_s=traffic.gradients_s * used,
        replicas_s=traffic.replicas_s * used,
        parameters_s=traffic.parameters_s * used,
        shared_s=shared_sums_s(plans, prices, traffic.shared_s * used),
        stalls_s=traffic.stalls_s * used,
    )
    exposed, _ = exposed_traffic_s(
        traffic,
        num_microbatches=m,
        num_stages=plans.num_stages,
        virtual_stages=plans.virtual_stages,
        forward_s=largest(step.passes.forward_s),
        backward_s=largest(step.passes.backward_s),
    )
    more_s = 0.0 if played_s is None else played_s + step.sending_s - step.pipeline_s
    parts = {
        "passes": step.pipeline_s - step.bubble_s - step.offload_s,
        "bubble": step.bubble_s + more_s,
        "offload": step.offload_s,
        "data_parallel": exposed,
        "optimizer": largest((_optimizer_s(plans, looked) + _paging_s(looked, paged)) * used),
    }
    known = total(parts.values())
    parts["overhead"] = per_step_overhead_s(known, nodes=total((looked["nodes"] * used).T), stack=stack)
    step_s = known + parts["overhead"]
    opens = _opens(plans, prices, looked, step, traffic, crossed_s=crossed_s, step_s=step_s, shown_s=exposed)
    scale = stack.step_time_scale
    return step_s * scale, {name: seconds * scale for name, seconds in parts.items()}, step.passes, opens


def _opens(
    plans: StagePlanBatch,
    prices: StagePrices,
    looked: _Looked,
    step: Scheduled,
    traffic: DataParallelTraffic,
    *,
    crossed_s: FloatArray,
    step_s: FloatArray,
    shown_s: FloatArray,
) -> FloatArray | None:
    """(2, N) what prices leave open of steps, each part as on the stage where it is known least; None unless asked."""
    if WIDTH_COLUMNS[0] not in looked.content:
        return None
    low, high = (np.where(looked.used, looked[name], 1.0) for name in WIDTH_COLUMNS)
    ends_s = (longest_crossing_s(plans, prices, table) for table in prices.transfer_ends_s)
    passes = pipeline_opens(
        np.stack([largest(looked[f"layer_open_{end}"] * looked.used) for end in ("low", "high")]),
        crossing_s=np.stack([crossed_s, *ends_s]),
        crossings=2 * plans.num_microbatches,
        work_s=step.pipeline_s - step.bubble_s,
    )
    traffic = replace(traffic, low_factor=low, high_factor=high)
    return step_opens(passes, pipeline_s=step.pipeline_s, step_s=step_s, traffic=traffic, shown_s=shown_s)


def _weights_s(plans: StagePlanBatch, looked: _Looked) -> FloatArray | None:
    """(N, S) seconds in which the offloaded weights of a stage cross the host link once; None for none anywhere."""
    if not plans.parameter_offload.any():
        return None
    return looked["weights_bytes"] * (plans.parameter_offload / OFFLOAD_PARTS) / looked["host_bytes_per_s"]


def _host_traffic(looked: _Looked, held: StageActivations, weights_s: FloatArray | None) -> HostTraffic | None:
    """What one micro-batch moves over the host link; None when no plan offloads activations or weights."""
    if held.moved is None and weights_s is None:
        return None
    used, nothing = looked.used, np.zeros(looked.used.shape)
    return HostTraffic(
        activations_s=nothing if held.moved is None else held.moved * used / looked["host_bytes_per_s"],
        weights_s=nothing if weights_s is None else weights_s * used * (1.0 - looked["gathers_once"]),
        stalls=looked["activations_stall"] > 0,
    )


def _optimizer_s(plans: StagePlanBatch, looked: _Looked) -> FloatArray:
    """(N, S) seconds of the optimizer step."""
    if not (plans.optimizer_offload.any() or plans.parameter_offload.any()):
        return looked["device_step_s"]
    return stage_step_parts(looked).step_s(
        optimizer_on_host=plans.optimizer_offload / OFFLOAD_PARTS,
        parameters_on_host=plans.parameter_offload / OFFLOAD_PARTS,
    )


def _paging_s(looked: _Looked, paged: FloatArray | None) -> FloatArray | float:
    return 0.0 if paged is None else paging_s(paged, looked["host_bytes_per_s"])


def _tensors(plans: StagePlanBatch, looked: _Looked, held: StageActivations, context: CostContext) -> TensorMemory:
    """What tensors take on every stage."""
    temporaries = looked["temporaries_bytes"]
    offloads, streams = plans.optimizer_offload.any(), plans.parameter_offload.any()
    more_chunks = chunks_per_stage(plans.schedule, plans.virtual_stages)[:, None] - 1  # than a content's single one
    terms = MemoryTerms(
        activations=_activation_units(looked, context),
        weights=looked["weights_bytes"],
        streaming=looked["streaming_bytes"] if streams else None,
        gradients=looked["gradients_bytes"],
        leaves=looked["leaves"] > 0,
        all_gradients=looked["all_gradients_bytes"],
        optimizer=looked["optimizer_bytes"],
        paged=looked["paged_bytes"] if context.job.paged_optimizer else None,
        temporaries=temporaries if temporaries.any() else None,
        last=looked["last_bytes"],
        staying=looked["staying_bytes" if offloads else "last_bytes"],
        passing=looked["passing_bytes"] if context.job.optimizer_in_backward else None,
        logits=looked["logits_bytes"],
        late_logits=looked["late_logits_bytes"],
        head=looked["head_bytes"],
        communication=looked["communication_bytes"] + more_chunks * looked["chunk_received_bytes"],
    )
    tensors = composed(
        terms,
        held,
        optimizer_on_host=plans.optimizer_offload / OFFLOAD_PARTS if offloads else None,
        parameters_on_host=plans.parameter_offload / OFFLOAD_PARTS if streams else None,
        logits_copies=logits_copies(plans.schedule, plans.num_microbatches)[:, None],
    )
    return TensorMemory(
        parts=tensors.parts,
        dynamic=tensors.dynamic,
        states=tensors.states,
        covered=tensors.covered,
        used=looked.used,
        communicators=looked["communicators"],
        exchange=looked["exchange_buffer_bytes"],
        exchanged=looked["exchanged_bytes"],
        usable_bytes=looked["usable_bytes"],
        varied=np.full((len(plans), 1), context.job.varied_lengths),
        paged=terms.paged,
    )


def _host_bytes(
    plans: StagePlanBatch, prices: StagePrices, looked: _Looked, held: StageActivations, paged: FloatArray | None
) -> FloatArray:
    """(N, S) bytes on a host whose devices all run the stage."""
    host = np.zeros(plans.config.shape)
    if (
        not (plans.optimizer_offload.any() or plans.parameter_offload.any())
        and held.offloaded is None
        and paged is None
    ):
        return host
    share = plans.optimizer_offload / OFFLOAD_PARTS
    with_gradients = host_bytes_per_optimizer_byte(
        looked["spared_sums"], plans.num_microbatches[:, None], prices.context
    )
    host += looked["optimizer_bytes"] * share * with_gradients
    host += looked["weights_bytes"] * (plans.parameter_offload / OFFLOAD_PARTS)
    host += 0.0 if paged is None else paged
    if held.offloaded is not None:
        host += held.offloaded
    devices = total(np.take(1.0 * prices.configs.num_devices, plans.config.T) * looked.used.T)[:, None]
    return host * np.minimum(devices, looked["devices_per_node"]) * looked.used
