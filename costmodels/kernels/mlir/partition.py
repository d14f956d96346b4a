"""From a flat program to kernels: each product, composite or custom call one, what lies between them fused.

The rule is simple on purpose. A run of elementwise operations, reductions and moves between two products
is one bandwidth-bound kernel that reads every outside value once and writes every value used outside once.
Conversions and transpositions next to a product belong to it. Tables that are indexed count only the rows
that are touched.
"""

from collections import Counter
from dataclasses import dataclass, field

from costmodels.kernels.mlir import contract
from costmodels.kernels.mlir.families import COLLECTIVES, FOLDS, FREE, INDEXED_READS, INDEXED_WRITES, UNCOSTED_CALLS
from costmodels.kernels.mlir.flatten import Flat, FlatProgram, element_count
from costmodels.kernels.mlir.kernel import ELEMENT_BYTES
from costmodels.kernels.mlir.reader import TensorType, fault

_MOST_VIEWS = 256  # of one value that are followed; a value with more is taken to be used elsewhere
ATTENTION_NAMES = ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention", "attention")


@dataclass(slots=True)
class Fusion:
    """Operations of one kernel.

    Attributes:
        operations: In order; free ones included.
        inputs: Outside values read, with the bytes read of each.
        outputs: Values written, with the bytes written of each.
    """

    operations: list[Flat] = field(default_factory=list)
    inputs: dict[int, float] = field(default_factory=dict)
    outputs: dict[int, float] = field(default_factory=dict)

    @property
    def bytes(self) -> float:
        """Read and written together."""
        return sum(self.inputs.values()) + sum(self.outputs.values())


def size_bytes(kind: TensorType | None, line: int) -> float:
    """Bytes of a tensor; 0 of what is no tensor.

    Raises:
        SpecError: If the element type is not known.
    """
    if kind is None:
        return 0.0
    if kind.element not in ELEMENT_BYTES:
        raise fault(line, f"unknown element type {kind.element[:20]!r}")
    return element_count(kind) * ELEMENT_BYTES[kind.element]


