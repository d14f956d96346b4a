"""Stages balanced by parameters instead of by layers, as nanotron lays out a pipeline.

nanotron walks over the model's blocks and moves on to the next rank once the cost so far exceeds that
rank's share of the total (``build_model`` in nanotron; a layer costs its matrix parameters, the output
head its own, everything else nothing). The head's cost pulls layers towards the first stages: a model of
1.3B with a vocabulary of 131072 puts 11 of its 16 layers on the first of two ranks.
"""

from profiles.model import ModelSpec


def balanced_stage_layers(model: ModelSpec, stages: int) -> tuple[int, ...]:
    """Layers of each of ``stages`` pipeline stages; the last one also carries the head.

    Args:
        model: Its layers are taken to cost the same (no mixture of experts in nanotron's formula).
        stages: Pipeline stages p.

    Returns:
        One count per stage, 0 where the head alone fills a stage.

    Example:
        Logged parameters of nanotron's published sweep: 1.34B on 2 ranks, 11 + 5 layers.
    """
    h = model.hidden_size
    layer = 4 * h * model.num_attention_heads * model.head_dim + 3 * h * model.ffn_hidden_size
    total = model.num_layers * layer + model.output_width * h
    counts = [0] * stages
    rank, cost = 0, 0
    for _ in range(model.num_layers):
        counts[rank] += 1
        cost += layer
        if cost > total * ((rank + 1) / stages):
            rank = min(rank + 1, stages - 1)
    return tuple(counts)
