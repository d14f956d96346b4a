"""How many devices a job needs, and of which kind: the best plan at every size of a cluster, and what sizes stand out.

A size is a part of one machine or some whole machines. Every size is a question of its own, answered by the one
search and the one cost path; a batch that nobody gave follows the devices as it does there, so sizes are compared by
what a token takes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite, lcm, prod
from typing import Any

from costmodels.energy_cost import cost_usd
from costmodels.plan import MESH
from planner.answer.estimates import fastest_estimate
from planner.answer.pricing import nearest_to_fit
from planner.answer.remedies import search_if_legal
from planner.api import warnings_about, what_stands_in_the_way
from planner.question.machines import ClusterInput, resolve_cluster
from planner.question.pins import parse_pins
from planner.question.request import (
    JobInput,
    ModelInput,
    Options,
    PinsInput,
    check_options,
    full_node,
    given_options,
    part_of,
    resolve_request,
)
from planner.results import Infeasible, Note, PlanEstimate, Request
from profiles.errors import SpecError, shown
from profiles.hardware import ClusterSpec
from profiles.scalars import plain
from profiles.units import SECONDS_PER_DAY

MOST_DEVICES = 1024  # looked at where one machine, or part of one, is named
MAX_KINDS = 8
_BETWEEN = 7  # numbers of machines tried between two that differ in what was asked
MAX_DAYS = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One size of a cluster.

    Attributes:
        num_devices: Devices.
        num_nodes: Machines they are in.
        batch: Sequences per step there.
        best: The fastest plan that is likely to live, of all that fit where none is or it takes twice as long; None
            when none fits.
        likely: Whether that runs out of memory no more often than was asked for.
        nearest_bytes: Where none fits, the least that the fullest device of a plan would hold; None if none is legal.
        warnings: What to know before trusting the plan.
    """

    num_devices: int
    num_nodes: int
    batch: int
    best: PlanEstimate | None
    likely: bool
    nearest_bytes: float | None
    warnings: tuple[Note, ...]

    @property
    def device_seconds_per_token(self) -> float:
        """Devices times seconds for a useful token; infinite when nothing fits."""
        return self.best.device_seconds_per_token if self.best else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class KindSizes:
    """One kind of machine.

    Attributes:
        request: The question on the largest size looked at.
        sizes: What was looked at, smallest first.
        days: When the run has to be done; None when nobody said.
    """

    request: Request
    sizes: tuple[Size, ...]
    days: float | None

    @property
    def fewest(self) -> Size | None:
        """The smallest size on which a plan is likely to live, or where none is on any, fits."""
        return next(iter(_answers(self.sizes)), None)

    @property
    def cheapest(self) -> Size | None:
        """The size that takes the least device time for a token; of equals the larger, which is done earlier."""
        return _cheapest(self.sizes)

    @property
    def in_time(self) -> Size | None:
        """The smallest size that is done in ``days``."""
        return next((size for size in _answers(self.sizes) if _done_in(size, self.days)), None)

    def usd_per_token(self, size: Size) -> float:
        """Dollars for a useful token, at the price of this kind; infinite without one."""
        price = self.request.price
        return float("inf") if price is None else cost_usd(size.device_seconds_per_token, 1, price)

    @property
    def varied(self) -> frozenset[str]:
        """Fields of the question that differ from size to size: the batch, where nobody gave one."""
        several = len({size.batch for size in self.sizes}) > 1
        return frozenset(("job.global_batch_size",) if several else ())

    @property
    def standing_out(self) -> dict[str, Size]:
        """What sizes stand out for, in words, to the size."""
        found = {"fewest": self.fewest, "cheapest": self.cheapest}
        if self.days is not None:
            found[f"in {self.days:g} days"] = self.in_time
        return {words: size for words, size in found.items() if size is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingResult:
    """The answer: one table per kind of machine.

    Attributes:
        kinds: In the order asked.
        infeasible: What stands in the way on the largest size of the first kind; None when something fits.
    """

    kinds: tuple[KindSizes, ...]
    infeasible: Infeasible | None

    @property
    def fits(self) -> bool:
        """Whether anything fits."""
        return self.infeasible is None

    @property
    def in_time(self) -> bool:
        """Whether a size of some kind is done in the days asked for, or none were."""
        return any(kind.days is None or kind.in_time is not None for kind in self.kinds)

    @property
    def cheapest(self) -> tuple[KindSizes, Size] | None:
        """The kind and size with the least dollars for a token; None of one kind, or where a price is not given."""
        return self._least(lambda kind: [kind.cheapest])

    @property
    def cheapest_in_time(self) -> tuple[KindSizes, Size] | None:
        """The same among sizes that are done in ``days``."""
        return self._least(lambda kind: [size for size in _answers(kind.sizes) if _done_in(size, kind.days)])

    def _least(self, sizes: Callable[[KindSizes], Iterable[Size | None]]) -> tuple[KindSizes, Size] | None:
        if len(self.kinds) < 2 or any(kind.request.price is None for kind in self.kinds):
            return None
        found = [(kind, size) for kind in self.kinds for size in sizes(kind) if size is not None]
        return min(found, key=lambda pair: pair[0].usd_per_token(pair[1]), default=None)

    @property
    def assumptions(self) -> tuple[Note, ...]:
        """What was filled in on the largest sizes, each once; not a batch that differs from size to size."""
        told = (note for kind in self.kinds for note in kind.request.assumptions if note.field not in kind.varied)
        return tuple(dict.fromkeys(told))


def sizing(
    model: ModelInput,
    clusters: ClusterInput | Sequence[ClusterInput],
    job: JobInput = None,
    *,
    days: float | None = None,
    pins: PinsInput = None,
    options: Options | None = None,
    **settings: Any,
) -> SizingResult:
    """How many devices a job needs: the best plan on growing parts of a cluster.

    Args:
        model: As for ``planner.plan``.
        clusters: One kind of machine or several. A machine or less (``"H100"``, ``"8xH100"``) stands for up to
            ``MOST_DEVICES`` devices in such machines, several (``"64x8xH100"``) for at most those. A text may end in
            ``@`` and the price of a device-hour in dollars: ``"8xH100@2.99"``.
        job: As for ``planner.plan``; ``train_tokens`` gives days and dollars.
        days: Days in which the run should be done.
        pins: Plan fields to hold fixed.
        options: Framework and the rest; or give its fields as keywords. The objective must be the step time.
        **settings: Fields of ``Options``.

    Returns:
        The sizes looked at: doubling, and numbers of machines between around the answers.

    Raises:
        SpecError: If the question itself is wrong.

    Example:
        >>> import planner
        >>> result = planner.sizing("llama-2-7b", "4x8xA100-80GB", {"sequence_length": 2048})
        >>> result.kinds[0].fewest.num_devices
        2
    """
    chosen, days = given_options(options, settings), _checked_days(days)
    check_options(chosen)
    given = plain(clusters)
    kinds = given if isinstance(given, list | tuple) else [given]
    if not 1 <= len(kinds) <= MAX_KINDS:
        raise SpecError("cluster", f"one to {MAX_KINDS} kinds of machines are compared; got {len(kinds)}")
    _check_price(kinds, chosen.price_per_device_hour_usd)
    found = []
    for place, kind in enumerate(kinds):
        try:
            found.append(_kind(model, kind, job, days, pins, chosen))
        except SpecError as error:
            inside = error.field.removeprefix("cluster")
            several = len(kinds) > 1 and inside != error.field
            raise error.at(f"clusters[{place}]{inside}" if several else error.field) from None
    nothing = all(kind.fewest is None for kind in found)
    return SizingResult(kinds=tuple(found), infeasible=what_stands_in_the_way(found[0].request) if nothing else None)


def _kind(
    model: ModelInput, kind: ClusterInput, job: JobInput, days: float | None, pins: PinsInput, options: Options
) -> KindSizes:
    """All sizes of one kind of machine."""
    cluster, options = _priced(kind, options)
    whole = _largest(resolve_cluster(cluster, options.fabric))
    unit = _unit(parse_pins(plain(pins)))
    if allowed := _allowed(whole, unit):
        whole = part_of(whole, allowed[-1])
    request = resolve_request(model, whole, job, pins, options)
    if request.objective != "step_time":
        problem = f"is step_time here; got {request.objective}"
        raise SpecError("objective", problem, "leave it out: the fewest and the cheapest devices are told besides")
    if days is not None and request.job.train_tokens is None:
        raise SpecError("days", "needs the length of the run", "job.train_tokens, on the command line --tokens 15T")
    known: dict[int, Size] = {}

    def look_at(sizes: Iterable[int]) -> None:
        for size in sizes:
            if size not in known:
                known[size] = _size(model, part_of(whole, size), job, pins, options)

    def close_in(holds: Callable[[Size], bool]) -> None:
        """Ever closer, until of the smallest size found and the next smaller one something holds of one alone."""
        while between := _first_between(whole, unit, known, holds):
            look_at(between)

    look_at(_doubling(whole, unit))
    close_in(lambda size: size in _answers(known.values()))
    look_at(_beside_cheapest(whole, unit, known))
    if days is not None:
        close_in(lambda size: size in _answers(known.values()) and _done_in(size, days))
    return KindSizes(request=request, sizes=tuple(known[size] for size in sorted(known)), days=days)


def _check_price(kinds: Sequence[ClusterInput], per_device_hour_usd: float | None) -> None:
    """Refuse a price of all kinds where each has one of its own, even if it is the same."""
    if per_device_hour_usd is not None and all(isinstance(kind, str) and "@" in kind for kind in kinds):
        problem = f"is {per_device_hour_usd:g}, but every kind of machine has a price of its own"
        raise SpecError("price_per_device_hour_usd", problem, "leave it out, or what is behind the @")


def _priced(kind: ClusterInput, options: Options) -> tuple[ClusterInput, Options]:
    """A kind of machine without its price, which joins the options."""
    if not isinstance(kind, str) or "@" not in kind:
        return kind, options
    name, _, words = kind.rpartition("@")
    if name.lower().endswith((".yaml", ".yml")):
        raise SpecError("cluster", "a file takes no price behind it", "--price-per-gpu-hour, the same for all kinds")
    try:
        price = float(words)
    except ValueError:
        price = -1.0
    if not (isfinite(price) and price >= 0):
        raise SpecError("cluster", f"cannot read the price in {kind[:60]!r}", "for example 8xH100@2.99")
    return name, replace(options, price_per_device_hour_usd=price)


def _largest(cluster: ClusterSpec) -> ClusterSpec:
    """The cluster itself if it has several machines; else as many of the machine as are looked at unasked."""
    if cluster.num_nodes > 1:
        return cluster
    node = full_node(cluster).devices_per_node
    return part_of(cluster, max(MOST_DEVICES // node, 1) * node)


def _unit(fixed: Mapping[str, int]) -> int:
    """Devices that what is fixed of a plan fills, a multiple of which every size must be."""
    return prod(fixed.get(name, 1) for name in MESH)


def _allowed(whole: ClusterSpec, unit: int) -> range:
    """Numbers of devices that hold whole units: parts of one machine where these fit into it, else whole machines."""
    node, most = whole.node.devices_per_node, whole.num_devices
    each = unit if most < node else lcm(unit, node)
    return range(each, most + 1, each)


def _doubling(whole: ClusterSpec, unit: int) -> list[int]:
    """Parts of a machine and numbers of machines, each twice the one before, and the whole."""
    node, sizes, size = whole.node.devices_per_node, [], unit
    while size < min(node, whole.num_devices):
        sizes.append(size)
        size *= 2
    size = lcm(unit, node)
    while size < whole.num_devices:
        sizes.append(size)
        size *= 2
    return [*sizes, whole.num_devices]


def _first_between(
    whole: ClusterSpec, unit: int, known: Mapping[int, Size], holds: Callable[[Size], bool]
) -> list[int]:
    """Numbers of machines between the smallest size of which something holds and the one below it, evenly spread."""
    sizes = sorted(known)
    first = next((index for index, size in enumerate(sizes) if holds(known[size])), 0)
    return _between(whole, unit, sizes[first - 1], sizes[first]) if first else []


def _beside_cheapest(whole: ClusterSpec, unit: int, known: Mapping[int, Size]) -> list[int]:
    """Numbers of machines on both sides of the cheapest size; a number that three divides may suit the layers best."""
    best = _cheapest(known.values())
    if best is None:
        return []
    sizes = sorted(known)
    place = sizes.index(best.num_devices)
    near = sizes[max(place - 1, 0) : place + 2]
    return [size for low, high in pairwise(near) for size in _between(whole, unit, low, high)]


def _between(whole: ClusterSpec, unit: int, smaller: int, larger: int) -> list[int]:
    """Numbers of machines between two sizes, evenly spread; none between parts of a machine."""
    if smaller < whole.node.devices_per_node:
        return []
    each = lcm(unit, whole.node.devices_per_node)
    low, high = smaller // each, larger // each
    step = max((high - low) // (_BETWEEN + 1), 1)
    return [count * each for count in range(low + step, high, step)]


def _size(model: ModelInput, cluster: ClusterSpec, job: JobInput, pins: PinsInput, options: Options) -> Size:
    """The fastest plan of one size that is likely to live; a size that what is fixed does not divide has none."""
    request = resolve_request(model, cluster, job, pins, options)
    priced = search_if_legal(request)
    best = None if priced is None else fastest_estimate(request, priced)
    nearest = None
    if priced is not None and best is None:
        nearest = float(priced.peak_memory_bytes[nearest_to_fit(priced, cluster.node)])
    return Size(
        num_devices=cluster.num_devices,
        num_nodes=cluster.num_nodes,
        batch=request.job.global_batch_size,
        best=best,
        likely=best is not None and best.lives(request.max_oom_risk),
        nearest_bytes=nearest,
        warnings=warnings_about(request, best),
    )


def _answers(sizes: Iterable[Size]) -> list[Size]:
    """Sizes on which a plan is likely to live, or where none is on any, on which one fits."""
    fitting = [size for size in sizes if size.best is not None]
    return [size for size in fitting if size.likely] or fitting


def _cheapest(sizes: Iterable[Size]) -> Size | None:
    """Of those the one that takes the least device time for a token, of equals the larger."""
    return min(_answers(sizes), key=lambda size: (size.device_seconds_per_token, -size.num_devices), default=None)


def _done_in(size: Size, days: float | None) -> bool:
    run = size.best.run if size.best else None
    return days is not None and run is not None and run.duration_s <= days * SECONDS_PER_DAY


def _checked_days(days: object) -> float | None:
    if days is None:
        return None
    value = plain(days)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_DAYS:
        raise SpecError("days", f"must be a number above 0 and at most {MAX_DAYS:g}; got {shown(days)}")
    return float(value)
