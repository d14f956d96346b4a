"""Fitting learned kernel models: which rows enter, what is held out, and that files come out the same twice."""

import functools
import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the fitting tools need the optional extra 'fit'")

from costmodels.calibration.kernel_models import build
from costmodels.calibration.kernel_page import page
from costmodels.calibration.learned_fit import fit_reference, predicted_s, slimmed, train
from costmodels.calibration.learned_splits import (
    Fold,
    best_shares,
    folds,
    known_of,
    largest,
    measured_elsewhere,
    report,
    roofline_s,
    shape_fold,
)
from costmodels.calibration.training_rows import TrainingRows, capped, gemm_training_rows, grouped_training_rows
from costmodels.kernels.calls import KernelFamily, KernelOp, kernel_calls
from costmodels.kernels.clocks import ClockLaw, sustained_share
from costmodels.kernels.device_features import BLOCK_SCALING
from costmodels.kernels.device_reference import device_reference
from costmodels.kernels.features import op_classes
from costmodels.kernels.implementations import Engine, Library, code_of, implementation_of
from costmodels.kernels.learned import learned_kernel_model
from costmodels.tables.read import SCHEMAS
from profiles.catalog import default_catalog
from profiles.fits import KernelFits, default_fits
from profiles.learned import load_learned
from profiles.precision import GEMM_FORMATS
from tests.fakes import RateKernels

ALONE = {"measured": 1.0}
GPUS = {"A100-SXM4-80GB": 312e12, "H100-SXM5-80GB": 989e12}


def data(tmp_path: Path, *, count: int = 400, seed: int = 0) -> Path:
    """A folder with GEMMs that reach 70 % of the peak, and half of that where the depth is below 512."""
    rng = np.random.default_rng(seed)
    lines = [",".join(SCHEMAS["gemm"])]
    for gpu, peak in GPUS.items():
        shapes = 2 ** rng.integers(7, 13, (count, 3)) + 8 * rng.integers(0, 8, (count, 3))
        for m, n, k in shapes.tolist():
            seconds = 5e-6 + 2 * m * n * k / peak / (0.35 if k < 512 else 0.7)
            lines.append(f"lab,{gpu},bf16,{m},{n},{k},1,{seconds * 1e6},x")
    folder = tmp_path / "timings"
    folder.mkdir(exist_ok=True)
    write(folder / "gemm.csv.gz", lines)
    return tmp_path


def write(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode()))


def rows_of(folder: Path) -> TrainingRows:
    return gemm_training_rows(folder)


def append(folder: Path, *lines: str) -> None:
    path = folder / "timings" / "gemm.csv.gz"
    write(path, [*gzip.decompress(path.read_bytes()).decode().splitlines(), *lines])


def test_rows_that_teach_nothing_stay_out(tmp_path):
    folder = data(tmp_path, count=20)
    before = len(rows_of(folder))
    append(
        folder, "xla-perf-table,H100,bf16,4096,4096,4096,1,900,x", "lab,TitanX,bf16,4096,4096,4096,1,900,x",
        "lab,A100,fp8,4096,4096,4096,1,900,x", "lab,A100,int8,4096,4096,4096,1,900,x",
        "lab,A100,fp32,4096,4096,4096,1,9000,x",
    )  # fmt: skip
    assert len(rows_of(folder)) == before


def test_launches_of_eager_sources_are_taken_off_and_short_rows_left_out(tmp_path):
    folder = data(tmp_path, count=20)
    eager = [f"deepbench,H100,bf16,{512 + 8 * i},64,64,1,{10 + i / 1000},x" for i in range(300)]
    append(folder, *eager, "deepbench,H100,bf16,8192,8192,8192,1,2007,x")
    rows = rows_of(folder)
    long = rows.source == "deepbench"
    assert long.sum() == 1
    assert rows.time_s[long][0] == pytest.approx(2000e-6, rel=1e-3)  # ten less three microseconds


