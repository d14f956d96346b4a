"""What nanotron's own reader says of exports, where its repository of 2025 is installed; no GPU is needed."""

from pathlib import Path

import pytest

from tests.exported import QUESTIONS, export, some_plans

pytestmark = pytest.mark.filterwarnings("ignore")


def test_nanotron_reads_what_plans_say(tmp_path: Path) -> None:
    config = pytest.importorskip("nanotron.config", exc_type=ImportError)
    if "context_parallel_size" not in config.ParallelismArgs.__dataclass_fields__:
        pytest.skip("an older nanotron")
    for question in QUESTIONS:
        if question[0] != "nanotron":
            continue
        for plan, request in some_plans(20, *question[1:]):
            exported = export("nanotron", plan, request)
            (tmp_path / "config.yaml").write_text(exported.files["config.yaml"])
            found = config.get_config_from_file(str(tmp_path / "config.yaml"))
            assert found.global_batch_size == request.job.global_batch_size
            assert (found.parallelism.tp, found.parallelism.pp) == (plan.tensor_parallel, plan.pipeline_parallel)
            assert found.model.model_config.num_hidden_layers == request.model.num_layers
