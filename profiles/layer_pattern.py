"""Layers that are one half of what others are: a token mixer or an MLP alone, with one norm, in the order a text says.

One letter per layer, as Nemotron-H's ``hybrid_override_pattern`` and Megatron-Core's ``--hybrid-layer-pattern`` have
them (NVIDIA/Megatron-LM, megatron/core/models/hybrid/hybrid_layer_allocation.py): ``M`` Mamba-2, ``*`` attention,
``-`` a dense MLP, ``E`` a mixture of experts. Left out are Megatron's other letters (latent and sparse attention, Gated
DeltaNet), groups in brackets, and what may follow a ``/``: layers that predict further words. A ``|`` there ends a
pipeline stage, which is a plan's matter.

Source:
    Nemotron-H, arXiv:2504.03624, section 2.1.
"""

from profiles.errors import SpecError

MAMBA, ATTENTION, MLP, EXPERTS = "M*-E"
KINDS = (MAMBA, ATTENTION, MLP, EXPERTS)
FIELD = "model.layer_pattern"


def check_pattern(pattern: str, *, num_layers: int, linear_layers: int, mixture: bool) -> None:
    """Refuse a pattern that does not say what the rest of a model does.

    Args:
        pattern: One letter per layer.
        num_layers: Of the model.
        linear_layers: Of these, those whose mixer is Mamba-2.
        mixture: Whether the model has experts.

    Raises:
        SpecError: If a letter is none of ``KINDS``, there are more or fewer of one than the model says, or layers have
            an MLP in some places and experts in others.
    """
    other = next((letter for letter in pattern if letter not in KINDS), None)
    if other is not None:
        raise SpecError(FIELD, f"knows the layers {' '.join(KINDS)}; got {other!r}", "M for a mixer, * for attention")
    if len(pattern) != num_layers:
        raise SpecError(FIELD, f"must have one letter for each of num_layers={num_layers}; got {len(pattern)}")
    if pattern.count(MAMBA) != linear_layers:
        problem = f"must have as many M as linear_attention.layers={linear_layers}; got {pattern.count(MAMBA)}"
        raise SpecError(FIELD, problem)
    if ATTENTION not in pattern:
        raise SpecError(FIELD, "has no layer that attends in full", "* for one that does")
    if (EXPERTS in pattern) != mixture:
        problem = "has layers of experts, and moe is missing" if EXPERTS in pattern else "has no E for the experts"
        raise SpecError(FIELD, problem, "both or neither")
