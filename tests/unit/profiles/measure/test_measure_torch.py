"""The collectors for real, on the CPU: right results, plausible times, whole collections."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (pip install 'llm-execution-planner[measure]')")

from planner.validate.predict import predict_rows  # noqa: E402
from planner.validate.tables.mapping import map_files  # noqa: E402
from profiles.catalog import Catalog  # noqa: E402
from profiles.measure import cases, pointwise  # noqa: E402
from profiles.measure.backend import Backend  # noqa: E402
from profiles.measure.cases import Case  # noqa: E402
from profiles.measure.collect import collect  # noqa: E402
from profiles.measure.decoder import Decoder  # noqa: E402
from profiles.measure.dense import gemm_workload  # noqa: E402
from profiles.measure.models import ModelShape, block_step, generation, train_step  # noqa: E402
from profiles.measure.optimizers import LEARNING_RATE, MasterAdamW  # noqa: E402
from profiles.measure.pointwise import rotate  # noqa: E402
from profiles.measure.probe import probe  # noqa: E402
from profiles.measure.steps import measure_train_step  # noqa: E402
from profiles.measure.workloads import measure_kernel  # noqa: E402
from profiles.stacks import load_stacks  # noqa: E402
from profiles.timing_files import read_timings  # noqa: E402
from profiles.timing_ops import COLLECTIVES  # noqa: E402
from tests.places import ROOT  # noqa: E402

TINY = ModelShape(name="llama-like-tiny", layers=2, hidden=64, heads=4, kv_heads=2, ffn=128, vocab=256, gated=True)
TINY_GPT = ModelShape(name="gpt-tiny", layers=2, hidden=64, heads=4, kv_heads=4, ffn=256, vocab=256, gated=False)
SMALL = (
    *cases.linear("bf16", 32, 64, 48),
    cases.gemm("NN", "fp32", 32, 48, 64, batch=3),
    cases.gemm("NT", "tf32", 32, 48, 64),
    cases.gemm("NT", "fp8", 32, 48, 64),
    cases.grouped_gemm("bf16", 16, 32, 64, 3, kernel="torch_grouped_mm"),
    cases.grouped_gemm("bf16", 16, 32, 64, 3, kernel="torch_loop"),
    *(
        cases.attention(op, "bf16", batch=2, queries=32, keys=32, heads=4, kv_heads=kv, width=16, causal=True)
        for op in ("attention_forward", "attention_backward")
        for kv in (2, 4)
    ),
    cases.attention("attention_decode", "bf16", batch=2, queries=1, keys=32, heads=4, kv_heads=2, width=16,
                    causal=False),
    *(
        cases.pointwise(op + part, "bf16", 16, 64)
        for op in ("layer_norm", "rms_norm", "gelu", "silu_mul", "softmax", "cross_entropy")
        for part in ("", "_backward")
    ),
    cases.pointwise("add", "bf16", 16, 64),
    cases.pointwise("cross_entropy_backward", "bf16", 2050, 32, kernel="torch_chunked"),
    *(cases.rotary(op, "bf16", 16, 4, 16) for op in ("rotary", "rotary_backward")),
    *(cases.embedding(op, "bf16", 16, 100, 32) for op in ("embedding", "embedding_backward")),
    *(cases.adamw(kernel, 4096) for kernel in ("torch_fused", "torch_foreach", "torch_fused_master")),
    cases.cast("bf16", "fp32", 4096), cases.cast("bf16", "fp8", 4096), cases.device_copy(4096),
    cases.host_copy("host_to_device", 4096), cases.host_copy("device_to_host", 4096),
)  # fmt: skip


@pytest.fixture(scope="module")
def cpu() -> Backend:
    torch.set_num_threads(1)
    backend = Backend.open("cpu")
    scratch = torch.empty(1 << 16, dtype=torch.int8)  # a real flush would take most of the tests' time
    return Backend(
        torch=torch, device=backend.device, is_gpu=False, name="CPU", cache_bytes=1 << 16, scratch=scratch
    )  # fmt: skip


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.label.replace(" ", "_"))
def test_every_family_runs_and_is_timed(case: Case, cpu: Backend) -> None:
    timing = measure_kernel(case, cpu, target_s=1e-3)
    assert 0 < timing.median_s < 1
    assert timing.spread_s >= 0
    assert timing.method == "wall"


@pytest.mark.parametrize("layout", ["NT", "NN", "TN"])
def test_layouts_compute_the_same_product_from_different_memory(layout: str, cpu: Backend) -> None:
    case = cases.gemm(layout, "fp32", 8, 12, 16)
    call: Any = gemm_workload(case, cpu, 1).calls[0]
    first, second = (cell.cell_contents for cell in call.__closure__ if hasattr(cell.cell_contents, "shape"))
    assert (tuple(first.shape), tuple(second.shape)) == ((8, 16), (16, 12))
    assert [tensor.is_contiguous() for tensor in (first, second)] == [letter == "N" for letter in layout]
    np.testing.assert_allclose(call().numpy(), first.numpy() @ second.numpy(), rtol=1e-4, atol=1e-4)


COMPILED = (
    cases.pointwise("add_rms_norm", "bf16", 16, 64, kernel="torch_compile"),
    cases.pointwise("silu_mul_backward", "bf16", 16, 64, kernel="torch_compile"),
    cases.pointwise("silu_mul_backward", "bf16", 32, 96, kernel="torch_compile"),
    cases.rotary("rotary", "bf16", 16, 4, 16, kernel="torch_compile"),
    cases.pointwise("cross_entropy", "bf16", 16, 64, kernel="torch_compile"),
)


def test_a_function_is_compiled_once_for_all_shapes(cpu: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    compilations: list[bool] = []

    def compile_(function: Any, *, dynamic: bool) -> Any:
        compilations.append(dynamic)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(pointwise, "_compiled", {})
    for case in COMPILED:
        assert measure_kernel(case, cpu, target_s=1e-3).median_s > 0
    assert compilations == [True] * 4


def test_rotation_keeps_lengths_and_turns_by_the_angle(cpu: Backend) -> None:
    x = torch.tensor([[1.0, 0.0]])
    angle = torch.tensor(0.3)
    turned = rotate(torch, x, angle.cos(), angle.sin())
    np.testing.assert_allclose(turned.numpy(), [[np.cos(0.3), np.sin(0.3)]], rtol=1e-6)


def test_the_master_copy_steps_as_plain_adamw_does() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(64), torch.randn(64)
    plain = start.clone().requires_grad_()
    ours = start.clone().requires_grad_()
    reference = torch.optim.AdamW([plain], lr=LEARNING_RATE)
    master = MasterAdamW(torch, [ours], capturable=False, fused=True)
    for _ in range(3):
        plain.grad, ours.grad = gradient.clone(), gradient.clone()
        reference.step()
        master.step()
        master.zero_grad()
    assert ours.grad is None
    np.testing.assert_allclose(ours.detach().numpy(), plain.detach().numpy(), rtol=1e-5)
    assert not np.allclose(ours.detach().numpy(), start.numpy())


@pytest.mark.parametrize("shape", [TINY, TINY_GPT], ids=lambda shape: shape.name)
def test_a_model_learns_and_recomputation_changes_nothing_but_time(shape: ModelShape, cpu: Backend) -> None:
    plain, again = (
        measure_train_step(
            train_step(shape, sequence=32, micro_batch=2, micro_batches=2, recompute=recompute), cpu
        )
        for recompute in (False, True)
    )  # fmt: skip
    assert plain.first_loss == pytest.approx(np.log(shape.vocab), rel=0.05)
    assert plain.last_loss < plain.first_loss
    assert (again.first_loss, again.last_loss) == (plain.first_loss, plain.last_loss)
    assert again.timing.median_s > plain.timing.median_s * 0.8
    assert np.isnan(plain.allocated_bytes)  # not counted on a CPU


@pytest.mark.parametrize("shape", [TINY, TINY_GPT], ids=lambda shape: shape.name)
def test_decoding_with_a_cache_is_the_model_itself(shape: ModelShape, cpu: Backend) -> None:
    cpu.seed()
    model = Decoder(backend=cpu, shape=shape, max_sequence=16, dtype="fp32", trained=False)
    ids = cpu.integers(2 * 9, shape.vocab).view(2, 9)
    whole = model.next_token(ids, model.empty_caches(2, 9))
    caches = model.empty_caches(2, 9)
    model.next_token(ids[:, :8], caches)
    assert caches[0].filled == 8
    assert torch.equal(model.next_token(ids[:, 8:], caches), whole)


def test_a_model_has_the_weights_its_shape_says(cpu: Backend) -> None:
    model = Decoder(backend=cpu, shape=TINY, max_sequence=16)
    matrices = sum(weight.numel() for weight in model.weights if weight.dim() == 2)
    assert matrices == TINY.parameters


FEW = (
    SMALL[0], SMALL[8], cases.pointwise("rms_norm", "bf16", 16, 64),
    block_step(TINY, sequence=16, micro_batch=1, backward=True), generation("prefill_step", TINY, batch=1, context=8),
    generation("decode_step", TINY, batch=2, context=8),
    train_step(TINY, sequence=16, micro_batch=1, micro_batches=2, recompute=True),
)  # fmt: skip


def test_a_collection_is_written_resumed_and_turned_into_runs(tmp_path: Path) -> None:
    out = tmp_path / "cpu.parquet"
    seen: list[tuple[int, int, str]] = []
    first = collect(out, on="cpu", cases=FEW, budget="120s", progress=lambda *step: seen.append(step))
    assert (first.measured, first.before, first.failed, first.device) == (len(FEW), 0, (), "CPU")
    assert seen[-1][:2] == (len(FEW), len(FEW))
    table = read_timings(out)
    assert sorted(table.op.tolist()) == sorted(case.op for case in FEW)
    assert set(table.method.tolist()) == {"wall"}
    assert set(table.statistic.tolist()) == {"median"}
    assert all("threads=" in stack and "torch=" in stack for stack in table.stack.tolist())
    assert first.runs is not None
    assert "llama-like-tiny" in first.runs.read_text()
    trained = table.note[table.op == "train_step"][0]
    assert trained.startswith("loss=5.5")  # the logarithm of 256
    for launch_included in (False, True):  # on a CPU the same
        again = collect(out, on="cpu", cases=FEW, budget="30s", launch_included=launch_included)
        assert (again.measured, again.before) == (0, len(FEW))
    assert len(read_timings(out)) == len(FEW)


DEVICE = """
My-Processor-2GB:
  vendor: nvidia
  architecture: hopper
  peak_tflops: {fp32: 0.02, bf16: 0.02}
  memory_gib: 2
  usable_memory_gib: 2
  memory_bandwidth_gb_per_s: 10
  num_sms: 1
  l2_mib: 32
  power_w: 100
  default_node: my-host
  sources: {default: "a stand-in for a card of one's own"}
