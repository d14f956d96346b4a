"""Calculon's own search rate, where a checkout of it is installed (environment variable ``CALCULON_HOME``).

Calculon (Isaev et al. 2023, Apache-2.0) reports "Calculation rate: N calcs/sec" when it searches.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

_RATE = re.compile(r"Total executions: (?P<total>\d+).*?Calculation rate: (?P<rate>[0-9.]+) calcs/sec", re.DOTALL)
DEVICES, BATCH = 64, 128  # its search over 64 devices takes minutes on one core, larger ones hours


def calculon_rate() -> dict[str, float] | None:
    """Executions it considered per second on one core for GPT-3 175B, or None where it is not installed."""
    home = os.environ.get("CALCULON_HOME", "")
    if not (home and (Path(home) / "bin" / "calculon").exists()):
        return None
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                sys.executable, "bin/calculon", "llm-optimal-execution", "models/gpt3-175B.json", str(DEVICES),
                str(BATCH), "float16", "systems/h100_80g_nvl8.json", str(Path(folder) / "best.json"),
                "--cpus", "1", "--noneok",
            ],
            cwd=home, env={**os.environ, "PYTHONPATH": home}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    return parse_rate(done.stdout + done.stderr)


def parse_rate(log: str) -> dict[str, float]:
    """Executions and rate from what its search prints."""
    found = _RATE.search(log)
    if found is None:
        raise ValueError("no calculation rate in Calculon's output")
    return {"plans": float(found["total"]), "plans_per_s": float(found["rate"])}
