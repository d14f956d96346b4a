"""Numbers and plans in words: the only place that formats quantities for people."""

from collections.abc import Mapping, Sequence

from costmodels.plan import (
    PLAN_COLUMNS,
    AxisOrder,
    ContextKind,
    ExecutionPlan,
    Recompute,
    RecomputeModule,
    Schedule,
)
from planner.results import RISKY, Explanation, PlanEstimate, Remedy, Rival
from planner.rules.modules import module_names
from planner.rules.pipeline import NAME_OF_SCHEDULE
from profiles.units import GIB, SECONDS_PER_DAY, SECONDS_PER_HOUR

TIME_NAMES = {
    "forward": "forward",
    "backward": "backward",
    "recompute": "recomputation",
    "embedding_and_loss": "embedding and loss",
    "tensor_parallel": "tensor-parallel communication",
    "context_parallel": "context-parallel communication",
    "expert_parallel": "expert-parallel communication",
    "pipeline_transfer": "pipeline transfers",
    "data_parallel": "gradient and parameter traffic",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer step",
    "offload": "offloading to the host",
    "overhead": "launches and fixed overhead",
}
MEMORY_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "logits": "logits",
    "communication": "communication buffers",
    "reserve": "allocator reserve",
    "context": "context and libraries",
}
SHORT_NAMES = {
    "tensor_parallel": "tp",
    "pipeline_parallel": "pp",
    "data_parallel": "dp",
    "context_parallel": "cp",
    "expert_parallel": "ep",
    "expert_tensor_parallel": "etp",
    "virtual_stages": "vpp",
    "zero_stage": "zero",
    "zero_shard_degree": "shard degree",
    "micro_batch_size": "micro-batch",
    "num_microbatches": "micro-batches",
    "recompute_layers": "recomputed layers",
    "recompute_modules": "recomputed modules",
    "sequence_parallel": "sequence parallel",
    "offload_optimizer": "optimizer offload",
    "offload_activations": "activation offload",
    "offload_parameters": "weight offload",
    "num_devices": "gpus",
}


_SWITCHES = {name for name, kind in PLAN_COLUMNS.items() if kind is bool}
_EVEN = dict.fromkeys(("first_stage_layers", "last_stage_layers"), "even")  # as many layers as the other stages


def gib(count_bytes: float) -> str:
    """Bytes in GiB, e.g. ``72.4 GiB``."""
    return f"{count_bytes / GIB:.1f} GiB"


def seconds(duration_s: float) -> str:
    """A duration in the unit that suits it, three digits: ``7.95 s``, ``812 ms``, ``3.2 days``."""
    if duration_s < 0.9995e-3:
        return f"{duration_s * 1e6:.3g} us"
    if duration_s < 0.9995:
        return f"{duration_s * 1e3:.3g} ms"
    if duration_s < 2 * SECONDS_PER_HOUR:
        return f"{duration_s:.3g} s" if duration_s < 999.5 else f"{duration_s:,.0f} s"
    if duration_s < 2 * SECONDS_PER_DAY:
        return f"{duration_s / SECONDS_PER_HOUR:.1f} hours"
    return f"{duration_s / SECONDS_PER_DAY:,.1f} days"


def count(number: float) -> str:
    """A large count: ``13.0B``, ``4.19M``, ``1,024``; ``4.9e21`` where no word is left."""
    if number >= 1e15:
        return f"{number:.1e}".replace("e+", "e")
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6)):
        if number >= size:
            scaled = number / size
            return f"{scaled:.3g}{unit}" if scaled < 999.5 else f"{scaled:,.0f}{unit}"
    return f"{number:,.0f}"


def percent(share: float) -> str:
    """A share: ``55 %``; below ten per cent with one decimal."""
    return f"{share * 100:.1f} %" if share < 0.0995 else f"{share * 100:.0f} %"


def dollars(usd: float) -> str:
    """Dollars without cents from a hundred up."""
    return f"${usd:,.0f}" if usd >= 100 else f"${usd:,.2f}"


def amount(number: float) -> str:
    """GPU-hours, kWh and the like: ``1,846``, ``2.4`` below ten, ``0.052`` below one."""
    if number < 0.995:
        return f"{number:.2g}"
    return f"{number:.1f}" if number < 9.95 else f"{number:,.0f}"


