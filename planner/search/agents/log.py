"""Every evaluation of a search as a row of a Parquet file, for analysis and for fitting proxies.

A row holds workload, cluster, every plan column, the step time, further metrics, the excess over each limit,
and who asked: agent, hyperparameters, seed, and how many plans that run had priced before.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from costmodels.plan import IntArray
from planner.search.agents.agent import Agent, Outcome, SearchSpace

KEYS = ("workload", "cluster", "agent", "hyperparameters", "seed", "step")
EXCESS_PREFIX = "excess_"


class EvaluationLog:
    """Writes evaluations of one space to one file; use it as a context manager.

    Args:
        path: File to write.
        space: The space that is searched.
        workload: What is trained, in words.
        cluster: On what.
    """

    def __init__(self, path: Path | str, space: SearchSpace, *, workload: str, cluster: str) -> None:
        self.path = Path(path)
        self._space = space
        self._labels = {"workload": workload, "cluster": cluster}
        self._writer: Any = None
        self.rows = 0

    def __enter__(self) -> "EvaluationLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, vectors: IntArray, outcome: Outcome, *, agent: Agent, step: int) -> None:
        """Append the plans of one question."""
        count = len(vectors)
        columns: dict[str, Any] = {name: _repeated(text, count) for name, text in self._labels.items()}
        columns["agent"] = _repeated(agent.name, count)
        columns["hyperparameters"] = _repeated(json.dumps(agent.hyperparameters(), sort_keys=True), count)
        columns["seed"] = np.full(count, int(getattr(agent, "seed", 0)))
        columns["step"] = step + np.arange(count)
        columns |= self._space.columns(vectors)
        columns["step_time_s"] = outcome.step_time_s
        columns |= outcome.metrics
        columns |= {EXCESS_PREFIX + name: degree for name, degree in outcome.excess.items()}
        columns["feasible"] = outcome.feasible
        table = pa.table(columns)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self.path, table.schema)
        self._writer.write_table(table)
        self.rows += count

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _repeated(text: str, count: int) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, dtype=np.int32)), pa.array([text]))