def test_repeated_measurements_become_one(tmp_path):
    folder = data(tmp_path, count=20)
    before = len(rows_of(folder))
    append(folder, *(f"other,H100,bf16,640,640,640,1,{time},v{time}" for time in (100, 400)))
    rows = rows_of(folder)
    assert len(rows) == before + 1
    assert rows.time_s[rows.source == "other"] == pytest.approx([200e-6])


LAW = ClockLaw(full=0.95, capacity=0.15, growth=0.27, amd=-0.7, typical=0.75)
TIMED = ("V100-SXM-16GB", "A100-SXM-80GB", "RTX-A6000", "L40S", "H100-SXM-80GB")


def held_back(kinds: dict[str, tuple[str, ...]]) -> TrainingRows:
    """Products that reach of a device's peak what it holds; with scales per block half of that, unless it scales."""
    parts = []
    for kind, names in kinds.items():
        for number, name in enumerate(names):
            spec = default_catalog().device(name)
            m, n, k = 2.0 ** np.random.default_rng(number).integers(9, 14, (3, 120))
            half = kind == "fp8-block" and spec.architecture not in BLOCK_SCALING
            form = {"16-bit": "fp16"}.get(kind, "fp8")
            calls = kernel_calls(
                120, op=KernelOp.GEMM, gemm_format=GEMM_FORMATS.index(form), m=m, n=n, k=k, batch=1,
                flops=2 * m * n * k, bytes=2 * (m * n + m * k + k * n), element_bytes=2,
                scale_block=128.0 if kind == "fp8-block" else 0.0,
            )  # fmt: skip
            rate = spec.peak(form) * sustained_share(spec, LAW) * (0.5 if half else 1.0)
            where = np.full(120, "lab")
            parts.append(TrainingRows(
                op_class="gemm", calls=calls, time_s=5e-6 + calls.flops / rate, device=np.full(120, name),
                source=where, kind=np.full(120, ""),
            ))  # fmt: skip
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    return whole


def test_what_devices_reach_says_what_a_stranger_will():
    found = fit_reference(held_back({"16-bit": TIMED}))
    for name in ("L4", "RTX-3090", "H100-PCIe-80GB", "B200-SXM-180GB"):
        spec = default_catalog().device(name)
        expected, situation = device_reference(found, "16-bit", spec, {})
        assert situation.name == "FOREIGN"
        assert expected["max_efficiency"] == pytest.approx(sustained_share(spec, LAW), rel=0.15)


@pytest.mark.long
def test_scales_per_block_cost_who_cannot_apply_them_in_the_multipliers():
    kinds = {"16-bit": TIMED, "fp8": ("L40S", "H100-SXM-80GB"), "fp8-block": ("L40S", "H100-SXM-80GB")}
    found = fit_reference(held_back(kinds))
    share = found["fp8-block"]["*"]["max_efficiency"] / found["fp8"]["*"]["max_efficiency"]
    assert share == pytest.approx(0.5 ** (2 / 3), rel=0.1)  # two devices say half, one more is as without scales
    assert found["fp8-block"]["* scaling"]["max_efficiency"] == found["fp8"]["*"]["max_efficiency"]
    timed = fit_reference(held_back(kinds | {"fp8-block": (*kinds["fp8-block"], "B200-SXM-180GB")}))
    scaling = timed["fp8-block"]["* scaling"]["max_efficiency"]
    assert scaling > 1.6 * timed["fp8-block"]["*"]["max_efficiency"] / 0.5 ** (-1 / 3)