def energy(joules: float) -> str:
    """Energy in MWh, below one in kWh: ``12.35 MWh``, ``823 kWh``, ``2.5 kWh``."""
    return f"{joules / 3.6e9:,.2f} MWh" if joules >= 3.6e9 else f"{amount(joules / 3.6e6)} kWh"


def plan_label(plan: ExecutionPlan) -> str:
    """A plan in the field's short words, parts that are off left out."""
    words = [f"tp{plan.tensor_parallel}", f"pp{plan.pipeline_parallel}", f"dp{plan.data_parallel}"]
    optional = (
        ("cp", plan.context_parallel),
        ("ep", plan.expert_parallel),
        ("etp", plan.expert_tensor_parallel if plan.expert_parallel > 1 else 1),
        ("vpp", plan.virtual_stages),
    )
    words += [f"{name}{degree}" for name, degree in optional if degree > 1]
    words += [f"zero{plan.zero_stage}", f"mbs{plan.micro_batch_size}"]
    return ", ".join([" ".join([*words, recompute_label(plan)]), *offload_words(plan)])


def offload_words(plan: ExecutionPlan) -> list[str]:
    """What is on the host."""
    moved = {"offload": "optimizer", "ckpt offload": "activations", "weight offload": "parameters"}
    return [words for words, name in moved.items() if getattr(plan, f"offload_{name}")]


def recompute_label(plan: ExecutionPlan) -> str:
    """The recomputation as the command line takes it: ``none``, ``full``, ``block:4``, ``selective:moe_act``."""
    mode = plan.recompute.name.lower()
    if plan.recompute == Recompute.SELECTIVE and plan.recompute_modules != RecomputeModule.CORE_ATTN:
        return f"{mode}:{','.join(module_names(plan.recompute_modules))}"
    return f"{mode}:{plan.recompute_layers}" if plan.recompute == Recompute.BLOCK else mode


def explanation_sentences(best: PlanEstimate, explanation: Explanation) -> list[str]:
    """An explanation as sentences, most important first."""
    sentences = [_time_sentence(best, explanation), _memory_sentence(best, explanation)]
    sentences += [rival_sentence(rival) for rival in explanation.rivals]
    return sentences


def _time_sentence(best: PlanEstimate, explanation: Explanation) -> str:
    parts = [f"{TIME_NAMES[item.part]} {percent(item.share)}" for item in explanation.time[:3]]
    return f"A step takes {seconds(best.step_time_s)}: {', '.join(parts)}."


def _memory_sentence(best: PlanEstimate, explanation: Explanation) -> str:
    parts = [f"{MEMORY_NAMES[item.part]} {gib(item.value)}" for item in explanation.memory[:3]]
    where = f" (stage {best.fullest_stage.index})" if len(best.stages) > 1 else ""
    usable = gib(best.usable_memory_bytes)
    return f"The fullest device{where} holds {gib(best.peak_memory_bytes)} of {usable}: {', '.join(parts)}."


def rival_changes(rival: Rival) -> str:
    """What is different about a rival: ``tp 1 -> 2, zero 3 -> 2``."""
    return ", ".join(
        f"{_short(name)} {_shown(name, rival.changes, 0)} -> {_shown(name, rival.changes, 1)}"
        for name in _told(rival.changes, rival.dimension)
    )


def differences(chosen: ExecutionPlan, other: ExecutionPlan) -> dict[str, str]:
    """What another plan has where it is not as the chosen one, by field: ``{"zero_stage": "zero 1"}``.

    Fields that usually follow from others are told only where nothing else is.
    """
    changes = changed_fields(chosen, other)
    return {name: f"{_short(name)} {_shown(name, changes, 1)}" for name in _told(changes) or changes}


def changed_fields(chosen: ExecutionPlan, other: ExecutionPlan) -> dict[str, tuple[int, int]]:
    """Fields in which two plans differ, and devices, to both values; not layers that were laid out by hand."""
    names = ("num_devices", *PLAN_COLUMNS)
    pairs = {name: (int(getattr(chosen, name)), int(getattr(other, name))) for name in names}
    return {name: (one, another) for name, (one, another) in pairs.items() if one != another}


