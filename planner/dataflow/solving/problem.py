"""The scheduling problem left once every call has been priced: candidates, order, transfers and room in memory.

Nothing here knows models or kernels. A call is a list of candidates (where, how long, how many bytes); a search picks
one candidate for every call and an order in which calls that compete for GPUs take turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from costmodels.plan import BoolArray, FloatArray, IntArray
from profiles.errors import SpecError

MOST_CALLS = 32
MOST_CANDIDATES = 200_000  # of one call: 1,024 GPUs have 8,512 meshes, and each some twenty layouts
MOST_GPUS = 16_384
MOST_ITERATIONS = 16
_ROUNDING = 1e-9  # relative, of times that are sums


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCandidates:
    """The ways to run one call. Arrays have shape [candidates] and agree row by row.

    Attributes:
        name: The call, such as ``actor_generate``; unique within a problem.
        start: First GPU of the candidate's mesh.
        size: GPUs of the mesh, ``start .. start + size - 1``; 0 for a call that needs none, such as a reward service.
        time_s: Seconds the call takes there, during which the mesh does nothing else.
        static_bytes: Bytes per GPU of the mesh held for the whole run.
        active_bytes: Further bytes per GPU held only while the call runs.
        strategy_id: Layout of the weights: candidates of one role with equal mesh and equal id hold equal shards.
        host_share: Share of the host memory of every machine under its mesh that it holds for the whole run; None where
            host memory does not matter.
    """

    name: str
    start: IntArray
    size: IntArray
    time_s: FloatArray
    static_bytes: FloatArray
    active_bytes: FloatArray
    strategy_id: IntArray
    host_share: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.start)

    @property
    def peak_bytes(self) -> FloatArray:
        """Bytes per GPU where no other call holds anything on it."""
        return self.static_bytes + self.active_bytes

    @property
    def stop(self) -> IntArray:
        """One past the last GPU of each mesh, shape [candidates]."""
        return self.start + self.size

    def take(self, rows: IntArray | BoolArray) -> "CallCandidates":
        """Only the given candidates, in the order given."""
        return CallCandidates(
            name=self.name,
            start=self.start[rows],
            size=self.size[rows],
            time_s=self.time_s[rows],
            static_bytes=self.static_bytes[rows],
            active_bytes=self.active_bytes[rows],
            strategy_id=self.strategy_id[rows],
            host_share=None if self.host_share is None else self.host_share[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairTimes:
    """Seconds for every pair of candidates of the two calls of an edge, by classes of candidates.

    Candidates that take the same beside every partner share a class, which keeps the table small; a class may be a
    single candidate.

    Attributes:
        source_class: Class of each candidate of the parent. [parent candidates]
        target_class: Class of each candidate of the child. [child candidates]
        time_s: Seconds by (source class, target class).
    """

    source_class: IntArray
    target_class: IntArray
    time_s: FloatArray

    def price(self, source: IntArray, target: IntArray) -> FloatArray:
        """Seconds for pairs of candidates, given by row. Broadcasts."""
        seconds: FloatArray = self.time_s[self.source_class[source], self.target_class[target]]
        return seconds

    def restrict(self, source: IntArray, target: IntArray) -> "PairTimes":
        """The same prices after the candidates of both calls were reduced to the given rows."""
        rows, source_class = np.unique(self.source_class[source], return_inverse=True)
        columns, target_class = np.unique(self.target_class[target], return_inverse=True)
        return PairTimes(
            source_class=source_class, target_class=target_class, time_s=self.time_s[np.ix_(rows, columns)]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SameArrival:
    """A sibling of a child that its parent feeds the same, and before which alike candidates are fed at once.

    Attributes:
        sibling: Index of that call.
        child_key: What of each candidate of the child must equal the sibling's. [child candidates]
        sibling_key: Likewise of the sibling's. [sibling candidates]
    """

    sibling: int
    child_key: IntArray
    sibling_key: IntArray

    def serves(self, child: IntArray, sibling: IntArray) -> BoolArray:
        """Whether what arrives for the sibling serves the child, for pairs of candidates given by row. Broadcasts."""
        alike: BoolArray = self.child_key[child] == self.sibling_key[sibling]
        return alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """``child`` of iteration i starts after ``parent`` of iteration i - ``lag`` has ended.

    Attributes:
        parent: Index of the call waited for.
        child: Index of the call that waits; may equal ``parent`` when ``lag`` is at least 1.
        lag: 0 for data of the same iteration; 1 for weights of the iteration before; 1 + eta when versions may be eta
            iterations old. An edge into an iteration before the first is void.
        transfer: What moves from the parent's mesh to the child's in between, and occupies both; none when nothing
            does.
        waits: False when only the transfer takes its turn, and the child does not wait for it: a part of what moves
            once in many iterations.
        lead: How long before the parent's end the child may start, because it takes what the parent has written so
            far; negative where the last of it is written that long after the parent has left its GPUs. At most the
            time of either, so that the child neither starts before the parent nor ends before it. None for 0.
        drops: What moves counts among the active bytes of the child alone: it arrives when the child is next, and no
            other call runs on the child's mesh in between.
        same: Another child of the parent that is fed the same in a transfer of its own, of the same lag: the child
            waits for that too, runs next to it, and is fed nothing where both are alike.
    """

    parent: int
    child: int
    lag: int = 0
    transfer: PairTimes | None = None
    waits: bool = True
    lead: PairTimes | None = None
    drops: bool = False
    same: SameArrival | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataflowProblem:
    """Pick a candidate per call and an order, so that iterations end as early, or recur as fast, as possible.

    A GPU does one thing at a time. On every GPU, the static bytes of all calls whose mesh holds it plus the largest
    active bytes among them fit its capacity.

    Attributes:
        calls: The calls of one iteration.
        edges: Who waits for whom, within and across iterations.
        capacity_bytes: Memory per GPU. [GPUs]
        iterations: Iterations simulated; more than 1 when calls of neighbouring iterations may overlap.
        settled: Whether plans are judged by their seconds per iteration once they have settled, however long the first
            iterations take; else by when the last iteration ends.
        replicas: Pairs (call, sibling) of one role: where both hold the same shards on the same mesh, the call's
            static bytes are those of the sibling and count once. A call has at most one sibling.
        gpus_per_node: Node size, for what nodes have in common; it does not restrict meshes.
        machine_of: Machine of each GPU, counted from 0, whose host memory its calls share; None where all have plenty.
            [GPUs]
    """

    calls: tuple[CallCandidates, ...]
    edges: tuple[Edge, ...]
    capacity_bytes: FloatArray
    iterations: int = 1
    settled: bool = False
    replicas: tuple[tuple[int, int], ...] = field(default=())
    gpus_per_node: int = 8
    machine_of: IntArray | None = None

    def __post_init__(self) -> None:
        _check_sizes(self)
        for call in self.calls:
            _check_call(call, self.num_gpus)
        _check_edges(self)
        _check_replicas(self.replicas, len(self.calls))

    @property
    def num_gpus(self) -> int:
        """GPUs of the cluster."""
        return len(self.capacity_bytes)

    @property
    def num_plans(self) -> int:
        """Ways to pick a candidate for every call, before memory and order."""
        product = 1
        for call in self.calls:
            product *= len(call)
        return product

    @property
    def moving(self) -> tuple[Edge, ...]:
        """Edges along which something moves, in the order of the transfers' slots."""
        return tuple(edge for edge in self.edges if edge.transfer is not None)

    @property
    def leading(self) -> tuple[Edge, ...]:
        """Edges whose child need not wait for the parent's end, in the order of their slots."""
        return tuple(edge for edge in self.edges if edge.lead is not None)

    def names(self) -> tuple[str, ...]:
        """Names of the calls, by index."""
        return tuple(call.name for call in self.calls)

    def restrict(self, rows: Sequence[IntArray]) -> "DataflowProblem":
        """The same problem with only the given candidates of each call."""
        edges = tuple(
            replace(
                edge,
                transfer=edge.transfer and edge.transfer.restrict(rows[edge.parent], rows[edge.child]),
                lead=edge.lead and edge.lead.restrict(rows[edge.parent], rows[edge.child]),
                same=edge.same
                and SameArrival(
                    sibling=edge.same.sibling,
                    child_key=edge.same.child_key[rows[edge.child]],
                    sibling_key=edge.same.sibling_key[rows[edge.same.sibling]],
                ),
            )
            for edge in self.edges
        )
        return DataflowProblem(
            calls=tuple(call.take(kept) for call, kept in zip(self.calls, rows, strict=True)),
            edges=edges,
            capacity_bytes=self.capacity_bytes,
            iterations=self.iterations,
            settled=self.settled,
            replicas=self.replicas,
            gpus_per_node=self.gpus_per_node,
            machine_of=self.machine_of,
        )


