"""Errors of the service name fields as a client wrote them."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

BODY: dict[str, Any] = {"model": "llama-2-7b", "cluster": "8xA100-80GB"}
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"model": CONFIG | {"num_hidden_layers": 0}}, "model.num_hidden_layers"),
        ({"model": CONFIG | {"num_key_value_heads": 5}}, "model.num_key_value_heads"),
        ({"job": {"task": "lora", "lora_rank": 1 << 20}}, "job.lora_rank"),
        ({"job": {"task": "lora", "lora_targets": "qkv,q"}}, "job.lora_targets"),
    ],
)
def test_fields_are_named_as_the_client_wrote_them(client: TestClient, body: dict[str, Any], field: str) -> None:
    assert client.post("/plan", json=BODY | body).json()["errors"][0]["field"] == field
