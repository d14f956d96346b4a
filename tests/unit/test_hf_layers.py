"""Lists of layers in a Hugging Face configuration."""

import pytest

from profiles.errors import SpecError
from profiles.hf_config import model_from_hf_config
from tests.unit.test_hf_config import LLAMA


@pytest.mark.parametrize(
    ("key", "listed"), [("mlp_only_layers", [4]), ("mlp_only_layers", ["0"]), ("moe_layers", [1, -1])]
)
def test_layers_that_are_none_are_refused(key, listed):
    config = LLAMA | {"num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2, key: listed}
    with pytest.raises(SpecError, match=rf"config.json.{key}: names layers 0 to 3; got"):
        model_from_hf_config(config, "x")
