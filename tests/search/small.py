"""Questions small enough to price every plan: all families, and every layout of each."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any
from unittest import mock

import numpy as np

from costmodels.plan import AxisOrder, IntArray, Recompute, RecomputeModule, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from planner.question.request import Options, setting_of
from planner.rules import modules as module_rules
from planner.rules.modules import module_sets
from planner.search import mixed_families, portfolio
from planner.search.best import Stopped
from planner.search.call import search
from planner.search.families import Family, alike_families
from planner.search.frameworks import several
from planner.search.freedom import Freedom
from planner.search.question import Question, ask
from planner.search.result import SearchResult
from planner.search.stage_space import stage_space
from planner.space.enumeration import plan_space
from planner.space.stage_constraints import StageSetting, broken_by
from profiles.model import ModelSpec

_CHUNK = 50_000


def freedom(question: Question) -> Freedom:
    """What stages may decide: the sets of modules that the first group's framework recomputes."""
    first = question.requests[0]
    return Freedom(modules=module_sets(setting_of(first), named=first.named_modules))


def stopped_after(asks: int) -> Callable[[], None]:
    """A clock that stops the search when it is asked once more than that."""
    left = itertools.count(asks, -1)

    def check_time() -> None:
        if next(left) <= 0:
            raise Stopped

    return check_time


def model(layers: int, **more: Any) -> dict[str, Any]:
    """A Llama-like configuration of some 100 million parameters per layer."""
    return {
        "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000, "max_position_embeddings": 4096,
    } | more  # fmt: skip


def mixture(layers: int) -> dict[str, Any]:  # the same with eight experts per layer
    return model(layers, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2)


