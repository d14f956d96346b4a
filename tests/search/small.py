"""Questions small enough to price every plan: all families, and every layout of each."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from costmodels.plan import IntArray, Recompute
from costmodels.stage_evaluate import evaluate_stages
from costmodels.stage_plan import StagePlanBatch
from costmodels.stage_prices import StagePrices
from planner.request import Options, setting_of
from planner.rules.modules import module_sets
from planner.search.families import Family, alike_families
from planner.search.mixed_families import mixed_families
from planner.search.question import Question, ask
from planner.space import plan_space
from planner.stage_constraints import StageSetting, broken_by

_CHUNK = 50_000


def model(layers: int, **more: Any) -> dict[str, Any]:
    """A Llama-like configuration of some 100 million parameters per layer."""
    return {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "max_position_embeddings": 4096,
    } | more  # fmt: skip


def mixture(layers: int) -> dict[str, Any]:
    """The same with eight experts per layer."""
    return model(layers, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A question by name."""

    name: str
    model: dict[str, Any]
    cluster: str
    job: dict[str, Any]
    reserve_gib: float = 0.0
    pins: dict[str, Any] = field(default_factory=dict)

    framework: str | None = None
    named_modules: bool = False
    offload: bool = False
    runnable: bool = False

    def question(self) -> Question:
        """In full."""
        options = Options(
            memory_reserve_bytes=self.reserve_gib * 2**30, framework=self.framework, named_modules=self.named_modules,
            offload=self.offload,
        )  # fmt: skip
        return ask(self.model, self.cluster, self.job, self.pins, options, runnable=self.runnable)

    def arguments(self) -> dict[str, Any]:
        """Of ``planner.search``."""
        return {
            "model": self.model, "cluster": self.cluster, "job": self.job, "pins": self.pins,
            "memory_reserve_bytes": self.reserve_gib * 2**30, "framework": self.framework,
            "named_modules": self.named_modules, "offload": self.offload,
        } | ({"runnable": True} if self.runnable else {})  # fmt: skip


