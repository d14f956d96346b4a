"""Learned prices: trees correct a roofline, less so where they were never fitted, and say so."""

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costmodels.kernels.booster import Booster
from costmodels.kernels.calls import (
    Basis,
    KernelCallBatch,
    KernelFamily,
    KernelOp,
    concatenate,
    kernel_calls,
    take,
)
from costmodels.kernels.clocks import ClockLaw, sustained_share
from costmodels.kernels.device_reference import Situation, device_reference
from costmodels.kernels.features import FEATURES, features_of
from costmodels.kernels.implementations import Engine, Library, code_of
from costmodels.kernels.learned import OpModel, learned_kernel_model
from costmodels.kernels.remembered import MOST_LOOKED_UP, RememberedKernelModel
from profiles.catalog import default_catalog
from profiles.errors import SpecError
from profiles.fits import KernelFits
from profiles.learned import LearnedFile, Spread, card_from, load_learned
from profiles.precision import GEMM_FORMATS
from tests.fakes import RateKernels, device

# One tree, one split: -0.5 where log_k (feature 1) is at most 10, else 0.25.
TREE = """tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx=1
objective=regression
feature_names=size log_k
feature_infos=[0:39] [0:20]
tree_sizes=151

Tree=0
num_leaves=2
num_cat=0
split_feature=1
threshold=10
decision_type=2
left_child=-1
right_child=-2
leaf_value=-0.5 0.25
is_linear=0
shrinkage=1


end of trees
"""
# One second per FLOP at peak, nothing else: floor, depth, tiles and waves play no role.
PLAIN = {
    "floor_s": 0.0, "max_efficiency": 1.0, "k_half": 0.0, "tile_exponent": 0.0, "wave_quantisation": 0.0,
    "memory_efficiency": 1e9, "sharpness": 8.0, "cache_speed": 1.0, "cache_share": 1.0,
    "quantise_floor_s": 0.0, "quantise_rate": 1e30, "quantise_bytes": 0.0,
}  # fmt: skip
HALF = PLAIN | {"max_efficiency": 0.5}
HERE = device()
FAMILIES = {HERE.name: "chip", "sister": "chip", "cousin": "chip", "stranger": "other"}
SPREAD = {"up_to_s": [2e-3], "low_factor": [0.9, 0.8], "high_factor": [1.1, 1.3]}
WIDE = {"up_to_s": [], "low_factor": [0.5], "high_factor": [2.0]}


def reference_of(*kinds: str) -> dict:
    known = {kind: {"*": PLAIN, HERE.name: HALF} for kind in kinds}
    return known | {"devices": {kind: {HERE.name: 100.0} for kind in kinds}}


def card(**changes) -> dict:
    return {
        "op_class": "gemm", "features": ["size", "log_k"], "reference": reference_of("16-bit"),
        "ranges": {"16-bit": [[0, 1e9], [0, 14]]},
        "spread": {name: {"*": SPREAD, "fp8": WIDE} for name in ("measured", "beyond", "related")}
        | {name: {"*": WIDE} for name in ("foreign", "unmet")},
        "blend": {"measured": 1, "beyond": 1, "related": 1, "foreign": 0.5, "unmet": 0},
        "sha256": hashlib.sha256(TREE.encode()).hexdigest(),
    } | changes  # fmt: skip


def model(**changes):
    file = LearnedFile(card=card_from(card(**changes)), text=TREE)
    fits = KernelFits(records={}, families=FAMILIES, borrowed=frozenset({"cousin"}))
    return learned_kernel_model({"gemm": file}, roofline=RateKernels(flops_per_s=1e12), fits=fits)


def gemm(m: float = 4096, n: float = 4096, k: float = 4096, kind: str = "bf16") -> KernelCallBatch:
    return kernel_calls(
        1, op=KernelOp.GEMM, gemm_format=GEMM_FORMATS.index(kind), m=m, n=n, k=k, batch=1, flops=2 * m * n * k,
        bytes=2 * (m * n + m * k + k * n), element_bytes=2,
    )  # fmt: skip


AT_PEAK_S = 2 * 4096.0**3 / 312e12