def test_expert_layers_leave_both_gemms_what_the_glue_does_not_take(tmp_path):
    folder = tmp_path / "timings"
    folder.mkdir()
    line = "lab,H100-SXM5-80GB,bf16,fused_moe,8192,4096,{inter},2,8,1,1,{how},trtllm;moe_torch_flow_cutlass,{time}"
    text = [line.format(inter=2048, how="balanced", time=3000), line.format(inter=4096, how="power_law_1.2", time=9)]
    write(folder / "moe.csv.gz", [",".join(SCHEMAS["moe"]), *text])
    rows = grouped_training_rows(tmp_path)
    assert len(rows) == 2
    assert rows.calls.flops.tolist() == pytest.approx([2 * 16384 * 4096 * 4096, 2 * 16384 * 4096 * 2048])
    assert rows.time_s[0] == pytest.approx(2 * rows.time_s[1])
    # Four passes over the routed tokens of 4096 in 16 bits, three of 2048, at 80 % of 3.35 TB/s; three launches.
    glue_s = 2 * 16384 * (4 * 4096 + 3 * 2048) / 3.35e12 / 0.8 + 9e-6
    assert rows.time_s.sum() == pytest.approx(3000e-6 - glue_s)


def test_a_model_learns_what_a_roofline_does_not_say(tmp_path):
    rows = rows_of(data(tmp_path))
    held = shape_fold(rows) == 0
    trained = train(rows.take(~held), rounds=60)
    part = rows.take(held)
    learned_s, reference_s = predicted_s(trained, part)
    error, without = (float(np.mean(np.abs(time_s / part.time_s - 1))) for time_s in (learned_s, reference_s))
    assert error < 0.6 * without
    assert set(trained.reference["16-bit"]) == {"*", "A100-SXM-80GB", "H100-SXM-80GB"}


def test_the_same_rows_give_the_same_model(tmp_path):
    rows = rows_of(data(tmp_path, count=100))
    assert train(rows, rounds=5).text == train(rows, rounds=5).text


def test_splits_hold_whole_shapes_and_the_most_work(tmp_path):
    rows = rows_of(data(tmp_path, count=100))
    doubled = rows.joined(rows)
    fold = shape_fold(doubled)
    assert (fold[: len(rows)] == fold[len(rows) :]).all()
    assert set(fold) == set(range(5))
    most = largest(rows)
    for device in np.unique(rows.device):
        mine = (rows.device == device) & (rows.time_s > 20e-6)
        assert rows.calls.flops[mine & most].min() > rows.calls.flops[mine & ~most].max()
        assert most[mine].mean() == pytest.approx(0.2, abs=0.08)
    assert not measured_elsewhere(rows, "lab").any()


def with_formats(rows: TrainingRows, kind: str, *, bare: bool = False) -> TrainingRows:
    """The same rows in another format, timed as PyTorch runs them or not."""
    code = implementation_of("torch") if bare else 0
    calls = replace(
        rows.calls,
        gemm_format=np.full(len(rows), GEMM_FORMATS.index(kind)),
        implementation=np.full(len(rows), code),
    )
    return replace(rows, calls=calls)


def test_a_device_is_a_relative_only_in_arithmetic_that_its_kin_was_timed_in(tmp_path):
    rows = rows_of(data(tmp_path, count=60))
    whole = rows.joined(with_formats(rows, "fp8"))
    kin = whole.device == "H100-SXM-80GB"
    bf16 = whole.take(~(kin & (whole.format == "fp8")))
    related = known_of(bf16, ["H100-SXM-80GB"])
    assert related.tolist() == (bf16.format == "16-bit").tolist()


def test_products_with_and_without_quantising_share_their_multipliers(tmp_path):
    """The time without it is that of 16 bits here, so the efficiency of the narrow units is half of theirs."""
    rows = rows_of(data(tmp_path, count=200))
    rows = rows.take(rows.device == "H100-SXM-80GB")
    quantising = with_formats(rows, "fp8")
    quantising = replace(quantising, time_s=quantising.time_s + 20e-6)
    found = fit_reference(quantising.joined(with_formats(rows.take(np.arange(60)), "fp8", bare=True)))
    assert set(found) == {"fp8", "fp8-bare", "devices"}
    assert found["devices"] == {"fp8": {"H100-SXM-80GB": 200.0}, "fp8-bare": {"H100-SXM-80GB": 60.0}}
    joint, bare = found["fp8"]["H100-SXM-80GB"], found["fp8-bare"]["H100-SXM-80GB"]
    assert joint["max_efficiency"] == pytest.approx(bare["max_efficiency"], rel=0.15)
    assert joint["quantise_floor_s"] > 5e-6


