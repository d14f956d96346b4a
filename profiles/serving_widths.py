"""How far from a price servers of a publisher nobody has seen are measured: the width that intervals need beside it.

``data/fits/serving.json`` is written by ``planner.validate.serving.widths`` from published measurements, by which no
price is fitted. Models with experts have a width of their own: their kernels differ more between engines. So have runs
in which all requests are there from the start, whatever the model: how fast a server takes them in is not priced.
"""

import json
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from profiles.model import ModelSpec

DENSE, MIXTURE, BURST = "dense", "mixture", "burst"
ONE_SIDED = ("ttft",)


def kind_of(model: ModelSpec, *, burst: bool) -> str:
    """Which of the widths a model has; ``burst`` of a run with all requests there from the start."""
    if burst:
        return BURST
    return DENSE if model.moe is None else MIXTURE


def serving_log_stds(figure: str, model: ModelSpec, *, burst: bool) -> tuple[float, float]:
    """Standard deviations of the log below and above a price, beyond what prices of kernels and links leave open.

    What is left out of the time to the first token, the way to the engine and prompts that come in bursts, only adds to
    it: its lower end stays.

    Args:
        figure: ``ttft``, ``tpot`` or ``tokens`` a second.
        model: Which is served.
        burst: Whether all requests are there from the start.
    """
    told = float(_widths()[figure][kind_of(model, burst=burst)])
    return (0.0 if figure in ONE_SIDED else told), told


@cache
def _widths() -> MappingProxyType[str, Any]:
    card = resources.files("profiles").joinpath("data", "fits", "serving.json").read_text(encoding="utf-8")
    return MappingProxyType(json.loads(card)["values"])
