"""The routes: each validates, hands over to ``planner`` in a worker thread, and returns its document."""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from planner import api, documents
from planner.comparing import compare
from planner.decisions import api as decisions
from planner.decisions.results import Terms
from planner.deployments.plans import serving
from planner.document_catalog import engines_document, links_document, nodes_document, workflows_document
from planner.document_plan import (
    device_document,
    devices_document,
    frameworks_document,
    model_document,
    models_document,
)
from planner.exporters.flow_api import export_dataflow
from planner.exporters.saved import DOCUMENT
from planner.exporting import export, export_saved
from planner.replanning import replan, replan_saved
from planner.search.call import search
from planner.sizes import sizing
from planner.workflows import plan_dataflow
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.model_presets import resolve_model
from service.bodies import StrictRoute
from service.limits import ClientGoneError, WorkQueue
from service.problems import COMPONENTS, NotFoundError, declared
from service.schemas import (
    CompareRequest,
    EstimateRequest,
    ExportQuestion,
    Health,
    JobRequest,
    ObserveRequest,
    PlanQuestion,
    PortfolioRequest,
    ReplanQuestion,
    SavedExportRequest,
    SavedReplanRequest,
    SearchRequest,
    SensitivityRequest,
    SizingRequest,
    WorkflowExportRequest,
    WorkflowRequest,
    given,
)
from service.serving_bodies import ServingRequest
from service.values import NAME_PATTERN
from service.views import (
    DeviceList,
    DeviceView,
    EngineList,
    FrameworkList,
    LinkList,
    ModelList,
    ModelView,
    NodeList,
    WorkflowList,
)

T = TypeVar("T")
_GONE = 499  # as proxies log a client that hung up; nobody reads it


def _document(words: str, *names: str) -> dict[int | str, dict[str, Any]]:
    """The documented answer of a route: one of these components."""
    shapes = [{"$ref": COMPONENTS + name} for name in names]
    content = {"application/json": {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}}
    return {200: {"description": words, "content": content}}


_DOCUMENT = _document(
    "The document that `planner --json` prints. Without a fitting plan, `plans` is empty and `infeasible` says why.",
    "Document",
)
_PLANNED = _document(
    "The document that `planner plan --json` prints, of a job or of a workflow. Without a fitting plan, `plans` is "
    "empty or `plan` null, and `infeasible` says why.",
    "Document",
    "WorkflowDocument",
)
_PORTFOLIO = _document(
    "The document that `planner plan --portfolio --json` prints. When nothing may run, `trials` is empty and "
    "`infeasible` says why.",
    "Portfolio",
)
_FOUND = _document(
    "The document that `planner search --json` prints. `best` is null when nothing fits.", "SearchDocument"
)
_SENSITIVITY = _document(
    "The document that `planner sensitivity --json` prints. When nothing may run, `parameters` is empty and "
    "`infeasible` says why.",
    "Sensitivity",
)
_OBSERVATION = _document(
    "The document that `planner observe --json` prints. Without a plan to choose, `plans` is empty and `infeasible` "
    "says why.",
    "Observation",
)
_SIZING = _document(
    "The document that `planner sizing --json` prints. When nothing fits, `infeasible` says what would.", "Sizing"
)
_SERVING = _document(
    "The document that `planner serving --json` prints. When nothing does what is asked, `infeasible` says what would.",
    "Serving",
)
_REPLAN = _document(
    "The document that `planner replan --json` prints. Without a way to go on, `infeasible` says why.", "Replan"
)
_COMPARE = _document("The document that `planner compare --json` prints.", "Compare")
_EXPORT = _document(
    "The document that `planner export --json` prints. Without a legal plan, `files` is empty; without a fitting one, "
    "`infeasible` says what would fit.",
    "Export",
    "WorkflowExport",
)
_SEARCH_PROBLEMS = declared(400, 408, 413, 422, 429)

EntryName = Annotated[str, Path(min_length=1, max_length=120, pattern=NAME_PATTERN)]

router = APIRouter(route_class=StrictRoute)
probes = APIRouter()  # whose queries say nothing: probes add them to pass caches


@router.post("/plan", response_model=None, responses=_PLANNED | _SEARCH_PROBLEMS, tags=["planning"])
async def post_plan(body: PlanQuestion, request: Request) -> Response:
    """Rank every legal execution plan of a job on a cluster, or plan a workflow of several models."""
    if isinstance(body, WorkflowRequest):
        return await _answer(request, _about_workflow(plan_dataflow, body))
    search = functools.partial(api.plan, pins=given(body.plan), top=body.top, variants=body.variants)
    return await _answer(request, functools.partial(search, objective=body.objective, **_inputs(body)))


@router.post("/estimate", response_model=None, responses=_DOCUMENT | _SEARCH_PROBLEMS, tags=["planning"])
async def post_estimate(body: EstimateRequest, request: Request) -> Response:
    """Price and explain one execution plan."""
    price = functools.partial(api.estimate, plan=given(body.plan), objective=body.objective)
    return await _answer(request, functools.partial(price, **_inputs(body)), quick=True)