def test_a_known_device_gets_its_reference_and_the_trees():
    priced = model().predict(gemm(), HERE)
    assert priced.time_s[0] == pytest.approx(2 * AT_PEAK_S * np.exp(0.25))
    assert priced.basis[0] == Basis.LEARNED
    assert not priced.extrapolated[0]
    shallow = model().predict(gemm(k=512), HERE)
    assert shallow.time_s[0] == pytest.approx(2 * AT_PEAK_S / 8 * np.exp(-0.5))


def test_the_interval_is_that_of_the_predicted_time():
    short, long = model().predict(gemm(), HERE), model().predict(gemm(m=65536), HERE)
    assert short.time_s[0] < 2e-3 < long.time_s[0]
    assert (short.low_s[0], short.high_s[0]) == pytest.approx((0.9 * short.time_s[0], 1.1 * short.time_s[0]))
    assert (long.low_s[0], long.high_s[0]) == pytest.approx((0.8 * long.time_s[0], 1.3 * long.time_s[0]))


def test_a_format_has_its_own_interval_where_it_was_seen_often():
    kinds = ("16-bit", "fp8")
    known = model(
        reference=reference_of(*kinds),
        ranges={kind: [[0, 1e9], [0, 14]] for kind in kinds},
    )
    here = device(peak_flops_per_s={"bf16": 312e12, "fp8": 312e12})
    narrow, wide = (known.predict(gemm(kind=kind), here) for kind in ("bf16", "fp8"))
    assert wide.high_s[0] / wide.time_s[0] == pytest.approx(2.0)
    assert narrow.high_s[0] / narrow.time_s[0] == pytest.approx(1.1)


def test_shapes_beyond_the_fit_are_flagged():
    priced = model().predict(gemm(k=1 << 15), HERE)
    assert priced.extrapolated[0]
    assert priced.basis[0] == Basis.LEARNED


def test_a_sister_chip_takes_the_reference_of_its_family():
    priced = model().predict(gemm(), device(name="sister"))
    assert priced.time_s[0] == pytest.approx(2 * AT_PEAK_S * np.exp(0.25))
    assert priced.basis[0] == Basis.LEARNED


@pytest.mark.parametrize("name", ["stranger", "cousin"])
def test_a_stranger_gets_half_of_the_correction_and_is_less_sure(name):
    """A cousin's family was measured on another architecture."""
    priced = model().predict(gemm(), device(name=name))
    assert priced.time_s[0] == pytest.approx(AT_PEAK_S * np.exp(0.25 / 2))
    assert priced.high_s[0] / priced.time_s[0] == pytest.approx(2.0)
    assert priced.low_s[0] == pytest.approx(AT_PEAK_S)  # half of it would beat the peak
    assert priced.basis[0] == Basis.ANALYTIC  # as the roofline says


def test_what_no_model_knows_is_left_to_the_roofline():
    for calls in (gemm(kind="tf32"), replace(gemm(), op=np.array([int(KernelOp.ATTENTION_FORWARD)]))):
        assert model().predict(calls, HERE).time_s[0] == RateKernels(flops_per_s=1e12).predict(calls, HERE).time_s[0]


def test_calls_without_work_are_free_and_harmless():
    nothing = kernel_calls(2, op=KernelOp.GEMM, gemm_format=GEMM_FORMATS.index("bf16"))
    assert model().predict(nothing, HERE).time_s.tolist() == [0.0, 0.0]
    assert len(model().predict(kernel_calls(0), HERE).time_s) == 0


def test_a_price_does_not_depend_on_its_company_or_on_what_was_asked_before():
    sizes = 2.0 ** np.random.default_rng(0).uniform(5, 14, (40, 3))
    calls = concatenate([gemm(*size) for size in sizes])
    together, one_by_one = RememberedKernelModel(model()), model()
    whole = together.predict(calls, HERE)
    single = [one_by_one.predict(take(calls, np.array([row])), HERE).time_s[0] for row in range(40)]
    assert whole.time_s.tolist() == single
    assert together.predict(calls, HERE).time_s.tolist() == single
    many = np.random.default_rng(1).integers(0, 40, MOST_LOOKED_UP + 1)  # a table, in which calls repeat
    assert RememberedKernelModel(model()).predict(take(calls, many), HERE).time_s.tolist() == [
        single[row] for row in many
    ]
    faster = replace(HERE, peak_flops_per_s={"bf16": 624e12})
    assert together.predict(gemm(), faster).time_s[0] == pytest.approx(together.predict(gemm(), HERE).time_s[0] / 2)


