"""Which modules of a layer selective recomputation may repeat: sets that save memory, as a framework takes them."""

from itertools import product

from costmodels.plan import BoolArray, IntArray, RecomputeModule
from costmodels.workload import TrainingJob
from planner.rules.base import MEGATRON, Setting, mask
from profiles.model import ModelSpec

CORE = int(RecomputeModule.CORE_ATTN)
MODULE_NAMES = {module.name.lower(): module for module in RecomputeModule if module.name is not None}
_OF_EXPERTS = RecomputeModule.MOE_ACT | RecomputeModule.MOE | RecomputeModule.SHARED_EXPERTS


def module_names(modules: int) -> tuple[str, ...]:
    """The names of a set of ``RecomputeModule`` flags, in the order of the flags."""
    return tuple(name for name, module in MODULE_NAMES.items() if modules & module)


def present_modules(model: ModelSpec) -> RecomputeModule:
    """The modules that some layer of a model has."""
    found = RecomputeModule.CORE_ATTN
    if model.latent_attention is not None:
        found |= RecomputeModule.LAYERNORM | RecomputeModule.MLA_UP_PROJ
    if model.dense_mlp_layers:
        found |= RecomputeModule.MLP
    if model.moe is not None:
        found |= RecomputeModule.LAYERNORM | RecomputeModule.MOE_ACT | RecomputeModule.MOE
        if model.moe.shared_ffn_hidden_size:
            found |= RecomputeModule.SHARED_EXPERTS
    return found


def unrepeatable_modules(job: TrainingJob) -> RecomputeModule:
    """Modules whose output Megatron-Core's fp8 keeps, scaled by what came before (delayed scaling, its default)."""
    kept = RecomputeModule.LAYERNORM | RecomputeModule.MOE_ACT
    return kept if job.precision == "fp8" else RecomputeModule(0)


def module_sets(setting: Setting, *, named: bool) -> tuple[int, ...]:
    """Sets of modules worth recomputing, the attention core first, which is what frameworks do unasked.

    Args:
        setting: Model, job and framework; only Megatron-LM can be told which modules.
        named: Whether others than the attention core are considered.
    """
    if not named or setting.framework != MEGATRON:
        return (CORE,)
    there = present_modules(setting.model) & ~unrepeatable_modules(setting.job)
    if setting.job.attention == "flash":  # keeps nothing that repeating the core would drop
        there &= ~RecomputeModule.CORE_ATTN
    alone = [(0, int(module)) for module in RecomputeModule if module & there & ~_OF_EXPERTS]
    act, shared = RecomputeModule.MOE_ACT & there, RecomputeModule.SHARED_EXPERTS & there
    experts = sorted({0, int(act), int(shared), int(act | shared), int(RecomputeModule.MOE & there)})
    found = {sum(chosen) for chosen in product(*alone, experts)} - {0, CORE}
    return (CORE, *sorted(found))


def overlapping(modules: IntArray) -> BoolArray:
    """(N,) whether a set names a whole mixture of experts and a part of it: nothing more than the whole."""
    parts = int(RecomputeModule.MOE_ACT | RecomputeModule.SHARED_EXPERTS)
    whole = (modules & int(RecomputeModule.MOE)) > 0
    return mask(whole & ((modules & parts) > 0))