@router.post("/portfolio", response_model=None, responses=_PORTFOLIO | _SEARCH_PROBLEMS, tags=["decisions"])
async def post_portfolio(body: PortfolioRequest, request: Request) -> Response:
    """Say which execution plans are worth trying on the real cluster, in order."""
    terms = Terms(steps=body.trial_steps, oom_penalty=body.oom_penalty, seed=body.seed)
    weigh = functools.partial(
        decisions.portfolio, pins=given(body.plan), variants=body.variants, count=body.count, terms=terms
    )
    return await _answer(request, functools.partial(weigh, **_inputs(body)))


@router.post("/search", response_model=None, responses=_FOUND | _SEARCH_PROBLEMS, tags=["planning"])
async def post_search(body: SearchRequest, request: Request) -> Response:
    """Find the fastest plan stage by stage, also across different devices, and say how good it is."""
    limits = {name: getattr(body, name) for name in ("strategy", "seconds", "evaluations", "seed", "runnable")}
    work = functools.partial(search, pins=given(body.plan), **limits, **_inputs(body))
    return await _answer(request, work)


@router.post("/sensitivity", response_model=None, responses=_SENSITIVITY | _SEARCH_PROBLEMS, tags=["decisions"])
async def post_sensitivity(body: SensitivityRequest, request: Request) -> Response:
    """Say what to measure first: which unknown decides between plans, and what knowing it is worth."""
    terms = Terms(oom_penalty=body.oom_penalty, seed=body.seed)
    weigh = functools.partial(
        decisions.sensitivity, pins=given(body.plan), variants=body.variants, rivals=body.rivals, terms=terms
    )
    return await _answer(request, functools.partial(weigh, **_inputs(body)))


@router.post("/observe", response_model=None, responses=_OBSERVATION | _SEARCH_PROBLEMS, tags=["decisions"])
async def post_observe(body: ObserveRequest, request: Request) -> Response:
    """Say what trials on the cluster have changed: ranking, intervals, chances, and what to try next."""
    terms = Terms(steps=body.trial_steps, oom_penalty=body.oom_penalty, seed=body.seed)
    update = functools.partial(
        decisions.observe, pins=given(body.plan), variants=body.variants, count=body.count, terms=terms
    )
    inputs = _inputs(body) | {"trials": body.trials}
    return await _answer(request, functools.partial(update, **inputs))


@router.post("/sizing", response_model=None, responses=_SIZING | _SEARCH_PROBLEMS, tags=["planning"])
async def post_sizing(body: SizingRequest, request: Request) -> Response:
    """Say how many devices a job needs, and of which kind: the best plan on growing parts of a cluster."""
    inputs = _inputs(body)
    clusters = [inputs.pop("cluster"), *body.compared_with]
    look = functools.partial(sizing, clusters=clusters, days=body.days, pins=given(body.plan))
    names = {"clusters[0]": "cluster"}
    names |= {f"clusters[{place}]": f"compared_with[{place - 1}]" for place in range(1, len(clusters))}
    return await _answer(request, _renaming(functools.partial(look, **inputs), names))


@router.post("/serving", response_model=None, responses=_SERVING | _SEARCH_PROBLEMS, tags=["planning"])
async def post_serving(body: ServingRequest, request: Request) -> Response:
    """Rank the ways to serve a model: how fast requests are answered, how many at once, and at what cost."""
    asked = given(body)
    ends = (asked.pop("model"), asked.pop("cluster"))
    return await _answer(request, functools.partial(serving, *ends, **asked, allow_files=False))


@router.post("/replan", response_model=None, responses=_REPLAN | _SEARCH_PROBLEMS, tags=["planning"])
async def post_replan(body: ReplanQuestion, request: Request) -> Response:
    """Say how a running job goes on on other devices: in the layout of its checkpoint, and at best."""
    if isinstance(body, SavedReplanRequest):
        go_on = functools.partial(replan_saved, onto=body.onto, rank=body.rank, batch_change=body.batch_change)
        return await _answer(request, _renaming(functools.partial(go_on, body.answer), _OF_ANSWER))
    move = functools.partial(replan, onto=body.onto, plan=given(body.plan), batch_change=body.batch_change)
    return await _answer(request, functools.partial(move, **_inputs(body)))


@router.post("/compare", response_model=None, responses=_COMPARE | _SEARCH_PROBLEMS, tags=["planning"])
async def post_compare(body: CompareRequest, request: Request) -> Response:
    """Set plans of answers beside each other, and say what makes the difference."""
    look = functools.partial(compare, *body.answers, ranks=body.ranks, names=body.names)
    return await _answer(request, look, quick=True)


@router.post("/export", response_model=None, responses=_EXPORT | _SEARCH_PROBLEMS, tags=["planning"])
async def post_export(body: ExportQuestion, request: Request) -> Response:
    """Write the files and the launch line of a training framework for the plan that `/estimate` explains."""
    if isinstance(body, SavedExportRequest):
        save = functools.partial(export_saved, format=body.format, rank=body.rank, allow_partial=body.allow_partial)
        return await _answer(request, _renaming(functools.partial(save, body.answer), _OF_ANSWER), quick=True)
    if isinstance(body, WorkflowExportRequest):
        return await _answer(request, _about_workflow(export_dataflow, body))
    write = functools.partial(export, plan=given(body.plan), format=body.format, allow_partial=body.allow_partial)
    return await _answer(request, functools.partial(write, objective=body.objective, **_inputs(body)), quick=True)


