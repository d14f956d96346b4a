"""What ``planner gpus`` shows."""

import json
from typing import Any

import pytest

from tests.command import command_line


def test_gpus(run: Any) -> None:
    listed = run("gpus")[1]
    assert "H100-SXM-80GB" in listed
    assert max(len(line.rstrip()) for line in listed.splitlines()) <= 100
    one = run("gpus", "h100")[1]
    assert "peak_flops_per_s.bf16" in one
    source = "NVIDIA H100 datasheet"  # of most figures, and said once
    assert one.count(source) == 1
    number = next(line.split()[0] for line in one.splitlines() if source in line)
    assert next(line for line in one.splitlines() if line.startswith("power_w")).split() == [
        "power_w",
        "700",
        number,
    ]
    assert "it could also mean H100-SXM-96GB, H100-PCIe-80GB" in one
    assert "could also mean" not in run("gpus", "H100-PCIe-80GB")[1]
    document = json.loads(run("gpus", "--json")[1])
    assert {"H100-SXM-80GB", "A100-SXM-80GB"} <= {device["name"] for device in document["devices"]}


def test_a_narrow_terminal_still_names_usual_nodes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = command_line(capsys, monkeypatch, columns=80)("gpus")[1]
    assert "dgx-a100-80gb" in listed
    assert max(len(line.rstrip()) for line in listed.splitlines()) <= 80
