"""Decisions: which plans are legal, which is best, and why.

``planner.plan``, ``planner.estimate`` and ``planner.search`` are the public calls; their modules load on
first use, so that importing the package stays light. ``planner.search`` is also the package of the
search engines, which can be called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from costmodels.plan import ExecutionPlan as ExecutionPlan
    from costmodels.workload import TrainingJob as TrainingJob
    from planner.api import estimate as estimate
    from planner.api import plan as plan
    from planner.comparing import CompareResult as CompareResult
    from planner.comparing import compare as compare
    from planner.decisions.api import observe as observe
    from planner.decisions.api import portfolio as portfolio
    from planner.decisions.api import sensitivity as sensitivity
    from planner.deployments.plans import serving as serving
    from planner.deployments.results import ServingResult as ServingResult
    from planner.document_search import search_document as search_document
    from planner.documents import to_document as to_document
    from planner.exporters.flow_api import export_dataflow as export_dataflow
    from planner.exporting import export as export
    from planner.exporting import export_saved as export_saved
    from planner.prices.kernel_prices import price_mlir as price_mlir
    from planner.question.request import Options as Options
    from planner.replanning import ReplanResult as ReplanResult
    from planner.replanning import replan as replan
    from planner.replanning import replan_saved as replan_saved
    from planner.results import PlanResult as PlanResult
    from planner.search.call import search as search
    from planner.search.result import SearchResult as SearchResult
    from planner.search.sweep import sweep as sweep
    from planner.sizes import SizingResult as SizingResult
    from planner.sizes import sizing as sizing
    from planner.workflows import plan_dataflow as plan_dataflow
    from profiles.errors import InfeasibleError as InfeasibleError
    from profiles.errors import PlannerError as PlannerError
    from profiles.errors import SpecError as SpecError
else:  # type checkers know of no package that can be called
    from planner import search as search

_HOMES = {
    "CompareResult": "planner.comparing",
    "ExecutionPlan": "costmodels.plan",
    "InfeasibleError": "profiles.errors",
    "Options": "planner.question.request",
    "PlanResult": "planner.results",
    "PlannerError": "profiles.errors",
    "ReplanResult": "planner.replanning",
    "SearchResult": "planner.search.result",
    "ServingResult": "planner.deployments.results",
    "SizingResult": "planner.sizes",
    "SpecError": "profiles.errors",
    "TrainingJob": "costmodels.workload",
    "compare": "planner.comparing",
    "estimate": "planner.api",
    "export": "planner.exporting",
    "export_dataflow": "planner.exporters.flow_api",
    "export_saved": "planner.exporting",
    "observe": "planner.decisions.api",
    "plan": "planner.api",
    "portfolio": "planner.decisions.api",
    "plan_dataflow": "planner.workflows",
    "sensitivity": "planner.decisions.api",
    "price_mlir": "planner.prices.kernel_prices",
    "replan": "planner.replanning",
    "replan_saved": "planner.replanning",
    "serving": "planner.deployments.plans",
    "search_document": "planner.document_search",
    "sizing": "planner.sizes",
    "sweep": "planner.search.sweep",
    "to_document": "planner.documents",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planner' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