def test_caps_draw_the_same_rows_of_every_group(tmp_path):
    rows = rows_of(data(tmp_path, count=100))
    few = capped(rows, 30)
    assert [int((few.device == device).sum()) for device in np.unique(few.device)] == [30, 30]
    assert (few.time_s == capped(rows, 30).time_s).all()
    assert len(capped(rows, 1000)) == len(rows)


def fold(rows: TrainingRows, factor: float, situation: str = "measured", name: str = "random") -> Fold:
    return Fold(
        name=name, situation=situation, rows=rows, learned_s=factor * rows.time_s, reference_s=rows.time_s,
        constant_s=2 * rows.time_s,
    )  # fmt: skip


def test_reports_state_errors_as_fractions_and_cover_with_other_folds(tmp_path):
    rows = rows_of(data(tmp_path, count=60))
    (one, *_) = report([fold(rows, 1.1)], ALONE)
    assert (one["mape"], one["bias"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert one["constant_roofline_mape"] == pytest.approx(1.0)
    shares = {"related": 1.0}
    near, far = (
        report([fold(rows, factor, "related", "device A"), fold(rows, 1.2, "related", "device B")], shares)[0]
        for factor in (1.1, 1.3)
    )
    assert (near["covered"], far["covered"]) == (1.0, 0.0)


def test_the_share_in_the_blend_is_what_errs_least(tmp_path):
    rows = rows_of(data(tmp_path, count=60))
    off = Fold(name="d", situation="beyond", rows=rows, learned_s=rows.time_s, reference_s=2 * rows.time_s,
               constant_s=rows.time_s)  # fmt: skip
    shares = best_shares([fold(rows, 1.5, "foreign"), off])
    assert shares == {"measured": 1.0, "beyond": 1.0, "related": 1.0, "foreign": 0.0, "unmet": 0.0}


def test_the_constant_roofline_is_the_larger_of_two_times(tmp_path):
    rows = rows_of(data(tmp_path, count=30))
    mine = rows.device == "A100-SXM-80GB"
    expected = np.maximum(rows.calls.flops / 312e12, rows.calls.bytes / 2.039e12)
    assert roofline_s(rows)[mine] == pytest.approx(expected[mine])


@pytest.mark.long
def test_a_built_model_is_loaded_priced_and_described(tmp_path):
    rows = rows_of(data(tmp_path, count=150))
    lines = build(rows, tmp_path / "models")
    assert {line["split"] for line in lines} == {
        "random", "larger", "large", "device A100-SXM-80GB", "device H100-SXM-80GB",
    }  # fmt: skip
    files = load_learned(tmp_path / "models")
    model = learned_kernel_model(files, roofline=RateKernels(), fits=KernelFits(records={}))
    mine = rows.take(rows.device == "A100-SXM-80GB")
    priced = model.predict(mine.calls, default_catalog().device("A100-SXM-80GB"))
    assert np.mean(np.abs(priced.time_s / mine.time_s - 1)) < 0.15
    inside = (priced.low_s <= mine.time_s) & (mine.time_s <= priced.high_s)
    assert inside.mean() > 0.85
    text = page(file.card for file in files.values())
    assert "| random | measured | 16-bit |" in text


def test_slimmed_models_say_the_same():
    import lightgbm

    from costmodels.kernels.booster import Booster

    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 3))
    data_set = lightgbm.Dataset(features, features[:, 0] * features[:, 1])
    whole = lightgbm.train({"num_leaves": 7, "verbose": -1, "num_threads": 1}, data_set, 10)
    text = slimmed(whole.model_to_string())
    assert len(text) < 0.5 * len(whole.model_to_string())
    assert Booster(text).predict(features) == pytest.approx(whole.predict(features), rel=1e-4, abs=1e-4)


