"""StagePrices: what stages cost, worked out once per distinct stage and looked up ever after.

A million plans whose stages differ share a few thousand stages: a configuration and what it holds (dense layers,
MoE layers, embedding, head). Each is priced once, by the functions that price every other plan, and kept in a
table; pricing plans is then a matter of look-ups and sums (``costmodels.stage_plans.evaluate``).

* ``StagePrices.contents`` are rows per (configuration, what it holds): seconds and bytes of the whole stage.
* ``StagePrices.configs`` are rows per configuration: seconds and bytes of one layer of each kind, of recomputing
  it, of crossing to the next stage, and limits of the device.

Rows of contents are added when first asked for; what a row says never depends on when, or on what else was asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from costmodels.boundary_transfers import boundary_transfers
from costmodels.context import CostContext
from costmodels.data_parallel import data_parallel_traffic
from costmodels.host_sums import host_sum_s, spared_sums, stalls
from costmodels.memory.activations import layer_activations
from costmodels.memory.communication import chunk_receive_bytes, communicators, exchanged_bytes
from costmodels.memory.exchange_buffers import exchange_buffer_bytes
from costmodels.memory.stage_activations import activation_units
from costmodels.memory.terms import gradients_leave, memory_terms
from costmodels.optimizer import step_parts, updated_parameters
from costmodels.parameter_offload import gathers_once
from costmodels.plan import BoolArray, FloatArray, IntArray, PlanBatch, RecomputeModule
from costmodels.stage_plans.plan import StageConfigs
from costmodels.stages.layers import layer_kinds
from costmodels.stages.parameters import stage_parameters
from costmodels.stages.table import lone_stages, overlaps_passes
from costmodels.step.layer_costs import LayerCosts, layer_costs
from costmodels.step.passes import stalls_for_activations
from costmodels.step.stage_seconds import module_s, recompute_units, stage_seconds
from costmodels.step.trust import layer_opens
from costmodels.tied_gradients import shared_gradients_s
from profiles.errors import SpecError

# What is only read of stages that offload, of seconds and bytes of a whole stage.
OFFLOAD_COLUMNS = ("host_step_s", "host_sum_s", "updated_way_s", "held_way_s", "staying_bytes", "streaming_bytes")
# How far prices may be off: of traffic between replicas; makes no stage better or worse.
WIDTH_COLUMNS = ("traffic_low", "traffic_high")
# Seconds and bytes of a stage as a whole, nothing recomputed or offloaded.
CONTENT_COLUMNS = (
    "forward_s",
    "input_gradient_s",
    "weight_gradient_s",
    "gradients_s",
    "replicas_s",
    "parameters_s",
    "shared_s",
    "device_step_s",
    "ends_bytes",
    "weights_bytes",
    "gradients_bytes",
    "all_gradients_bytes",
    "optimizer_bytes",
    "paged_bytes",
    "temporaries_bytes",
    "last_bytes",
    "passing_bytes",
    "logits_bytes",
    "late_logits_bytes",
    "head_bytes",
    "communication_bytes",
    *OFFLOAD_COLUMNS,
    *WIDTH_COLUMNS,
)
# Of one layer, dense and MoE; of one configuration.
KIND_COLUMNS = ("whole_bytes", "casts_bytes", "input_bytes", "backward_bytes", "waiting_bytes", "layer_s")
# What recomputing a module of one such layer drops and repeats.
MODULE_COLUMNS = tuple(
    f"{kind}_{module.name}_{unit}".lower()
    for kind in ("dense", "moe")
    for module in RecomputeModule
    for unit in ("bytes", "s")
)
CONFIG_COLUMNS = (
    *(f"{kind}_{name}" for kind in ("dense", "moe") for name in KIND_COLUMNS),
    *MODULE_COLUMNS,
    "reduces_per_microbatch",
    "gathers_per_microbatch",
    "hidden_gathers",
    "hidden_reductions",
    "gathers_once",
    "spared_sums",
    "sums_stall",
    "leaves",
    "activations_stall",
    "communicators",
    "chunk_received_bytes",
    "exchange_buffer_bytes",
    "exchanged_bytes",
    "usable_bytes",
    "host_bytes_per_s",
    "host_memory_bytes",
    "devices_per_node",
    "nodes",
    "layer_open_low",
    "layer_open_high",
    "overlaps",
)


@dataclass(slots=True, kw_only=True)
class StagePrices:
    """Prices of stages; see the module's docstring.

    Attributes:
        configs: The configurations that may be asked for.
        contexts: One per device group of the cluster: same model, job and stack, other machines.
        joint: Context in which traffic between two groups is priced, by their numbers, smaller first.
        unit: ``CONFIG_COLUMNS`` to (K,) values per configuration.
        content: (columns, M) values in the order of ``CONTENT_COLUMNS``, one column per row priced so far.
        transfer_s: (K * groups,) seconds of one micro-batch crossing to a stage on each group, one way.
        transfer_ends_s: (2, K * groups) both ends of the interval of that.
        shared_s: (K * groups,) seconds to sum the gradients of a tied embedding with a stage on each group. ``content``
            has the least of them, which no choice of the other stage falls below.
    """

    configs: StageConfigs
    contexts: Sequence[CostContext]
    joint: Mapping[tuple[int, int], CostContext] = field(default_factory=dict)
    unit: dict[str, FloatArray] = field(init=False)
    content: FloatArray = field(init=False)
    transfer_s: FloatArray = field(init=False)
    transfer_ends_s: FloatArray = field(init=False)
    shared_s: FloatArray = field(init=False)
    _costs: dict[int, LayerCosts] = field(init=False, default_factory=dict)  # by group, of its configurations in order
    _place: IntArray = field(init=False)  # (K,) of a configuration among those of its group
    _priced: int = field(init=False, default=0)
    _codes: IntArray = field(init=False)
    _slot_of: IntArray = field(init=False)
    _row_of: IntArray = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.configs)
        groups = len(self.contexts)
        if count and not (int(self.configs.group.min()) >= 0 and int(self.configs.group.max()) < groups):
            raise SpecError("plan.device_group", f"must be between 0 and {groups - 1}")
        self.unit = {name: np.zeros(count) for name in CONFIG_COLUMNS}
        self.content = np.zeros((len(CONTENT_COLUMNS), 0))
        self.transfer_s, self.transfer_ends_s = np.zeros(count * groups), np.zeros((2, count * groups))
        self.shared_s = np.zeros(count * groups)
        model = self.context.model
        # What stages hold, as numbers: slots in the order they are asked for, so that the table stays narrow.
        self._codes = np.zeros(0, dtype=np.int64)
        self._slot_of = np.full((model.num_layers - model.num_moe_layers + 1) * (model.num_moe_layers + 1) * 4, -1)
        self._row_of = np.zeros((0, count), dtype=np.int64)
        self._place = np.zeros(count, dtype=np.int64)
        for group, context in enumerate(self.contexts):
            members = np.flatnonzero(self.configs.group == group)
            if len(members):
                self._place[members] = np.arange(len(members))
                self._costs[group] = layer_costs(self.configs.plans.take(members), context)
                self._price_units(members, group)
                self._price_transfers(members, group)

    @property
    def context(self) -> CostContext:
        """Model, job and stack, which all groups share; the machines are those of the first."""
        return self.contexts[0]

    def rows(
        self, config: IntArray, *, dense: IntArray, moe: IntArray, has_embedding: BoolArray, has_head: BoolArray
    ) -> IntArray:
        """Columns of ``content`` for stages, priced now if they are new.

        Args:
            config: (...) rows of ``configs``.
            dense: (...) dense layers of the stage.
            moe: (...) MoE layers of the stage.
            has_embedding: (...) whether it holds the input embedding.
            has_head: (...) whether it holds the output head.
        """
        code = (dense * (self.context.model.num_moe_layers + 1) + moe) * 4 + (has_embedding + 2 * has_head)
        slot = np.take(self._slot_of, code)
        if slot.size and slot.min() < 0:
            self._add_slots(np.unique(code[slot < 0]))
            slot = np.take(self._slot_of, code)
        place = slot * len(self.configs) + config
        found = np.take(self._row_of.ravel(), place)
        if found.size and found.min() < 0:
            self._price_contents(np.unique(place[found < 0]))
            found = np.take(self._row_of.ravel(), place)
        return found

    def work_s(self, rows: IntArray) -> FloatArray:
        """(...) seconds of one micro-batch on stages, forwards and backwards; rows (...) as ``rows`` has them."""
        forward_s, input_s, weight_s = (
            self.content[CONTENT_COLUMNS.index(name), rows]
            for name in ("forward_s", "input_gradient_s", "weight_gradient_s")
        )
        work_s: FloatArray = forward_s + input_s + weight_s
        return work_s

    def _add_slots(self, codes: IntArray) -> None:
        """Room for stages that hold something new."""
        self._slot_of[codes] = np.arange(len(codes)) + len(self._codes)
        self._codes = np.concatenate([self._codes, codes])
        room = np.full((len(codes), len(self.configs)), -1, dtype=np.int64)
        self._row_of = np.concatenate([self._row_of, room])

    def _price_contents(self, places: IntArray) -> None:
        """Add rows for (what a stage holds, configuration) pairs, group by group."""
        config, code = places % len(self.configs), self._codes[places // len(self.configs)]
        new = np.zeros((len(CONTENT_COLUMNS), len(places)))
        for group, context in enumerate(self.contexts):
            members = np.flatnonzero(self.configs.group[config] == group)
            if len(members):
                costs = self._costs[group].take(self._place[config[members]])
                new[:, members] = _priced_contents(
                    self.configs.plans.take(config[members]), code[members], costs, context
                )
        if len(self.contexts) > 1:
            shared = CONTENT_COLUMNS.index("shared_s")
            least_s = np.min(self.shared_s.reshape(-1, len(self.contexts)), axis=1)
            new[shared] = np.minimum(new[shared], least_s[config])
        start, end = self._priced, self._priced + len(places)
        if end > self.content.shape[1]:  # twice the room, so that adding little by little stays cheap
            grown = np.zeros((len(CONTENT_COLUMNS), max(end, 2 * start)))
            grown[:, :start] = self.content[:, :start]
            self.content = grown
        self.content[:, start:end] = new
        self._row_of.ravel()[places] = np.arange(start, end)
        self._priced = end

    def _price_units(self, members: IntArray, group: int) -> None:
        for name, values in _priced_units(self.configs, members, self._costs[group], self.contexts[group]).items():
            self.unit[name][members] = values

    def _price_transfers(self, members: IntArray, group: int) -> None:
        plans, groups = self.configs.plans.take(members), len(self.contexts)
        one = np.ones(len(members), dtype=np.int64)
        stages = lone_stages(0 * one, 0 * one, has_embedding=one > 0, has_head=one < 1)
        shared = stage_parameters(plans, stages, self.context.model, self.context.job).shared
        own_s = shared_gradients_s(plans, shared, self.contexts[group])[0]
        self.shared_s.reshape(-1, groups)[members] = own_s[:, None]
        for other in range(groups):
            apart = other != group
            joint = self.joint.get((min(group, other), max(group, other))) if apart else self.contexts[group]
            if joint is None:
                continue
            priced = boundary_transfers(plans, joint, apart=apart)
            at = members * groups + other
            self.transfer_s[at], self.transfer_ends_s[:, at] = priced.time_s, (priced.low_s, priced.high_s)
            if apart:
                self.shared_s[at] = shared_gradients_s(plans, shared, joint, apart=True)[0]


def _priced_contents(plans: PlanBatch, code: IntArray, costs: LayerCosts, context: CostContext) -> FloatArray:
    """(columns, R) seconds and bytes of stages of one device group."""
    kinds = context.model.num_moe_layers + 1
    dense, moe = code // 4 // kinds, code // 4 % kinds
    stages = lone_stages(dense + moe, moe, has_embedding=code % 2 == 1, has_head=code % 4 >= 2)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    work = stage_seconds(plans, stages, costs, parameters, context)
    traffic = data_parallel_traffic(plans, stages, parameters, context)
    terms = memory_terms(plans, stages, parameters, context, streams=True)
    updated, held = updated_parameters(plans, parameters)
    step = step_parts(updated, held, context, plans.zero_stage)
    values = {
        "forward_s": work.forward_s,
        "input_gradient_s": work.input_gradient_s,
        "weight_gradient_s": work.weight_gradient_s,
        "gradients_s": traffic.gradients_s,
        "replicas_s": traffic.replicas_s,
        "parameters_s": traffic.parameters_s,
        "shared_s": traffic.shared_s,
        "device_step_s": step.device_step_s,
        "host_step_s": step.host_step_s,
        "host_sum_s": host_sum_s(updated, context),
        "updated_way_s": step.ways.updated_s,
        "held_way_s": step.ways.held_s,
        "ends_bytes": terms.activations.ends,
        "weights_bytes": terms.weights,
        "gradients_bytes": terms.gradients,
        "all_gradients_bytes": terms.all_gradients,
        "optimizer_bytes": terms.optimizer,
        "paged_bytes": np.zeros(len(code)) if terms.paged is None else terms.paged,
        "temporaries_bytes": np.zeros(len(code)) if terms.temporaries is None else terms.temporaries,
        "last_bytes": terms.last,
        "passing_bytes": np.zeros(len(code)) if terms.passing is None else terms.passing,
        "logits_bytes": terms.logits,
        "late_logits_bytes": terms.late_logits,
        "head_bytes": terms.head,
        "communication_bytes": terms.communication,
        "staying_bytes": terms.staying,
        "traffic_low": traffic.low_factor,
        "traffic_high": traffic.high_factor,
        "streaming_bytes": np.zeros(len(code)) if terms.streaming is None else terms.streaming,
    }
    return np.stack([values[name].reshape(-1) for name in CONTENT_COLUMNS])


def _priced_units(
    configs: StageConfigs, members: IntArray, costs: LayerCosts, context: CostContext
) -> dict[str, FloatArray]:
    """``CONFIG_COLUMNS`` to (members,) values of one device group."""
    plans = configs.plans.take(members)
    none = np.zeros(len(members), dtype=np.int64)
    stages = lone_stages(none, none, has_embedding=none > 0, has_head=none > 0)
    node = context.cluster.node
    again = recompute_units(plans, costs, context)
    held = activation_units(plans, context, has_embedding=stages.has_embedding, has_head=stages.has_head)
    parameters = stage_parameters(plans, stages, context.model, context.job)
    traffic = data_parallel_traffic(plans, stages, parameters, context)
    open_low, open_high = layer_opens(costs)
    received = chunk_receive_bytes(plans, context)
    found = {
        "overlaps": 1.0 * overlaps_passes(plans, context.stack),
        "reduces_per_microbatch": traffic.reduces_per_microbatch[:, 0],
        "gathers_per_microbatch": traffic.gathers_per_microbatch[:, 0],
        "hidden_gathers": traffic.hidden_gathers[:, 0],
        "hidden_reductions": traffic.hidden_reductions[:, 0],
        "gathers_once": 1.0 * gathers_once(plans),
        "spared_sums": spared_sums(plans.zero_stage, context.stack),
        "sums_stall": np.full(len(members), 1.0 * stalls(context.stack)),
        "leaves": 1.0 * gradients_leave(plans, context.stack),
        "activations_stall": 1.0 * stalls_for_activations(plans, context.stack),
        "communicators": communicators(plans),
        "chunk_received_bytes": np.zeros(len(members)) if received is None else received,
        "exchange_buffer_bytes": exchange_buffer_bytes(plans, context),
        "exchanged_bytes": exchanged_bytes(plans, context),
        "usable_bytes": np.full(len(members), context.cluster.device.usable_memory_bytes),
        "host_bytes_per_s": np.full(len(members), node.host_copy_bytes_per_s),
        "host_memory_bytes": np.full(len(members), node.host_memory_bytes),
        "devices_per_node": np.full(len(members), 1.0 * node.devices_per_node),
        "nodes": configs.num_devices[members] / node.devices_per_node,
        "layer_open_low": open_low,
        "layer_open_high": open_high,
    }
    nothing = np.zeros(len(members))
    for index, moe in enumerate(layer_kinds(context.model)):
        kind, layer = "moe" if moe else "dense", held.layers[index]
        found |= {
            f"{kind}_whole_bytes": layer.whole[:, 0],
            f"{kind}_casts_bytes": nothing if layer.casts is None else layer.casts[:, 0],
            f"{kind}_input_bytes": layer.layer_input[:, 0],
            f"{kind}_backward_bytes": layer.backward[:, 0],
            f"{kind}_waiting_bytes": nothing if layer.waiting is None else layer.waiting[:, 0],
            f"{kind}_layer_s": again.layer_s[index][:, 0],
        }
        dropped = layer_activations(plans, context.model, context.job, context.stack, moe=moe).modules
        for module, bytes_ in zip(RecomputeModule, dropped, strict=True):
            name = f"{kind}_{module.name}".lower()
            found[f"{name}_bytes"] = bytes_
            found[f"{name}_s"] = module_s(costs, context, module, moe=moe)
    return found
