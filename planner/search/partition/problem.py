"""The pipeline-partition problem: which layers sit on which stage, and how each stage runs them.

A stage runs a contiguous run of layers in one of finitely many ways: so many layers, on so many devices
of some group, with some degrees, so many of the layers recomputed or offloaded. Each way is an *option*,
a row of a table with its seconds. Options that exceed the stage's memory are never rows, so memory may
follow any formula; layers that cost the same are a number, not one variable each.

Which step time a choice of options has is not decided here: ``partition_time_s`` asks the pipeline
formulas of ``costmodels.pipeline.schedules``. The solvers in ``labels`` and ``cpsat`` minimise the same.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.pipeline.orders import ZERO_BUBBLE
from costmodels.pipeline.schedules import Passes, pipeline_s
from costmodels.plan import FloatArray, IntArray, Schedule
from planner.search.fronts import nondominated

ANYWHERE = -1  # an option whose costs do not depend on which layers it gets


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions:
    """Ways to run one pipeline stage; K rows.

    Attributes:
        stage: (K,) stage the option is for, from 0.
        layers: (K,) layers it takes.
        first_layer: (K,) position of the first of them in the model, or ``ANYWHERE`` for all options.
        forward_s: (K,) one micro-batch's forward pass.
        backward_s: (K,) its backward pass, recomputation included.
        weight_s: (K,) of that, weight gradients, which zero-bubble schedules put off.
        once_s: (K,) seconds once per step, before all stages go on: gradient traffic that shows.
        update_s: (K,) seconds once per step after that: the optimizer.
        path_s: (K,) seconds that one micro-batch takes on its way past the stage without occupying it.
        kind: (K,) group of devices, as ``PartitionInstance.hand_over_s`` counts them.
        devices: (K, G) devices taken from each group.
    """

    stage: IntArray
    layers: IntArray
    first_layer: IntArray
    forward_s: FloatArray
    backward_s: FloatArray
    weight_s: FloatArray
    once_s: FloatArray
    update_s: FloatArray
    path_s: FloatArray
    kind: IntArray
    devices: IntArray

    def __len__(self) -> int:
        return len(self.stage)

    @classmethod
    def from_columns(
        cls, *, stage: Any, layers: Any, forward_s: Any, backward_s: Any, **columns: Any
    ) -> "StageOptions":
        """Options of the given columns; absent ones are anywhere, free of cost, on no particular devices."""
        rows = len(stage)
        defaults: dict[str, Any] = {
            "first_layer": ANYWHERE, "weight_s": 0.0, "once_s": 0.0, "update_s": 0.0, "path_s": 0.0, "kind": 0,
        }  # fmt: skip
        given = {"stage": stage, "layers": layers, "forward_s": forward_s, "backward_s": backward_s}
        built: dict[str, NDArray[Any]] = {}
        for name, value in (defaults | given | columns).items():
            if name != "devices":
                kind = np.float64 if name.endswith("_s") else np.int64
                built[name] = np.ascontiguousarray(np.broadcast_to(np.asarray(value, dtype=kind), (rows,)))
        devices = np.asarray(columns.get("devices", np.zeros((rows, 0))), dtype=np.int64)
        return cls(devices=devices, **built)

    def take(self, rows: IntArray) -> "StageOptions":
        """The selected rows."""
        return StageOptions(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionInstance:
    """One option per stage so that the layers are covered in order, devices suffice, and the step is shortest.

    Attributes:
        num_layers: Layers of the model, L.
        num_stages: Pipeline stages, S; every one gets an option.
        num_microbatches: Micro-batches per step, m.
        options: What each stage may do.
        available_devices: Devices of each group, (G,); using fewer is legal.
        schedule: Which.
        virtual_stages: Chunks of every stage, v; above 1, 1F1B is interleaved.
        hand_over_s: (C, C) seconds one way between a stage of the first kind and a next one of the second. As in
            ``costmodels.stage_plans.evaluate``, a stage spends them on sending: forwards to the next stage, backwards
            to the one before; the last stage receives what it cannot send, and so does the first on the way back.
        once_under_fill: Whether what happens once per step on a stage runs while the pipeline fills: only
            what takes longer than the stages before it need for one micro-batch counts.
    """

    num_layers: int
    num_stages: int
    num_microbatches: int
    options: StageOptions
    available_devices: tuple[int, ...] = ()
    schedule: Schedule = Schedule.ONE_F_ONE_B
    virtual_stages: int = 1
    hand_over_s: FloatArray | None = None
    once_under_fill: bool = False

    def __post_init__(self) -> None:
        options = self.options
        if min(self.num_layers, self.num_stages, self.num_microbatches) < 1:
            raise ValueError("an instance needs a layer, a stage and a micro-batch")
        if self.virtual_stages < 1 or (self.virtual_stages > 1 and self.schedule != Schedule.ONE_F_ONE_B):
            raise ValueError(f"no {self.virtual_stages} virtual stages with schedule {self.schedule.name}")
        if self.once_under_fill and self.schedule != Schedule.GPIPE:
            raise ValueError("what runs while the pipeline fills is known of GPIPE only")
        if options.devices.shape != (len(options), len(self.available_devices)):
            raise ValueError("devices need one column per group")
        placed = options.first_layer != ANYWHERE
        if placed.any() and not placed.all():
            raise ValueError("first_layer must be known of all options or of none")
        times = np.concatenate(
            [options.forward_s, options.backward_s, options.once_s, options.update_s, options.path_s]
        )
        if not (np.isfinite(times).all() and (times >= 0).all() and (options.layers >= 0).all()):
            raise ValueError("seconds must be finite, and layers and seconds not negative")
        if not ((options.weight_s >= 0) & (options.weight_s <= options.backward_s)).all():
            raise ValueError("weight gradients are a part of the backward pass")
        if self.hand_over_s is not None and int(options.kind.max(initial=0)) >= len(self.hand_over_s):
            raise ValueError("hand_over_s needs a row and a column for every kind")

    @property
    def chunks(self) -> int:
        """Runs of consecutive layers that every stage holds."""
        return self.schedule.chunks(self.virtual_stages)

    @property
    def puts_off(self) -> bool:
        """Whether weight gradients are put off."""
        return self.schedule in ZERO_BUBBLE

    @property
    def placed(self) -> bool:
        """Whether options are for particular layers."""
        return bool((self.options.first_layer != ANYWHERE).any())


def partition_time_s(instance: PartitionInstance, rows: IntArray) -> FloatArray:
    """(N,) seconds per step of choices of options, (N, S), by the formulas of ``costmodels.pipeline.schedules``."""
    options = instance.options
    forward_s, backward_s = options.forward_s[rows], options.backward_s[rows]
    if instance.hand_over_s is not None and instance.num_stages > 1:
        kind = options.kind[rows]
        crossing_s = instance.hand_over_s[kind[:, :-1], kind[:, 1:]]
        forward_s = forward_s + np.concatenate([crossing_s, crossing_s[:, -1:]], axis=1)
        backward_s = backward_s + np.concatenate([crossing_s[:, :1], crossing_s], axis=1)
    one, weight_s = np.ones(rows.shape, dtype=np.int64), options.weight_s[rows]
    whole_s, _ = pipeline_s(
        int(instance.schedule) * one[:, 0],
        Passes(forward_s=forward_s, input_gradient_s=backward_s - weight_s, weight_gradient_s=weight_s),
        count=one,
        virtual_stages=instance.virtual_stages * one[:, 0],
        num_microbatches=instance.num_microbatches * one[:, 0],
    )
    once_s = options.once_s[rows]
    if instance.once_under_fill:
        stage_s = forward_s + backward_s
        once_s = once_s - (np.cumsum(stage_s, axis=1) - stage_s)
    step_s: FloatArray = whole_s + options.path_s[rows].sum(axis=1) + once_s.max(axis=1)
    step_s += options.update_s[rows].max(axis=1)
    return step_s


def undominated(instance: PartitionInstance) -> IntArray:
    """Options that no other one beats, in ascending order.

    The step never gets shorter when a stage's forward or backward pass, what it does once, its update, or its detour
    gets longer, and options only differ in devices they take: one that is no better than another for the
    same stage and layers in any of these is never needed. Where weight gradients are put off, they and the rest of the
    backward pass count apart.
    """
    options = instance.options
    keys = np.column_stack([options.stage, options.first_layer, options.layers, options.kind, options.devices])
    back_s = [options.backward_s]
    if instance.puts_off:
        back_s = [options.backward_s - options.weight_s, options.weight_s]
    times = np.column_stack([options.forward_s, *back_s, options.once_s, options.update_s, options.path_s])
    _, state = np.unique(keys, axis=0, return_inverse=True)
    return nondominated(state.reshape(-1), times)
