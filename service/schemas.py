"""Request bodies: what may be posted; ``service.values`` bounds every text, number and list.

The answers are the versioned documents of ``planner.document_plan``, the same as the library and the CLI
give; only the questions are described here. Names follow ``TrainingJob`` and ``ExecutionPlan``.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from costmodels.energy_cost import MAX_PRICE_USD
from costmodels.workload import MAX_GLOBAL_BATCH
from planner.comparing import MOST_COMPARED
from planner.dataflow.flow.request import MAX_GPUS, MAX_ITERATIONS
from planner.dataflow.graphs.graph import MAX_CALLS, MAX_ROLES
from planner.dataflow.graphs.presets import PRESETS, preset_name
from planner.dataflow.solving.iterations import MAX_STALENESS
from planner.decisions.results import MAX_RIVALS, MAX_SEED, MAX_STEPS, MAX_TRIALS, Terms
from planner.decisions.trials import MAX_TRIALS as MAX_OBSERVED
from planner.replanning import BATCH_CHANGE
from planner.results import RISKY
from planner.search import best
from planner.sizes import MAX_DAYS, MAX_KINDS
from planner.validate.tables.reader import COLUMNS
from profiles.model import MAX_SEQUENCE
from service.job_bodies import JobBody, Layers, PlanBody, TrainedIn
from service.values import (
    JOB_TAG,
    MAX_FIELDS,
    MAX_TOP,
    SAVED_TAG,
    WORKFLOW_TAG,
    Answer,
    Body,
    Bytes,
    Cell,
    Cluster,
    Machines,
    Name,
    NameOrMapping,
    Names,
    Risk,
    Role,
    Tokens,
    few,
)

MAX_SEARCH_SECONDS = 60
USUAL_TERMS = Terms()

EXAMPLE_TRIAL = {
    "model": "llama-2-13b", "gpu": "A100", "num_gpus": 8, "framework": "Megatron-Core", "tp": 2, "pp": 2, "dp": 2,
    "micro_batch": 2, "global_batch_seqs": 1024, "seq_len": 4096, "measured_step_time_s": 210.0,
}  # fmt: skip


class JobRequest(Body):
    """What every question about one job says."""

    model: NameOrMapping = Field(
        description="A preset, a size such as `13b`, or the contents of a Hugging Face config.json.",
        examples=["llama-2-13b"],
    )
    cluster: Cluster = Field(
        description="A cluster string or the mapping a cluster file holds.", examples=["8xA100-80GB"]
    )
    job: JobBody = Field(default=JobBody())
    plan: PlanBody = Field(default=PlanBody(), description="The plan; what is left out is chosen.")
    framework: Name | None = Field(default=None, description="Framework or stack; the usual one of the task if null.")
    offload: bool = Field(default=False, description="Also consider offloading to host memory.")
    named_modules: bool = Field(default=False, description="Also consider recomputing named modules of layers.")
    fabric: Name | None = Field(default=None, description="Network between nodes, if not the node's own.")
    price_per_device_hour_usd: float | None = Field(default=None, ge=0, le=MAX_PRICE_USD)
    price_date: str | None = Field(default="", max_length=10, examples=["2026-11"])  # null as answers print it
    memory_reserve_bytes: Bytes = Field(default=0.0, description="Device memory to leave free.")
    max_oom_risk: Risk = Field(default=RISKY, description="Share of runs that a ranked plan may run out of memory in.")


class EstimateRequest(JobRequest):
    """Price one plan, or the best one when no plan is given."""

    objective: Literal["step_time", "cost", "fewest_gpus", "memory_headroom"] = Field(
        default="step_time", description="What is best; by `cost` and `fewest_gpus` plans may use part of the cluster."
    )


class PlanRequest(EstimateRequest):
    """Search for the best plans."""

    plan: PlanBody = Field(default=PlanBody(), description="Parts of the plan to hold fixed; the rest is searched.")
    variants: bool = Field(default=False, description="List plans that differ only in details one by one.")
    top: int = Field(default=10, ge=1, le=MAX_TOP, description="Most plans to return.")


class WorkflowRequest(Body):
    """Plan a workflow of several model calls: which GPUs, engine and layout each call gets, and when it runs."""

    job: NameOrMapping = Field(description="Name of a workflow such as `grpo`, or a graph of one's own.")
    models: Annotated[dict[Role, NameOrMapping], few(MAX_ROLES)] = Field(
        default_factory=dict,
        max_length=MAX_ROLES,
        description="Role to model; roles left out are as the graph says, or like another one.",
    )
    cluster: Cluster = Field(description="A cluster string or the mapping a cluster file holds.")
    settings: Annotated[dict[Role, int | float | bool | Names | Layers], few(MAX_ROLES)] = Field(
        default_factory=dict, max_length=MAX_ROLES, description="Settings of a named workflow, e.g. `group_size`."
    )
    batch: int | None = Field(default=None, ge=1, le=MAX_GLOBAL_BATCH, description="Items per iteration.")
    prompt: int | None = Field(default=None, ge=1, le=MAX_SEQUENCE - 1, description="Tokens per prompt.")
    generate: Tokens | None = Field(
        default=None, description="Tokens per response: a number, or `lognormal:mean=800,sigma=1,max=8192`."
    )
    mode: Literal["hybrid", "colocated", "disaggregated", "async"] = "hybrid"
    staleness: int | None = Field(default=None, ge=0, le=MAX_STALENESS, description="With `async` only.")
    rollout: Literal["whole", "in_flight", "partial"] = Field(
        default="whole",
        description="With `async`; `in_flight`: new weights arrive as generation runs, `partial`: it ends when enough "
        "responses have, and the others go on with new weights.",
    )
    eager: bool = Field(
        default=False, description="Engines of a workflow capture no graphs, as verl's `rollout.enforce_eager`."
    )
    linear_loss: bool | None = Field(
        default=None, description="Losses and log-probabilities hold no logits, as verl's `model.use_fused_kernels`."
    )
    attention_library: Literal["flash_2", "flash_3", "cudnn"] | None = Field(
        default=None,
        description="Whose fused attention trains and infers, where it is not the one the framework picks.",
    )
    keep_cache: bool = Field(default=False, description="Interrupted responses keep keys and values of older weights.")
    stream: bool = Field(default=False, description="Scoring and services take responses as they end.")
    dependency: Literal["barrier", "version", "stale"] | None = Field(
        default=None, description="How iterations wait for each other; what the mode needs if null."
    )
    objective: Literal["time", "cost", "fewest_gpus"] = "time"
    max_oom_risk: Risk = Field(default=RISKY, description="Share of runs that a call may run out of memory in.")
    offload: bool = Field(default=True, description="Whether weights and states may lie on the host between calls.")
    engine: Name | None = Field(default=None, description="Engine of every generating call.")
    pins: Annotated[dict[Role, Annotated[dict[Role, int | Name], few(MAX_FIELDS)]], few(MAX_CALLS)] = Field(
        default_factory=dict,
        max_length=MAX_CALLS,
        description="Call to what is fixed of it: `gpus`, `engine`, `tp` ...",
    )
    min_mesh: int | None = Field(default=None, ge=1, le=MAX_GPUS, description="Fewest GPUs a call may use.")
    framework: Name | None = Field(
        default=None, description="Training framework or stack; the usual one of what is trained if null."
    )
    precision: TrainedIn | None = None
    iterations: int = Field(default=5, ge=1, le=MAX_ITERATIONS, description="Iterations shown; 1: minimised alone.")
    seed: int = Field(default=0, ge=0, le=(1 << 31) - 1, description="Of the search.")
    effort: float = Field(default=1.0, ge=0.01, le=1, description="Search budget relative to the usual one.")
    fabric: Name | None = Field(default=None, description="Network between nodes, if not the node's own.")
    memory_reserve_bytes: Bytes = Field(default=0.0, description="Device memory to leave free.")
    price_per_device_hour_usd: float | None = Field(default=None, ge=0, le=MAX_PRICE_USD)


_OF_GRAPHS = frozenset({"roles", "calls"})  # fields of a graph that no job has


def _question(value: object) -> str:
    """A workflow names its models by role, or its job is a name or a graph; a job has one model.

    The name of a workflow makes it one even beside ``model``, so that the error is about that.
    """
    if not isinstance(value, dict):
        return WORKFLOW_TAG if isinstance(value, WorkflowRequest) else JOB_TAG
    job = value.get("job")
    graph = isinstance(job, dict) and not _OF_GRAPHS.isdisjoint(job)
    named = isinstance(job, str) and ("model" not in value or preset_name(job) in PRESETS)
    return WORKFLOW_TAG if graph or named or "models" in value else JOB_TAG


PlanQuestion = Annotated[
    Annotated[PlanRequest, Tag(JOB_TAG)] | Annotated[WorkflowRequest, Tag(WORKFLOW_TAG)], Discriminator(_question)
]


class DecisionRequest(JobRequest):
    """What questions under uncertainty have in common."""

    plan: PlanBody = Field(default=PlanBody(), description="Parts of the plan to hold fixed; the rest is searched.")
    variants: bool = Field(default=False, description="Tell plans apart that differ only in details.")
    oom_penalty: float = Field(
        default=USUAL_TERMS.oom_penalty,
        ge=0,
        le=1,
        description="Share of the step time that avoiding a trial out of memory is worth.",
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="Of the scenarios; the same seed draws the same.")


class PortfolioRequest(DecisionRequest):
    """Ask which plans are worth trying on the real cluster."""

    count: int = Field(default=3, ge=1, le=MAX_TRIALS, description="Most plans to try.")
    trial_steps: int = Field(default=USUAL_TERMS.steps, ge=1, le=MAX_STEPS, description="Optimizer steps of one trial.")


class SensitivityRequest(DecisionRequest):
    """Ask what to measure first."""

    rivals: int = Field(default=3, ge=1, le=MAX_RIVALS, description="How many rivals to set against the best plan.")


class ObserveRequest(DecisionRequest):
    """Say what trials changed."""

    trials: list[Annotated[dict[str, Cell], Field(min_length=1, max_length=len(COLUMNS)), few(len(COLUMNS))]] = Field(
        min_length=1,
        max_length=MAX_OBSERVED,
        fail_fast=True,  # a mistake in every cell of every trial would be told 20,000 times
        description="Trials, each a mapping of the columns that `planner validate` reads to their values. Errors count "
        "them from 0, as places in the list; `line` of an answer counts from 1.",
        examples=[[EXAMPLE_TRIAL]],
    )
    count: int = Field(default=3, ge=1, le=MAX_TRIALS, description="Most plans to try next.")
    trial_steps: int = Field(default=USUAL_TERMS.steps, ge=1, le=MAX_STEPS, description="Optimizer steps of one trial.")


class SearchRequest(JobRequest):
    """Search for the fastest plan stage by stage; groups of different devices are joined by `+`."""

    framework: Names | None = Field(
        default=None, description="Framework or stack, several with commas between, or `any`; the usual one if null."
    )
    plan: PlanBody = Field(default=PlanBody(), description="Parts of the plan to hold fixed; the rest is searched.")
    strategy: Literal["auto", "enumerate", "cpsat", "mcmc", "all"] = "auto"
    seconds: float = Field(default=5.0, gt=0, le=MAX_SEARCH_SECONDS, description="Longest; load tells what it finds.")
    evaluations: int | None = Field(
        default=None, ge=1, le=best.MAX_EVALUATIONS, description="After which nothing new begins."
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=best.MAX_SEED,
        description="Of everything random; with `evaluations`, and time enough, a search repeats itself.",
    )
    runnable: bool = Field(default=False, description="Whether only plans count that the framework can run.")


class SizingRequest(JobRequest):
    """Ask how many devices a job needs, and of which kind."""

    cluster: Machines = Field(
        description="A machine such as `8xH100`, or the most there may be of it, `64x8xH100`; a text may end in the "
        "price of a device-hour, `8xH100@2.99`.",
        examples=["8xH100@2.99"],
    )
    compared_with: list[Machines] = Field(
        default_factory=list, max_length=MAX_KINDS - 1, description="Other kinds of machines, likewise."
    )
    plan: PlanBody = Field(default=PlanBody(), description="Parts of the plan to hold fixed; the rest is searched.")
    days: float | None = Field(
        default=None, gt=0, le=MAX_DAYS, description="When the run of `job.train_tokens` has to be done."
    )


class ReplanRequest(JobRequest):
    """Ask how a running job goes on on other devices."""

    plan: PlanBody = Field(default=PlanBody(), description="The plan that runs; what is left out is chosen.")
    onto: Cluster = Field(description="The devices to continue on.", examples=["7x8xA100-80GB"])
    batch_change: float = Field(
        default=BATCH_CHANGE, ge=0, le=1, description="Share by which the global batch may change where it has to."
    )


class SavedBody(Body):
    """Say something of a plan of an answer instead of a question."""

    answer: Answer = Field(min_length=1, description="Of `/plan` or `/estimate`, whose plan is meant.")
    rank: int = Field(default=1, ge=1, le=MAX_TOP, description="Which plan of it.")


class SavedReplanRequest(SavedBody):
    """Ask how the plan of an answer goes on on other devices."""

    onto: Cluster = Field(description="The devices to continue on.", examples=["7x8xA100-80GB"])
    batch_change: float = Field(
        default=BATCH_CHANGE, ge=0, le=1, description="Share by which the global batch may change where it has to."
    )


Format = Literal[
    "megatron-lm",
    "megatron-bridge",
    "deepspeed",
    "torchtitan",
    "accelerate",
    "nanotron",
    "axolotl",
    "llama-factory",
    "trl",
]


class ExportRequest(EstimateRequest):
    """Ask for the files and the launch line of a training framework."""

    format: Format = Field(description="The target; `framework` is one that it belongs to.", examples=["megatron-lm"])
    allow_partial: bool = Field(
        default=False, description="Leave out what the target cannot express, and list it under `unsupported`."
    )


class SavedExportRequest(SavedBody):
    """Ask for the files and the launch line of the plan of an answer."""

    format: Format = Field(description="The target; one for the framework of the answer.", examples=["megatron-lm"])
    allow_partial: bool = Field(
        default=False, description="Leave out what the target cannot express, and list it under `unsupported`."
    )


class WorkflowExportRequest(WorkflowRequest):
    """Ask for the launch script of a framework that runs a workflow."""

    format: Literal["verl", "nemo-rl", "openrlhf"] = Field(description="The target.", examples=["verl"])
    allow_partial: bool = Field(
        default=False, description="Leave out what the target cannot express, and list it under `unsupported`."
    )


def _of_answer(value: object) -> str:
    """Whether a plan of an answer is meant, or that of a question."""
    saved = "answer" in value if isinstance(value, dict) else isinstance(value, SavedBody)
    return SAVED_TAG if saved else JOB_TAG


def _exported(value: object) -> str:
    """Whether a plan of an answer is meant, that of a workflow or that of a job."""
    return SAVED_TAG if _of_answer(value) == SAVED_TAG else _question(value)


ReplanQuestion = Annotated[
    Annotated[ReplanRequest, Tag(JOB_TAG)] | Annotated[SavedReplanRequest, Tag(SAVED_TAG)], Discriminator(_of_answer)
]
ExportQuestion = Annotated[
    Annotated[ExportRequest, Tag(JOB_TAG)]
    | Annotated[SavedExportRequest, Tag(SAVED_TAG)]
    | Annotated[WorkflowExportRequest, Tag(WORKFLOW_TAG)],
    Discriminator(_exported),
]


class CompareRequest(Body):
    """Ask for plans of answers beside each other."""

    answers: list[Answer] = Field(
        min_length=1, max_length=MOST_COMPARED, description="Of `/plan` or `/estimate`; of one alone, its first plans."
    )
    ranks: list[int] | None = Field(default=None, max_length=MOST_COMPARED, description="Which plan of each, from 1.")
    names: list[Name] | None = Field(default=None, max_length=MOST_COMPARED, description="What to call them.")


def given(body: Body) -> dict[str, Any]:
    """The fields a client set, nulls left out, as the plain mapping the library takes."""
    return body.model_dump(exclude_none=True, exclude_unset=True)


class Health(BaseModel):
    """That the service is up."""

    status: Literal["ok"] = "ok"
