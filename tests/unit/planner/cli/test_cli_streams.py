"""The command line as a process: where stdout is closed, lacks characters or has a reader who leaves; its threads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLANNER = Path(sys.executable).with_name("planner")


def shell(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["--help", "plan --help", "gpus --json", "models"])
def test_a_reader_who_leaves_is_no_bug(command: str) -> None:
    """``true`` reads nothing, so that the pipe is broken by the time that anything is written."""
    done = shell(f"{PLANNER} {command} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout.strip(), done.stderr) == ("0", "")


@pytest.mark.parametrize("shown", ["", "--json"])
def test_a_reader_who_leaves_changes_no_answer(shown: str) -> None:
    done = shell(f"{PLANNER} estimate --model llama-3.1-405b --gpus 1xH100 {shown} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout.strip(), done.stderr) == ("3", "")


def test_a_closed_stdout_is_no_bug(tmp_path: Path) -> None:
    done = shell(f"{PLANNER} gpus H100 -o {tmp_path / 'gpu.json'} >&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "gpu.json").read_text())["devices"][0]["name"].startswith("H100")


def test_characters_that_stdout_lacks_are_replaced_in_tables_and_escaped_in_documents(tmp_path: Path) -> None:
    model = tmp_path / "модель.json"
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}
    model.write_text(json.dumps({"model_type": "llama", "intermediate_size": 128} | shape))
    ask = f"PYTHONIOENCODING=ascii {PLANNER} estimate --model '{model}' --gpus 1xH100 --seq 128 --global-batch 1"
    table, document = shell(ask), shell(f"{ask} --json")
    assert (table.returncode, table.stderr) == (0, "")
    assert "time per step" in table.stdout
    assert " ####" in table.stdout
    assert "?" not in table.stdout.replace("??????", "", 1)  # the name
    assert (document.returncode, document.stderr) == (0, "")
    assert document.stdout.isascii()
    assert json.loads(document.stdout)["request"]["model"]["name"] == "модель"


def test_blas_keeps_to_one_thread_unless_told_otherwise() -> None:
    code = "import os\nimport planner.cli.app\nprint(os.environ['OPENBLAS_NUM_THREADS'])"
    plain = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    for given, kept in (({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")):
        done = subprocess.run(
            [sys.executable, "-c", code], env=plain | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == kept