def test_a_format_the_device_lacks_is_refused():
    with pytest.raises(SpecError, match="no fp8 arithmetic"):
        model(reference=reference_of("fp8"), ranges={"fp8": [[0, 1e9], [0, 14]]}).predict(gemm(kind="fp8"), HERE)


def test_references_come_from_the_device_or_its_family_or_all():
    references = reference_of("16-bit")
    assert device_reference(references, "16-bit", HERE, FAMILIES) == (HALF, Situation.MEASURED)
    twin = replace(HERE, name="twin")
    assert device_reference(references, "16-bit", twin, FAMILIES | {"twin": "chip"}) == (HALF, Situation.RELATED)
    assert device_reference(references, "16-bit", twin, FAMILIES) == (PLAIN, Situation.FOREIGN)


def test_a_stranger_reaches_the_share_of_its_peak_that_it_holds():
    law = ClockLaw(full=0.95, capacity=0.15, growth=0.27, amd=-0.7, typical=0.75)
    references = reference_of("16-bit") | {"clocks": {"*": law.as_parameters()}}
    l4 = default_catalog().device("L4")
    weak, weaker = (device_reference(references, "16-bit", replace(l4, power_w=w), {})[0] for w in (72, 9))
    assert weak["max_efficiency"] == pytest.approx(sustained_share(l4, law))
    assert weaker["max_efficiency"] == pytest.approx(weak["max_efficiency"] / 2)
    assert {**weak, "max_efficiency": 1.0} == PLAIN
    assert device_reference(references, "16-bit", HERE, FAMILIES)[0] == HALF  # a device that was timed keeps its own


def test_a_relative_counts_as_far_as_both_boards_hold_the_same_of_their_peaks():
    law = ClockLaw(full=0.95, capacity=0.19, growth=0.27, amd=-0.73, typical=0.73)
    h100, h20, weaker = (default_catalog().device(name) for name in ("H100-SXM-80GB", "H20-SXM-96GB", "H100-SXM-96GB"))
    families = {each.name: "chip" for each in (h100, h20, weaker)}
    reached = PLAIN | {"max_efficiency": 0.8}
    references = {
        "16-bit": {"*": PLAIN, h100.name: reached}, "devices": {"16-bit": {h100.name: 100.0}},
        "clocks": {"*": law.as_parameters()},
    }  # fmt: skip
    found, situation = device_reference(references, "16-bit", weaker, families)
    assert situation is Situation.RELATED
    held = sustained_share(weaker, law) / sustained_share(h100, law)
    assert held == pytest.approx((500 / 700) ** (1 / 3))  # watts of the two boards
    assert found == reached | {"max_efficiency": pytest.approx(0.8 * held)}
    free, _ = device_reference(references, "16-bit", h20, families)  # which no limit holds back
    assert free["max_efficiency"] == 0.95
    assert device_reference(references, "16-bit", h100, families)[0] == reached


def test_of_several_relatives_the_one_whose_board_holds_most_nearly_as_much_counts():
    law = ClockLaw(full=0.95, capacity=0.19, growth=0.27, amd=-0.73, typical=0.73)
    card_for_pcie, board, asked = ("A100-PCIe-80GB", "A100-SXM-80GB", "A100-SXM-40GB")
    known = {card_for_pcie: PLAIN | {"max_efficiency": 0.7}, board: PLAIN | {"max_efficiency": 0.8}}
    references = {
        "16-bit": {"*": PLAIN, **known}, "devices": {"16-bit": dict.fromkeys(known, 100.0)},
        "clocks": {"*": law.as_parameters()},
    }  # fmt: skip
    families = dict.fromkeys((card_for_pcie, board, asked), "chip")
    assert device_reference(references, "16-bit", default_catalog().device(asked), families)[0] == known[board]