def topological_order(num_calls: int, edges: Sequence[Edge]) -> tuple[int, ...]:
    """Calls of one iteration, parents first; equally free calls by index.

    Raises:
        SpecError: If edges within an iteration form a circle; the message lists the calls on it.
    """
    parents = {
        call: {edge.parent for edge in edges if edge.child == call and edge.lag == 0} for call in range(num_calls)
    }
    done: list[int] = []
    while len(done) < num_calls:
        free = [call for call in range(num_calls) if call not in done and parents[call] <= set(done)]
        if not free:
            waiting = [call for call in range(num_calls) if call not in done]
            raise SpecError("edges", f"calls {waiting} wait for each other", "give one of these edges a lag of 1")
        done.append(free[0])
    return tuple(done)


def _check_sizes(problem: DataflowProblem) -> None:
    if not 1 <= len(problem.calls) <= MOST_CALLS:
        raise SpecError("calls", f"{len(problem.calls)} calls", f"1 to {MOST_CALLS} calls can be scheduled")
    names = problem.names()
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SpecError("calls", f"two calls are named {twice!r}")
    capacity = problem.capacity_bytes
    if not 1 <= len(capacity) <= MOST_GPUS:
        raise SpecError("capacity_bytes", f"{len(capacity)} GPUs", f"1 to {MOST_GPUS}")
    if not (np.isfinite(capacity).all() and (capacity > 0).all()):
        raise SpecError("capacity_bytes", "not every GPU has a positive, finite number of bytes")
    if not 1 <= problem.iterations <= MOST_ITERATIONS:
        raise SpecError("iterations", f"{problem.iterations}", f"1 to {MOST_ITERATIONS}")
    machines = problem.machine_of
    if machines is not None and not (
        machines.shape == capacity.shape and machines[0] == 0 and np.isin(np.diff(machines), (0, 1)).all()
    ):
        raise SpecError("machine_of", "must number the machine of every GPU in turn, from 0")
    if problem.gpus_per_node < 1:
        raise SpecError("gpus_per_node", f"{problem.gpus_per_node}", "at least 1")


