"""The application factory: ``uvicorn --factory service.app:create_app``."""

import importlib.metadata
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse

from planner.decisions.schema import observe_schema, portfolio_schema, sensitivity_schema
from planner.document_compare import compare_schema
from planner.document_replan import replan_schema
from planner.document_search import search_schema
from planner.document_serving import serving_schema
from planner.document_sizing import sizing_schema
from planner.exporters.document import export_schema
from planner.exporters.flow_document import flow_export_schema
from planner.schema_flow_types import flow_document_schema
from planner.schema_types import document_schema
from profiles.cluster_entries import ClusterEntry, MixedClusterEntry
from service.bodies import HeadAsGet
from service.docs_page import docs_page
from service.limits import BodyLimit, WorkQueue
from service.problems import COMPONENTS, Problem, install_handlers
from service.routes import probes, router
from service.settings import ServiceSettings
from service.values import CLUSTER_TITLE

_DESCRIPTION = """Which execution plan is best for a model on a cluster, how long a step takes, whether it fits, and how
sure that is. Quantities are in SI units, named in the key (`step_time_s`, `peak_memory_bytes`)."""
CLUSTER, MIXED_CLUSTER = "Cluster", "MixedCluster"


def create_app(settings: ServiceSettings | None = None) -> FastAPI:
    """The service, ready to be served.

    Args:
        settings: Limits; from the environment when None.

    Raises:
        SpecError: If a setting in the environment is out of bounds.
    """
    limits = settings if settings is not None else ServiceSettings.from_environment()
    app = FastAPI(
        title="LLM execution planner",
        version=importlib.metadata.version("llm-execution-planner"),
        description=_DESCRIPTION,
        docs_url=None,  # their pages load scripts from a network that clusters often lack
        redoc_url=None,
    )
    app.state.searches = WorkQueue(limits, threads=limits.max_searches)
    app.state.estimates = WorkQueue(limits, threads=limits.max_estimates)
    app.add_middleware(BodyLimit, max_body_bytes=limits.max_body_bytes, body_timeout_s=limits.body_timeout_s)
    install_handlers(app)
    app.add_middleware(HeadAsGet)
    app.include_router(router)
    app.include_router(probes)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]

    @app.get("/docs", include_in_schema=False)
    async def get_docs() -> HTMLResponse:
        """The OpenAPI document for people."""
        return HTMLResponse(docs_page(app.openapi()))

    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the shapes of results and problems among its components; built once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for name, definition in (
            ("Document", document_schema()),
            ("WorkflowDocument", flow_document_schema()),
            ("Portfolio", portfolio_schema()),
            ("SearchDocument", search_schema()),
            ("Sensitivity", sensitivity_schema()),
            ("Observation", observe_schema()),
            ("Export", export_schema()),
            ("WorkflowExport", flow_export_schema()),
            ("Replan", replan_schema()),
            ("Compare", compare_schema()),
            ("Serving", serving_schema()),
            ("Sizing", sizing_schema()),
            (CLUSTER, ClusterEntry.model_json_schema()),
            (MIXED_CLUSTER, _groups_of_clusters(MixedClusterEntry.model_json_schema())),
            ("Problem", Problem.model_json_schema(ref_template=COMPONENTS + "{model}")),
        ):
            _hoist(name, definition, schemas)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = _with_cluster_fields(document)
    return app.openapi_schema


def _groups_of_clusters(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of several kinds of machines, with the fields that each group has."""
    schema["properties"]["groups"]["items"] = {"$ref": COMPONENTS + CLUSTER}
    return schema


def _with_cluster_fields(node: Any) -> Any:
    """The document with the fields of a cluster where one may be posted as a mapping.

    The library checks them, and names them in its errors; to pydantic such a mapping is any.
    """
    if isinstance(node, dict):
        if node.get("title") == CLUSTER_TITLE:
            return {"anyOf": [{"$ref": COMPONENTS + name} for name in (CLUSTER, MIXED_CLUSTER)]}
        return {key: _with_cluster_fields(value) for key, value in node.items()}
    return [_with_cluster_fields(item) for item in node] if isinstance(node, list) else node


def _hoist(name: str, definition: dict[str, Any], schemas: dict[str, Any]) -> None:
    """Put a JSON Schema among the components, its ``$defs`` beside it."""
    renamed = _with_references_moved(definition)
    schemas.update(renamed.pop("$defs", {}))
    renamed.pop("$schema", None)
    renamed.pop("$id", None)
    if "title" in renamed:
        renamed["title"] = name
    schemas[name] = renamed


def _with_references_moved(node: Any) -> Any:
    """The schema with references to ``$defs`` pointing at the components instead."""
    if isinstance(node, dict):
        return {
            key: value.replace("#/$defs/", COMPONENTS) if key == "$ref" else _with_references_moved(value)
            for key, value in node.items()
        }
    return [_with_references_moved(item) for item in node] if isinstance(node, list) else node