def test_products_that_quantise_nothing_share_what_multiplies_those_that_do():
    """Of a format that was timed with quantisation alone; the input's is all that they are spared."""
    bare = replace(gemm(kind="fp8"), implementation=np.array([code_of(Engine.PYTORCH, Library.EAGER)]))
    slow = PLAIN | {"quantise_floor_s": 1e-3}
    references = {"fp8": {"*": slow, HERE.name: slow}, "devices": {"fp8": {HERE.name: 100.0}}}
    timed = model(reference=references, ranges={"fp8": [[0, 1e9], [0, 14]]})
    fast = replace(HERE, peak_flops_per_s={"bf16": 312e12, "fp8": 624e12})
    assert model().predict(bare, fast).time_s[0] == pytest.approx(2 * 4096.0**3 / 1e12)  # no fp8: the roofline's
    found = timed.predict(bare, fast)
    assert found.time_s[0] == pytest.approx(AT_PEAK_S / 2 * np.exp(0.25))
    assert timed.predict(gemm(kind="fp8"), fast).time_s[0] == pytest.approx((AT_PEAK_S / 2 + 1e-3) * np.exp(0.25))


def test_work_of_a_library_that_was_not_timed_here_moves_what_its_code_does():
    """Cross-entropy in PyTorch: logits cast to fp32, then their logarithmic softmax: seven passes, not one."""
    passes = kernel_calls(
        1, op=KernelOp.MEMORY, family=KernelFamily.CROSS_ENTROPY, m=4096, n=8192, batch=1, bytes=2 * 4096 * 8192,
        element_bytes=2, implementation=code_of(Engine.PYTORCH, Library.EAGER),
    )  # fmt: skip
    told = replace(passes, implementation=np.zeros(1, dtype=np.int64))
    roofline = RateKernels(flops_per_s=1e12, bytes_per_s=1e12)
    fits = KernelFits(records={}, families={}, borrowed=frozenset())
    prices = learned_kernel_model({}, roofline=roofline, fits=fits)
    least_s = 2 * 4096 * 8192 / 1e12
    assert prices.predict(told, HERE).time_s[0] == pytest.approx(least_s)
    assert prices.predict(passes, HERE).time_s[0] == pytest.approx(7 * least_s)


def test_who_scales_blocks_itself_is_told_from_who_does_not():
    references = {"fp8-block": {"*": PLAIN, "* scaling": HALF}, "devices": {}}
    b200, l40s = (default_catalog().device(name) for name in ("B200-SXM-180GB", "L40S"))
    assert device_reference(references, "fp8-block", b200, {})[0] == HALF
    assert device_reference(references, "fp8-block", l40s, {})[0] == PLAIN


def test_a_device_timed_without_quantising_is_a_relative_of_itself_with_it():
    references = reference_of("fp8") | {"devices": {"fp8-bare": {HERE.name: 100.0}}}
    assert device_reference(references, "fp8-bare", HERE, FAMILIES) == (HALF, Situation.MEASURED)
    assert device_reference(references, "fp8", HERE, FAMILIES) == (HALF, Situation.RELATED)
    sister = references["fp8"] | {"sister": PLAIN}
    both = references | {"fp8": sister, "devices": references["devices"] | {"fp8": {"sister": 100.0}}}
    assert device_reference(both, "fp8", HERE, FAMILIES) == (PLAIN, Situation.RELATED)


# ---- boosters and files ---------------------------------------------------------------------------------


def test_other_processes_get_the_same_ensemble() -> None:
    booster, rows = Booster(TREE), np.zeros((2, Booster(TREE).num_features))
    assert pickle.loads(pickle.dumps(booster)).predict(rows).tolist() == booster.predict(rows).tolist()


def test_a_booster_reads_its_text_and_checks_the_width():
    booster = Booster(TREE)
    assert (booster.num_trees, booster.num_features) == (1, 2)
    assert booster.predict(np.array([[0.0, 9.0], [0.0, 11.0]])).tolist() == [-0.5, 0.25]
    assert booster.predict(np.zeros((0, 2))).tolist() == []
    with pytest.raises(ValueError, match="2 features"):
        booster.predict(np.zeros((1, 3)))


