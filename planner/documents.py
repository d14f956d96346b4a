"""``planner.to_document``: what any public call returns, as plain data."""

from importlib import import_module
from typing import Any

# Type of a result to where its document is made: nothing is imported before there is such a result.
_WRITERS = {
    "PlanResult": ("planner.document_plan", "to_document"),
    "SearchResult": ("planner.document_search", "search_document"),
    "FlowResult": ("planner.document_flow", "flow_document"),
    "PortfolioResult": ("planner.decisions.document", "portfolio_document"),
    "SensitivityResult": ("planner.decisions.document", "sensitivity_document"),
    "ObserveResult": ("planner.decisions.document", "observe_document"),
    "SizingResult": ("planner.document_sizing", "sizing_document"),
    "ServingResult": ("planner.document_serving", "serving_document"),
    "CompareResult": ("planner.document_compare", "compare_document"),
    "ReplanResult": ("planner.document_replan", "replan_document"),
    "ExportResult": ("planner.exporters.document", "export_document"),
    "FlowExportResult": ("planner.exporters.flow_document", "flow_export_document"),
}


def to_document(result: Any) -> dict[str, Any]:
    """A result as plain data, ready for JSON: what ``--json`` prints and the service answers.

    Args:
        result: What ``planner.plan``, ``estimate``, ``search``, ``plan_dataflow``, ``portfolio``, ``sensitivity``,
            ``observe``, ``sizing``, ``replan``, ``compare``, ``serving``, ``export`` or ``export_dataflow`` returned.

    Raises:
        TypeError: If it is something else.
    """
    if type(result).__name__ not in _WRITERS:
        raise TypeError(f"to_document takes what planner.plan and its like return; got {type(result).__name__}")
    module, name = _WRITERS[type(result).__name__]
    document: dict[str, Any] = getattr(import_module(module), name)(result)
    return document
