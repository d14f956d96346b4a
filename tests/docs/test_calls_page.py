"""The page on call costs: its example runs, and it names every engine and column."""

import re

from costmodels.model_calls import CallTable
from profiles.engines import load_engines
from tests.places import ROOT

PAGE = (ROOT / "docs" / "calls.md").read_text()


def test_the_example_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(block, "docs/calls.md", "exec"), names)
    fastest = names["fastest"]
    assert isinstance(fastest, CallTable)
    assert len(fastest) == 1
    assert fastest.num_devices[0] == 16


def test_engines_and_bytes_are_explained() -> None:
    assert [name for name in load_engines() if f"`{name}`" not in PAGE] == []
    columns = [name for name in CallTable.__dataclass_fields__ if name.endswith("_bytes")]
    assert [name for name in columns if f"`{name}`" not in PAGE] == []
