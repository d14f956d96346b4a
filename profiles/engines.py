"""Generation engines: what a program that decodes adds to kernels and links, and the memory it works with.

``data/engines/*.yaml`` maps names to fields, each with its source; ``data/fits/dataflow.json`` holds what was fitted on
published runs (``planner.validate.dataflow.fit`` writes it). The engine ``trainer`` is the training framework
itself generating, as ReaLHF, DeepSpeed-Chat and ``transformers`` do: its kernels are those of the training stack.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib import resources
from math import inf
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from profiles.catalog import load_yaml_directory
from profiles.engine_defaults import DeviceDefaults
from profiles.errors import SpecError, did_you_mean
from profiles.hardware import DeviceSpec
from profiles.linear_attention import LINEAR_KINDS, LinearAttention
from profiles.model import ModelSpec
from profiles.weights import WeightFormat

FloatArray = NDArray[np.float64]
TRAINER = "trainer"
# How tokens are proposed in speculative decoding: heads on the model's own states, text of the request, or a model.
DRAFT_MODEL = "draft_model"
METHODS = ("eagle3", "eagle", "mtp", "ngram")
# What ``memory_utilization`` is a share of, and what has to fit it.
OF_ALL = "all"  # of all memory, for all it keeps
OF_ALL_BUT_GRAPHS = "all_but_graphs"  # of all memory, for all but graphs, which come on top
OF_WEIGHTS_AND_CACHE = "weights_and_cache"  # of what is free before it loads, for these two; the rest comes on top
OF_FREE = "free"  # of what weights and activations leave, for the cache
_SHARES = (OF_ALL, OF_ALL_BUT_GRAPHS, OF_WEIGHTS_AND_CACHE, OF_FREE)
# Fields that are lists in YAML.
_TUPLES = (
    *("unsupported", "linear_attention", "sparse_attention", "sparse_cache_16_bits", "compressed_attention"),
    *("cuts_four_bit_experts", "speculates", "speculates_ungrouped", "prefill_launched_on"),
)
_FITTED_AS = "fitted_as"  # in YAML: another engine, whose fits are this one's, too
_HOST_TIMES = (
    *("kernel_launch_s", "prefill_launch_s", "eager_launch_s", "collective_launch_s"),
    *("step_overhead_s", "sequence_overhead_s", "rollout_step_s"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine, of one era. Times are host times per replica, on an x86 server.

    Attributes:
        name: Catalogue name.
        description: What runs under this name.
        captures_graphs: Decode steps are replayed as CUDA graphs: launching their kernels costs the host nothing.
        continuous: A sequence that ends makes room for one that waits; otherwise a batch runs until its last ends.
        fused_experts: Expert layers run as one fused kernel over the experts that see a token.
        norms_quantise: Norms write the input of a product in 8 bits themselves, where no other kernel reads it.
        activations_quantise: Activation functions do.
        splits_stages: Whether layers can be split over pipeline stages.
        rollout_stages: Whether they can under a reinforcement-learning framework.
        chunks_follow: Whether a chunk of a prompt enters the first stage while those before it are in later ones.
        disaggregates: Whether prompts can be read by replicas of their own, which hand their keys and values on.
        pools: Whether it serves embeddings, scores and classes of decoders: prompts that are read, and no token.
        pools_over_stages: Whether it does so with several pipeline stages.
        pools_with_head: Whether the output layer of a language model stays on the device then, for nothing.
        speculates: Methods of speculative decoding that it has: of ``METHODS``, and ``draft_model``.
        speculates_ungrouped: Those of them that it refuses with data-parallel attention.
        drafts_trees: Whether drafts may branch there.
        attention_data_parallel: Whether groups of ranks, each with requests of its own, may share one set of experts.
        groups_are_ranks: Where they do, a group is a single rank.
        cuts_spread_experts: Experts may be spread over a part of the tensor-parallel ranks and be cut over the others.
        vocabulary_multiple: What it pads vocabularies to before ranks share them out evenly; 0: to suit the ranks.
        own_all_reduce: Sums over the devices of a domain are a kernel of its own, not NCCL's
            (``costmodels.links.engine_reduce``).
        shares_prefixes: Prompts of several samples are read and kept once.
        drops_put_off: Sequences that lose their room in the cache are read anew when there is room again.
        reads_first: Prompts that wait are read in steps of their own, in which nobody else gets a token.
        reserves_whole: A sequence starts when the cache has room for its prompt and the most it may become.
        kernel_launch_s: Host time to issue one kernel of a step outside a graph.
        prefill_launch_s: The same of a pass that reads prompts, with the Python around it.
        prefill_graph_tokens: Most tokens of such a pass that are replayed as graphs, if any are.
        latent_graph_tokens: The same of models with latent attention; None where they are as the others.
        prefill_launched_on: Architectures on which no such pass is a graph.
        eager_launch_s: Host time to issue one kernel or collective, with the Python around it, where it captures no
            graphs at all; 0 where that is not known, and ``eager`` refuses.
        collective_launch_s: Host time to issue one collective outside a graph.
        step_overhead_s: Host time between two steps that nothing hides: scheduling, inputs, sampling.
        sequence_overhead_s: The same per running sequence.
        rollout_step_s: Host time between two steps that comes on top under a reinforcement-learning framework.
        memory_utilization: Share of the memory a device reports that the engine may use; the rest is other programs'.
        share_of: What it is a share of: ``all``, ``all_but_graphs``, ``weights_and_cache`` or ``free``.
        measures_sampling: Starting, it runs its most sequences through sampling, and keeps what that needs free.
        max_sequences: Most sequences a replica runs at once.
        sequences_within_tokens: They are no more than ``prefill_tokens``.
        prefill_tokens: Most prompt tokens of one step.
        by_device: What its server has instead on some devices, the first that fits.
        graph_bytes: Device memory of captured graphs.
        context_bytes: CUDA context, workspaces and communicators.
        update_tensor_s: Host time per tensor when a trainer on the same GPUs hands on new weights.
        update_bytes_per_s: Rate at which it then gathers and loads all of them.
        apart_tensor_s, apart_bytes_per_s: The same where the trainer has GPUs of its own.
        unsupported: Architectures of devices that it does not run on (``DeviceSpec.architecture``).
        dropped_in: By architecture, the first release that no longer runs on it.
        linear_attention: Kinds of linear attention whose models it runs (``profiles.linear_attention``).
        sparse_attention: Architectures of devices for which it has kernels of DeepSeek sparse attention; none where it
            has no code for indexers (``profiles.indexer``).
        sparse_cache_16_bits: Those of them on which these kernels read keys and values in 16 bits only.
        compressed_attention: The same of compressed keys (``profiles.compressed_attention``).
        compressed_stages: Whether layers with such keys can be split over pipeline stages.
        cuts_four_bit_experts: Architectures on which experts in 4 bits beside 8-bit matrices are shared by width alone.
        float32_states: Those whose recurrent states it keeps in 32 bits; others are in the model's format, but for
            models that ask for 32 (``LinearAttention.float32_states``).
        expert_multiples: Format of weights and architecture of devices to the multiples that its kernels' matrices of
            experts are padded to there: hidden width, and a rank's part of their own.
        weights_on: Formats of weights (``profiles.weights``) that it serves, each with the architectures of devices
            that it has kernels for; 16 bits it serves everywhere.
        kernels: Label of the timings whose kernels it runs (``costmodels.kernels.implementations``); empty: none.
        kernels_on: The same by architecture, where that is another.
        residual_log_std: Standard deviation of log(measured / predicted) generation time.
        sources: Field name to citation.
    """

    name: str
    description: str
    captures_graphs: bool = False
    continuous: bool = True
    fused_experts: bool = True
    norms_quantise: bool = False
    activations_quantise: bool = False
    splits_stages: bool = True
    rollout_stages: bool = True
    chunks_follow: bool = False
    disaggregates: bool = False
    pools: bool = False
    pools_over_stages: bool = False
    pools_with_head: bool = False
    speculates: tuple[str, ...] = ()
    speculates_ungrouped: tuple[str, ...] = ()
    drafts_trees: bool = False
    attention_data_parallel: bool = False
    groups_are_ranks: bool = False
    cuts_spread_experts: bool = False
    vocabulary_multiple: int = 0
    own_all_reduce: bool = False
    shares_prefixes: bool = False
    drops_put_off: bool = False
    reads_first: bool = False
    reserves_whole: bool = False
    kernel_launch_s: float = 0.0
    prefill_launch_s: float = 0.0
    prefill_graph_tokens: int = 0
    latent_graph_tokens: int | None = None
    prefill_launched_on: tuple[str, ...] = ()
    eager_launch_s: float = 0.0
    collective_launch_s: float = 0.0
    step_overhead_s: float = 0.0
    sequence_overhead_s: float = 0.0
    rollout_step_s: float = 0.0
    memory_utilization: float = 1.0
    share_of: str = OF_ALL
    measures_sampling: bool = False
    max_sequences: int = 1 << 20
    sequences_within_tokens: bool = False
    prefill_tokens: int = 8192
    by_device: tuple[DeviceDefaults, ...] = ()
    graph_bytes: float = 0.0
    context_bytes: float = 0.0
    update_tensor_s: float = 0.0
    update_bytes_per_s: float = inf
    apart_tensor_s: float = 0.0
    apart_bytes_per_s: float = inf
    unsupported: tuple[str, ...] = ()
    dropped_in: Mapping[str, str] = field(default_factory=dict, hash=False)
    linear_attention: tuple[str, ...] = ()
    sparse_attention: tuple[str, ...] = ()
    sparse_cache_16_bits: tuple[str, ...] = ()
    compressed_attention: tuple[str, ...] = ()
    compressed_stages: bool = False
    cuts_four_bit_experts: tuple[str, ...] = ()
    float32_states: tuple[str, ...] = LINEAR_KINDS
    weights_on: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    expert_multiples: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict, hash=False)
    kernels: str = ""
    kernels_on: Mapping[str, str] = field(default_factory=dict, hash=False)
    residual_log_std: float = 0.0
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, hash=False)

    def __post_init__(self) -> None:
        if self.share_of not in _SHARES:
            raise SpecError(f"engines.{self.name}.share_of", f"is one of {', '.join(_SHARES)}; got {self.share_of!r}")

    def on_host(self, time_scale: float) -> "EngineSpec":
        """The engine on a host whose code takes so many times as long (``NodeSpec.host_time_scale``)."""
        return replace(self, **{name: time_scale * getattr(self, name) for name in _HOST_TIMES})

    def launch_s(self, read_tokens: float, *, latent: bool = False, architecture: str = "") -> float:
        """Host time per kernel of a step, or of a pass that reads so many tokens of prompts; 0 where it is a graph's.

        Without graphs both take the same. Passes of models with latent attention may be others (``latent``).
        """
        if not self.captures_graphs:
            return self.kernel_launch_s
        own = self.latent_graph_tokens if latent else None
        most = self.prefill_graph_tokens if own is None else own
        launched = read_tokens > 0 and architecture in self.prefill_launched_on
        return self.prefill_launch_s if launched or read_tokens > most else 0.0

    def serving_on(self, device: DeviceSpec) -> "EngineSpec":
        """The engine as its server starts on a device."""
        found = next((each for each in self.by_device if each.of(device)), None)
        if found is None:
            return self
        return replace(
            self,
            prefill_tokens=found.prefill_tokens or self.prefill_tokens,
            max_sequences=found.max_sequences or self.max_sequences,
            memory_utilization=found.share(device) or self.memory_utilization,
        )

    def eager(self) -> "EngineSpec":
        """The engine without graphs: every kernel of every step is issued from Python, and no memory holds graphs.

        Raises:
            SpecError: If nobody timed it so, or it captures none anyway.
        """
        if self.captures_graphs and not self.eager_launch_s:
            known = [other.name for other in load_engines().values() if other.eager_launch_s]
            problem = f"is not priced under {self.name}: no published timing says how long it takes without graphs"
            raise SpecError("eager", problem, "leave it out, or use " + " or ".join(known))
        return replace(
            self,
            captures_graphs=False,
            kernel_launch_s=self.eager_launch_s or self.kernel_launch_s,
            collective_launch_s=self.eager_launch_s or self.collective_launch_s,
            graph_bytes=0.0,
        )

    def runs_on(self, device: DeviceSpec) -> bool:
        """Whether its makers support it there; of architectures nobody told about it is taken to run."""
        return device.architecture not in self.unsupported

    def serves(self, weights: WeightFormat | None, device: DeviceSpec) -> bool:
        """Whether it runs weights of a format on a device; None is 16 bits."""
        return weights is None or device.architecture in self.weights_on.get(weights.name, ())

    def kernels_for(self, device: DeviceSpec) -> str:
        """Label of the timings whose kernels it runs on a device; empty: none."""
        return self.kernels_on.get(device.architecture, self.kernels)

    def laid_out(self, weights: WeightFormat, device: DeviceSpec) -> WeightFormat:
        """A format as its kernels on a device hold it, padded where they ask for that."""
        padded = self.expert_multiples.get(weights.name, {}).get(device.architecture)
        return weights if padded is None else replace(weights, expert_multiples=padded)

    def knows(self, model: ModelSpec) -> bool:
        """Whether it has code for linear attention, indexers and compressed keys as far as a model has them."""
        linear, chosen = model.linear_attention, self._kernels_of(model)
        return (chosen is None or bool(chosen)) and (linear is None or linear.kind in self.linear_attention)

    def chooses_on(self, model: ModelSpec, device: DeviceSpec) -> bool:
        """Whether it has kernels on a device for keys that the model compresses or an indexer chooses, if any."""
        chosen = self._kernels_of(model)
        return chosen is None or device.architecture in chosen

    def _kernels_of(self, model: ModelSpec) -> tuple[str, ...] | None:
        """Architectures for which it has kernels of such keys; None where a model has none."""
        if model.compressed_attention is not None:
            return self.compressed_attention
        return None if model.indexer is None else self.sparse_attention

    def widens_states(self, linear: LinearAttention) -> bool:
        """Whether it keeps recurrent states in 32 bits, whatever the model's format."""
        return linear.float32_states or linear.kind in self.float32_states

    def room_bytes(
        self, device: DeviceSpec, weight_bytes: FloatArray | float, beside_bytes: FloatArray | float
    ) -> FloatArray:
        """Device memory it may use in all, or what is left where less is.

        Args:
            device: Whose.
            weight_bytes: That its weights take.
            beside_bytes: That all else takes but the cache.
        """
        all_bytes = device.reported_memory_bytes
        if self.share_of == OF_FREE:
            held = weight_bytes + beside_bytes
            room = held + self.memory_utilization * np.maximum(all_bytes - held, 0.0)
        elif self.share_of == OF_WEIGHTS_AND_CACHE:
            room = self.memory_utilization * (all_bytes - self.context_bytes) + np.asarray(beside_bytes)
        else:
            room = self.memory_utilization * all_bytes + self._on_top_bytes + 0.0 * np.asarray(beside_bytes)
        return np.minimum(room, device.usable_memory_bytes)

    def least_share(
        self,
        device: DeviceSpec,
        weight_bytes: FloatArray | float,
        beside_bytes: FloatArray | float,
        cache_bytes: FloatArray | float,
    ) -> FloatArray:
        """The ``memory_utilization`` at which a cache of so many bytes has room; the device may not have that much."""
        all_bytes = device.reported_memory_bytes
        if self.share_of == OF_FREE:
            return np.asarray(cache_bytes / np.maximum(all_bytes - weight_bytes - beside_bytes, 1.0))
        if self.share_of == OF_WEIGHTS_AND_CACHE:
            return np.asarray((weight_bytes + cache_bytes) / (all_bytes - self.context_bytes))
        return np.asarray((weight_bytes + beside_bytes - self._on_top_bytes + cache_bytes) / all_bytes)

    @property
    def _on_top_bytes(self) -> float:
        """What comes on top of its share of all memory."""
        return self.graph_bytes if self.share_of == OF_ALL_BUT_GRAPHS else 0.0

    def between_training(self) -> "EngineSpec":
        """The engine as it generates what a training framework around it learns from, not as it serves.

        Frameworks turn its own all-reduce off (``disable_custom_all_reduce`` of verl's vLLM rollout, which sleeps).
        Published steps of NeMo-RL speak against room for the logits of most sequences: models left out are 11 % off
        without it, 12 % with it (``planner.validate.dataflow.step_fit``).
        """
        return replace(
            self,
            step_overhead_s=self.step_overhead_s + self.rollout_step_s,
            rollout_step_s=0.0,
            measures_sampling=False,
            own_all_reduce=False,
            splits_stages=self.splits_stages and self.rollout_stages,
        )

    def update_s(self, tensors: int, weight_bytes: float, *, apart: bool) -> float:
        """Seconds of a weight update, in which the engine decodes nothing and the trainer computes nothing.

        Args:
            tensors: Of the model (``checkpoint_tensors``).
            weight_bytes: Of the whole model.
            apart: Whether the trainer has GPUs of its own.
        """
        if apart:
            return tensors * self.apart_tensor_s + weight_bytes / self.apart_bytes_per_s
        return tensors * self.update_tensor_s + weight_bytes / self.update_bytes_per_s