_JOB = {"sequence_length": 2048, "global_batch_size": 16}
_LONG = {"sequence_length": 2048, "global_batch_size": 64}
INSTANCES = (
    Small(name="dense, loose", model=model(4), cluster="4xA100-80GB", job=_JOB),
    Small(name="dense, tight", model=model(4), cluster="4xA100-80GB", job=_JOB, reserve_gib=65.0),
    Small(name="dense, five layers", model=model(5), cluster="4xA100-80GB", job=_JOB, reserve_gib=60.0),
    Small(name="dense, two stages", model=model(8), cluster="4xA100-80GB", job=_JOB, reserve_gib=52.0, pins={"pp": 2}),
    Small(name="dense, few micro-batches", model=model(6), cluster="4xA100-80GB", pins={"pp": 2},
          job={"sequence_length": 2048, "global_batch_size": 4}, reserve_gib=55.0),
    Small(name="dense, large vocabulary", model=model(6, vocab_size=256000), cluster="4xA100-80GB", job=_JOB,
          reserve_gib=50.0, pins={"pp": 2}),
    Small(name="dense, slow network", model=model(4, hidden_size=2048, intermediate_size=5632), cluster="4x1xA10G",
          job={"sequence_length": 1024, "global_batch_size": 16}),
    Small(name="MoE, loose", model=mixture(4), cluster="4xH100", job=_JOB),
    Small(name="MoE, tight", model=mixture(4), cluster="4xH100", job=_JOB, reserve_gib=25.0),
    Small(name="MoE, two stages", model=mixture(6), cluster="8xH100", job=_JOB, reserve_gib=32.0, pins={"pp": 2}),
    Small(name="MoE, named modules", model=mixture(4), cluster="4xH100", job=_JOB, reserve_gib=48.0, pins={"pp": 2},
          named_modules=True),
    Small(name="dense, offloading", model=model(4), cluster="4xA100-80GB", job=_JOB, reserve_gib=71.0, pins={"pp": 2},
          offload=True),
    Small(name="two types, loose", model=model(5), cluster="1x2xA100-80GB+1x2xH100", job=_LONG, pins={"mbs": 1}),
    Small(name="two types, tight", model=model(5), cluster="1x2xA100-80GB+1x2xH100", job=_LONG, reserve_gib=45.0,
          pins={"mbs": 1}),
    Small(name="two types, MoE", model=mixture(4), cluster="1x2xA100-80GB+1x2xH100", job=_LONG, reserve_gib=5.0,
          pins={"mbs": 1}),
    Small(name="two types, slow network", model=model(5, hidden_size=2048, intermediate_size=5632),
          cluster="2x1xA10G+2x1xL4", job={"sequence_length": 1024, "global_batch_size": 8}, reserve_gib=8.0),
    Small(name="everything at once", model=model(5), cluster="1x2xA100-80GB+1x2xH100", reserve_gib=66.0,
          job={"sequence_length": 2048, "global_batch_size": 16}),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a stage may do with its layers.

    Attributes:
        modes: ``Recompute`` codes.
        sets: Sets of modules to recompute.
        offload: Whether the optimizer may be offloaded by halves, and activations of all layers or none.
    """

    modes: set[int]
    sets: tuple[int, ...] = (1,)
    offload: bool = False

    def ways(self, layers: int) -> list[tuple[int, ...]]:
        """Every way to treat so many layers: columns of ``_WAY``."""
        whole = bool(self.modes & {int(Recompute.FULL), int(Recompute.BLOCK)})
        found = []
        for full in range(layers + 1 if whole else 1):
            for selective in range(layers - full + 1 if int(Recompute.SELECTIVE) in self.modes else 1):
                for modules in self.sets if selective else (1,):
                    for eighths, moved in itertools.product((0, 4, 8), (0, 1)) if self.offload else ((0, 0),):
                        found.append((selective, full, modules, eighths, moved * (full or layers)))
        return found


_WAY = ("selective", "full", "modules", "optimizer_offload", "offloaded")


def every_layout(family: Family, layers: int, *, moe: bool, choices: Choices) -> Iterator[dict[str, IntArray]]:
    """Columns of every layout of a family, in chunks: layers, their treatment, and the stages' configurations."""
    kind = "moe" if moe else "dense"
    ways = {count: choices.ways(count) for count in range(1, layers + 1)}
    rows: list[tuple[Any, ...]] = []
    slots = dict(zip(family.configs.tolist(), family.slots, strict=True)) if family.slots else {}
    for chosen in itertools.product(family.configs.tolist(), repeat=family.num_stages):
        if any(chosen.count(config) > most for config, most in slots.items()):
            continue
        for split in _splits(layers, family.num_stages, family.virtual_stages):
            for again in itertools.product(*(ways[count] for count in split)):
                rows.append((chosen, split, again))
                if len(rows) == _CHUNK:
                    yield _columns(rows, kind)
                    rows = []
    if rows:
        yield _columns(rows, kind)


def _columns(rows: list[tuple[Any, ...]], kind: str) -> dict[str, IntArray]:
    config, split, again = (np.asarray(column) for column in zip(*rows, strict=True))
    named = dict(zip(_WAY, np.moveaxis(again, 2, 0), strict=True))
    treated = {f"{name}_{kind}": named.pop(name) for name in ("selective", "full")}
    return {"config": config, "layers": split} | treated | named


def _splits(layers: int, stages: int, chunks: int) -> Iterator[tuple[int, ...]]:
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        split = np.diff([0, *cuts, layers])
        if split.min() >= chunks:  # every chunk of every stage has a layer
            yield tuple(split.tolist())


def true_optimum(question: Question) -> tuple[float, int]:
    """The shortest step of all plans there are, or that the framework can run, and how many these are."""
    best_s, plans = np.inf, 0
    request = question.requests[0]
    layers, moe = request.model.num_layers, request.model.num_moe_layers > 0
    sets = module_sets(setting_of(request), named=request.named_modules)
    for group, each in enumerate(question.requests):
        space = plan_space(setting_of(each), domain_devices=each.cluster.domain_devices, pins=each.pins)
        modes = set(np.unique(space.plans.recompute).tolist())
        choices = Choices(modes=modes, sets=sets, offload=each.offload)
        families, configs = alike_families(space.plans, group=group)
        prices = StagePrices(configs=configs, contexts=question.contexts)
        found = best_of(question, families, prices, layers, moe, choices)
        best_s, plans = min(best_s, found[0]), plans + found[1]
    if len(question.requests) > 1:
        mixed = mixed_families(question, request.pins, alike=question.runnable)
        found = best_of(question, mixed.families, mixed.prices, layers, moe, choices)
        best_s, plans = min(best_s, found[0]), plans + found[1]
    return best_s, plans


def best_of(
    question: Question, families: list[Family], prices: StagePrices, layers: int, moe: bool, choices: Choices
) -> tuple[float, int]:
    best_s, plans = np.inf, 0
    devices = tuple(request.cluster.num_devices for request in question.requests)
    setting = StageSetting(model=question.requests[0].model, configs=prices.configs, devices=devices)
    for family in families:
        for columns in every_layout(family, layers, moe=moe, choices=choices):
            batch = StagePlanBatch.from_columns(
                np.full(len(columns["layers"]), family.num_stages), columns.pop("config"), columns.pop("layers"),
                schedule=int(family.schedule), virtual_stages=family.virtual_stages,
                num_microbatches=family.num_microbatches, **columns,
            )  # fmt: skip
            if question.runnable:
                broken = broken_by(batch, setting, setting_of(question.requests[0])).values()
                batch = batch.take(np.flatnonzero(~np.any([np.zeros(len(batch), np.bool_), *broken], axis=0)))
                if not len(batch):
                    continue
            priced = evaluate_stages(batch, prices)
            plans += len(batch)
            best_s = min(best_s, float(np.where(priced.fits, priced.step_time_s, np.inf).min()))
    return best_s, plans
