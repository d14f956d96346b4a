"""The space of plans whose stages differ, on one or several groups of machines.

Per stage: shape (device group, degrees, ZeRO stage), layers, how many of them are recomputed, offloading.
For the whole plan: stages, schedule, virtual stages, micro-batch. Devices may be left idle. Priced by
``costmodels.stage_plans.evaluate``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.plan import BoolArray, IntArray, Recompute, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import CONFIG_COLUMNS, OFFLOAD_PARTS, StageConfigs, StagePlanBatch
from planner.rules.base import Setting
from planner.rules.modules import CORE, module_names
from planner.search.agents.agent import Knob, Outcome
from planner.search.agents.draws import legal_draws
from planner.search.agents.varied_moves import MOVES, StageMover
from planner.search.agents.varied_vectors import (
    COUNT_KNOBS,
    PLAN_KNOBS,
    SAMPLES,
    SCHEDULE,
    STAGES,
    VIRTUAL,
    Layout,
    broken_rules,
    clipped,
    plans_of,
    settled,
)
from planner.search.stage_candidates import StageChoices, stage_choices
from planner.search.stage_space import StageSpace
from planner.space.candidates import Candidates
from planner.space.chunks import chunk_counts
from planner.space.constraints import rules_for
from planner.space.stage_constraints import pipelines_run
from profiles.errors import SpecError
from profiles.model import ModelSpec

MAX_STAGES = 64  # stages a vector has room for; more are never worth their bubble on clusters we know
_PREPARED = 400_000  # stages priced before a search begins: half a second, and some 60 MB
_WORTH_SORTING = 512  # plans from which pricing those of similar length together is quicker
_ROUNDS = 24  # draws until enough plans are legal
# Schedules that place consecutive layers on consecutive stages, which is what a stage's layers mean here.
_SCHEDULES = (Schedule.ONE_F_ONE_B, Schedule.GPIPE, Schedule.ZERO_BUBBLE_1P, Schedule.ZERO_BUBBLE_2P)
# What may be fixed: columns of a stage's configuration, and of the pipeline.
PINNED = frozenset({*CONFIG_COLUMNS, "pipeline_parallel", "virtual_stages", "schedule"})


@dataclass(slots=True, kw_only=True)
class VariedSpace:
    """Pipelines whose stages may differ.

    Attributes:
        stages: The ways to run a stage on every device group, and what they cost.
        max_stages: Most stages; the layers or ``MAX_STAGES`` if fewer.
        offload: Whether offloading is considered.
        modules: Sets of modules that the layers of a stage may recompute.
        pins: Plan columns the user fixed, of those in ``PINNED``.
    """

    stages: StageSpace
    max_stages: int = 16
    offload: bool = False
    modules: tuple[int, ...] = (CORE,)
    pins: Mapping[str, int] = field(default_factory=dict)
    choices: StageChoices = field(init=False)
    layout: Layout = field(init=False)
    moves: tuple[str, ...] = field(init=False, default=tuple(MOVES))
    knobs: tuple[Knob, ...] = field(init=False)
    _mover: StageMover = field(init=False)

    def __post_init__(self) -> None:
        if unread := self.pins.keys() - PINNED:
            raise SpecError(f"plan.{min(unread)}", "cannot be fixed where stages may differ")
        if not 1 <= self.max_stages <= MAX_STAGES:
            raise SpecError("max_stages", f"must be between 1 and {MAX_STAGES}; got {self.max_stages}")
        self.choices = stage_choices(self.stages)
        self._prepare()
        self.layout = self._laid_out()
        self.knobs = tuple(self._named())
        unit = self.stages.prices.unit
        per_sample = np.maximum(unit["dense_layer_s"], unit["moe_layer_s"]) / self.choices.configs.samples
        self._mover = StageMover(layout=self.layout, layer_s=np.maximum(per_sample[self.choices.first], 1e-300))

    def initial(self, count: int, rng: np.random.Generator) -> IntArray:
        """(count, K) random plans, the stages of a device group alike, layers by speed; legal unless no draw was."""

        def draw(_: int, missing: int) -> tuple[IntArray, BoolArray]:
            drawn = self._drawn(max(3 * missing, 64), rng)
            return drawn, self.broken_rules(drawn) == 0

        return legal_draws(count, self.layout.length, draw, rounds=_ROUNDS, rng=rng)

    def propose(self, vectors: IntArray, moves: IntArray, rng: np.random.Generator) -> IntArray:
        """(N, K) a legal neighbour of each plan, or the plan itself where the draw was none."""
        moved = self._mover.apply(vectors, moves, rng)
        wrong = self.broken_rules(moved) > 0
        moved[wrong] = vectors[wrong]
        return moved

    def settle(self, vectors: IntArray) -> IntArray:
        """(N, K) canonical vectors of the same plans."""
        return settled(vectors, self.layout)

    def broken_rules(self, vectors: IntArray) -> IntArray:
        """(N,) how many conditions each plan breaks."""
        return broken_rules(vectors, self.layout)

    def price(self, vectors: IntArray) -> Outcome:
        """What the plans cost; those that break a rule have no price."""
        broken = self.broken_rules(vectors)
        if not broken.any():
            return self._priced(vectors, broken)
        legal = np.flatnonzero(broken == 0)
        step_time_s, excess, peak = np.full(len(vectors), np.inf), np.zeros(len(vectors)), np.full(len(vectors), np.inf)
        if len(legal):
            part = self._priced(vectors[legal], broken[legal])
            step_time_s[legal], excess[legal] = part.step_time_s, part.excess["memory"]
            peak[legal] = part.metrics["peak_memory_bytes"]
        return Outcome(
            step_time_s=step_time_s,
            excess={"rules": broken.astype(np.float64), "memory": excess},
            metrics={"peak_memory_bytes": peak},
        )

    def encode(self, plans: tuple[StagePlanBatch, StageConfigs]) -> IntArray:
        """(N, K) the vectors of plans.

        Args:
            plans: Plans, and the configurations their stages refer to.

        Raises:
            ValueError: If a plan is not of this space.
        """
        batch, configs = plans
        layout = self.layout
        if batch.width > layout.width and (batch.num_stages > layout.width).any():
            raise ValueError(f"a plan has more than {layout.width} stages")
        vectors = np.zeros((len(batch), layout.length), dtype=np.int64)
        used = batch.used[:, : layout.width]
        row = self.stages.index_of(configs)[batch.config[:, : layout.width]]
        if (row[used] < 0).any():
            raise ValueError("a stage runs in a way this space does not have")
        shape_of, sample_of = self._places()
        width = row.shape[1]

        def put(name: str, column: IntArray) -> None:
            kept = column[:, : layout.width] * used
            if name in layout.names:
                start = layout.block(name).start
                vectors[:, start : start + width] = kept
            elif kept.any():
                raise ValueError(f"a plan has {name} layers, which this space does not")

        put("shape", shape_of[row])
        for name in ("layers", *COUNT_KNOBS):
            put(name, getattr(batch, name))
        some = (batch.selective_dense + batch.selective_moe > 0) & batch.used
        chosen = np.where(some, batch.modules, 0)[:, :, None] == np.asarray((0, *layout.modules))
        if not chosen.any(axis=2).all():
            raise ValueError("a stage recomputes modules that this space does not consider")
        put("selective", chosen.argmax(axis=2))
        vectors[:, STAGES] = batch.num_stages - 1
        vectors[:, SCHEDULE] = np.searchsorted(layout.schedules, batch.schedule)
        vectors[:, VIRTUAL] = np.searchsorted(layout.virtual_stages, batch.virtual_stages)
        vectors[:, SAMPLES] = sample_of[row[:, 0]]
        if (settled(vectors, layout) != vectors).any():
            raise ValueError("a plan holds layers or recomputes in a way this space does not have")
        return vectors

    def decode(self, vectors: IntArray) -> StagePlanBatch:
        """The plans of vectors; their configurations are ``choices.configs``."""
        return plans_of(vectors, self.layout, width=self.layout.width)

    def columns(self, vectors: IntArray) -> dict[str, NDArray[Any]]:
        """Every knob as a column, for a log."""
        return {knob.name: vectors[:, place] for place, knob in enumerate(self.knobs)}

    def _prepare(self) -> None:
        """Price what every stage may hold at once, where that is not too much: a few at a time take far longer."""
        prices, number = self.stages.prices, np.arange(len(self.choices.configs))
        dense, moe, embedding, head = (column[:, None] for column in _stage_contents(prices.context.model))
        if len(number) * len(dense) <= _PREPARED:
            shape = number + 0 * dense
            prices.rows(
                shape,
                dense=dense + 0 * shape,
                moe=moe + 0 * shape,
                has_embedding=(embedding + 0 * shape) > 0,
                has_head=(head + 0 * shape) > 0,
            )

    def _priced(self, vectors: IntArray, broken: IntArray) -> Outcome:
        """Legal plans, those of similar length together: pricing takes time in proportion to the width of a batch."""
        found = np.empty((3, len(vectors)))
        length = np.minimum(1 << np.ceil(np.log2(vectors[:, STAGES] + 1)).astype(np.int64), self.layout.width)
        widths = np.unique(length) if len(vectors) >= _WORTH_SORTING else np.asarray([self.layout.width])
        for width in widths:
            rows: Any = np.flatnonzero(length == width) if len(widths) > 1 else slice(None)
            estimate = evaluate_stages(plans_of(vectors[rows], self.layout, width=int(width)), self.stages.prices)
            found[:, rows] = estimate.step_time_s, estimate.overshoot, estimate.peak_memory_bytes
        return Outcome(
            step_time_s=found[0],
            excess={"rules": broken.astype(np.float64), "memory": found[1]},
            metrics={"peak_memory_bytes": found[2]},
        )

    def _drawn(self, count: int, rng: np.random.Generator) -> IntArray:
        """Plans whose stages are alike within each device group, groups in random order; legal or not."""
        layout, choices, mover = self.layout, self.choices, self._mover
        vectors = np.zeros((count, layout.length), dtype=np.int64)
        groups = len(choices.capacity)
        # A size per group such that its stages fill it; groups that get no stage stay idle.
        size = rng.integers(0, len(mover.sizes), size=(count, groups))
        stages = choices.capacity // mover.sizes[size]
        stages = np.where(rng.random((count, groups)) < 0.15 * (groups > 1), 0, stages)
        order = np.argsort(rng.random((count, groups)), axis=1)
        stages, size = np.take_along_axis(stages, order, axis=1), np.take_along_axis(size, order, axis=1)
        total = stages.sum(axis=1)
        good = (total >= 2) & (total <= min(layout.width, layout.model.num_layers))
        number = np.where(good, total, 1)
        vectors[:, STAGES] = number - 1
        vectors[:, SCHEDULE] = rng.integers(0, len(layout.schedules), size=count)
        vectors[:, VIRTUAL] = rng.integers(0, len(layout.virtual_stages), size=count) * (rng.random(count) < 0.5)
        fits = number * layout.chunks(vectors) <= layout.model.num_layers
        vectors[:, VIRTUAL] *= fits
        vectors[:, SAMPLES] = rng.integers(0, len(choices.samples), size=count)
        of_stage = (np.arange(layout.width)[None, :, None] >= np.cumsum(stages, axis=1)[:, None, :]).sum(axis=2)
        of_stage = np.minimum(of_stage, groups - 1)
        key = mover.key_of[order, size]
        shape = mover.shape(np.maximum(key, 0), rng)
        vectors[:, layout.block("shape")] = np.take_along_axis(shape, of_stage, axis=1)
        vectors = mover.rebalanced(vectors)
        if layout.full:
            draw = rng.random(count)[:, None]
            part = np.select([draw < 0.4, draw < 0.7], [0.0, 1.0], rng.random((count, 1)))
            wanted = np.ceil(part * vectors[:, layout.block("layers")]).astype(np.int64)
            for name in layout.names:
                if name in ("full_dense", "full_moe"):
                    vectors[:, layout.block(name)] = wanted
        used = layout.used(vectors)
        layout.stages(vectors)[:] *= used[:, None]
        kept: IntArray = clipped(vectors, layout)[good]
        return kept

    def _laid_out(self) -> Layout:
        first = self.stages.prices.context
        model, framework = first.model, first.stack.framework
        setting = Setting(
            model=model,
            job=first.job,
            num_devices=first.cluster.num_devices,
            framework=framework,
            transformers_models=first.stack.transformers_models,
            own_optimizer=first.stack.own_optimizer,
        )
        offering = Candidates(setting=setting, pins={}, pending=list(rules_for(framework)))

        def offered(name: str, values: Sequence[int]) -> IntArray:
            kept = offering.offered((name,), [(int(value),) for value in values])
            return np.asarray(sorted(value for (value,) in kept), dtype=np.int64)

        modes = offered("recompute", list(Recompute))
        schedules, chunks = offered("schedule", _SCHEDULES), np.asarray(chunk_counts(setting))
        width = min(self.max_stages, model.num_layers)
        return Layout(
            model=model,
            choices=self.choices,
            width=width,
            schedules=schedules,
            virtual_stages=chunks,
            full=bool(Recompute.FULL in modes),
            modules=self.modules if Recompute.SELECTIVE in modes else (),
            offload=self.offload,
            legal_plan=self._legal_plans(setting, width, schedules, chunks),
        )

    def _legal_plans(self, setting: Setting, width: int, schedules: IntArray, chunks: IntArray) -> BoolArray:
        """(S, schedules, chunks, samples) whether the rules that see only these hold."""
        counts = self.choices.num_microbatches
        shape = (width, len(schedules), len(chunks), len(counts))
        place = np.indices(shape).reshape(4, -1)
        stages, v = place[0] + 1, chunks[place[2]]
        known = {
            "pipeline_parallel": stages, "schedule": schedules[place[1]], "virtual_stages": v,
            "num_microbatches": counts[place[3]],
        }  # fmt: skip
        legal = pipelines_run(stages, known["schedule"], v, known["num_microbatches"], setting)
        legal &= setting.model.num_layers % v == 0
        legal &= stages > 1  # plans without a pipeline have no stages to differ
        for name in known.keys() & self.pins.keys():
            legal &= known[name] == self.pins[name]
        return np.asarray(legal.reshape(shape), dtype=np.bool_)

    def _named(self) -> list[Knob]:
        layers, layout = self.layout.model.num_layers, self.layout
        numbers = tuple(str(number) for number in range(layers + 1))
        options = dict.fromkeys(layout.names, numbers) | {
            "shape": self._shape_labels(),
            "selective": ("none", *(",".join(module_names(some)) for some in layout.modules)),
            "optimizer_offload": numbers[: OFFLOAD_PARTS + 1],
            "parameter_offload": numbers[: OFFLOAD_PARTS + 1],
        }
        plan = (
            tuple(str(number + 1) for number in range(layout.width)),
            tuple(Schedule(int(code)).name.lower() for code in layout.schedules),
            tuple(str(number) for number in layout.virtual_stages),
            tuple(str(number) for number in self.choices.samples),
        )
        found = [Knob(name=name, labels=labels) for name, labels in zip(PLAN_KNOBS, plan, strict=True)]
        for name in layout.names:
            found += [
                Knob(name=f"{name}_{stage}", labels=options[name], ordered=name not in ("shape", "selective"))
                for stage in range(layout.width)
            ]
        return found

    def _shape_labels(self) -> tuple[str, ...]:
        plans, row = self.choices.configs.plans, self.choices.first
        short = ("tensor_parallel", "data_parallel", "context_parallel", "expert_parallel", "zero_stage")
        columns = [getattr(plans, name)[row].tolist() for name in short]
        words = ("tp", "dp", "cp", "ep", "zero")
        group = self.choices.group.tolist()
        return tuple(
            f"{number}:group{group[number]} " + " ".join(f"{w}{v}" for w, v in zip(words, values, strict=True))
            for number, values in enumerate(zip(*columns, strict=True))
        )

    def _places(self) -> tuple[IntArray, IntArray]:
        """(K,) shape, and (K,) samples, of every configuration."""
        shape, sample = np.nonzero(self.choices.table >= 0)
        row = self.choices.table[shape, sample]
        of_shape, of_sample = np.zeros_like(row), np.zeros_like(row)
        of_shape[row], of_sample[row] = shape, sample
        return of_shape, of_sample


def _stage_contents(model: ModelSpec) -> IntArray:
    """(4, C) everything a stage may hold: dense and MoE layers of a run, and whether the ends of the model."""
    before = np.concatenate([[0], np.cumsum(model.layer_is_moe)])
    start, end = np.triu_indices(model.num_layers + 1, k=1)
    moe = before[end] - before[start]
    columns = np.stack([end - start - moe, moe, start == 0, end == model.num_layers])
    return np.unique(columns, axis=1)
