"""Small nonsense that priced like sense: refused where it stands."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import planner
from planner.question.machines import mixed_of
from profiles.catalog import load_yaml
from profiles.cluster_string import cluster_from_mapping
from profiles.errors import SpecError

JOB: dict[str, Any] = {"sequence_length": 1024, "global_batch_size": 8}


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"train_tokens": 1}, "job.train_tokens: is less than the 8192 of one step; got 1. Hint: 8192"),
        (
            {"padding_efficiency": 1e-300},
            "job.padding_efficiency: must be from 0.000977, one token",
        ),
        ({"task": "lora", "lora_targets": ["q", "q_proj"]}, "job.lora_targets: names q twice"),
        ({"task": "lora", "lora_targets": "q,q"}, "job.lora_targets: names q twice; got 'q,q'"),
    ],
)
def test_jobs(job: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as error:
        planner.plan("llama-3.2-1b", "2xA100", JOB | job)
    assert str(error.value).startswith(message)


def test_a_run_of_one_step_is_one() -> None:
    assert planner.plan("llama-3.2-1b", "2xA100", JOB | {"train_tokens": 8192}, top=1).best is not None


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred"])
def test_names_of_clusters_are_printable(name: str) -> None:
    with pytest.raises(SpecError, match=r"^cluster\.name: must hold printable characters alone"):
        cluster_from_mapping({"device": "H100", "name": name})
    with pytest.raises(SpecError, match=r"^cluster\.name: must hold printable characters alone"):
        mixed_of({"groups": [{"device": "H100"}, {"device": "A100"}], "name": name})


def test_whole_numbers_are_no_texts_and_others_may_be_as_yaml_reads_them(tmp_path: Path) -> None:
    for field in ("num_nodes", "gpus_per_node", "domain_devices"):
        with pytest.raises(SpecError, match=rf"^cluster\.{field}: must be a whole number, not text; got '2'"):
            cluster_from_mapping({"device": "H100", field: "2"})
    file = tmp_path / "mine.yaml"
    file.write_text("{device: H100, usable_memory_bytes: 60e9}")
    assert yaml.safe_load(file.read_text())["usable_memory_bytes"] == "60e9"
    assert cluster_from_mapping(load_yaml(file)).device.usable_memory_bytes == 60e9