@cache
def load_engines() -> Mapping[str, EngineSpec]:
    """All packaged engines by name.

    Raises:
        SpecError: If a file is malformed, or names a field that no engine has.
    """
    known = {item.name for item in fields(EngineSpec)}
    data = resources.files("profiles") / "data"
    fitted = json.loads(data.joinpath("fits", "dataflow.json").read_text(encoding="utf-8"))["engines"]
    engines: dict[str, EngineSpec] = {}
    for name, entry in load_yaml_directory(data / "engines").items():
        unknown = set(entry.data) - known - {_FITTED_AS}
        if unknown:
            raise SpecError(f"engines.{name}", f"unknown fields {sorted(unknown)} in {entry.file}")
        values, sources = dict(entry.data), dict(entry.data.get("sources", {}))
        told = fitted.get(values.pop(_FITTED_AS, name), {"values": {}, "source": ""})
        values |= told["values"]
        sources |= dict.fromkeys(told["values"], told["source"])
        values |= {name: tuple(values.get(name, ())) for name in _TUPLES}
        values["weights_on"] = {form: tuple(names) for form, names in values.get("weights_on", {}).items()}
        values["expert_multiples"] = {
            form: {architecture: tuple(multiples) for architecture, multiples in on.items()}
            for form, on in values.get("expert_multiples", {}).items()
        }
        values["float32_states"] = tuple(values.get("float32_states", LINEAR_KINDS))
        values["by_device"] = tuple(DeviceDefaults(**each) for each in values.get("by_device", ()))
        engines[name] = EngineSpec(name=name, **values | {"sources": sources})
    return MappingProxyType(engines)


def find_engine(name: str) -> EngineSpec:
    """The engine of that name, case-insensitively.

    Raises:
        SpecError: If there is none.
    """
    engines = load_engines()
    found = engines.get(name.strip().lower())
    if found is None:
        raise SpecError("engine", f"unknown name {name[:40]!r}", did_you_mean(name, engines))
    return found