def test_expert_products_multiply_as_fast_as_single_ones():
    """Groups of few rows are bound by memory: what they multiply at must come from elsewhere."""
    fits = default_fits().kernels
    single = fits.resolve("gemm", "16-bit", device="", architecture="").parameters
    count, spec = 300, default_catalog().device("H100-SXM-80GB")
    rng = np.random.default_rng(0)
    m, n, k, batch = (2.0 ** rng.integers(low, high, count) for low, high in ((0, 5), (9, 13), (9, 13), (3, 7)))
    calls = kernel_calls(
        count, op=KernelOp.GROUPED_GEMM, gemm_format=GEMM_FORMATS.index("bf16"), m=m, n=n, k=k, batch=batch,
        flops=2 * m * n * k * batch, bytes=2 * batch * (m * k + k * n + m * n), element_bytes=2,
    )  # fmt: skip
    rows = TrainingRows(
        op_class="grouped_gemm", calls=calls, time_s=8e-6 + calls.bytes / spec.memory_bandwidth_bytes_per_s / 0.7,
        device=np.full(count, spec.name), source=np.full(count, "lab"), kind=np.full(count, ""),
    )  # fmt: skip
    found = fit_reference(rows)["16-bit"][spec.name]
    assert found["max_efficiency"] == pytest.approx(single["max_efficiency"], rel=1e-4)
    assert found["memory_efficiency"] == pytest.approx(0.7, rel=0.1)
    assert found["floor_s"] == pytest.approx(8e-6, rel=0.3)
    free = fit_reference(replace(rows, op_class="grouped_alone"))["16-bit"][spec.name]
    assert free["max_efficiency"] != pytest.approx(single["max_efficiency"], rel=1e-2)


def test_grouped_products_timed_alone_are_a_class_of_their_own():
    calls = kernel_calls(3, op=KernelOp.GROUPED_GEMM, implementation=[0, implementation_of("torch_grouped_mm"), 0])
    assert op_classes(calls).tolist() == ["grouped_gemm", "grouped_alone", "grouped_gemm"]


def timed(device: str, family: KernelFamily, count: int) -> TrainingRows:
    """Bandwidth-bound work of a device."""
    sides = np.random.default_rng(1).integers(2048, 16384, count).astype(float)
    calls = kernel_calls(
        count, op=KernelOp.MEMORY, family=family, m=sides, n=4096, batch=1, bytes=2 * sides * 4096 * 2,
        element_bytes=2, implementation=code_of(Engine.PYTORCH, Library.EAGER),
    )  # fmt: skip
    words = {"device": device, "source": "lab", "kind": family.name.lower()}
    columns = {name: np.full(count, word) for name, word in words.items()}
    return TrainingRows(op_class="memory", calls=calls, time_s=3e-6 + calls.bytes / 2e12, **columns)


# Twenty rows of a relative have coefficients of their own, and say nothing of how prices of relatives err.
@pytest.mark.parametrize(("relatives", "related"), [(60, {"related": ["norm"]}), (20, {})])
def test_rows_of_a_held_out_device_lie_where_their_prices_say(relatives: int, related: dict[str, list[str]]) -> None:
    """Who runs a kernel was timed on the device's generation, on another, or nowhere."""
    parts = [
        *(
            timed("H100-SXM-80GB", family, 60)
            for family in (KernelFamily.NORM, KernelFamily.COPY, KernelFamily.SOFTMAX)
        ),
        *(timed("A100-SXM-80GB", family, 60) for family in (KernelFamily.NORM, KernelFamily.COPY)),
        timed("H200-SXM-141GB", KernelFamily.NORM, relatives),
    ]
    rows = functools.reduce(TrainingRows.joined, parts)
    found = {
        fold.situation: np.unique(fold.rows.kind).tolist()
        for fold in folds(rows, rows, few_shot=False)
        if fold.name == "device H100-SXM-80GB"
    }
    assert found == {**related, "foreign": ["copy"], "unmet": ["softmax"]}
