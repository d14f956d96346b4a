"""What an exporter returns, and the shell script that every export holds."""

import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from costmodels.energy_cost import steps_in_run
from costmodels.plan import BoolArray, ExecutionPlan, PlanBatch, Schedule
from costmodels.stages.table import stage_table
from costmodels.workload import TrainingJob
from planner.phrases import plan_label, seconds, signed_percent
from planner.results import RISKY, Infeasible, Note, Request
from profiles.hardware import ClusterSpec
from profiles.hf_config import TEXT_PART
from profiles.model import ModelSpec

SCRIPT = "train.sh"
OTHER_FRAMEWORK = "other_framework"  # code of the note that the format's framework is not the usual one
REST = '"$@"'  # what the user gives the script besides
_WIDTH = 112  # columns of comments


# Whether there is a gap, or (N,) in which of N plans there is; its field, problem and hint.
Check = tuple[bool | BoolArray, str, str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A setting of the plan or the job that the target cannot express.

    Attributes:
        field: Which one, dotted.
        problem: Why not, with its value.
        hint: The smallest change that would do.
    """

    field: str
    problem: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A framework that plans are exported to.

    Attributes:
        name: What users call the format.
        title: The framework with the versions whose options are written.
        stacks: Training stacks whose plans it runs.
    """

    name: str
    title: str
    stacks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A plan in the words of a framework.

    Attributes:
        target: Which framework.
        files: File name to text; ``train.sh`` sets the environment and launches.
        environment: Variables that every process needs.
        launch: The command that one node runs, without the user's own arguments.
        unsupported: What the target cannot express and the files therefore do not say.
        left_to_you: What a plan does not know or a configuration cannot say: data, and what the script itself does.
    """

    target: Target
    files: Mapping[str, str]
    environment: Mapping[str, str]
    launch: str
    unsupported: tuple[Gap, ...]
    left_to_you: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwritten:
    """The plan that ``planner.estimate`` explains, where the target cannot express it and another is written.

    Attributes:
        plan: That plan.
        step_time_s: Its step.
        written: The plan that is written.
        written_step_time_s: The step of that.
        in_the_way: Why the target cannot.
    """

    plan: ExecutionPlan
    step_time_s: float
    written: ExecutionPlan
    written_step_time_s: float
    in_the_way: tuple[Gap, ...]

    @property
    def words(self) -> str:
        """Both plans in two sentences."""
        searched, written = (
            f"{plan_label(plan)} at {seconds(step_s)} per step"
            for plan, step_s in ((self.plan, self.step_time_s), (self.written, self.written_step_time_s))
        )
        change = signed_percent(self.written_step_time_s / self.step_time_s - 1)
        why = "; ".join(f"{gap.field}: {gap.problem}" for gap in self.in_the_way[:1])
        return f"The plan of planner estimate, {searched}, cannot be written: {why}. This is {written} ({change})."


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """The answer.

    Attributes:
        format: Name of the target.
        request: The question as understood, with the devices that the plan uses.
        fits: Whether the plan fits.
        plan: The plan; None when none is legal.
        exported: The files and the rest; None when there is no plan.
        oom_probability: That a run of it dies of memory; None without a plan, or where a saved answer does not say it.
        infeasible: What stands in the way; None when the plan fits, or came from a saved answer.
        searched: The plan that ``planner.estimate`` explains; None where that is the one written.
    """

    format: str
    request: Request
    fits: bool
    plan: ExecutionPlan | None = None
    exported: Exported | None = None
    oom_probability: float | None = None
    infeasible: Infeasible | None = None
    searched: Unwritten | None = None

    @property
    def differs(self) -> tuple[str, ...]:
        """In which ways the plan is not the one that ``planner.estimate`` explains for the same options."""
        other = [note for note in self.request.assumptions if note.code == OTHER_FRAMEWORK]
        return (*(f"{note.field}: {note.message}" for note in other), *([self.searched.words] if self.searched else []))

    @property
    def risky(self) -> bool:
        """Whether it fits, and runs out of memory in ``RISKY`` of runs or more all the same."""
        return self.fits and self.oom_probability is not None and self.oom_probability >= RISKY


def gaps(*checks: Check) -> tuple[Gap, ...]:
    """Those of some gaps (whether there is one, field, problem, hint) that there are."""
    return tuple(Gap(field=field, problem=problem, hint=hint) for there, field, problem, hint in checks if there)


def end_checks(model: ModelSpec) -> tuple[Check, ...]:
    """What a framework has not whose models begin with a plain embedding and end with a plain output layer."""
    return (
        (model.head_bias, "model.head_bias", "the output layer has no bias", ""),
        (model.value_head, "model.value_head", "the output layer gives words", ""),
        (model.embedding_norm, "model.embedding_norm", "no norm follows the embedding", ""),
        (bool(model.embedding_dim), "model.embedding_dim", "the embedding is as wide as the layers", ""),
    )


def expressed(plans: PlanBatch, checks: Iterable[Check]) -> BoolArray:
    """(N,) the plans in which there are none of some gaps."""
    found = np.ones(len(plans), dtype=np.bool_)
    for there, *_ in checks:
        found &= ~np.asarray(there, dtype=np.bool_)
    return found


def finished(
    target: Target,
    plan: ExecutionPlan,
    request: Request,
    *,
    command: Sequence[Sequence[str]],
    gaps: tuple[Gap, ...],
    left_to_you: tuple[str, ...],
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    defaults: Sequence[str] = (),
) -> Exported:
    """The export of a single model's plan with its script; all but plan and request as for ``scripted``."""
    return scripted(
        target,
        header(target, plan, request),
        command=command,
        gaps=gaps,
        left_to_you=left_to_you,
        environment=environment,
        files=files,
        defaults=defaults,
        setup=_host_threads(plan, request.cluster),
    )


def _host_threads(plan: ExecutionPlan, cluster: ClusterSpec) -> tuple[str, ...]:
    """What gives every rank its share of the host's cores, where it updates weights there, unless the user says more.

    Ranks have one thread each otherwise: torchrun sets it (``config_from_args`` of torch/distributed/run.py), and so
    does Accelerate (``num_cpu_threads_per_process`` of its commands/launch.py).
    """
    if not plan.offload_optimizer:
        return ()
    ranks = cluster.node.devices_per_node
    return (f'export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-$(( ($(nproc) + {ranks - 1}) / {ranks} ))}}"',)


def scripted(
    target: Target,
    said: Sequence[str],
    *,
    command: Sequence[Sequence[str]],
    gaps: tuple[Gap, ...],
    left_to_you: tuple[str, ...],
    environment: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None,
    defaults: Sequence[str] = (),
    setup: Sequence[str] = (),
) -> Exported:
    """The export with its script.

    Args:
        target: Which framework.
        said: Sentences the script begins with: target, and the plan in words.
        command: Tokens of the launch line, an option with its values per group; what the user adds goes behind all, or
            where ``REST`` is.
        gaps: What the target cannot express.
        left_to_you: As in ``Exported``.
        environment: As in ``Exported``.
        files: Files besides the script.
        defaults: Arguments that the script takes where the user gives none.
        setup: Lines of the script ahead of the launch, as the shell reads them.
    """
    variables = dict(sorted((environment or {}).items()))
    groups = [*command] if [REST] in command else [*command, [REST]]
    lines = [" ".join(quoted(token) for token in group) for group in groups]
    words = [*said, *(f"Not said, {target.name} cannot: {gap.field}: {gap.problem}" for gap in gaps)]
    words += [f"Left to you: {sentence}" for sentence in left_to_you]
    script = ["#!/usr/bin/env bash", *comment(words), "set -euo pipefail"]
    script += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    script += setup
    if defaults:
        script += ["if [ $# -eq 0 ]; then", f"  set -- {shlex.join(defaults)}", "fi"]
    script.append(" \\\n  ".join(["exec " + lines[0], *lines[1:]]))
    return Exported(
        target=target,
        files={**(files or {}), SCRIPT: "\n".join(script) + "\n"},
        environment=variables,
        launch=" ".join(line for line in lines if line != REST),
        unsupported=gaps,
        left_to_you=left_to_you,
    )


def warned(exported: Exported, words: str) -> Exported:
    """The export with a sentence more in the comment that its script begins with."""
    above, start, rest = exported.files[SCRIPT].partition("set -euo pipefail\n")
    script = above + "\n".join(comment([words])) + "\n" + start + rest
    return replace(exported, files={**exported.files, SCRIPT: script})


def headed(text: str, target: Target, plan: ExecutionPlan, request: Request) -> str:
    """A file behind comment lines that say what it is."""
    return "\n".join([*comment(header(target, plan, request)), text])


def header(target: Target, plan: ExecutionPlan, request: Request) -> list[str]:
    """What a file is: its target, and the plan in words."""
    model, cluster = request.model.name, request.cluster
    return [
        written_for(target),
        f"{model} on {cluster.num_devices} x {cluster.device.name}: {plan_label(plan)}",
        *text_parts(request.assumptions),
    ]


def text_parts(assumptions: Iterable[Note]) -> list[str]:
    """What a file says of multimodal models, whose checkpoints bring more than was planned for; each sentence once."""
    told = dict.fromkeys(note.message for note in assumptions if TEXT_PART in note.message)
    return [f"{words[:1].upper()}{words[1:]}." for words in told]


def written_for(target: Target) -> str:
    """Who wrote a file, for whom."""
    return f"Written by planner export for {target.title}."


def comment(lines: Iterable[str]) -> list[str]:
    """Sentences as comment lines; whatever breaks a line in them does not break out of the comment."""
    wrap = textwrap.TextWrapper(width=_WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    return ["# " + part for line in lines for part in wrap.wrap(" ".join(line.split()))]


def whole_steps(job: TrainingJob) -> int | None:
    """Optimizer steps of the whole run, one at least; None where its length is not given."""
    steps = steps_in_run(job)
    return None if steps is None else max(round(steps), 1)


def sharding(plan: ExecutionPlan) -> tuple[int, int]:
    """Replicas, and data-parallel ranks per set of shards, where shards span these times the context-parallel ranks."""
    spanned = plan.zero_shard_degree or plan.data_parallel * plan.context_parallel
    shard = max(spanned // plan.context_parallel, 1) if plan.zero_stage else 1
    return plan.data_parallel // shard, shard


def chunk_layers(plan: ExecutionPlan, model: ModelSpec) -> list[int]:
    """Layers of every chunk of a pipeline, in the order of the model, as priced plans have them (``stages.table``).

    A last stage with a layer less than chunks has the chunk of the head without one.
    """
    ranks, v = plan.pipeline_parallel, plan.schedule.chunks(plan.virtual_stages)
    layers = stage_table(PlanBatch.from_plans([plan]), model, full=True).layers[0, :ranks]
    ends = [0, *np.cumsum(layers).tolist()]
    chunks = [[(ends[rank + 1] + k) // v - (ends[rank] + k) // v for rank in range(ranks)] for k in range(v)]
    if plan.last_stage_layers and layers[-1] == v - 1:
        for k in range(v):
            chunks[k][-1] = int(k < v - 1)
    if plan.schedule is Schedule.ZERO_BUBBLE_V:  # the second chunks run through the stages backwards
        chunks[1].reverse()
    return [count for chunk in chunks for count in chunk]


def always_overlaps(plans: PlanBatch) -> BoolArray:
    """(N,) whether all traffic between replicas that there is runs under passes."""
    hidden = plans.overlap_grad_reduce & (plans.overlap_param_gather | (plans.zero_stage == 0))
    found: BoolArray = hidden | (plans.data_parallel * plans.context_parallel == 1)
    return found


def torchrun(cluster: ClusterSpec) -> list[list[str]]:
    """``torchrun`` on every node; more than one take their rank and the first's address from the environment."""
    line = [["torchrun", "--nnodes", str(cluster.num_nodes), "--nproc-per-node", str(cluster.node.devices_per_node)]]
    if cluster.num_nodes > 1:
        line.append(["--node-rank", '"${NODE_RANK}"', "--master-addr", '"${MASTER_ADDR}"'])
        line.append(["--master-port", '"${MASTER_PORT:-29500}"'])
    return line


def on_every_node(cluster: ClusterSpec) -> tuple[str, ...]:
    """How to start a run of several nodes."""
    words = f"run {SCRIPT} on each of the {cluster.num_nodes} nodes, with NODE_RANK (0 to {cluster.num_nodes - 1}) and "
    return (f"{words}MASTER_ADDR set",) if cluster.num_nodes > 1 else ()


def quoted(token: str) -> str:
    """A word as the shell reads it; variables in double quotes stay variables."""
    return token if token == REST or token.startswith('"${') else shlex.quote(token)