def _check_call(call: CallCandidates, num_gpus: int) -> None:
    where = f"calls.{call.name[:80]}"
    if not 1 <= len(call) <= MOST_CANDIDATES:
        raise SpecError(where, f"{len(call)} candidates", f"1 to {MOST_CANDIDATES}")
    columns = ["start", "size", "time_s", "static_bytes", "active_bytes", "strategy_id"]
    amounts = ["time_s", "static_bytes", "active_bytes"]
    if call.host_share is not None:
        columns, amounts = [*columns, "host_share"], [*amounts, "host_share"]
    for column in columns:
        values = getattr(call, column)
        if values.shape != (len(call),):
            raise SpecError(
                f"{where}.{column}", f"shape {values.shape}", f"one value for each of {len(call)} candidates"
            )
    for column in amounts:
        values = getattr(call, column)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise SpecError(f"{where}.{column}", "a value is negative or not finite")
    if call.start.min() < 0 or call.size.min() < 0 or call.stop.max() > num_gpus:
        raise SpecError(where, f"a mesh leaves the {num_gpus} GPUs of the cluster")


def _check_edges(problem: DataflowProblem) -> None:
    number = len(problem.calls)
    for edge in problem.edges:
        if not (0 <= edge.parent < number and 0 <= edge.child < number):
            raise SpecError("edges", f"{edge.parent} -> {edge.child}", f"calls are numbered 0 to {number - 1}")
        if edge.lag < 0:
            raise SpecError("edges.lag", f"{edge.lag}", "0, or the number of iterations in between")
        if not edge.waits and (edge.lag == 0 or edge.transfer is None):
            raise SpecError("edges.waits", "is false without a transfer to a later iteration", "true")
        if edge.transfer is not None:
            where = _check_classes(edge, edge.transfer, problem, "transfer")
            if not (np.isfinite(edge.transfer.time_s).all() and (edge.transfer.time_s >= 0).all()):
                raise SpecError(where, "a time is negative or not finite")
        if edge.lead is not None:
            _check_lead(edge, edge.lead, problem)
    topological_order(number, problem.edges)


def _check_classes(edge: Edge, times: PairTimes, problem: DataflowProblem, what: str) -> str:
    """Whether a table fits the calls of an edge; gives the name of the field."""
    parent, child = problem.calls[edge.parent], problem.calls[edge.child]
    where = f"edges.{parent.name[:80]}->{child.name[:80]}.{what}"
    rows, columns = times.time_s.shape
    for classes, call, most in ((times.source_class, parent, rows), (times.target_class, child, columns)):
        if classes.shape != (len(call),) or classes.min() < 0 or classes.max() >= most:
            raise SpecError(where, f"classes of {call.name[:80]} do not match its candidates or the table")
    return where


def _check_lead(edge: Edge, lead: PairTimes, problem: DataflowProblem) -> None:
    """A call that starts early ends what it reads late: nothing may in turn start early, or late, because of it."""
    where = _check_classes(edge, lead, problem, "lead")
    if edge.lag or edge.transfer is not None:
        raise SpecError(where, "is given for another iteration, or beside a transfer", "neither, or no lead")
    if any(edge.child == other.parent for other in problem.leading):
        raise SpecError(where, f"{problem.calls[edge.child].name[:80]} has a lead into it and out of it", "one of them")
    least = [np.full(count, np.inf) for count in lead.time_s.shape]
    ends = ((lead.source_class, problem.calls[edge.parent]), (lead.target_class, problem.calls[edge.child]))
    for shortest, (classes, call) in zip(least, ends, strict=True):
        np.minimum.at(shortest, classes, call.time_s)
    most = np.minimum.outer(*least)
    if not (np.isfinite(lead.time_s).all() and (lead.time_s <= most * (1 + _ROUNDING)).all()):
        raise SpecError(where, "a time is not finite, or more than one of the two calls takes")


def _check_replicas(replicas: Sequence[tuple[int, int]], number: int) -> None:
    calls = [call for call, _ in replicas]
    if any(not (0 <= call < number and 0 <= other < number and call != other) for call, other in replicas):
        raise SpecError("replicas", f"{list(replicas)}", f"pairs of different calls, numbered 0 to {number - 1}")
    if len(set(calls)) < len(calls) or set(calls) & {other for _, other in replicas}:
        raise SpecError("replicas", f"{list(replicas)}", "name one call of the role as sibling of all others")
