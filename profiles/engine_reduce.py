"""Fitted constants of the all-reduces that generation engines bring themselves, by link and engine.

``data/fits/engine_reduce.json`` is written by ``costmodels.calibration.engine_reduce_fit``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReduce:
    """Constants of ``costmodels.links.engine_reduce.reduce_time_s``.

    Attributes:
        launch_s: Of the kernel, in a graph.
        rank_s: That every rank adds.
        sync_s: Between the two halves of one in two shots.
        efficiency: Of the link's bandwidth.
        low_factor, high_factor: Measured over predicted time, 5 % and 95 % quantile.
        rows: Fitted on.
        mape: Mean absolute relative error on them.
    """

    launch_s: float
    rank_s: float
    sync_s: float
    efficiency: float
    low_factor: float
    high_factor: float
    rows: int
    mape: float


def engine_reduce(link: str, engine: str) -> EngineReduce | None:
    """The constants of an engine on a link of the catalogue; None where nobody timed that generation of links.

    Args:
        link: Catalogue name, e.g. ``nvlink4-h800``; links between pairs of devices alone have none.
        engine: ``vllm``, ``sglang`` or ``tensorrt-llm``.
    """
    if "bridge" in link:
        return None
    return _records().get(link.partition("-")[0], {}).get(engine)


@cache
def _records() -> Mapping[str, Mapping[str, EngineReduce]]:
    text = resources.files("profiles").joinpath("data", "fits", "engine_reduce.json").read_text(encoding="utf-8")
    links = json.loads(text)["links"]
    return MappingProxyType(
        {link: {name: EngineReduce(**values) for name, values in engines.items()} for link, engines in links.items()}
    )