@router.get("/models", responses=declared(422), tags=["catalogue"])
async def get_models() -> ModelList:
    """Every model known by name, with its parameter count and source."""
    return ModelList.model_validate(models_document())


@router.get("/models/{name:path}", responses=declared(404, 422), tags=["catalogue"])
async def get_model(name: EntryName) -> ModelView:
    """One model, by name, alias or size."""
    with _unknown_is_404():
        found = resolve_model(name, default_catalog(), allow_paths=False)
    return ModelView.model_validate(model_document(found.spec))


@router.get("/devices", responses=declared(422), tags=["catalogue"])
async def get_devices() -> DeviceList:
    """Every device known by name, with a source for each figure."""
    return DeviceList.model_validate(devices_document())


@router.get("/devices/{name:path}", responses=declared(404, 422), tags=["catalogue"])
async def get_device(name: EntryName) -> DeviceView:
    """One device, by any spelling of its name; an ambiguous one means what a cluster of that name would."""
    with _unknown_is_404():
        device = default_catalog().device(name, field="device")
    return DeviceView.model_validate(device_document(device))


@router.get("/frameworks", responses=declared(422), tags=["catalogue"])
async def get_frameworks() -> FrameworkList:
    """Every framework, and variant of one, that plans can be made for."""
    return FrameworkList.model_validate(frameworks_document())


@router.get("/workflows", responses=declared(422), tags=["catalogue"])
async def get_workflows() -> WorkflowList:
    """Every workflow known by name, with the settings it takes."""
    return WorkflowList.model_validate(workflows_document())


@router.get("/engines", responses=declared(422), tags=["catalogue"])
async def get_engines() -> EngineList:
    """Every engine that serves or generates."""
    return EngineList.model_validate(engines_document())


@router.get("/nodes", responses=declared(422), tags=["catalogue"])
async def get_nodes() -> NodeList:
    """Every node that the mapping of a cluster can start from."""
    return NodeList.model_validate(nodes_document())


@router.get("/links", responses=declared(422), tags=["catalogue"])
async def get_links() -> LinkList:
    """Every link that the mapping of a cluster can name."""
    return LinkList.model_validate(links_document())


@probes.get("/healthz", tags=["service"])
async def get_health() -> Health:
    """Whether the service answers; never waits for a search."""
    return Health()


@router.get("/", include_in_schema=False)
async def get_root() -> Response:
    """Lead a browser to the documentation."""
    return RedirectResponse("/docs")


@contextlib.contextmanager
def _unknown_is_404() -> Iterator[None]:
    """A name in the path that nothing goes by is a missing page rather than a mistake in a body."""
    try:
        yield
    except SpecError as error:
        raise NotFoundError(error) from None


_OF_ANSWER = {DOCUMENT: "answer"}


def _renaming(work: Callable[[], T], names: Mapping[str, str]) -> Callable[[], T]:
    """The work, with errors of fields that begin with a name of the library's told of the client's instead."""

    def renamed() -> T:
        try:
            return work()
        except SpecError as error:
            for name, own in names.items():
                if error.field.startswith(name):
                    raise error.at(own + error.field.removeprefix(name)) from None
            raise

    return renamed


def _about_workflow(call: Callable[..., Any], body: WorkflowRequest) -> Callable[[], Any]:
    """The call about a workflow that a body asks for; errors of a preset's settings name their field of the body."""
    asked = given(body)
    ends = (asked.pop("job"), asked.pop("models", {}), asked.pop("cluster"))
    named = {"job.": "settings."} if isinstance(body.job, str) else {}
    return _renaming(functools.partial(call, *ends, **asked, allow_files=False), named)


def _inputs(body: JobRequest) -> dict[str, Any]:
    """What both searches and estimates are asked about; files of the server are out of reach."""
    return {
        "model": body.model,
        "cluster": body.cluster,
        "job": given(body.job),
        "framework": body.framework,
        "offload": body.offload,
        "named_modules": body.named_modules,
        "fabric": body.fabric,
        "price_per_device_hour_usd": body.price_per_device_hour_usd,
        "price_date": body.price_date or "",
        "memory_reserve_bytes": body.memory_reserve_bytes,
        "max_oom_risk": body.max_oom_risk,
        "allow_files": False,
    }


async def _answer(request: Request, work: Callable[[], Any], *, quick: bool = False) -> Response:
    """The document of a result, priced and encoded off the event loop; what is quick does not wait for searches."""

    def encoded() -> bytes:
        document = documents.to_document(work())
        return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()

    queue: WorkQueue = request.app.state.estimates if quick else request.app.state.searches
    try:
        return Response(await queue.run(encoded, request.receive), media_type="application/json")
    except ClientGoneError:
        return Response(status_code=_GONE)