def dense_and_moe(layers: int) -> dict[str, Any]:
    """A first layer without experts, the others with four; grouped queries."""
    return {
        "model_type": "glm4_moe", "hidden_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 8192, "moe_intermediate_size": 2048,
        "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 0, "first_k_dense_replace": 1,
        "vocab_size": 32000, "max_position_embeddings": 16384,
    }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A question by name, and how much of it brute force and the search look at.

    Attributes:
        shares: Eighths of the optimizer's states and of the weights that may be on the host.
        modules: Of those that ``named_modules`` may name.
        most_stages: Of pipelines across groups.
    """

    name: str
    model: dict[str, Any]
    cluster: str
    job: dict[str, Any]
    reserve_gib: float = 0.0
    pins: dict[str, Any] = field(default_factory=dict)

    framework: str | None = None
    named_modules: bool = False
    offload: bool = False
    shares: tuple[int, ...] = (0, 4, 8)
    modules: RecomputeModule = ~RecomputeModule(0)
    most_stages: int = mixed_families.MOST_STAGES
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

    @property
    def each(self) -> "list[Small]":
        """The same for every framework, where it is about several."""
        return [replace(self, framework=name) for name in several(self.framework)] or [self]

    def optimum(self) -> tuple[float, int]:
        """What ``true_optimum`` says of every framework, together."""
        with self.limited():
            found = [true_optimum(instance.question(), instance.shares) for instance in self.each]
        return min(best_s for best_s, _ in found), sum(plans for _, plans in found)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """While the search, and what brute force shares with it, looks at no more than that."""
        present = module_rules.present_modules
        with (
            mock.patch.object(portfolio, "EIGHTHS", self.shares),
            mock.patch.object(module_rules, "present_modules", lambda model: present(model) & self.modules),
            mock.patch.object(mixed_families, "MOST_STAGES", self.most_stages),
        ):
            yield

    def found(self, **limits: Any) -> SearchResult:
        """What ``planner.search`` says, where it looks at what brute force looks at.

        Whatever else the machine does: its work is limited, if by anything, by ``evaluations``.
        """
        with self.limited():
            return search(**{"seconds": 600.0} | self.arguments() | limits)


def dense_first(layers: int) -> dict[str, Any]:
    """DeepSeek-like: latent attention, and two layers without experts before those with sixteen of them."""
    return {
        "model_type": "deepseek_v3", "hidden_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "intermediate_size": 10944, "moe_intermediate_size": 1408, "vocab_size": 102400,
        "max_position_embeddings": 4096, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_shared_experts": 2,
        "first_k_dense_replace": 2, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_layer_freq": 1,
    }  # fmt: skip


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
    Small(name="MoE, named modules", model=mixture(4), cluster="4xH100", job=_JOB, reserve_gib=49.5, pins={"pp": 2},
          named_modules=True),
    Small(name="dense, offloading", model=model(4), cluster="4xA100-80GB", job=_JOB, reserve_gib=72.25, pins={"pp": 2},
          offload=True),
    Small(name="dense, every share", model=model(2), cluster="2x1xA100-80GB", job=_JOB, reserve_gib=72.0,
          pins={"pp": 2, "mbs": 1}, offload=True, shares=tuple(range(9))),
    Small(name="dense, zero bubble", model=model(7, vocab_size=256000), cluster="4xA100-80GB", framework="fsdp",
          job={"sequence_length": 2048, "global_batch_size": 8}, reserve_gib=40.0, pins={"pp": 2, "tp": 1, "mbs": 1}),
    Small(name="MoE, dense layers first", model=dense_first(5), cluster="4xH100", job=_JOB, reserve_gib=62.0,
          pins={"pp": 2, "mbs": 1, "vpp": 1}),
    Small(name="dense, degrees differ", model=model(8, hidden_size=5120, num_attention_heads=40,
          num_key_value_heads=40, intermediate_size=13824), cluster="4xA100-PCIe-80GB", reserve_gib=59.32,
          pins={"pp": 2}, job={"sequence_length": 4096, "global_batch_size": 128}),
    Small(name="dense, six devices", model=model(6), cluster="6xA100-80GB", job=_JOB, reserve_gib=50.0,
          pins={"pp": 2, "vpp": 1}),
    Small(name="two types, sizes differ", model=model(4), cluster="1x2xA100-80GB+1x1xH100", job=_JOB,
          reserve_gib=45.0),
    Small(name="two types, loose", model=model(5), cluster="1x2xA100-80GB+1x2xH100", job=_LONG, pins={"mbs": 1}),
    Small(name="two types, tight", model=model(5), cluster="1x2xA100-80GB+1x2xH100", job=_LONG, reserve_gib=45.0,
          pins={"mbs": 1}),
    Small(name="two types, MoE", model=mixture(4), cluster="1x2xA100-80GB+1x2xH100", job=_LONG, reserve_gib=5.0,
          pins={"mbs": 1}),
    Small(name="two types, slow network", model=model(5, hidden_size=2048, intermediate_size=5632),
          cluster="2x1xA10G+2x1xL4", job={"sequence_length": 1024, "global_batch_size": 8}, reserve_gib=8.0),
    Small(name="two types, interleaved", model=model(6), cluster="1x2xA100-80GB+1x2xH100", reserve_gib=50.0,
          job={"sequence_length": 2048, "global_batch_size": 4}, pins={"mbs": 1}),
    Small(name="two types, zero bubble", model=model(6, vocab_size=256000), cluster="1x2xA100-80GB+1x2xH100",
          job={"sequence_length": 2048, "global_batch_size": 8}, framework="fsdp", reserve_gib=20.0,
          pins={"mbs": 1, "tp": 1}),
    Small(name="everything at once", model=model(5), cluster="1x2xA100-80GB+1x2xH100", reserve_gib=66.0,
          job={"sequence_length": 2048, "global_batch_size": 16}),
    Small(name="every dimension", model=dense_and_moe(4), cluster="1x2xA100-80GB+1x1xH100", reserve_gib=73.5,
          job={"sequence_length": 8192, "global_batch_size": 2}, framework="megatron,fsdp", offload=True,
          shares=(0, 8), named_modules=True, modules=RecomputeModule.CORE_ATTN | RecomputeModule.MOE_ACT,
          most_stages=2),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What a stage may do with its layers.

    Attributes:
        modes: ``Recompute`` codes.
        sets: Sets of modules to recompute.
        shares: Eighths of the optimizer's states, and of the weights, that may be on the host; none for no offloading,
            not of activations either, which are offloaded of all layers or none.
    """

    modes: set[int]
    sets: tuple[int, ...] = (1,)
    shares: tuple[int, ...] = ()

    def ways(self, dense: int, moe: int) -> list[tuple[int, ...]]:
        """Every way to treat so many layers: columns of ``_WAY``."""
        found = []
        for kinds in itertools.product(self._recomputed(dense), self._recomputed(moe)):
            (selective_dense, full_dense), (selective_moe, full_moe) = kinds
            again = (selective_dense, selective_moe, full_dense, full_moe)
            movable = full_dense + full_moe or dense + moe
            for modules in self.sets if selective_dense + selective_moe else (1,):
                for optimizer, weights, moved in self._offloads():
                    found.append((*again, modules, optimizer, weights, moved * movable))
        return found

    def _recomputed(self, layers: int) -> list[tuple[int, int]]:
        whole = bool(self.modes & {int(Recompute.FULL), int(Recompute.BLOCK)})
        part = int(Recompute.SELECTIVE) in self.modes
        return [
            (selective, full)
            for full in range(layers + 1 if whole else 1)
            for selective in range(layers - full + 1 if part else 1)
        ]

    def _offloads(self) -> list[tuple[int, int, int]]:
        if not self.shares:
            return [(0, 0, 0)]
        return list(itertools.product(self.shares, self.shares, (0, 1)))