"""
NODE = """
my-host:
  device: My-Processor-2GB
  devices_per_node: 1
  scale_up: nvlink4
  nic: ib-ndr-400
  nics_per_node: 1
  host_link: pcie5
  host_memory_gib: 16
  source: "a stand-in"
"""


def test_training_steps_of_a_card_of_one_s_own_can_be_validated(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "mine.yaml").write_text(DEVICE)
    (tmp_path / "nodes.yaml").write_text(NODE)
    steps = [
        train_step(TINY, sequence=64, micro_batch=2, micro_batches=count, recompute=recompute)
        for count, recompute in ((1, False), (2, False), (2, True))
    ]
    done = collect(tmp_path / "mine.parquet", on="cpu", device="My-Processor-2GB", cases=steps, budget="60s")
    assert done.runs is not None
    mapped = map_files([done.runs], Catalog.load([tmp_path]))
    assert [row.reason for row in mapped.unscorable] == []
    stored = read_timings(tmp_path / "mine.parquet")
    assert sorted(row.step_time_s or 0 for row in mapped.scorable) == pytest.approx(sorted(stored.time_s), rel=1e-5)
    assert {row.cluster.device.name for row in mapped.scorable} == {"My-Processor-2GB"}
    predicted_s = predict_rows(mapped.scorable, load_stacks()).step_time_s
    assert np.all((predicted_s > 0) & (predicted_s < 1))


def test_a_case_that_cannot_run_does_not_end_a_collection(tmp_path: Path) -> None:
    cannot = cases.adamw("bitsandbytes_8bit", 4096)
    huge = cases.pointwise("add", "bf16", 1 << 25, 1 << 25)
    lied = dataclasses.replace(huge, footprint_bytes=1.0, bytes=1.0)
    done = collect(tmp_path / "cpu.parquet", on="cpu", cases=(cannot, lied, SMALL[0]), budget="60s")
    assert done.measured == 1
    reasons = dict(done.failed)
    assert reasons[cannot.label].startswith("NotImplementedError: bitsandbytes is not installed")
    assert reasons[lied.label] == "out of memory"


def test_the_budget_ends_a_collection(tmp_path: Path) -> None:
    done = collect(tmp_path / "cpu.parquet", on="cpu", budget="3s", only=["norm"])
    assert done.measured < 100  # of 163
    assert done.too_large + done.too_long + done.left > 0
    assert done.elapsed_s < 60


def test_a_probe_gives_speeds_a_computer_can_have(cpu: Backend) -> None:
    speeds = probe(cpu)
    assert 1e8 < speeds.flops_per_s["fp32"] < 1e14
    assert 1e8 < speeds.bytes_per_s < 1e12


def test_collectives_run_over_two_processes(tmp_path: Path) -> None:
    out = tmp_path / "gloo.parquet"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0", "-m", "profiles.measure", "--out", str(out), "--on", "cpu", "--budget", "15s",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = read_timings(out)
    assert set(table.op.tolist()) <= set(COLLECTIVES)
    assert {"all_reduce", "all_gather", "broadcast", "send_recv"} <= set(table.op.tolist())
    assert set(table.group_size.tolist()) == {2}
    assert set(table.kernel.tolist()) == {"gloo"}
