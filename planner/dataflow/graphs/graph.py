"""A workflow as a graph: which model does what to which data, and what waits for what.

A *role* is one set of weights. A *call* is one use of a role per iteration: it generates, infers or
trains. Calls are joined by the data keys they read and write. Between iterations they are joined by
versions of the weights, see ``planner.dataflow.solving.iterations``. What it leaves out on purpose: where a
call runs and what it costs; the graph is the same on any cluster.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fractions import Fraction

from planner.dataflow.graphs.checks import (
    check_changes,
    check_names,
    check_one_of,
    nearest_divisor,
    ratio,
    whole,
)
from planner.dataflow.graphs.roles import VALUE_HEAD, Role, RoleCopy, check_role, check_training
from profiles.errors import SpecError, check_between, did_you_mean

MAX_CALLS = 32
MAX_ROLES = 32
MAX_KEYS = 64
MAX_SEQUENCES = 1 << 22  # per call and iteration, as of a training job
MAX_FACTOR = 4096  # sequences a call handles per item of the batch
MAX_LATENCY_S = 86400.0
MAX_SCORES = 1 << 20  # numbers per token

GENERATE, INFERENCE, TRAIN, EXTERNAL = "generate", "inference", "train", "external"
KINDS = (GENERATE, INFERENCE, TRAIN, EXTERNAL)
PROMPT, FULL = "prompt", "full"
SPANS = (PROMPT, FULL)

# Fields of calls that only some kinds read, and how those are called.
_READ_BY: Mapping[str, tuple[tuple[str, ...], str]] = {
    "group": ((GENERATE,), "generating calls"),
    "span": ((INFERENCE, TRAIN), "inference and training calls"),
    "shared": ((GENERATE, INFERENCE, TRAIN), "calls on the devices"),
    "mini_batches": ((TRAIN,), "training calls"),
    "scores": ((INFERENCE,), "inference calls"),
    "latency_s": ((EXTERNAL,), "external services"),
    "concurrency": ((EXTERNAL,), "external services"),
    "stream": ((INFERENCE, EXTERNAL), "inference and services"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One model function call, made once per iteration.

    Attributes:
        name: Lower-case word, e.g. ``actor_train``.
        role: Whose weights; "" for an external service.
        kind: ``generate``, ``inference``, ``train`` or ``external`` (runs beside the devices).
        inputs: Data keys it reads.
        outputs: Data keys it writes.
        factor: Sequences it handles per item of the batch: the group size of GRPO, 2 for pairs, more
            than the group when oversampling.
        group: Sequences that share one prompt, so that it may be read once (generating calls only); at most those of an
            item.
        span: Which tokens of a sequence it computes: those of the ``prompt`` or all (``full``). A
            generating call reads the prompt and writes the response whatever this says.
        shared: Share of the response tokens computed once for several sequences that begin alike, as
            in a tree of responses; 0 for independent ones.
        mini_batches: Optimizer steps a training call makes one after another.
        scores: Numbers an inference call writes per token: 1 (a log-probability or value), so many of the vocabulary,
            or 0 for all of it.
        latency_s: Seconds an external service takes per sequence.
        concurrency: Sequences an external service handles at once.
        stream: Whether it takes its input as that is written, see ``planner.dataflow.streams`` (inference and external
            services only).
    """

    name: str
    kind: str
    role: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    factor: Fraction = Fraction(1)
    group: int = 1
    span: str = FULL
    shared: float = 0.0
    mini_batches: int = 1
    scores: int = 1
    latency_s: float = 0.0
    concurrency: int = 1
    stream: bool = False

    def sequences(self, batch: int) -> int:
        """Sequences per iteration for a batch of that many items.

        Raises:
            SpecError: If that is no whole number, or not one of groups, or not a multiple of the mini-batches.
        """
        where = f"job.calls.{self.name}"
        groups = whole(self.factor / self.group, batch, f"{'groups' if self.group > 1 else 'sequences'} of {self.name}")
        count = groups * self.group
        if not 1 <= count <= MAX_SEQUENCES:
            raise SpecError(f"{where}.factor", f"gives {count} sequences; at most {MAX_SEQUENCES}", "a smaller batch")
        if count % self.mini_batches:
            raise SpecError(
                f"{where}.mini_batches",
                f"must divide the {count} sequences per iteration; got {self.mini_batches}",
                f"{nearest_divisor(count, self.mini_batches)}",
            )
        return count

    def external_s(self, batch: int) -> float:
        """Seconds the whole batch takes an external service that starts when all its inputs are there."""
        return -(-self.sequences(batch) // self.concurrency) * self.latency_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataflow:
    """A workflow: its roles, calls and copies of weights.

    Attributes:
        name: Preset or file it came from.
        roles: Sets of weights.
        calls: Model function calls, in any order.
        copies: Copies of weights between roles.
        dataset: Keys the data set provides.
        prefetch: Iterations a frozen producer at the start of the graph may run ahead of its consumers.

    Raises:
        SpecError: If the graph is not one: names repeated, roles unknown, keys without or with two
            producers, a cycle, nothing to do.
    """

    name: str
    roles: tuple[Role, ...]
    calls: tuple[Call, ...]
    copies: tuple[RoleCopy, ...] = ()
    dataset: tuple[str, ...] = ("prompts",)
    prefetch: int = 1
    _order: tuple[str, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        check_names("roles", [role.name for role in self.roles], MAX_ROLES)
        check_names("calls", [call.name for call in self.calls], MAX_CALLS)
        check_between("job.prefetch", self.prefetch, 0, 64)
        for role in self.roles:
            check_role(role, [item.name for item in self.roles if item.name != role.name])
        for call in self.calls:
            self._check_call(call)
        self._check_keys()
        self._check_copies()
        self._check_used()
        object.__setattr__(self, "_order", self._sorted())

    def role(self, name: str) -> Role:
        """The role of that name."""
        return next(role for role in self.roles if role.name == name)

    def call(self, name: str) -> Call:
        """The call of that name."""
        return next(call for call in self.calls if call.name == name)

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the calls so that each comes after those it waits for; ties as they were given."""
        return self._order

    @property
    def trains_between_generations(self) -> bool:
        """Whether it both generates and trains, as reinforcement learning does; each then takes longer."""
        return {GENERATE, TRAIN} <= {call.kind for call in self.calls}

    @property
    def producers(self) -> dict[str, str]:
        """Data key to the call that writes it."""
        return {key: call.name for call in self.calls for key in call.outputs}

    def parents(self, name: str) -> tuple[str, ...]:
        """Calls whose outputs a call reads, in the order of the keys, each once."""
        made = self.producers
        return tuple(dict.fromkeys(made[key] for key in self.call(name).inputs if key in made))

    def children(self, name: str) -> tuple[str, ...]:
        """Calls that read what a call writes."""
        return tuple(call.name for call in self.calls if name in self.parents(call.name))

    def ancestors(self, name: str) -> frozenset[str]:
        """Every call a call waits for within its iteration."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for parent in self.parents(waiting.pop()):
                if parent not in found:
                    found.add(parent)
                    waiting.append(parent)
        return frozenset(found)

    def calls_of(self, role: str) -> tuple[Call, ...]:
        """Calls on a role, in ``order``."""
        return tuple(self.call(name) for name in self._order if self.call(name).role == role)

    def trainable(self, role: str) -> bool:
        """Whether some call trains the role."""
        return any(call.kind == TRAIN for call in self.calls if call.role == role)

    def runs_ahead(self, name: str) -> bool:
        """Whether a call could run ahead of those that read what it writes: it waits for nobody, and never changes."""
        role = self.call(name).role
        frozen = not self.parents(name) and not (role and self.trainable(role))
        return frozen and bool(self.children(name))

    def _check_call(self, call: Call) -> None:
        where = f"job.calls.{call.name}"
        check_one_of(f"{where}.kind", call.kind, KINDS)
        check_one_of(f"{where}.span", call.span, SPANS)
        names = [role.name for role in self.roles]
        if call.kind == EXTERNAL:
            if call.role:
                raise SpecError(f"{where}.role", "an external service has no role", "leave it out")
        elif call.role not in names:
            problem = f"unknown role {call.role[:40]!r}" if call.role else "is required"
            raise SpecError(f"{where}.role", problem, did_you_mean(call.role, names))
        elif call.kind == GENERATE and self.role(call.role).head == VALUE_HEAD:
            raise SpecError(f"{where}.role", f"{call.role} has a value head and cannot generate", "head: language")
        for part, keys in (("inputs", call.inputs), ("outputs", call.outputs)):
            check_names(f"calls.{call.name}.{part}", keys, MAX_KEYS, least=0)
        if not call.inputs:
            first = self.dataset[0] if self.dataset else "prompts"
            raise SpecError(f"{where}.inputs", "is empty: a call works on something", f"inputs: [{first}]")
        if not 0 < call.factor <= MAX_FACTOR or call.factor.denominator > MAX_FACTOR:
            raise SpecError(f"{where}.factor", f"must be above 0 and at most {MAX_FACTOR}; got {ratio(call.factor)}")
        check_between(f"{where}.group", call.group, 1, MAX_FACTOR)
        if not 0 <= call.shared < 1:
            raise SpecError(f"{where}.shared", f"must be at least 0 and below 1; got {call.shared:g}")
        check_between(f"{where}.mini_batches", call.mini_batches, 1, MAX_SEQUENCES)
        check_between(f"{where}.scores", call.scores, 0, MAX_SCORES)
        check_between(f"{where}.concurrency", call.concurrency, 1, MAX_SEQUENCES)
        if not 0 <= call.latency_s <= MAX_LATENCY_S:
            raise SpecError(f"{where}.latency_s", f"must be between 0 and {MAX_LATENCY_S:g}; got {call.latency_s:g}")
        self._check_read(call, where)

    def _check_read(self, call: Call, where: str) -> None:
        """Refuse what would change nothing, or contradicts itself."""
        usual = {item.name: item.default for item in fields(Call)}
        for name, (kinds, words) in _READ_BY.items():
            words = f"{words}, and {call.name} is {call.kind}"
            check_changes(f"{where}.{name}", getattr(call, name), usual[name], used=call.kind in kinds, words=words)
        valued = bool(call.role) and self.role(call.role).head == VALUE_HEAD
        words = f"language heads, and {call.role} has a value head"
        check_changes(f"{where}.scores", call.scores, usual["scores"], used=not valued, words=words)
        words = "services that take time, and latency_s is 0"
        used = call.latency_s > 0
        check_changes(f"{where}.concurrency", call.concurrency, usual["concurrency"], used=used, words=words)
        if call.group > 1 and call.group > call.factor:
            problem = f"{call.group} sequences share a prompt, but {call.name} has factor {ratio(call.factor)} per item"
            raise SpecError(f"{where}.group", problem, f"factor {call.group}, or a group of {max(int(call.factor), 1)}")

    def _check_keys(self) -> None:
        check_names("dataset", self.dataset, MAX_KEYS, least=0)
        made: dict[str, str] = {}
        for call in self.calls:
            for key in call.outputs:
                if key in made or key in self.dataset:
                    first = made.get(key, "the data set")
                    problem = f"{key!r} is also written by {first}"
                    raise SpecError(f"job.calls.{call.name}.outputs", problem, "one producer per key; rename one")
                made[key] = call.name
        known = [*made, *self.dataset]
        for call in self.calls:
            for key in call.inputs:
                if key not in known:
                    hint = did_you_mean(key, known)
                    hint = f"{hint} or add it to dataset" if hint.startswith("did") else f"add {key} to dataset"
                    raise SpecError(f"job.calls.{call.name}.inputs", f"nothing produces {key!r}", hint)

    def _check_copies(self) -> None:
        names = [role.name for role in self.roles]
        for copy in self.copies:
            for end, role in (("source", copy.source), ("target", copy.target)):
                if role not in names:
                    problem = f"unknown role {role[:40]!r}"
                    raise SpecError(f"job.copies.{end}", problem, did_you_mean(role, names))
            if not self.trainable(copy.source):
                raise SpecError("job.copies.source", f"{copy.source} is never trained", "copy from a trained role")
            if self.trainable(copy.target) or copy.target == copy.source:
                raise SpecError("job.copies.target", f"{copy.target} is trained itself", "copy into a frozen role")
            check_between("job.copies.every", copy.every, 1, 1 << 20)
            if not 0 < copy.share <= 1:
                raise SpecError("job.copies.share", f"must be above 0 and at most 1; got {copy.share:g}")
        twice = Counter((copy.source, copy.target) for copy in self.copies)
        for (source, target), times in twice.items():
            if times > 1:
                raise SpecError("job.copies", f"{source} -> {target} is there {times} times", "list it once")

    def _check_used(self) -> None:
        for role in self.roles:
            trains = [call.name for call in self.calls if call.kind == TRAIN and call.role == role.name]
            if len(trains) > 1:
                problem = f"{role.name} is trained by {trains[0]} already"
                raise SpecError(f"job.calls.{trains[1]}", problem, "one call with all inputs and a larger factor")
        used = {call.role for call in self.calls}
        for role in self.roles:
            if role.name not in used:
                raise SpecError(f"job.roles.{role.name}", "no call uses it", "remove it, or add a call")
            check_training(role, trained=self.trainable(role.name))
        runs_ahead = any(self.runs_ahead(call.name) for call in self.calls)
        words = "calls at the start whose weights never change, and there is none that others wait for"
        check_changes("job.prefetch", self.prefetch, 1, used=runs_ahead, words=words)
        if not used - {""}:
            raise SpecError("job.calls", "no call runs on the devices", "add one that generates, infers or trains")

    def _sorted(self) -> tuple[str, ...]:
        done: dict[str, None] = {}
        left = [call.name for call in self.calls]
        while left:
            ready = next((name for name in left if all(parent in done for parent in self.parents(name))), None)
            if ready is None:
                raise SpecError("job.calls", f"form a cycle: {' -> '.join(self._cycle(left))}", "drop one of the keys")
            done[ready] = None
            left.remove(ready)
        return tuple(done)

    def _cycle(self, left: list[str]) -> list[str]:
        """One cycle among calls of which each waits for another of them, in the direction of the data."""
        path = [left[0]]
        while path.count(path[-1]) < 2:
            path.append(next(parent for parent in self.parents(path[-1]) if parent in left))
        return path[path.index(path[-1]) :][::-1]