class Partition:
    """Who makes and who uses each value, and the kernels that follow from it."""

    def __init__(self, program: FlatProgram) -> None:
        self.program = program
        self._maker: dict[int, Flat] = {}
        self._users: dict[int, list[Flat]] = {}
        self._roots: dict[int, int | None] = {}
        self._escaping = set(program.returned) | program.carried
        for flat in program.operations:
            if flat.name == "generic" and contract.is_product(flat):
                flat.name = "generic_contraction"
            self._maker.update(dict.fromkeys(flat.results, flat))
            for value in flat.operands:
                self._users.setdefault(value, []).append(flat)
        self._folded: set[int] = set()  # identities of folded operations
        self.fusions = self._split()

    def _split(self) -> list[Fusion]:
        products = [flat for flat in self.program.operations if flat.name in contract.NAMES]
        folds = {id(flat): self._fold(flat) for flat in products}
        fusions: list[Fusion] = []
        run = Fusion()
        for flat in self.program.operations:
            if flat.name in COLLECTIVES:
                raise fault(
                    flat.source.line, f"{flat.name} is a collective, not a kernel of one device",
                    "price the program of one device without it",
                )  # fmt: skip
            if id(flat) in self._folded:
                continue
            alone = is_kernel(flat)
            if alone or (run.operations and run.operations[-1].count != flat.count):
                self._finish(run, fusions)
                run = Fusion()
            if alone:
                fusions.append(folds.get(id(flat)) or self._single(flat))
            elif flat.name == "store":
                self._escaping.update(flat.operands[:1])
            else:
                run.operations.append(flat)
        self._finish(run, fusions)
        return fusions

    def root(self, value: int) -> int | None:
        """The value whose memory is read; None of constants."""
        passed: list[int] = []
        found: int | None = value
        while found is not None:
            if found in self._roots:
                found = self._roots[found]
                break
            maker = self._maker.get(found)
            if maker is None or maker.name not in FREE:
                break
            passed.append(found)
            tensors = [operand for operand in maker.operands if self.program.types[operand] is not None]
            found = tensors[0] if tensors else None
        self._roots.update(dict.fromkeys(passed, found))
        return found

    def _fold(self, flat: Flat) -> Fusion:
        """A product with the conversions and transpositions at its operands and its result."""
        fusion = Fusion(operations=[flat])
        for value in dict.fromkeys(flat.operands):
            source = self._source(value, fusion)
            if source is not None:
                fusion.inputs[source] = size_bytes(self.program.types[source], flat.source.line)
        result = flat.results[0] if flat.results else -1
        users = self._users.get(result, [])
        if len(users) == 1 and users[0].name in ("convert", "truncf") and result not in self._escaping:
            self._folded.add(id(users[0]))
            fusion.operations.append(users[0])
            result = users[0].results[0]
        fusion.outputs[result] = size_bytes(self.program.types[result], flat.source.line)
        return fusion

    def _source(self, value: int, fusion: Fusion) -> int | None:
        """Follow an operand back through what folds into the product.

        A conversion of something that was computed on the way belongs to that computation instead.
        """
        last, folds = value, list[Flat]()
        for _ in range(_MOST_VIEWS):
            maker = self._maker.get(last)
            if maker is None or not (maker.name in FOLDS or maker.name in FREE):
                break
            if maker.name in FOLDS:
                if maker.name not in FREE and not self._feeds_products(last):
                    break
                folds.append(maker)
            tensors = [operand for operand in maker.operands if self.program.types[operand] is not None]
            if not tensors:
                return None
            last = tensors[0]
        maker = self._maker.get(last)
        if maker is not None and not is_kernel(maker):
            return self.root(value)
        self._folded.update(id(flat) for flat in folds)
        fusion.operations[:0] = folds
        return last

    def _feeds_products(self, value: int) -> bool:
        users = self._users.get(value, [])
        return value not in self._escaping and all(user.name in contract.NAMES or user.name in FOLDS for user in users)

    def _single(self, flat: Flat) -> Fusion:
        """A kernel that reads its operands and writes its results."""
        fusion, line = Fusion(operations=[flat]), flat.source.line
        for value in flat.operands:
            root = self.root(value)
            if root is not None:
                fusion.inputs[root] = size_bytes(self.program.types[root], line)
        for value in flat.results:
            fusion.outputs[value] = size_bytes(self.program.types[value], line)
        return fusion

    def _finish(self, run: Fusion, fusions: list[Fusion]) -> None:
        if all(flat.name in FREE or self._is_scalar(flat) for flat in run.operations):
            return  # views, constants and loop counters
        inside = {value for flat in run.operations for value in flat.results}
        members = {id(flat) for flat in run.operations}
        for flat in run.operations:
            if flat.name not in FREE:
                self._read(flat, inside, run)
        for flat in run.operations:
            if flat.name not in FREE:
                self._write(flat, members, run)
        for value, amount in run.inputs.items():
            run.inputs[value] = min(amount, size_bytes(self.program.types[value], run.operations[0].source.line))
        fusions.append(run)

    def _is_scalar(self, flat: Flat) -> bool:
        kinds = [self.program.types[value] for value in (*flat.operands, *flat.results)]
        return all(kind is None or not kind.dims for kind in kinds)

    def _read(self, flat: Flat, inside: set[int], run: Fusion) -> None:
        line, types = flat.source.line, self.program.types
        for place, value in enumerate(flat.operands):
            root = self.root(value)
            if root is None or root in inside:
                continue
            amount = size_bytes(types[root], line)
            if place == 0 and flat.name in INDEXED_READS and flat.results:
                amount = min(amount, size_bytes(types[flat.results[0]], line))
                run.inputs[root] = run.inputs.get(root, 0.0) + amount
                continue
            if place == 0 and flat.name in INDEXED_WRITES:
                amount = min(amount, self._update_bytes(flat))
                # A slice that is overwritten is not read; a row that is added to is.
                amount = amount if flat.name in ("scatter", "scatter_add") else 0.0
            run.inputs[root] = max(run.inputs.get(root, 0.0), amount)

    def _write(self, flat: Flat, members: set[int], run: Fusion) -> None:
        for value in flat.results:
            if self._is_used_outside(value, members):
                amount = size_bytes(self.program.types[value], flat.source.line)
                if flat.name in INDEXED_WRITES:
                    amount = min(amount, self._update_bytes(flat))
                run.outputs[value] = amount

    def _update_bytes(self, flat: Flat) -> float:
        place = min(INDEXED_WRITES[flat.name], len(flat.operands) - 1)
        return size_bytes(self.program.types[flat.operands[place]], flat.source.line)

    def _is_used_outside(self, value: int, members: set[int]) -> bool:
        """Whether a value, or a view of it, leaves the run."""
        waiting, seen = [value], {value}
        while waiting:
            current = waiting.pop()
            if current in self._escaping or len(seen) > _MOST_VIEWS:
                return True
            for user in self._users.get(current, []):
                if user.name in FREE:
                    fresh = [result for result in user.results if result not in seen]
                    seen.update(fresh)
                    waiting += fresh
                elif id(user) not in members:
                    return True
        return False


def is_kernel(flat: Flat) -> bool:
    """Whether an operation is a kernel of its own."""
    if flat.name == "custom_call":
        return custom_target(flat) not in UNCOSTED_CALLS
    return flat.name in contract.NAMES or flat.name in ("composite", *ATTENTION_NAMES)


def custom_target(flat: Flat) -> str:
    """Target of a custom call."""
    return flat.source.text.partition("@")[2].partition("(")[0].strip().strip('"')[:80]


def histogram(operations: list[Flat]) -> Counter[str]:
    """Operations by name, free ones left out; those inside a region of ``generic`` in its stead."""
    found: Counter[str] = Counter()
    for flat in operations:
        if flat.name == "generic":
            inside = (inner.name.rpartition(".")[2] for region in flat.source.regions for inner in region)
            found.update(name for name in inside if name not in FREE)
            found["reduce"] += '"reduction"' in flat.source.text
        elif flat.name not in FREE:
            found[flat.name] += 1
    return +found
