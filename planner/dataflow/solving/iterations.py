"""What a call of one iteration waits for in earlier ones.

Three ways to depend, of which each lets more overlap than the one before (Mei et al., "ReaLHF",
arXiv:2406.14088, documents the second and searched with the first; AReaL, arXiv:2505.24298, runs
the third):

* ``barrier``: an iteration starts when the one before is over.
* ``version``: the first calls on a role wait for the last calls on it one iteration earlier, so
  training the critic may overlap the next generation.
* ``stale``: a generating call may use weights that are up to ``staleness`` training steps old.

A producer at the start of the graph whose weights never change would otherwise run ahead without
limit; ``Dataflow.prefetch`` bounds by how many iterations, and so how much finished data waits.
"""

from dataclasses import dataclass

from costmodels.model_calls import MAX_BATCHES_IN_FLIGHT
from planner.dataflow.graphs.graph import GENERATE, TRAIN, Dataflow
from profiles.errors import SpecError, check_between

BARRIER, VERSION, STALE = "barrier", "version", "stale"
DEPENDENCIES = (BARRIER, VERSION, STALE)
MAX_STALENESS = MAX_BATCHES_IN_FLIGHT  # as many batches as steps may be on their way


@dataclass(frozen=True, slots=True, kw_only=True)
class IterationEdge:
    """A call waits for a call of an earlier iteration.

    Attributes:
        source: Call that must be over.
        target: Call that waits.
        distance: Iterations between them, at least 1.
    """

    source: str
    target: str
    distance: int


def iteration_edges(graph: Dataflow, *, dependency: str = VERSION, staleness: int = 0) -> tuple[IterationEdge, ...]:
    """Edges between iterations, without those that others imply.

    Args:
        graph: The workflow.
        dependency: One of ``DEPENDENCIES``.
        staleness: Training steps by which generating weights may lag; only for ``stale``.

    Raises:
        SpecError: If the mode is unknown or the staleness out of bounds or without meaning.
    """
    if dependency not in DEPENDENCIES:
        raise SpecError("dependency", f"unknown mode {dependency[:40]!r}", "use one of " + ", ".join(DEPENDENCIES))
    check_between("staleness", staleness, 0, MAX_STALENESS)
    if staleness and dependency != STALE:
        raise SpecError("staleness", f"is {staleness}, but dependency {dependency} allows none", "mode async")
    if dependency == BARRIER:
        sources = [call.name for call in graph.calls if not graph.parents(call.name)]
        sinks = [call.name for call in graph.calls if not graph.children(call.name)]
        return tuple(IterationEdge(source=sink, target=source, distance=1) for source in sources for sink in sinks)
    found: dict[tuple[str, str], int] = {}
    for role in graph.roles:
        for (source, target), distance in _role_edges(graph, role.name, staleness).items():
            found[source, target] = min(distance, found.get((source, target), distance))
    for copy in graph.copies:
        if copy.every == 1:
            for source in _last(graph, copy.source):
                for target in _first(graph, copy.target):
                    found[source, target] = 1
    for (source, target), distance in _prefetch_edges(graph).items():
        found.setdefault((source, target), distance)
    return tuple(IterationEdge(source=s, target=t, distance=d) for (s, t), d in sorted(found.items()))


def _first(graph: Dataflow, role: str) -> list[str]:
    """Calls on a role that wait for no other on it in their iteration."""
    names = [call.name for call in graph.calls_of(role)]
    return [name for name in names if not graph.ancestors(name) & set(names)]


def _last(graph: Dataflow, role: str) -> list[str]:
    """Calls on a role that no other on it waits for in their iteration."""
    names = [call.name for call in graph.calls_of(role)]
    return [name for name in names if not any(name in graph.ancestors(other) for other in names)]


def _role_edges(graph: Dataflow, role: str, staleness: int) -> dict[tuple[str, str], int]:
    """First calls on a role wait for its last ones; generating ones for those of ``staleness`` steps before.

    Weights that never change are no reason to wait, but the batches of one call come one after another.
    """
    if not graph.trainable(role):
        return {(call.name, call.name): 1 for call in graph.calls_of(role)}
    edges: dict[tuple[str, str], int] = {}
    for target in _first(graph, role):
        lag = staleness if graph.call(target).kind == GENERATE else 0
        for source in _last(graph, role):
            edges[source, target] = 1 + (lag if graph.call(source).kind == TRAIN else 0)
        if lag:
            edges[target, target] = 1  # one generation at a time, however old its weights
    return edges


def _prefetch_edges(graph: Dataflow) -> dict[tuple[str, str], int]:
    """Frozen producers without parents wait for the consumers of their data some iterations before."""
    edges = {}
    for call in graph.calls:
        if not graph.runs_ahead(call.name):
            continue
        for child in graph.children(call.name):
            edges[child, call.name] = 1 + graph.prefetch
    return edges
