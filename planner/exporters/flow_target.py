"""What all exports of workflows share: a plan's calls on GPUs, pins of theirs, and how a target says what it runs."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from costmodels.plan import ContextKind, ExecutionPlan, Recompute
from planner.dataflow.flow.pins import CallPin, column_word
from planner.dataflow.flow.request import COLOCATED, FlowRequest
from planner.dataflow.flow.results import CallPlan, FlowPlan
from planner.dataflow.graphs.graph import GENERATE, TRAIN
from planner.exporters.exported import SCRIPT, Exported, Gap, Target, comment, scripted, text_parts, written_for
from planner.flow_phrases import gpu_range, layout_label, machines_label
from planner.phrases import seconds
from planner.question.attention import kernel_of
from planner.question.pins import ALIASES
from profiles.engines import find_engine
from profiles.model import ModelSpec

GENERATION, REWARD = "actor_gen", "reward_inf"
DEGREES = ("tensor_parallel", "pipeline_parallel", "context_parallel")
EXPERT_DEGREES = ("expert_parallel", "expert_tensor_parallel")
SGLANG = "sglang"
ENDS = ("first_stage_layers", "last_stage_layers")
IN_LOSS = ("grpo",)  # whose divergence from the reference is a term of the loss (arXiv:2402.03300), not of the reward
_PINNED_AS = {"micro_batch_size": "micro_batch"}  # where hints have a shorter name
_REPOSITORY = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/")

Pins = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowTarget:
    """A framework that runs workflows.

    Attributes:
        target: Its name and versions.
        workflows: Those it runs.
        one_pool: Whether all calls share one pool of GPUs, so that it runs none where generation is apart.
        command: Tokens of the launch of a plan, as for ``exported.scripted``.
        left_to_you: What is left to the user, as in ``Exported``.
        question_gaps: What of a question it cannot express, whatever the plan.
        placement_gaps: What of meshes, layouts and micro-batches of a plan it cannot express.
        bases: Modes to ask again in, each with what engines and trainers must have whatever the layout.
        other_pins: Sets of pins that make a plan one that can be expressed, likely ones first, of answers that cannot
            in a mode with the pins of its base.
        further_pins: Ways to pin more of an answer in which ``further`` alone is in the way.
        further: Plan columns that are then pinned.
        eased: Fields that such pins may ease, where other layouts may, too.
        files: File name to text of what goes with the launch.
    """

    target: Target
    workflows: tuple[str, ...]
    one_pool: bool
    command: Callable[[FlowRequest, FlowPlan], Sequence[Sequence[str]]]
    left_to_you: Callable[[FlowRequest, FlowPlan], tuple[str, ...]]
    question_gaps: Callable[[FlowRequest], tuple[Gap, ...]]
    placement_gaps: Callable[[FlowRequest, FlowPlan], tuple[Gap, ...]]
    bases: Callable[[FlowRequest, FlowPlan], list[tuple[str, Pins]]]
    other_pins: Callable[[FlowRequest, Iterable[FlowPlan], str, Pins], list[Pins]]
    further_pins: Callable[[FlowRequest, FlowPlan], list[Pins]]
    further: tuple[str, ...] = ()
    eased: tuple[str, ...] = ()
    files: Callable[[FlowRequest, FlowPlan], Mapping[str, str]] = lambda request, plan: {}

    def export(self, request: FlowRequest, plan: FlowPlan, said: Sequence[str] = ()) -> Exported:
        """The launch that runs a plan.

        Args:
            request: The question.
            plan: Its answer.
            said: Sentences about the plan for every file.
        """
        words = [written_for(self.target), about(request, plan), *text_parts(request.assumptions), *said]
        return scripted(
            self.target,
            words,
            command=self.command(request, plan),
            files={name: "\n".join([*comment(words), text]) for name, text in self.files(request, plan).items()},
            gaps=(*self.placement_gaps(request, plan), *self.question_gaps(request)),
            left_to_you=self.left_to_you(request, plan),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A call that runs on GPUs.

    Attributes:
        call: The call.
        layout: Its plan.
    """

    call: CallPlan
    layout: ExecutionPlan

    def whole_micro_batch(self, at_once: int = 1) -> int:
        """The largest micro-batch up to that planned of which a rank has a multiple of ``at_once`` per optimizer step.

        Where a rank has no such number of sequences, the largest that divides them.
        """
        per_rank = max(self.call.sequences // self.call.mini_batches // self.layout.data_parallel, 1)
        whole = per_rank // at_once if per_rank % at_once == 0 else per_rank
        return max(size for size in range(1, self.layout.micro_batch_size + 1) if whole % size == 0)

    @property
    def attention_groups(self) -> int:
        """Groups of an engine's replica that attend to sequences of their own and share experts."""
        return max(self.layout.expert_parallel // self.layout.tensor_parallel, 1)

    @property
    def gpus(self) -> tuple[int, int]:
        """First GPU, and one past the last."""
        return self.call.first_gpu, self.call.first_gpu + self.call.num_gpus


def on_gpus(plan: FlowPlan) -> dict[str, Placed]:
    """Calls that are no services beside the GPUs, by name."""
    return {call.name: Placed(call=call, layout=call.plan) for call in plan.calls if call.plan is not None}


def on_trainers(plan: FlowPlan, *, beside: Sequence[str] = ()) -> dict[str, Placed]:
    """Calls that trainers run, training first: all that generate nothing, but those ``beside`` them."""
    found = {name: item for name, item in on_gpus(plan).items() if item.call.kind != GENERATE and name not in beside}
    return dict(sorted(found.items(), key=lambda pair: pair[1].call.kind != TRAIN))


def is_apart(plan: FlowPlan) -> bool:
    """Whether generation, if there is any, has GPUs of its own."""
    calls = on_gpus(plan)
    return GENERATION in calls and calls[GENERATION].gpus != calls["actor_train"].gpus


def has_experts(request: FlowRequest, item: Placed) -> bool:
    """Whether the model of a call has experts."""
    return request.models[item.call.role].moe is not None


def merged(given: Mapping[str, Mapping[str, Any]], more: Mapping[str, Mapping[str, Any]]) -> Pins | None:
    """Pins of the user with others beside them; None where they contradict each other."""
    found = {
        call: {ALIASES.get(str(key), str(key)): value for key, value in pins.items()} for call, pins in given.items()
    }
    for call, pins in more.items():
        held = found.setdefault(call, {})
        for column, value in pins.items():
            if column == "gpus" and str(held.get(column)) == str(_count(value)):
                held[column] = value  # where so many GPUs are
            if held.setdefault(column, value) != value:
                return None
    return found


def pin_gaps(workers: Mapping[str, Placed], pins: Pins, why: str) -> Iterator[Gap]:
    """Layouts of calls that are others than they must be, with the pins that would do."""
    for name, columns in pins.items():
        for column, value in columns.items():
            given = getattr(workers[name].layout, column)
            if given != value:
                hint = f"pin {name}.{_PINNED_AS.get(column, column)}={value}"
                yield Gap(field=f"plan.{name}.{column}", problem=f"{why}; got {given}, not {value}", hint=hint)


def layout_gaps(name: str, layout: ExecutionPlan, checks: Iterable[tuple[bool, str, str, str]]) -> Iterator[Gap]:
    """Columns of a call's layout that a target has no setting for, of (whether so, column, problem, hint)."""
    for there, column, problem, hint in checks:
        if there:
            got = getattr(layout, column)
            words = f"{problem}; got {got.name.lower() if isinstance(got, Recompute | ContextKind) else got}"
            yield Gap(field=f"plan.{name}.{column}", problem=words, hint=hint)


def mesh_gaps(workers: Mapping[str, Placed], lead: Placed, what: str) -> Iterator[Gap]:
    """Calls that are on other GPUs than the one that trains, where ``what`` must be there."""
    where = f"{lead.gpus[0]}-{lead.gpus[1] - 1}"
    for name, item in workers.items():
        if item.gpus != lead.gpus:
            problem = f"{what} on GPUs {where}; got {item.gpus[0]}-{item.gpus[1] - 1}"
            yield Gap(field=f"plan.{name}.gpus", problem=problem, hint=f"pin {name}.gpus={where}")


def attention_of(request: FlowRequest, role: str) -> str | None:
    """The ``attn_implementation`` of transformers that is the library named; None where none is, or it has none."""
    return kernel_of(request.options.attention_library or "", request.cluster.groups[0].device, request.models[role])


def library_check(request: FlowRequest, role: str, *, chosen: bool) -> tuple[bool, str, str, str]:
    """Whether a library of attention is named that a target cannot be told of.

    Args:
        request: The question.
        role: Whose attention it is.
        chosen: Whether an option of the target chooses an ``attn_implementation``.
    """
    library = request.options.attention_library
    problem = f"{library} is no attn_implementation of transformers" if chosen else "no option of it chooses attention"
    lacking = bool(library) and not (chosen and attention_of(request, role))
    return lacking, "attention_library", problem, "leave it out"


def plain_checks(request: FlowRequest, role: str, *, called: str) -> tuple[tuple[bool, str, str, str], ...]:
    """What a target has not that trains in bf16, on nodes of one kind, beside a reference with the weights of before.

    Its losses are told from logits that are all there.

    Args:
        request: The question.
        role: The one that trains.
        called: What the target calls it.
    """
    other = request.models.get("ref", request.models[role]) != request.models[role]
    problem = f"exports are written for bf16; got {request.precision}"
    return (
        (request.precision != "bf16", "precision", problem, "precision bf16"),
        (len(request.cluster.groups) > 1, "cluster", "its nodes are of one kind", "machines of one kind"),
        (other, "models.ref", f"the reference is the {called} as it was at first", "leave it out"),
        (bool(request.options.linear_loss), "linear_loss", "its losses take whole logits", "leave it out"),
        chosen_keys(request, role),
    )


def chosen_keys(request: FlowRequest, role: str) -> tuple[bool, str, str, str]:
    """That what trains has an indexer: exports turn on none of Megatron-Core's kernels for the keys that it chooses.

    Without these it goes over PyTorch's operations (``dsa_kernel_backend``, "none" unless set), which has no price.
    """
    problem = "exports do not turn on the kernels that chosen keys are priced with (dsa_kernel_backend)"
    return request.models[role].indexer is not None, f"models.{role}", problem, "a model without an indexer"


def length_check(request: FlowRequest, role: str) -> tuple[bool, str, str, str]:
    """That an engine is to hold longer sequences than its model was built for, with which vLLM and SGLang do not start.

    Source:
        vLLM, config/model.py, ``_get_and_verify_max_len``; SGLang, srt/configs/model_config.py,
        ``_derive_context_length``. Both have an environment variable that lets it pass.
    """
    model, longest = request.models[role], longest_sequence(request)
    most = model.max_sequence_length
    problem = f"engines refuse {longest:,} tokens of prompt and response, as {model.name} was built for {most:,}"
    return 0 < most < longest, f"models.{role}", problem, f"prompt and response of {most:,} tokens, or a longer model"


def _count(gpus: str | int) -> int:
    """GPUs of a range, as they are pinned."""
    first, _, last = str(gpus).partition("-")
    return int(last) - int(first) + 1 if last else int(first)


def together(*sets: Pins) -> Pins:
    """Pins of several sets, the later ones in the place of earlier ones."""
    found: Pins = {}
    for pins in sets:
        for name, columns in pins.items():
            found[name] = found.get(name, {}) | columns
    return found


def pool_pins(request: FlowRequest, plan: FlowPlan, mode: str, *, lead: Placed, names: Sequence[str]) -> list[Pins]:
    """Pools that go with what a plan has: parted where it is, one GPU or node beside that, or in the middle.

    Args:
        request: The question.
        plan: The plan.
        mode: How calls are placed; colocated, all have all GPUs.
        lead: The call that trains.
        names: Calls on its GPUs; generation has the others.
    """
    if mode == COLOCATED:
        return [{}]
    total, each = request.cluster.num_devices, request.cluster.groups[0].node.devices_per_node
    size = each if total > each else 1
    ends = [end for end in (on_gpus(plan)[GENERATION].gpus[1], lead.gpus[0]) if 0 < end < total]
    near = [cut for end in ends for cut in (end // size * size, -(-end // size) * size)]
    beside = [cut + step for cut in near for step in (size, -size)]
    cuts = [cut for cut in (*near, total // 2 // size * size, *beside) if 0 < cut < total]
    return [
        {name: {"gpus": f"{cut}-{total - 1}"} for name in names} | {GENERATION: {"gpus": f"0-{cut - 1}"}}
        for cut in dict.fromkeys(cuts)
    ]


def pin_options(pins: Mapping[str, CallPin]) -> list[str]:
    """Pins as options of the command line."""
    return [f"--pin {call}.{name}={value}" for call, pin in pins.items() for name, value in _words(pin)]


def _words(pin: CallPin) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if pin.num_gpus is not None:
        place = str(pin.num_gpus) if pin.first_gpu is None else gpu_range(pin.first_gpu, pin.num_gpus)
        found.append(("gpus", f"{place}-{place}" if pin.first_gpu is not None and pin.num_gpus == 1 else place))
    if pin.engine is not None:
        found.append(("engine", pin.engine))
    return found + [(column, column_word(column, value)) for column, value in pin.columns.items()]


def about(request: FlowRequest, plan: FlowPlan) -> str:
    """The plan in words: workflow, machines, seconds per iteration, layout of every call."""
    lead = request.models[request.graph.roles[0].name].name
    words = f"{request.graph.name}, {lead} on {machines_label(request.cluster, plan.num_gpus)}"
    layouts = [f"{name} {layout_label(item.layout)}" for name, item in on_gpus(plan).items()]
    return f"{words}: {seconds(plan.steady_s)} per iteration; {', '.join(layouts)}"


def longest_response(request: FlowRequest) -> int:
    """Tokens of the longest response, rounded up."""
    return math.ceil(request.output.most)


def longest_sequence(request: FlowRequest) -> int:
    """Tokens of a prompt and its longest response."""
    return request.prompt_tokens + longest_response(request)


def responses(request: FlowRequest) -> int:
    """Responses per prompt that are trained on."""
    return int(request.graph.call("actor_train").factor)


def memory_share(request: FlowRequest, item: Placed, *, engine: str = "", beside_bytes: float = 0.0) -> float:
    """Share of a GPU's memory that an engine may take for what the plan has of it, in hundredths, rounded up.

    SGLang's is of what is free before it loads weights, and for these and the cache alone, graphs and context beside
    them (sgl-project/sglang, srt/model_executor/model_runner_kv_cache_mixin.py, profile_max_num_token). Trainers may
    hold less by then than later, as Adam's moments come with the first step: whatever is free then, its share fits
    beside all of that.

    Args:
        request: The question.
        item: What the engine runs.
        engine: The one whose setting it is, where the plan has the call run by a trainer.
        beside_bytes: Most that other calls keep on one of its GPUs meanwhile (``kept_beside``).
    """
    all_bytes = request.cluster.groups[0].device.reported_memory_bytes
    held = item.call.static_bytes + item.call.active_bytes
    share = held / all_bytes
    if (engine or item.call.engine) == SGLANG:
        runs = find_engine(SGLANG)
        runs = runs.eager() if request.options.eager else runs
        if item.call.engine == SGLANG:
            held -= runs.graph_bytes + runs.context_bytes
        free = max(all_bytes - beside_bytes - runs.context_bytes, held)
        share = min(held / free, free / all_bytes)
    return min(math.ceil(share * 100) / 100, 0.99)


def kept_beside(plan: FlowPlan, item: Placed) -> float:
    """Most bytes that other calls keep on a GPU of a call between their runs."""
    first, stop = item.gpus
    there = [part for part in plan.memory if part.first_gpu < stop and first < part.first_gpu + part.num_gpus]
    kept = [sum(owner.static_bytes for owner in part.owners if owner.call != item.call.name) for part in there]
    return max(kept, default=0.0)


def prefill_tokens(item: Placed, running: int) -> int:
    """Most tokens of an engine's step: those of its prompts, or one of each sequence that runs."""
    return max(find_engine(item.call.engine).prefill_tokens, running)


def node_counts(request: FlowRequest, num_gpus: int) -> tuple[int, int]:
    """Nodes that so many GPUs are, and GPUs of each."""
    each = min(request.cluster.groups[0].node.devices_per_node, num_gpus)
    return num_gpus // each, each


def checkpoint(model: ModelSpec) -> str:
    """Name on the Hugging Face hub that a model's figures were read from; empty where they were not."""
    found = _REPOSITORY.match(model.source)
    return found[1] if found else ""


def checkpoints_left(request: FlowRequest, options: Mapping[str, str]) -> list[str]:
    """What to say of checkpoints that are not known, and of models that end in a number.

    Args:
        request: The question.
        options: Role to the option that names its checkpoint.
    """
    unknown = {role: option for role, option in options.items() if not checkpoint(request.models[role])}
    found = [f"{option}: the checkpoint of {request.models[role].name}" for role, option in unknown.items()]
    heads = [role for role in options if role != "actor"]
    words = f"checkpoints of {' and '.join(heads)}: those written are of language models of that size"
    return [*found, words] if heads else found


def ray_left(nodes: int) -> list[str]:
    """How the nodes of a run are joined, where there are several."""
    words = f"Ray on the {nodes} nodes: ray start --head on one, ray start --address on others; {SCRIPT} there"
    return [words] if nodes > 1 else []
