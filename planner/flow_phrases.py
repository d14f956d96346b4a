"""Plans of workflows in words; numbers are formatted by ``planner.phrases``."""

from costmodels.plan import ExecutionPlan
from planner.dataflow.compositions import HeldExperts
from planner.dataflow.flow.infeasible import CallShortage, FlowInfeasible
from planner.dataflow.flow.results import Alternative, CallPlan, FlowPlan, Lead, Reason
from planner.dataflow.graphs.graph import EXTERNAL, GENERATE
from planner.phrases import differences, gib, percent, seconds
from profiles.mixed_cluster import MixedCluster

_HELD = {
    "resident": "weights that stay",
    "fetched": "weights on the host",
    "delivered": "weights that arrive",
    "states_out": "states on the host",
    "all_out": "weights and states on the host",
}


def gpu_range(first: int, number: int) -> str:
    """GPUs in words: ``0-63``, ``7``; ``none`` for a service beside them."""
    if not number:
        return "none"
    return str(first) if number == 1 else f"{first}-{first + number - 1}"


def machines_label(machines: MixedCluster, used: int) -> str:
    """GPUs in words: ``128 x H100-SXM-80GB``; of several kinds each with its range."""
    if len(machines.groups) == 1:
        return f"{used} x {machines.groups[0].device.name}"
    return " and ".join(
        f"{group.num_devices} x {group.device.name} ({gpu_range(first, group.num_devices)})"
        for first, group in zip(machines.starts, machines.groups, strict=True)
    )


def layout_label(plan: ExecutionPlan) -> str:
    """Degrees in short: ``tp8 pp2 dp4``, the others only where they are used."""
    words = [f"tp{plan.tensor_parallel}", f"pp{plan.pipeline_parallel}", f"dp{plan.data_parallel}"]
    others = {"cp": plan.context_parallel, "ep": plan.expert_parallel, "vpp": plan.virtual_stages}
    return " ".join(words + [f"{name}{number}" for name, number in others.items() if number > 1])


def reason_sentence(plan: FlowPlan, reason: Reason) -> str:
    """Why a call takes its part of the iteration, and what else was possible."""
    call = next(item for item in plan.calls if item.name == reason.call)
    words = f"{call.name} takes {percent(reason.share)} of the iteration"
    if call.kind == EXTERNAL:
        return f"{words}: a service beside the GPUs, {seconds(call.time_s)} for {call.sequences} sequences."
    if call.kind == GENERATE:
        longer = ""
        if call.experts is not None:
            runs = f"{call.experts.runs:.3g}"
            longer = " of one expert" if runs == "1" else f" of {runs} experts, one after the other"
        elif reason.carries_over:
            longer = f" (the mean response has {reason.mean_tokens:.0f}; what has not ended is carried over)"
        elif reason.runs_on:
            longer = f" (the mean response has {reason.mean_tokens:.0f}; the last go on beside the next)"
        elif reason.decode_steps > 1.05 * reason.mean_tokens:
            longer = f" (the longest of {call.sequences}; the mean is {reason.mean_tokens:.0f})"
        words += f": {reason.decode_steps:.0f} steps{longer}{_pace(call, reason)}, MFU {percent(reason.mfu)}."
    else:
        words += f" at MFU {percent(reason.mfu)} on {call.num_gpus} GPUs."
    other = reason.alternative
    if other is None:
        return words + " No other way to run it there is more than 1 % faster."
    words += f" It would take {seconds(other.time_s)} as {_other_way(call, other)}; with all else as planned, "
    if not other.fits:
        lacking = f"{gib(other.over_bytes)} more memory" if other.over_bytes else "more host memory"
        return words + f"that needs {lacking} than there is."
    change = other.steady_s / plan.steady_s - 1
    if change > 0.0005:
        return words + f"the iteration would be {percent(change)} longer."
    return words + "the iteration would be as long."


