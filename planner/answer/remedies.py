"""When nothing fits: the smallest changes to the question under which something would.

Each remedy changes one thing the user fixed or left out (recomputation, ZeRO stage, micro-batch, degrees, offloading,
attention, loss, optimizer states, framework, sequence length, memory left free, number or kind of devices, host memory;
where no plan is even legal, the global batch), or a few where one is not enough, and searches again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import inf

from costmodels.eager_attention import unfused_by_default
from costmodels.plan import RECOMPUTES
from costmodels.workload import MAX_GLOBAL_BATCH, LoraSpec, TrainingJob
from planner.answer.fastest import price_fastest
from planner.answer.larger_machines import larger_devices, larger_hosts, with_less_left_free
from planner.answer.parts import sizes_to_try
from planner.answer.pricing import price_all
from planner.answer.trials import Searcher, Trial, joined, of_family, trial_of
from planner.question.attention import FLEX
from planner.question.jobs import on_another_stack, rounded_batch, said
from planner.question.lora import adapters_of
from planner.question.request import cost_context, full_node, part_of, space_of
from planner.ranking import Priced
from planner.results import Remedy, Request
from planner.rules.base import DEEPSPEED, FSDP, HUGGINGFACE, MEGATRON, divisors
from profiles.adapter_parameters import MLP_TARGETS
from profiles.errors import SpecError
from profiles.hardware import MAX_DEVICES, ClusterSpec
from profiles.stacks import find_stack, load_stacks
from profiles.units import GIB, GIGA

MAX_GROWTH = 2048  # largest multiple of the given devices tried: from one to where a trillion parameters fit
_SHORTEST = 512  # tokens; shorter sequences are no remedy
_ROUND = 128  # tokens; lengths that any degree of context or sequence parallelism in use divides
_BATCHES_TRIED = 24

# Which pins a remedy lifts, smallest change first.
_LIFTS = (
    ("more_recompute", "let the planner choose the recomputation", RECOMPUTES),
    ("smaller_micro_batch", "let the planner choose the micro-batch", ("micro_batch_size", "num_microbatches")),
    ("higher_zero", "let the planner choose the ZeRO stage", ("zero_stage", "zero_shard_degree")),
    (
        "other_degrees",
        "let the planner choose the parallel degrees",
        (
            "tensor_parallel",
            "pipeline_parallel",
            "data_parallel",
            "context_parallel",
            "sequence_parallel",
            "expert_parallel",
            "expert_tensor_parallel",
            "virtual_stages",
            "schedule",
            "first_stage_layers",
            "last_stage_layers",
        ),
    ),
)

# Changes that are tried together where none is enough, smallest first: what is trained, on what, stays as it is.
_JOINED = (
    "other_framework",
    *(code for code, _, _ in _LIFTS),
    *("fused_attention", "linear_loss", "quantised", "smaller_states", "offload"),
)


def search_once(request: Request, cluster: ClusterSpec) -> Priced:
    """The best plans of a request that fit a cluster, or those that come nearest, priced."""
    plans = space_of(request, cluster).plans
    context = cost_context(request, cluster)
    if not len(plans):
        return price_all(plans, context)
    return price_fastest(plans, context, count=1, most_risk=request.max_oom_risk)


def search_if_legal(request: Request) -> Priced | None:
    """The same on the cluster of the request; None where what is fixed leaves no legal plan there.

    Raises:
        SpecError: If there are more plans than are searched.
    """
    try:
        priced = search_once(request, request.cluster)
    except SpecError as error:
        if error.field == "cluster":
            raise
        return None
    return priced if len(priced) else None


def find_remedies(
    request: Request, *, needed_bytes: float = inf, legal: bool = True, searcher: Searcher = search_once
) -> tuple[Remedy, ...]:
    """Changes under which a plan fits, smallest first; if none does, those that come closest.

    Args:
        request: A question to which nothing fits.
        needed_bytes: The smallest peak memory of its plans: devices that hold less are not tried.
        legal: Whether it has plans that only lack memory.
        searcher: Prices the plans of a changed question.
    """
    whole = [] if legal else [_other_batches(request)]
    families = [tuple(trials) for trials in (*whole, *_families(request, legal=legal))]
    remedies = [remedy for trials in families for remedy in of_family(trials, searcher)]
    if not any(remedy.likely and remedy.code in (*_JOINED, "offload_and_free") for remedy in remedies):
        first = [trials[0] for trials in families if trials and trials[0].code in _JOINED]
        remedies += joined(sorted(first, key=lambda trial: _JOINED.index(trial.code)), request, searcher)
    others = (_fewer_devices(request), _more_devices(request), *_larger_machines(request, needed_bytes, searcher))
    remedies += [remedy for trials in others for remedy in of_family(trials, searcher)]
    working = [remedy for remedy in remedies if remedy.fits]
    return tuple(working or sorted(remedies, key=lambda remedy: remedy.peak_memory_bytes)[:3])


def _families(request: Request, *, legal: bool) -> Iterator[Iterable[Trial]]:
    """Families of ever larger changes of one kind; of one, the first that works and is likely to live is reported."""
    for code, message, names in _LIFTS:
        if set(names) & request.pins.keys():
            pins = {name: value for name, value in request.pins.items() if name not in names}
            yield [trial_of(request, code, message, pins=pins)]
    if request.stack.reduces_last and legal:
        yield _without_sums(request)
    if not request.offload:
        yield _offloading(request)
    if request.job.attention == "unfused" and unfused_by_default(request.model, request.stack):
        job = replace(request.job, attention="flash")
        yield [trial_of(request, "fused_attention", f"use {FLEX} (--attention flash)", job=job)]
    if not request.job.linear_cross_entropy:
        job = replace(request.job, linear_cross_entropy=True)
        message = "use a linear loss, output layer and loss together without logits (--linear-loss)"
        yield [trial_of(request, "linear_loss", message, job=job)]
    if request.job.optimizer == "adamw":
        job, told = _with_states_in_8_bits(request, request.job)
        yield [trial_of(request, "smaller_states", f"keep optimizer states in 8 bits ({told})", job=job)]
    yield from _fine_tuning(request)
    if request.job.lora is not None:
        yield from _lighter_adapters(request, request.job.lora)
    if request.stack.framework == HUGGINGFACE and request.cluster.num_devices > 1:
        yield _other_frameworks(request)
    yield _shorter(request)


def _fine_tuning(request: Request) -> Iterator[Iterable[Trial]]:
    """What all weights of a model that is fine-tuned may do without: 32 bits, and training."""
    if request.job.task != "full":
        return
    if request.job.precision == "bf16" and request.job.master_dtype != "none":
        job = replace(request.job, master_dtype="none", state_dtype="bf16", gradient_dtype="bf16")
        message = "train in 16 bits throughout (--master-dtype none --state-dtype bf16 --gradient-dtype bf16)"
        yield [trial_of(request, "sixteen_bits", message, job=job)]
    lora = adapters_of("lora", model=request.model).lora
    yield [
        trial_of(
            request,
            "adapters",
            f"{message} (--task {task})",
            job=replace(request.job, task=task, lora=lora, optimizer_in_backward=False),
        )
        for task, message in (
            ("lora", "train adapters instead"),
            ("qlora", "train adapters of a model in 4 bits instead"),
        )
    ]


def _with_states_in_8_bits(request: Request, job: TrainingJob) -> tuple[TrainingJob, str]:
    """A job whose optimizer states are in 8 bits, as its framework has them, and the options that ask for it."""
    if request.stack.framework == MEGATRON and not request.stack.own_optimizer:
        return replace(job, optimizer="adamw", state_dtype="fp8"), "--state-dtype fp8"
    return replace(job, optimizer="adamw8bit", state_dtype="int8"), "--optimizer adamw8bit"


def _lighter_adapters(request: Request, lora: LoraSpec) -> Iterator[Iterable[Trial]]:
    """What is frozen in 4 bits; adapters on attention alone, then with optimizer states in 8 bits besides."""
    job = request.job
    if job.task == "lora":
        message = "quantise what is frozen to 4 bits (--task qlora)"
        yield [trial_of(request, "quantised", message, job=replace(job, task="qlora", frozen_dtype=""))]
    kept = tuple(target for target in lora.targets if target not in MLP_TARGETS)
    if kept and kept != lora.targets:
        fewer = replace(job, lora=replace(lora, targets=kept))
        message = f"adapters on attention alone (--lora-targets {','.join(kept)})"
        both, told = _with_states_in_8_bits(request, fewer)
        yield [
            trial_of(request, "fewer_adapters", message, job=fewer),
            trial_of(request, "fewer_adapters", f"{message}, optimizer states in 8 bits ({told})", job=both),
        ]


def _other_batches(request: Request) -> Iterator[Trial]:
    """Batches that some number of ranks share without remainder, the nearest first; of equals the larger."""
    batch, pins = request.job.global_batch_size, request.pins
    unit = pins.get("micro_batch_size", 1) * pins.get("num_microbatches", 1)
    shared = [ranks * unit for ranks in divisors(request.cluster.num_devices)]
    near = {batch // each * each for each in shared} | {-(-batch // each) * each for each in shared}
    wanted = sorted(near - {0, batch}, key=lambda found: (abs(found - batch), -found))
    for found in wanted[:_BATCHES_TRIED]:
        if found <= MAX_GLOBAL_BATCH:
            job = replace(request.job, global_batch_size=found)
            yield trial_of(request, "other_batch", f"a global batch of {found} sequences", job=job)


def _without_sums(request: Request) -> Iterator[Trial]:
    """The most sequences a step that ranks need not sum gradients over, which such a stack keeps whole."""
    batch, devices = request.job.global_batch_size, request.cluster.num_devices
    if batch > devices and "num_microbatches" not in request.pins:
        job = replace(request.job, global_batch_size=devices)
        words = "sequences: over several micro-batches ranks sum gradients unsharded"
        if devices == 1:
            words = "sequence: over several micro-batches gradients stay as they are summed"
        message = f"a global batch of {devices} {words}"
        yield trial_of(request, "other_batch", message, job=job)


def _offloading(request: Request) -> Iterator[Trial]:
    """Offload as it is, then with everything but the model-parallel degrees free."""
    message = "offload optimizer states, checkpoints or weights to the host (--offload)"
    yield trial_of(request, "offload", message, offload=True)
    kept = {name: value for name, value in request.pins.items() if name in ("tensor_parallel", "pipeline_parallel")}
    if kept != dict(request.pins):
        message = "offload, and let the planner choose all but tp and pp"
        yield trial_of(request, "offload_and_free", message, pins=kept, offload=True)


def _other_frameworks(request: Request) -> Iterator[Trial]:
    """What shares sequences and layers out, which the Trainer is not planned to do, and runs the same checkpoints."""
    for name in (FSDP, DEEPSPEED):
        stack = find_stack(name, load_stacks(request.job.task))
        job = on_another_stack(request.job, request.asked, stack, request.cluster, request.model)
        message = f"share sequences or layers out over devices, as another framework does (--framework {name})"
        yield trial_of(request, "other_framework", message, job=job, stack=stack, stack_fitted=False)


def _shorter(request: Request) -> Iterator[Trial]:
    """Half the length, and half of that; between the two, eighths of the longer. Packed samples stay whole."""
    length, shortest = request.job.sequence_length, max(_SHORTEST, request.job.sample_tokens or 0)
    while length // 2 >= shortest:
        between = [length * eighths // 8 // _ROUND * _ROUND for eighths in (7, 6, 5)]
        length //= 2
        milder = tuple(_of_length(request, each) for each in between if each > length)
        yield replace(_of_length(request, length), milder=milder)


def _of_length(request: Request, length: int) -> Trial:
    job = replace(request.job, sequence_length=length)
    return trial_of(request, "shorter_sequence", f"shorten sequences to {length} tokens", job=job)


def _fewer_devices(request: Request) -> Iterator[Trial]:
    """Numbers of devices that batch, heads and layers may suit better than all of them do."""
    for size in sizes_to_try(request):
        yield trial_of(request, "fewer_devices", f"use {size} devices", cluster=part_of(request.cluster, size))


def _more_devices(request: Request) -> Iterator[Trial]:
    """The next sizes, degrees of data and pipeline parallelism free to grow, and whole nodes between them."""
    full = full_node(request.cluster).devices_per_node
    kept = said("global_batch_size", request.asked) or said("global_batch_tokens", request.asked)
    batch, pretrain = request.job.global_batch_size, request.job.task == "pretrain"
    for size in larger_sizes(request.cluster):
        between = [size * eighths // 8 for eighths in (5, 6, 7)]
        wanted = {each: batch if kept or pretrain else max(batch, each) for each in (*between, size)}
        milder = tuple(_of_size(request, each, None if kept else wanted[each]) for each in between if each % full == 0)
        yield replace(_of_size(request, size, wanted[size]), milder=milder)
        if request.stack.reduces_last and batch > size and not kept:  # one micro-batch, no sums beside the shards
            yield _of_size(request, size, size)


def _of_size(request: Request, size: int, batch: int | None) -> Trial:
    """So many devices, with a batch near to one that they share; None for that of the request."""
    free = ("data_parallel", "num_microbatches")
    pins = {name: value for name, value in request.pins.items() if name not in free}
    job, message = request.job, f"use {size} devices"
    if batch is not None and (batch != job.global_batch_size or (batch % size and size % batch)):
        job = replace(job, global_batch_size=rounded_batch(batch, size, pins))
        message += f" and a global batch of {job.global_batch_size} sequences"
    return trial_of(request, "more_devices", message, pins=pins, cluster=part_of(request.cluster, size), job=job)


def _larger_machines(request: Request, needed_bytes: float, searcher: Searcher) -> Iterator[Iterable[Trial]]:
    """Less memory left free, larger hosts where they are what is short, devices with more memory."""
    yield (_with_reserve(request, cluster) for cluster in with_less_left_free(request, needed_bytes))
    hosts = larger_hosts(request, searcher)
    if hosts is not None:
        message = f"give every host {hosts.node.host_memory_bytes / GIGA:,.0f} GB of memory (host_memory_gb)"
        yield [trial_of(request, "more_host_memory", message, cluster=hosts)]
    given = request.cluster.device.name
    yield (
        trial_of(request, "more_memory", f"use {cluster.device.name} instead of {given}", cluster=cluster, job=job)
        for cluster, job in larger_devices(request, needed_bytes)
    )


def _with_reserve(request: Request, cluster: ClusterSpec) -> Trial:
    free_bytes = cluster.device.reserved_memory_bytes
    free, asked = (f"{size / GIB:.4g}" for size in (free_bytes, request.memory_reserve_bytes))
    message = f"leave {free} GiB free on every device instead of {asked} (--reserve-gib {free})"
    return trial_of(request, "smaller_reserve", message, cluster=cluster, memory_reserve_bytes=free_bytes)


def larger_sizes(cluster: ClusterSpec) -> list[int]:
    """Device counts to try above the given one: doubling, part of a node or whole nodes."""
    sizes, size = [], cluster.num_devices
    full = full_node(cluster).devices_per_node
    while size * 2 <= min(cluster.num_devices * MAX_GROWTH, MAX_DEVICES):
        size *= 2
        if size < full or size % full == 0:
            sizes.append(size)
    return sizes
