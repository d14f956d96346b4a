"""What to know of hosts, of what frameworks make of networks and of long runs, said of every kind of result."""

from collections.abc import Iterable

from costmodels.plan import ExecutionPlan
from planner.results import Note, RunEstimate
from profiles.hardware import ClusterSpec
from profiles.stack import StackSpec
from profiles.units import GIGA

# What hosts kept out of the fit took over their price: docs/collectives.md, kin, pcie-staged.
_STAGED = "devices without peer access: badly set up hosts take ten times as long for messages between them"

# 419 unexpected interruptions of 16,384 H100s in 54 days (Llama 3, arXiv:2407.21783, table 5 and section 3.3.4).
_DEVICE_HOURS_PER_INTERRUPTION = 54 * 24 * 16384 / 419


def host_notes(used: Iterable[tuple[ClusterSpec, StackSpec]]) -> tuple[Note, ...]:
    """Warnings where the price is that of a host that is set up well, and where a faster network would gain nothing.

    Args:
        used: The machines that are used, and who runs on them.
    """
    pairs = list(used)
    nodes = [cluster.node for cluster, _ in pairs]
    notes: list[Note] = []
    if any(node.devices_per_node > 1 and not (node.scale_up.peer_to_peer or node.scale_up.one_host) for node in nodes):
        notes.append(Note(code="depends_on_host", field="cluster.scale_up", message=_STAGED))
    limited = next((stack for cluster, stack in pairs if _limits(cluster, stack)), None)
    if limited is not None:
        limit = limited.scale_out_group_bytes_per_s / GIGA
        message = f"groups across nodes run at {limit:.0f} GB/s at most, as runs of {limited.name} and its kin show"
        message += ": faster networks gain nothing"
        notes.append(Note(code="framework_limit", field="framework", message=message))
    return tuple(notes)


def offload_notes(plan: ExecutionPlan) -> tuple[Note, ...]:
    """A warning where weights are updated on the host, which launchers leave to one core of each rank.

    That may be why published runs with offloading took up to three times as long as priced (docs/unseen.md: the gist of
    LLaMA-7B, Hugging Face's blog on Ulysses, Finetune_LLAMA), where others took as long as priced.
    """
    if not plan.offload_optimizer:
        return ()
    message = (
        "the optimizer's step on the host is priced with all its cores; torchrun and accelerate start ranks with one "
        "thread each unless OMP_NUM_THREADS says more, as scripts of planner export do"
    )
    return (Note(code="host_threads", field="plan.offload_optimizer", message=message),)


def run_notes(run: RunEstimate | None) -> tuple[Note, ...]:
    """A warning where a run is long enough to be interrupted, which its duration does not count."""
    met = 0.0 if run is None else run.device_hours / _DEVICE_HOURS_PER_INTERRUPTION
    if met < 1:
        return ()
    rate = f"one in {_DEVICE_HOURS_PER_INTERRUPTION:,.0f} GPU-hours"
    message = f"the run is priced without interruptions; as often as Llama 3 met them ({rate}) they would be {met:,.0f}"
    return (Note(code="interruptions", field="job.train_tokens", message=message),)


def _limits(cluster: ClusterSpec, stack: StackSpec) -> bool:
    """Whether a framework's own limit, and not the network, is what groups across nodes run at."""
    network = cluster.node.nics_per_node * cluster.node.nic.bandwidth_bytes_per_s
    return cluster.num_nodes > 1 and 0 < stack.scale_out_group_bytes_per_s < network