_WAY = (
    *("selective_dense", "selective_moe", "full_dense", "full_moe", "modules"),
    *("optimizer_offload", "parameter_offload", "offloaded"),
)


def every_layout(family: Family, spec: ModelSpec, choices: Choices) -> Iterator[dict[str, IntArray]]:
    """Columns of every layout of a family, in chunks: layers, their treatment, and the stages' configurations."""
    blocks, rows = [], 0
    for block in _blocks(family, spec, choices):
        blocks.append(block)
        rows += len(block[0])
        if rows >= _CHUNK:
            yield _columns(blocks)
            blocks, rows = [], 0
    if blocks:
        yield _columns(blocks)


_Block = tuple[IntArray, IntArray, IntArray]  # (L, S) configurations, (L, S) layers and (L, S, ways) treatments


def _blocks(family: Family, spec: ModelSpec, choices: Choices) -> Iterator[_Block]:
    """All layouts that have a split of the layers and the stages' configurations in common, a chunk at a time."""
    takes, available = family.counted
    chunks = 2 if family.schedule == Schedule.ZERO_BUBBLE_V else family.virtual_stages
    for split in _splits(spec.num_layers, family.num_stages, chunks):
        kinds = zip(*_kinds(family, spec, split), strict=True)
        ways = [np.asarray(choices.ways(int(dense), int(moe))) for dense, moe in kinds]
        sizes = [len(each) for each in ways]
        again = [
            np.stack([each[at] for each, at in zip(ways, np.unravel_index(rows, sizes), strict=True)], axis=1)
            for rows in np.split(np.arange(prod(sizes)), range(_CHUNK, prod(sizes), _CHUNK))
        ]
        for places in assignments(takes, np.asarray(available, dtype=np.int64), family.num_stages):
            chosen = family.configs[list(places)]
            for each in again:
                shape = each.shape[:2]
                yield np.broadcast_to(chosen, shape), np.broadcast_to(split, shape), each