def rival_sentence(rival: Rival) -> str:
    """What one rival trades."""
    pace = "as fast"
    if abs(rival.step_time_ratio - 1) >= 0.0005:
        change = abs(rival.step_time_ratio - 1)
        pace = f"{percent(change)} {'slower' if rival.step_time_ratio > 1 else 'faster'}"
    memory = rival.peak_memory_difference_bytes
    more = f"{gib(abs(memory))} {'more' if memory > 0 else 'less'} memory"
    if not rival.fits:
        return f"{rival_changes(rival)}: would be {pace} but does not fit ({more})."
    if not rival.ranked:
        return f"{rival_changes(rival)}: {pace}, but at risk of running out of memory ({more})."
    return f"{rival_changes(rival)}: {pace}, {more}."


def signed_percent(change: float) -> str:
    """A relative change: ``+1.2 %``; ``=`` when it rounds to nothing."""
    if abs(change) < 0.0005:
        return "="
    return ("+" if change > 0 else "-") + percent(abs(change))


def signed_gib(change_bytes: float) -> str:
    """A difference in GiB: ``-1.6 GiB``; ``=`` when it rounds to nothing."""
    if abs(change_bytes) < 0.05 * GIB:
        return "="
    return ("+" if change_bytes > 0 else "-") + gib(abs(change_bytes))


def schedule_label(plan: ExecutionPlan) -> str:
    """The schedule as the command line takes it, ``1f1b``; virtual stages make it an interleaved one."""
    word = NAME_OF_SCHEDULE[plan.schedule]
    return f"interleaved {word}" if plan.virtual_stages > 1 else word


def _told(changes: Mapping[str, tuple[int, int]], first: str = "") -> list[str]:
    """Fields whose changes are worth telling, the one sought first; not those that follow from others."""
    silent = {"overlap_param_gather", "tensor_parallel_overlap", "overlap_grad_reduce", "num_microbatches"}
    told = [name for name in changes if name not in silent]
    if "recompute" in told and Recompute.BLOCK in changes["recompute"]:
        told = [name for name in told if name != "recompute_layers"]
    return sorted(told, key=lambda name: name != first)


def _short(name: str) -> str:
    return SHORT_NAMES.get(name, name.replace("_", " "))


def _shown(name: str, changes: Mapping[str, tuple[int, int]], side: int) -> str:
    value = changes[name][side]
    if name == "recompute":
        mode = Recompute(value).name.lower()
        layers = changes.get("recompute_layers", (0, 0))[side]
        return f"{mode}:{layers}" if value == Recompute.BLOCK and layers else mode
    if name == "recompute_modules":
        return ",".join(module_names(value))
    for words, kind in (("context_kind", ContextKind), ("axis_order", AxisOrder)):
        if name == words:
            return kind(value).name.lower()
    if name == "schedule":
        return NAME_OF_SCHEDULE[Schedule(value)]
    if name in _SWITCHES:
        return "on" if value else "off"
    return {"zero_shard_degree": "all", **_EVEN}.get(name, "0") if value == 0 else str(value)


RISK_MEANS = f"GiB? runs out of memory in {percent(RISKY)} of runs or more"


def peak_cell(item: PlanEstimate, *, marked: bool) -> str:
    """The peak in GiB, with a question mark where it is at risk; ``marked`` leaves room for those of other rows."""
    return f"{item.peak_memory_bytes / GIB:.1f}" + ("?" if item.risky else " " * marked)


def remedy_sentence(remedy: Remedy) -> str:
    """What one remedy leads to."""
    peak = f"peak {gib(remedy.peak_memory_bytes)}"
    if remedy.fits:
        devices = "1 device" if remedy.num_devices == 1 else f"{remedy.num_devices} devices"
        if not remedy.likely:
            peak += f" (runs out of memory in {percent(remedy.oom_probability)} of runs)"
        return f"{remedy.message}: fits, {peak}, {seconds(remedy.step_time_s)} per step on {devices}"
    return f"{remedy.message}: still does not fit, {peak}"


def unused_row(file: str, line: int, reason: str) -> str:
    """Why a row of a table is not used; reasons that are of one cell begin with its place."""
    place = f"{file}:{line}:"
    return f"not used: {place} {reason.removeprefix(place)}"


def assumed_columns(names: Sequence[str]) -> str:
    """What a table of timings that lacks columns is taken to say."""
    said = {
        "source": "nobody is named who measured",
        "batch": "batch is 1",
        "notes": "no notes say which library or kernel ran, a collective library's or the usual is meant",
        "impl": "no implementation is named, the usual is meant",
    }
    return f"no column {', '.join(names)}: " + "; ".join(said[name] for name in names)
