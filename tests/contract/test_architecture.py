"""The shape of the house: layers, sizes of files and functions, units in names, documented interfaces."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from profiles.timing_ops import ATTENTION_BACKWARD_BYTES, ATTENTION_BACKWARD_FLOPS
from tests.places import ROOT

PACKAGES = ("profiles", "costmodels", "planner", "service")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

# A parameter or field that ends like this names a quantity, so it has to say the unit.
QUANTITY = re.compile(r"(^|_)(time|duration|latency|memory|bandwidth|busbw|algbw|power|energy|cost|price|flops)$")
UNITS = ("_s", "_bytes", "_flops", "_per_s", "_w", "_j", "_usd", "_days", "_hours", "_bits")
# Plain numbers and arrays of them; a table keyed by name says elsewhere what it holds.
NUMBER = re.compile(r"(float|int|FloatArray|IntArray)( \| None)?")
NOT_A_QUANTITY = {"flops"}  # a count of operations: the name is the unit

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def sources() -> list[Path]:
    return [*modules(), *sorted((ROOT / "tests").rglob("*.py"))]


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_layers_hold() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_hold_one_idea() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in sources()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_MODULE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {
        f"{name_of(path)}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in sources()
        for node in functions(path)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def quantities_without_unit(path: Path) -> list[str]:
    """Number-valued parameters and fields named like a quantity, without the unit's suffix."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        named: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, Function):
            arguments = node.args
            named = [(a.arg, a.annotation) for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        elif isinstance(node, ast.ClassDef):
            named = [
                (item.target.id, item.annotation)
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
        for name, annotation in named:
            number = annotation is not None and NUMBER.fullmatch(ast.unparse(annotation))
            if number and QUANTITY.search(name) and not name.endswith(UNITS) and name not in NOT_A_QUANTITY:
                found.append(f"{name_of(path)}:{node.lineno} {name}")
    return found


def test_quantities_carry_their_unit() -> None:
    assert [entry for path in modules() for entry in quantities_without_unit(path)] == []


def test_the_unit_check_sees_an_offender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offender = tmp_path / "offender.py"
    offender.write_text("def f(*, step_time: float, bandwidth: float, step_time_s: float, memory: str) -> None: ...\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [entry.rsplit(" ", 1)[1] for entry in quantities_without_unit(offender)] == ["step_time", "bandwidth"]


def test_the_work_of_a_backward_pass_of_attention_is_said_once() -> None:
    assert (ATTENTION_BACKWARD_FLOPS, ATTENTION_BACKWARD_BYTES) == (2.5, 2.0)
    again = re.compile(r"(?i)backward\w*(, \w+)? = 2\.5|\b2\.5 if backward|train_bwd\", 2\.5")
    said = [path.name for path in modules() if again.search(path.read_text())]
    # Of chosen keys it has a derivation of its own; of rows it is a count of passes.
    assert said == ["row_work.py", "sparse_attention.py"]


def test_public_interfaces_are_documented() -> None:
    missing = []
    for path in modules():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(f"{name_of(path)}: module")
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith(
                "_"
            ):
                missing += [f"{name_of(path)}: {name}" for name in undocumented(node)]
    assert missing == []


def undocumented(node: Function | ast.ClassDef) -> Iterator[str]:
    """Names of a public function, or of a class and its public methods, that lack a docstring."""
    if not ast.get_docstring(node):
        yield node.name
    for item in node.body if isinstance(node, ast.ClassDef) else ():
        overload = isinstance(item, Function) and any("overload" in ast.unparse(d) for d in item.decorator_list)
        if (
            isinstance(item, Function)
            and not item.name.startswith("_")
            and not overload
            and not ast.get_docstring(item)
        ):
            yield f"{node.name}.{item.name}"


def test_user_input_is_never_checked_by_assert() -> None:
    asserts = [
        f"{name_of(path)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert asserts == []


def test_nothing_is_pickled() -> None:
    pickles = re.compile(
        r"^\s*(?:import|from)\s+(?:pickle|cloudpickle|dill)\b|joblib\.(?:load|dump)|allow_pickle=True", re.M
    )
    assert [name_of(path) for path in modules() if pickles.search(path.read_text())] == []


def test_import_names_belong_to_this_distribution() -> None:
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        assert set(owners[package]) == {"llm-execution-planner"}


def test_no_fifth_import_root() -> None:
    roots = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert roots == set(PACKAGES)