def _kinds(family: Family, spec: ModelSpec, split: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """Dense and MoE layers of every stage."""
    plan = StagePlanBatch.from_columns(
        [family.num_stages], np.zeros((1, family.num_stages)), [split], schedule=int(family.schedule),
        virtual_stages=family.virtual_stages,
    )  # fmt: skip
    dense, moe = plan.kinds(spec)
    return dense[0], moe[0]


def assignments(takes: IntArray, left: IntArray, stages: int) -> Iterator[tuple[int, ...]]:
    """Every choice of a configuration, by place, per stage that leaves nothing of (G,) devices below zero."""
    if not stages:
        yield ()
        return
    for place, taken in enumerate(takes):
        if (taken <= left).all():
            for others in assignments(takes, left - taken, stages - 1):
                yield (place, *others)


def _columns(blocks: list[_Block]) -> dict[str, IntArray]:
    config, split, again = (np.concatenate(each) for each in zip(*blocks, strict=True))
    return {"config": config, "layers": split} | dict(zip(_WAY, np.moveaxis(again, 2, 0), strict=True))


def _splits(layers: int, stages: int, chunks: int) -> Iterator[tuple[int, ...]]:
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        split = np.diff([0, *cuts, layers])
        if split.min() >= chunks:  # every chunk of every stage has a layer
            yield tuple(split.tolist())


def true_optimum(question: Question, shares: tuple[int, ...] = (0, 4, 8)) -> tuple[float, int]:
    """The shortest step of all plans there are, or that the framework can run, and how many these are."""
    found = [best_of(question, *part) for part in spaces(question, shares)]
    return min(best_s for best_s, _ in found), sum(plans for _, plans in found)


def spaces(question: Question, shares: tuple[int, ...]) -> Iterator[tuple[list[Family], StagePrices, Choices]]:
    """Every family of a question: of each group of devices alone, and across them; and what stages may do."""
    request = question.requests[0]
    sets = module_sets(setting_of(request), named=request.named_modules)
    for group, each in enumerate(question.requests):
        space = plan_space(setting_of(each), domain_devices=each.cluster.domain_devices, pins=each.pins)
        modes = set(np.unique(space.plans.recompute).tolist())
        choices = Choices(modes=modes, sets=sets, shares=shares if each.offload else ())
        families, configs = alike_families(space.plans, group=group)
        yield families, StagePrices(configs=configs, contexts=question.contexts), choices
    if len(question.requests) > 1:
        mixed = mixed_families.mixed_families(question, request.pins, alike=question.runnable)
        yield mixed.families(), mixed.prices, choices
    if not question.runnable and not request.offload:
        yield *varied_families(question), choices


def varied_families(question: Question) -> tuple[list[Family], StagePrices]:
    """Pipelines whose stages take any devices and degrees, one family per number of stages and size of micro-batch."""
    pins = question.requests[0].pins
    space = stage_space(
        [setting_of(request) for request in question.requests], question.contexts, joint=question.joint, pins=pins,
    )  # fmt: skip
    plans, layers = space.configs.plans, question.requests[0].model.num_layers
    families = []
    for m in space.microbatches.tolist():
        rows = np.flatnonzero((plans.num_microbatches == m) & (plans.axis_order == AxisOrder.TP_CP_DP_PP))
        takes = np.zeros((len(rows), len(space.devices)), dtype=np.int64)
        takes[np.arange(len(rows)), space.configs.group[rows]] = space.configs.num_devices[rows]
        families += [
            Family(
                num_stages=stages, schedule=Schedule.ONE_F_ONE_B, virtual_stages=1, num_microbatches=m, configs=rows,
                takes=takes, available=space.devices,
            )
            for stages in range(2, min(layers, sum(space.devices)) + 1)
            if pins.get("pipeline_parallel", stages) == stages
        ]  # fmt: skip
    return families, space.prices


def every_plan(
    question: Question, families: list[Family], prices: StagePrices, choices: Choices
) -> Iterator[StagePlanBatch]:
    """Every layout of some families that the framework can run if that is asked for, in batches."""
    devices, spec = tuple(each.cluster.num_devices for each in question.requests), question.requests[0].model
    setting = StageSetting(model=spec, configs=prices.configs, devices=devices)
    for family in families:
        for columns in every_layout(family, spec, choices):
            batch = StagePlanBatch.from_columns(
                np.full(len(columns["layers"]), family.num_stages), columns.pop("config"), columns.pop("layers"),
                schedule=int(family.schedule), virtual_stages=family.virtual_stages,
                num_microbatches=family.num_microbatches, **columns,
            )  # fmt: skip
            if question.runnable:
                broken = broken_by(batch, setting, setting_of(question.requests[0])).values()
                batch = batch.take(np.flatnonzero(~np.any([np.zeros(len(batch), np.bool_), *broken], axis=0)))
            if len(batch):
                yield batch


def best_of(question: Question, families: list[Family], prices: StagePrices, choices: Choices) -> tuple[float, int]:
    """The shortest step of every layout of some families, and how many these are."""
    best_s, plans = np.inf, 0
    for batch in every_plan(question, families, prices, choices):
        priced, plans = evaluate_stages(batch, prices), plans + len(batch)
        best_s = min(best_s, float(np.where(priced.fits, priced.step_time_s, np.inf).min()))
    return best_s, plans
