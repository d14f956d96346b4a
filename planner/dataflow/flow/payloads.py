"""What an update of weights carries: all of them, or the adapters alone that a role trains.

Whoever trains adapters sends these each iteration, and the base once. The engine's copy of the base stays on the
devices, or waits in host memory while others use them: verl (docs/advance/ppo_lora.rst), SkyRL (pull request 340, which
puts vLLM to sleep at level 1 for that; 1336 and 2250 for Megatron), ms-swift (pull requests 5773 and 9077), vime (336).
A copy into another role carries merged weights, which are all of them.
"""

from dataclasses import dataclass

from planner.dataflow.flow.request import FlowRequest
from profiles.adapter_parameters import MLP_TARGETS, total_lora_parameters
from profiles.model import ModelSpec
from profiles.parameters import checkpoint_tensors, total_parameters
from profiles.precision import parse_precision

_PER_ADAPTER = 2  # the matrices A and B


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """What one copy of a model receives.

    Attributes:
        tensors: How many tensors.
        total_bytes: All of them.
        share: Of the bytes of all weights.
    """

    tensors: int
    total_bytes: float
    share: float


def payload(request: FlowRequest, source: str, target: str) -> Payload:
    """What goes from the call that trains a role to calls on the same role, or on one it is copied into.

    Args:
        request: The workflow.
        source: Role that is trained.
        target: Role that receives.
    """
    model = request.models[target]
    lora = request.graph.role(target).adapters(model).lora
    parameters, tensors, share = total_parameters(model), checkpoint_tensors(model), 1.0
    if source == target and lora is not None:
        share = total_lora_parameters(model, lora.rank, lora.targets) / parameters
        tensors = _adapter_tensors(model, lora.targets)
    each = parse_precision(request.precision).storage_bytes
    return Payload(tensors=tensors, total_bytes=share * parameters * each, share=share)


def _adapter_tensors(model: ModelSpec, targets: tuple[str, ...]) -> int:
    """Tensors of adapters, about: two per adapted matrix, those of every expert one by one."""
    in_mlp = sum(target in MLP_TARGETS for target in targets)
    experts = 0 if model.moe is None else model.num_moe_layers * model.moe.num_experts
    mlps = model.dense_mlp_layers + experts
    mixers = round(model.mixer_share * model.num_layers)
    return _PER_ADAPTER * ((len(targets) - in_mlp) * mixers + in_mlp * mlps)
