"""Families of pipelines whose stages may differ in everything: device group, devices, degrees, sharding.

All stages of a pipeline process the same samples per micro-batch; so configurations come in pools, one for each size
of micro-batch, and a family is a pool with a number of stages. Which stage takes which configuration is part of the
partition, and so is how many devices are left idle.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np

from costmodels.plan import AxisOrder, BoolArray, FloatArray, IntArray, Schedule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import CONFIG_COLUMNS, StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from planner.search.best import BestSoFar, Stopped
from planner.search.bounds.devices import Behind, admitted, behind
from planner.search.bounds.priced import Offers, least_step_s, offers
from planner.search.cells import Cells
from planner.search.families import Family, known_of_step_s, step_s
from planner.search.freedom import Freedom
from planner.search.partition.stage_table import runs_by_kind
from planner.search.pools import Pool, Runs, pool
from planner.search.question import Question
from planner.search.stage_space import stage_space
from planner.search.stage_work import stage_work_s

MOST_STAGES = 32
_HALVINGS = 3  # of what is left between the lowest bound of a pool and the step to beat
_HIGH = 0.9  # of the step to beat: pools whose bounds are that high are left alone
_WORTH_BOUNDING = 0.999  # of the step time bounds were worked out for: below, they are worked out anew


@dataclass(slots=True, kw_only=True)
class DegreeFamilies:
    """Families of pipelines of two stages or more that may beat a known plan.

    Attributes:
        prices: Of all configurations.
        families: The families.
        least_s: Step times that no plan of each goes below.
        bound_s: Nor does any plan of those left out for want of time.
    """

    prices: StagePrices
    families: list[Family] = field(default_factory=list)
    least_s: list[float] = field(default_factory=list)
    bound_s: float = np.inf
    _pool_of: list[int] = field(default_factory=list)
    _pools: list[tuple[Pool, Behind]] = field(default_factory=list)

    def sharper_s(
        self, families: list[Family], below_s: float, *, check_time: Callable[[], None] = lambda: None
    ) -> FloatArray:
        """(F,) step times that no plan of some of the families goes below, ``below_s`` where it is no less.

        Once ``check_time`` raises ``Stopped``, the others are bounded by 0.
        """
        least_s, place = np.zeros(len(families)), {own.num_microbatches: at for at, (own, _) in enumerate(self._pools)}
        known: dict[int, Offers] = {}
        with suppress(Stopped):
            for at, family in enumerate(families):
                check_time()
                own, found = self._pools[place[family.num_microbatches]]
                if family.num_microbatches not in known:
                    known[family.num_microbatches] = offers(own, family.available, below_s=below_s)
                least_s[at] = least_step_s(
                    known[family.num_microbatches], family.num_stages, below_s=below_s,
                    nodes=float(found.nodes[family.num_stages]), check_time=check_time,
                )  # fmt: skip
            stages = np.asarray([family.num_stages for family in families], dtype=np.int64)
            pool_of = np.asarray([place[family.num_microbatches] for family in families], dtype=np.int64)
            for at in np.unique(pool_of).tolist():
                members = np.flatnonzero(pool_of == at)
                least_s[members] = self._halved_s(at, stages[members], least_s[members], below_s, check_time)
        return least_s

    def _halved_s(
        self, place: int, stages: IntArray, least_s: FloatArray, below_s: float, check_time: Callable[[], None]
    ) -> FloatArray:
        """(F,) bounds of families of a pool, higher where the program over devices has no plan below shorter steps.

        What a step to beat rules out makes its bounds on others higher: of stages that nearly are the slowest too.
        """
        own, found = self._pools[place]
        for _ in range(_HALVINGS):
            lowest_s = float(least_s.min())
            if lowest_s >= below_s * _HIGH:
                break
            check_time()
            middle_s = (lowest_s + below_s) / 2
            known_s = behind(own, middle_s, only=found.only, check_time=check_time).step_s[stages]
            least_s = np.maximum(least_s, np.minimum(known_s, middle_s))
            if np.isfinite(known_s[least_s < middle_s]).any():
                below_s = middle_s
        return least_s

    def narrowed(self, at: int, below_s: float) -> Family | None:
        """A family with what its stages may hold below a step time; None where that is nothing."""
        family, (own, found) = self.families[at], self._of(self._pool_of[at], below_s)
        if not np.isfinite(found.step_s[family.num_stages]):
            return None
        nodes = max(family.nodes, float(found.nodes[family.num_stages]))
        known_s = min(own.known_s(below_s, nodes), found.known_s)
        allowed, places = admitted(own, found, family.num_stages, known_s)
        kept = np.flatnonzero(allowed.any(axis=(1, 2)))
        if not allowed.any(axis=(0, 1)).all():
            return None
        places = np.repeat(places.transpose(1, 0, 2, 3), own.per_size, axis=0)[kept]
        own, allowed = own.take(kept), allowed[kept]
        runs = np.flatnonzero(allowed.any(axis=(0, 2)))
        own, allowed = replace(own, runs=own.runs.take(runs)), allowed[:, runs]
        order = np.argsort(own.configs)
        takes = np.zeros((len(order), len(family.available)), dtype=np.int64)
        configs = own.configs[order]
        takes[np.arange(len(order)), self.prices.configs.group[configs]] = self.prices.configs.num_devices[configs]
        return replace(
            family, configs=configs, takes=takes, nodes=nodes, cells=_cells(family, own, allowed, places, order)
        )

    def add(self, own: Pool, found: Behind, available: tuple[int, ...]) -> None:
        """Pipelines of all numbers of stages of a pool that may be better than what is known."""
        for stages in range(2, len(found.step_s)):
            if np.isfinite(found.step_s[stages]):
                family = Family(
                    num_stages=stages, schedule=Schedule.ONE_F_ONE_B, virtual_stages=1,
                    num_microbatches=own.num_microbatches, configs=np.sort(own.configs), available=available,
                    nodes=float(found.nodes[stages]),
                )  # fmt: skip
                self.families.append(family)
                self.least_s.append(float(found.step_s[stages]))
                self._pool_of.append(len(self._pools))
        self._pools.append((own, found))

    def _of(self, place: int, below_s: float) -> tuple[Pool, Behind]:
        """A pool with bounds that make use of the best plan by now."""
        own, found = self._pools[place]
        if below_s < found.below_s * _WORTH_BOUNDING:
            found = behind(own, below_s, only=found.only)
            self._pools[place] = own, found
        return own, found


def degree_families(
    question: Question, freedom: Freedom, best: BestSoFar, *, pins: Mapping[str, int]
) -> DegreeFamilies:
    """All families of the question that may have a plan below the best so far.

    Args:
        question: The question.
        freedom: What stages may recompute.
        best: The best plan so far, and the budget: when it is spent, little is known of what is left.
        pins: Plan columns the user fixed.
    """
    space = stage_space(
        question.settings,
        question.contexts,
        joint=question.joint,
        pins={name: value for name, value in pins.items() if name in CONFIG_COLUMNS},
        max_stages=MOST_STAGES,
    )
    prices, plans = space.prices, space.configs.plans
    found = DegreeFamilies(prices=prices)
    apart = plans.axis_order == AxisOrder.TP_CP_DP_PP  # stages on devices of their own
    runs, pools = _runs(prices), []
    for microbatches in space.microbatches.tolist():
        configs = np.flatnonzero(apart & (plans.num_microbatches == microbatches))
        if len(configs) and (least_s := _least_s(prices, configs, space.devices)) < best.step_time_s:
            pools.append((least_s, configs))
    for at, (_, configs) in enumerate(pools):
        done = False
        if not best.spent:
            with best.until_stopped():
                _add_pool(found, configs, runs, freedom, best, devices=space.devices, pins=pins)
                done = True
        if not done:
            found.bound_s = min(least_s for least_s, _ in pools[at:])
            break
    return found


def _least_s(prices: StagePrices, configs: IntArray, devices: tuple[int, ...]) -> float:
    """Step that no pipeline goes below: all devices work all the time, each layer where it takes fewest of them."""
    model = prices.context.model
    moe = model.num_moe_layers
    device_s = sum(
        count * float((stage_work_s(prices, configs, layers=1, moe=kind) * prices.configs.num_devices[configs]).min())
        for kind, count in ((False, model.num_layers - moe), (True, moe))
        if count
    )
    known_s = device_s / sum(devices) * int(prices.configs.plans.num_microbatches[configs[0]])
    return float(step_s(np.asarray([known_s]), nodes=np.zeros(1), prices=prices)[0])


def _add_pool(
    found: DegreeFamilies, configs: IntArray, runs: Runs, freedom: Freedom, best: BestSoFar, *,
    devices: tuple[int, ...], pins: Mapping[str, int],
) -> None:  # fmt: skip
    """The families of one size of micro-batch."""
    prices, below_s = found.prices, best.step_time_s
    microbatches = int(prices.configs.plans.num_microbatches[configs[0]])
    most = min(MOST_STAGES, prices.context.model.num_layers, _most_stages(prices, configs, devices))
    only = pins.get("pipeline_parallel")
    if most < 2 or (only is not None and not 2 <= only <= most):
        return
    nodes = 2 * float(prices.unit["nodes"][configs].min())
    longest_s = known_of_step_s(below_s, nodes=nodes, prices=prices) if np.isfinite(below_s) else np.inf
    own = pool(
        prices, configs, runs, freedom, devices=devices, longest_s=longest_s / microbatches, num_stages=only or most,
        num_microbatches=microbatches, check_time=best.check_time,
    )  # fmt: skip
    if own is not None:
        best.evaluations += len(own.configs) * own.num_stages
        found.add(own, behind(own, below_s, only=only, check_time=best.check_time), devices)


def _most_stages(prices: StagePrices, configs: IntArray, devices: tuple[int, ...]) -> int:
    """Stages there are devices for."""
    group, size = prices.configs.group[configs], prices.configs.num_devices[configs]
    return sum(there // int(size[group == at].min()) for at, there in enumerate(devices) if (group == at).any())


def _runs(prices: StagePrices) -> Runs:
    """Every run of consecutive layers."""
    model = prices.context.model
    first, count = np.indices((model.num_layers + 1, model.num_layers + 1)).reshape(2, -1)
    inside = (count > 0) & (first + count <= model.num_layers)
    first, count = first[inside], count[inside]
    plain = Family(
        num_stages=1, schedule=Schedule.ONE_F_ONE_B, virtual_stages=1, num_microbatches=1, configs=np.zeros(1, np.int64)
    )
    kinds = runs_by_kind(model, plain, first, count)
    distinct, run = np.unique(np.column_stack([kinds.dense, kinds.moe]), axis=0, return_inverse=True)
    at = np.full((model.num_layers + 1, model.num_layers + 1), -1)
    at[first, count] = run.reshape(-1)
    return Runs(dense=distinct[:, 0], moe=distinct[:, 1], at=at)


def _cells(family: Family, own: Pool, allowed: BoolArray, places: BoolArray, order: IntArray) -> Cells:
    """What is allowed, with what has to be recomputed; configurations in the given order."""
    stages, dense, moe = family.num_stages, own.runs.dense, own.runs.moe
    again: dict[str, IntArray] = {}
    whole: dict[str, IntArray] = {}
    for kind in own.kinds:
        layers = own.layers(kind.name)[None, :]
        for needed, room in ((again, kind.room[0]), (whole, kind.room[1])):
            most = (room[:, None, own.num_stages - stages :] * allowed).max(axis=2)
            needed[kind.name] = np.maximum(layers - most, 0)[order]
    none = np.zeros((len(order), len(dense)), dtype=np.int64)
    return Cells(
        dense=dense, moe=moe, admitted=allowed[order], places=places[order],
        plain=_plain(family, own, allowed)[order],
        again={"dense": none, "moe": none} | again, full={"dense": none, "moe": none} | whole,
    )  # fmt: skip


def _plain(family: Family, own: Pool, allowed: BoolArray) -> BoolArray:
    """(C, Q) whether all stages that are allowed to hold a run have room for it with nothing recomputed."""
    config, run = np.nonzero(allowed.any(axis=2))
    shape = (len(config), family.num_stages)
    dense, moe = (np.broadcast_to(column[run][:, None], shape) for column in (own.runs.dense, own.runs.moe))
    batch = StagePlanBatch.from_columns(
        np.full(len(config), family.num_stages),
        np.broadcast_to(own.configs[config][:, None], shape),
        dense + moe,
        schedule=int(family.schedule),
        virtual_stages=family.virtual_stages,
        num_microbatches=family.num_microbatches,
    )
    priced = evaluate_stages(batch, own.prices, kinds=(dense, moe))
    fits = (priced.stage_memory_bytes <= priced.usable_bytes) | ~allowed[config, run]
    found = np.zeros(allowed.shape[:2], dtype=np.bool_)
    found[config, run] = fits.all(axis=1)
    return found