def _other_way(call: CallPlan, other: Alternative) -> str:
    """Another way to run a call in words; what else differs is told where layout and GPUs are those planned."""
    where = f"{other.engine} {layout_label(other.plan)} on GPUs {gpu_range(other.first_gpu, other.num_gpus)}"
    if call.plan is None or (call.first_gpu, call.num_gpus, call.engine, layout_label(call.plan)) != (
        other.first_gpu,
        other.num_gpus,
        other.engine,
        layout_label(other.plan),
    ):
        return where
    differing = []
    if other.holding != call.holding:
        differing.append(_HELD[other.holding])
    if call.experts is not None and other.experts is not None and call.experts.on_device != other.experts.on_device:
        differing.append(f"{other.experts.on_device} experts that stay")
    if other.concurrent != call.concurrent:
        differing.append(f"{other.concurrent} sequences at once")
    settings = differences(call.plan, other.plan)
    if settings.pop("micro_batch_size", None) and not other.concurrent:
        differing.append(f"micro-batches of {other.plan.micro_batch_size}")
    differing += settings.values()
    return f"{where} with {' and '.join(differing)}" if differing else where


def _pace(call: CallPlan, reason: Reason) -> str:
    """Seconds of a step where all sequences run from the start; otherwise how many run, as no step is each one's."""
    each = -(-call.sequences // call.plan.data_parallel) if call.plan is not None else call.sequences
    each = each if call.experts is None else call.experts.sequences
    if call.concurrent > each:
        return f", {call.concurrent} sequences of a replica at once, {each} of each batch"
    if call.concurrent < each:
        return f", {call.concurrent} of the {each} sequences of a replica at once"
    return f" of {seconds(call.time_s / max(reason.decode_steps, 1))} with the prompts"


def experts_sentence(call: str, experts: HeldExperts) -> str:
    """Where the experts of a composition lie, and what reading those that are elsewhere takes."""
    lying = {
        "stay in device memory": experts.on_device,
        "lie in host memory": experts.on_host,
        "on disk": experts.on_disk,
    }
    where = ", ".join(f"{number} {words}" for words, number in lying.items() if number)
    text = f"{call}: of {experts.total} experts {where}. The busiest replica runs {experts.runs:.3g} an iteration"
    if experts.on_device == experts.total:
        return f"{text}."
    hits = percent(experts.hit_share)
    return f"{text} and reads weights for {seconds(experts.fetch_s)}; {hits} of the sequences need one that stays."


def lead_sentence(lead: Lead) -> str:
    """When a call that reads another as it writes may start."""
    if lead.lead_s > 0:
        return f"{lead.target} starts up to {seconds(lead.lead_s)} before {lead.source} ends, on what has ended."
    if lead.lead_s < 0:
        return f"{lead.target} waits {seconds(-lead.lead_s)} for the last responses after {lead.source} has gone on."
    return f"{lead.target} could start before {lead.source} ends, but shares its GPUs."


def shortage_sentence(item: CallShortage) -> str:
    """What stands in the way of a plan."""
    if item.needs_bytes <= item.usable_bytes and not item.call:
        return "Every call fits alone, but no combination of them was found that fits together."
    if item.on_host:
        return (
            f"All calls fit the GPUs with {gib(item.needs_bytes)} of host memory per node, "
            f"{gib(item.usable_bytes)} are there."
        )
    if not item.call:
        return (
            f"Together the calls need at least {gib(item.needs_bytes)} per GPU, {gib(item.usable_bytes)} are usable: "
            "what they hold between runs, spread evenly, and the least that one needs beyond."
        )
    if not item.needs_bytes:
        return f"{item.call}: no layout is legal on these GPUs with what is fixed."
    return f"{item.call} needs at least {gib(item.needs_bytes)} per GPU, {gib(item.usable_bytes)} are usable."


def minimum_sentence(infeasible: FlowInfeasible) -> str:
    """What would do: the smallest cluster, a framework that splits models and losses without logits, where they do."""
    least = f"{infeasible.minimum_gpus} GPUs of this kind would do{_per_iteration(infeasible.minimum_steady_s)}."
    if infeasible.minimum_gpus is None:
        least = f"Nothing up to {infeasible.looked_at_gpus} GPUs of these machines does."
    if infeasible.framework:
        pace = _per_iteration(infeasible.framework_steady_s)
        least += f" Framework {infeasible.framework} splits models and fits these GPUs{pace}."
    if infeasible.linear_loss_steady_s is not None:
        pace = _per_iteration(infeasible.linear_loss_steady_s)
        least += f" Losses that hold no logits (linear_loss) fit these GPUs{pace}."
    return least


def _per_iteration(steady_s: float | None) -> str:
    return "" if steady_s is None else f", about {seconds(steady_s)} per iteration"
