"""How many layers stages have room and time for: what rules families out, and what makes them recompute.

Memory only grows with layers, and with recomputation only shrinks as more layers of a stage are recomputed
in the same way; so the most layers a stage holds with nothing recomputed bound how many of its layers can go
without, and likewise with modules recomputed, which the set that drops most stands for.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray, RecomputeModule
from costmodels.stage_plans.evaluate import evaluate_stages
from costmodels.stage_plans.plan import StagePlanBatch
from costmodels.stage_plans.prices import StagePrices
from costmodels.stages.layers import layer_kinds
from planner.search.best import Stopped
from planner.search.families import Family, by_stages, least_step_s
from planner.search.freedom import Freedom

_MODES = ("none", "selective", "full")
_CHUNK_CELLS = 1 << 17  # stages priced at once; bounds memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Bounds of F families of one configuration each.

    Attributes:
        least_s: (F,) seconds that no layout goes below; infinite where none fits.
        most_layers: (F,) most layers that any stage can hold.
    """

    least_s: FloatArray
    most_layers: IntArray


def capacity(
    families: list[Family],
    prices: StagePrices,
    freedom: Freedom,
    *,
    perfect_s: FloatArray,
    below_s: float,
    check_time: Callable[[], None] = lambda: None,
) -> Capacity:
    """What the families can still reach, memory considered.

    Args:
        families: Families of one configuration each.
        prices: Prices of the configurations.
        freedom: What may be recomputed; with offloading, memory rules nothing out.
        perfect_s: (F,) what ``least_step_s`` says of them.
        below_s: Step time to beat.
        check_time: Called between numbers of stages; once it raises ``Stopped``, no more is said of other families.
    """
    model = prices.context.model
    count = len(families)
    if freedom.offload:
        return Capacity(least_s=perfect_s, most_layers=np.full(count, model.num_layers))
    extra_s, most = np.zeros(count), np.full(count, model.num_layers)
    with suppress(Stopped):
        for stages, members in by_stages(families):
            check_time()
            for start in range(0, len(members), max(_CHUNK_CELLS // stages, 1)):
                some = members[start : start + max(_CHUNK_CELLS // stages, 1)]
                extra_s[some], most[some] = _extra([families[at] for at in some], prices, freedom)
    some = np.isfinite(extra_s)
    least_s = np.full(count, np.inf)
    least_s[some] = least_step_s(
        [families[at] for at in np.flatnonzero(some)], prices, below_s=below_s, extra_s=extra_s[some]
    )
    return Capacity(least_s=np.maximum(least_s, perfect_s), most_layers=most)


def _extra(families: list[Family], prices: StagePrices, freedom: Freedom) -> tuple[FloatArray, IntArray]:
    """(F,) seconds of one micro-batch that recomputation adds at least, and (F,) most layers of a stage."""
    model = prices.context.model
    config = np.asarray([family.configs[0] for family in families])
    extra_s, most = np.zeros(len(families)), np.zeros(len(families), dtype=np.int64)
    for moe in layer_kinds(model):
        layers = model.num_moe_layers if moe else model.num_layers - model.num_moe_layers
        room = rooms(families, prices, freedom, moe=moe)
        total = room.sum(axis=2)
        again = np.maximum(layers - total[0], 0)
        in_full = np.maximum(layers - total[1], 0)
        core_s, layer_s = again_s(prices, config, freedom, moe=moe)
        extra_s += in_full * layer_s + (again - in_full) * core_s
        extra_s = np.where(total[2] < layers, np.inf, extra_s)
        most += room[2].max(axis=1)
    return extra_s, most


def again_s(prices: StagePrices, config: IntArray, freedom: Freedom, *, moe: bool) -> tuple[FloatArray, FloatArray]:
    """Seconds that recomputing a layer of a kind adds at least, and those that recomputing it from its input adds."""
    kind = "moe" if moe else "dense"
    layer_s = prices.unit[f"{kind}_layer_s"][config]
    least_s = layer_s
    for module in RecomputeModule if freedom.selective else ():
        if any(some & module for some in freedom.modules):
            name = f"{kind}_{module.name}".lower()
            helps = prices.unit[f"{name}_bytes"][config] > 0
            least_s = np.where(helps, np.minimum(least_s, prices.unit[f"{name}_s"][config]), least_s)
    return least_s, layer_s


def rooms(
    families: list[Family], prices: StagePrices, freedom: Freedom, *, moe: bool, most: IntArray | None = None
) -> IntArray:
    """Most layers of a kind that stages hold, and nothing else, as if every stage ran a family's first configuration.

    Args:
        families: F families of one number of stages S.
        prices: Prices of the configurations.
        freedom: What may be recomputed.
        moe: Which kind.
        most: (F,) layers beyond which nobody asks.

    Returns:
        (3, F, S): with nothing recomputed, with modules at most, with anything.
    """
    model = prices.context.model
    config = np.asarray([family.configs[0] for family in families])
    layers = np.full(len(families), model.num_moe_layers if moe else model.num_layers - model.num_moe_layers)
    layers = layers if most is None else np.minimum(layers, most)
    allowed = {"none": True, "selective": freedom.selective, "full": freedom.full}
    room = np.zeros((len(families), families[0].num_stages), dtype=np.int64)
    found = []
    for mode in _MODES:
        if allowed[mode]:
            modules = freedom.most_modules
            room = np.maximum(room, _most_layers(families, prices, config, layers, modules, moe=moe, mode=mode))
        found.append(room)
    return np.stack(found)


def _most_layers(
    families: list[Family],
    prices: StagePrices,
    config: IntArray,
    layers: IntArray,
    modules: int,
    *,
    moe: bool,
    mode: str,
) -> IntArray:
    """(F, S) most layers of one kind, up to (F,) ``layers``, that each stage holds, by bisection."""
    shape = (len(families), families[0].num_stages)
    low, high = np.zeros(shape, dtype=np.int64), np.broadcast_to(layers[:, None], shape)
    while (low < high).any():
        middle = (low + high + 1) // 2
        fits = _fits(families, prices, config, middle, modules, moe=moe, mode=mode)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
    return low


def _fits(
    families: list[Family],
    prices: StagePrices,
    config: IntArray,
    layers: IntArray,
    modules: int,
    *,
    moe: bool,
    mode: str,
) -> BoolArray:
    """(F, S) whether each stage has room for so many layers."""
    kind, none = "moe" if moe else "dense", np.zeros_like(layers)
    batch = StagePlanBatch.from_columns(
        [family.num_stages for family in families],
        np.broadcast_to(config[:, None], layers.shape),
        layers,
        schedule=[int(family.schedule) for family in families],
        virtual_stages=[family.virtual_stages for family in families],
        num_microbatches=[family.num_microbatches for family in families],
        modules=modules,
        **({f"{mode}_{kind}": layers} if mode != "none" else {}),
    )
    priced = evaluate_stages(batch, prices, kinds=(none, layers) if moe else (layers, none))
    fits: BoolArray = priced.stage_memory_bytes <= priced.usable_bytes
    return fits
