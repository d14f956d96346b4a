"""nanotron's layout of a pipeline, against the parameters its published sweep logged on rank 0."""

import pytest

from costmodels.stages.balance import balanced_stage_layers
from profiles.parameters import embedding_parameters, layer_parameters
from tests.fakes import llama

SWEEP = {
    "1.34G": llama(num_layers=16, hidden_size=2048, num_attention_heads=32, num_key_value_heads=32, head_dim=64,
                   ffn_hidden_size=8192, vocab_size=131072, tie_word_embeddings=True),
    "3.57G": llama(num_layers=28, hidden_size=3072, num_attention_heads=32, num_key_value_heads=32, head_dim=96,
                   ffn_hidden_size=8192, vocab_size=131072, tie_word_embeddings=True),
    "8.86G": llama(num_layers=32, hidden_size=4096, num_attention_heads=32, num_key_value_heads=32, head_dim=128,
                   ffn_hidden_size=14336, vocab_size=131072),
    "80G": llama(num_layers=80, hidden_size=8192, num_attention_heads=64, num_key_value_heads=64, head_dim=128,
                 ffn_hidden_size=28672, vocab_size=131072),
}  # fmt: skip


# "Local Params" of runs without tensor parallelism (80G: of 8 ranks) in the Ultra-Scale Playbook sweep.
@pytest.mark.parametrize(
    ("name", "stages", "first", "local_parameters", "ranks"),
    [
        ("1.34G", 2, 11, 1.01e9, 1),
        ("1.34G", 4, 6, 671e6, 1),
        ("1.34G", 8, 3, 470e6, 1),
        ("3.57G", 2, 16, 2.22e9, 1),
        ("3.57G", 8, 4, 856e6, 1),
        ("3.57G", 16, 2, 629e6, 1),
        ("8.86G", 2, 18, 4.92e9, 1),
        ("8.86G", 4, 9, 2.73e9, 1),
        ("8.86G", 8, 5, 1.75e9, 1),
        ("8.86G", 16, 3, 1.27e9, 1),
        ("80G", 4, 21, 2.69e9, 8),
        ("80G", 8, 11, 1.47e9, 8),
    ],
)
def test_first_stage_matches_the_logged_parameters(name, stages, first, local_parameters, ranks):
    model = SWEEP[name]
    layout = balanced_stage_layers(model, stages)
    assert layout[0] == first
    held = first * layer_parameters(model, moe=False).total + embedding_parameters(model)
    assert held / ranks == pytest.approx(local_parameters, rel=0.01)


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 7, 8, 16])
def test_every_layer_has_a_stage(stages):
    for model in SWEEP.values():
        layout = balanced_stage_layers(model, stages)
        assert len(layout) == stages
        assert sum(layout) == model.num_layers


def test_without_a_head_to_speak_of_stages_are_even_up_to_one_layer():
    model = llama(num_layers=16, vocab_size=2)
    assert balanced_stage_layers(model, 4) == (5, 4, 4, 3)