def test_a_card_of_other_features_is_refused():
    with pytest.raises(ValueError, match="names 1 features"):
        OpModel.of(LearnedFile(card=card_from(card(features=["size"])), text=TREE))


def write(folder: Path, document: dict, text: str = TREE) -> None:
    (folder / "gemm.json").write_text(json.dumps(document), encoding="utf-8")
    (folder / "gemm.txt").write_text(text, encoding="utf-8")


def test_models_are_loaded_with_their_cards(tmp_path):
    write(tmp_path, card())
    (found,) = load_learned(tmp_path).values()
    assert found.text == TREE
    assert found.card.spread["measured"]["*"] == Spread(
        up_to_s=(2e-3, float("inf")), low_factor=(0.9, 0.8), high_factor=(1.1, 1.3)
    )
    assert load_learned(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("document", "text", "problem"),
    [
        (card(), TREE + "\n", "is not the model its card describes"),
        ({"op_class": "gemm"}, TREE, "is no card"),
        ([], TREE, "is no card"),
        (card(blend={"measured": "high"}), TREE, "is no card"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(tmp_path, document, text, problem):
    write(tmp_path, document, text)
    with pytest.raises(SpecError, match=problem) as error:
        load_learned(tmp_path)
    assert error.value.field.startswith(str(tmp_path))


# ---- features -------------------------------------------------------------------------------------------


def feature(name: str, calls: KernelCallBatch, **spec) -> float:
    return float(features_of("gemm", calls, device(**spec))[name][0])


def test_features_of_a_gemm_a_reader_can_count():
    calls = gemm(m=256 * 27, n=512, k=1000)
    # 27 x 4 tiles of 256 x 128 fill 108 multiprocessors once.
    assert feature("waves_256x128", calls) == 0.0
    assert feature("tail_256x128", calls) == 1.0
    assert feature("tail_256x128", gemm(m=256 * 27 + 1, n=512, k=1000)) == pytest.approx(2 / (112 / 108))
    assert feature("pad_128x128", gemm(m=96, n=128)) == pytest.approx(128 / 96)
    assert [feature(f"align_{name}", calls) for name in "mnk"] == [8, 8, 3]
    assert feature("align_m", gemm(m=37.5)) == 0
    moved = 2 * (256 * 27 * 1000 + 512 * 1000 + 256 * 27 * 512)
    assert feature("cache", calls) == pytest.approx(np.log2(moved / 40e6))
    assert feature("live", calls) == pytest.approx(np.log2(2 * 256 * 27 * (1000 + 512) / 40e6))
    assert feature("intensity", calls) == pytest.approx(np.log(2 * 256 * 27 * 512 * 1000 / 312e12 / (moved / 2e12)))


def test_twice_the_machine_for_twice_the_work_looks_the_same():
    """Features are ratios to what the device offers: twice the columns on twice the multiprocessors and rates."""
    small, large = gemm(n=4096), gemm(n=8192)
    twice = {
        "num_sms": 216, "peak_flops_per_s": {"bf16": 624e12}, "memory_bandwidth_bytes_per_s": 4e12, "l2_bytes": 80e6
    }  # fmt: skip
    for name in ("waves_256x128", "waves_64x64", "tail_128x128"):
        assert feature(name, large, **twice) == pytest.approx(feature(name, small))


@pytest.mark.parametrize("op_class", FEATURES)
def test_features_are_finite_for_any_call(op_class):
    rng = np.random.default_rng(0)
    sizes = np.concatenate([2.0 ** rng.uniform(0, 20, (200, 4)), np.zeros((1, 4))])
    calls = kernel_calls(
        201, op=KernelOp.GEMM, gemm_format=3, m=sizes[:, 0], n=sizes[:, 1], k=sizes[:, 2], batch=sizes[:, 3],
        heads=8, kv_heads=2, causal=0.5, flops=2e9, bytes=1e6, element_bytes=2,
    )  # fmt: skip
    for name, values in features_of(op_class, calls, HERE).items():
        assert np.isfinite(values).all(), name
        assert len(values) == 201
