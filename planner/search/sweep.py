"""Many searches at once: over jobs, models or clusters, by joblib."""

from collections.abc import Mapping, Sequence
from typing import Any

from planner.search.call import search
from planner.search.result import SearchResult
from profiles.errors import SpecError, did_you_mean, shown
from profiles.scalars import whole_number

BACKENDS = ("loky", "threading", "sequential", "dask", "ray")
MAX_SWEEP = 10_000
MAX_WORKERS = 1 << 16
_NEEDED = ("model", "cluster")
_PACKAGES = {"dask": "distributed", "ray": "ray"}


def sweep(
    questions: Sequence[Mapping[str, Any]], *, backend: str = "loky", workers: int = -1, **common: Any
) -> list[SearchResult | SpecError]:
    """Many searches at once, by joblib: processes here, or a Dask or Ray cluster named as its backend.

    Args:
        questions: Arguments of ``search``, one mapping per search.
        backend: One of ``BACKENDS``. ``dask`` takes the client that is current; ``ray`` the cluster connected to.
        workers: Searches at the same time; -1 for as many as there are processors.
        **common: Arguments that all searches share.

    Returns:
        One answer per question, in order; a question that is wrong has its error for an answer.

    Raises:
        SpecError: If the backend is unknown or not installed, or there are too many questions.
    """
    if backend not in BACKENDS:
        raise SpecError("backend", f"unknown value {shown(backend)}", did_you_mean(str(backend), BACKENDS))
    if isinstance(questions, str | Mapping) or not isinstance(questions, Sequence):
        raise SpecError("questions", f"must be a list of mappings; got {shown(questions)}", "one per search")
    if workers != -1:
        whole_number("workers", workers, least=1, most=MAX_WORKERS)
    if len(questions) > MAX_SWEEP:
        raise SpecError("questions", f"at most {MAX_SWEEP}; got {len(questions)}")
    for number, question in enumerate(questions):
        if not isinstance(question, Mapping):
            raise SpecError(f"questions.{number}", f"must be a mapping of arguments; got {shown(question)}")
    from joblib import Parallel, delayed, parallel_config

    _prepare(backend)
    with parallel_config(backend=backend, n_jobs=workers):
        answers: list[SearchResult | SpecError] = Parallel()(
            delayed(answer)({**common, **dict(question)}) for question in questions
        )
    return answers


def answer(arguments: Mapping[str, Any]) -> SearchResult | SpecError:
    """One search of a sweep, its error as its answer; runs in a worker."""
    try:
        for name in _NEEDED:
            if name not in arguments:
                raise SpecError(name, "is missing", "every search has a model and a cluster")
        return search(**arguments)
    except SpecError as error:
        return error


def _prepare(backend: str) -> None:
    """Registers backends that joblib learns of only when they are imported."""
    try:
        if backend == "ray":
            from ray.util.joblib import register_ray

            register_ray()
        elif backend == "dask":
            import distributed  # noqa: F401
    except ImportError:
        raise SpecError("backend", f"{backend} is not installed", f"pip install '{_PACKAGES[backend]}'") from None
