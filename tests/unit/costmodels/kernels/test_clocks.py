"""Which share of its peak a device holds: clocks from data sheets, the cube root of power, and what devices say."""

from dataclasses import replace

import numpy as np
import pytest

from costmodels.calibration.clock_fit import fit_clock_law
from costmodels.kernels.clocks import LAUNCHED, ClockLaw, clock_hz, heat, held_back, sustained_share
from profiles.catalog import default_catalog

LAW = ClockLaw(full=0.95, capacity=0.15, growth=0.27, amd=-0.7, typical=0.75)
CATALOG = default_catalog()
L40S = CATALOG.device("L40S")


@pytest.mark.parametrize(
    ("name", "ghz"),
    [("V100-SXM-16GB", 1.53), ("A100-SXM-80GB", 1.41), ("RTX-3090", 1.69), ("L40S", 2.49), ("H100-SXM-80GB", 1.83),
     ("MI300X", 2.10), ("RTX-PRO-6000-WS-96GB", 2.62), ("P100-PCIe-16GB", 1.30)],
)  # fmt: skip
def test_boost_clocks_of_data_sheets_follow_from_their_peaks(name, ghz):
    assert clock_hz(CATALOG.device(name)) == pytest.approx(ghz * 1e9, rel=0.01)


def test_an_h20_multiplies_at_a_quarter_of_what_its_chip_can_and_a_geforce_at_half():
    assert held_back(CATALOG.device("H20-SXM-96GB")) == 4
    assert {
        held_back(CATALOG.device(f"RTX-{name}")) for name in ("2080-Ti", "3080", "3090", "4080", "4090", "5080", "5090")
    } == {2.0}
    whole = ("H100-SXM-80GB", "H100-PCIe-80GB", "H200-SXM-141GB", "A100-SXM-80GB", "A30", "RTX-A6000", "B200-SXM-180GB")
    others = ("T4", "L40S", "RTX-6000-Ada", "RTX-PRO-6000-WS-96GB", "V100-SXM-16GB", "P100-PCIe-16GB", "MI308X")
    assert {held_back(CATALOG.device(name)) for name in (*whole, *others)} == {1.0}


def test_a_board_with_an_eighth_of_the_power_holds_half_of_the_clock():
    assert sustained_share(L40S, LAW) < 0.7
    weak = replace(L40S, power_w=L40S.power_w / 8)
    assert sustained_share(weak, LAW) == pytest.approx(sustained_share(L40S, LAW) / 2)


def test_no_board_holds_more_than_what_products_reach_without_a_limit():
    assert sustained_share(replace(L40S, power_w=1e5), LAW) == LAW.full


def test_the_same_chip_at_half_the_rate_is_not_held_back():
    """RTX 3090 and RTX A6000 share a die; the first has half the rate and more power."""
    assert sustained_share(CATALOG.device("RTX-3090"), LAW) == LAW.full
    assert sustained_share(CATALOG.device("RTX-A6000"), LAW) < 0.9


def test_twice_the_clock_takes_four_times_the_energy():
    slower = replace(L40S, num_sms=2 * L40S.num_sms)  # the same peak of twice as many processors
    peaks = {name: peak / 2 for name, peak in L40S.peak_flops_per_s.items()}
    assert clock_hz(slower) == clock_hz(L40S)  # a processor with half the rate: fewer units, not a slower clock
    assert heat(replace(L40S, peak_flops_per_s=peaks)) == pytest.approx(heat(L40S) - np.log(2))
    quicker = replace(L40S, peak_flops_per_s={n: 0.8 * p for n, p in L40S.peak_flops_per_s.items()})
    assert heat(quicker) == pytest.approx(heat(L40S) + 3 * np.log(0.8))


def test_devices_without_matrix_units_get_what_is_typical():
    assert sustained_share(CATALOG.device("P100-PCIe-16GB"), LAW) == LAW.typical
    assert sustained_share(replace(L40S, architecture="new"), LAW) == LAW.typical


def test_the_law_is_found_again_from_what_devices_reach():
    names = ("V100-SXM-16GB", "T4", "A100-SXM-80GB", "RTX-A6000", "RTX-3090", "L40S", "H100-SXM-80GB", "B200-SXM-180GB",
             "MI210", "MI300X")  # fmt: skip
    reached = {name: sustained_share(CATALOG.device(name), LAW) for name in names}
    found = fit_clock_law(reached)
    assert found is not None
    for name in (*names, "L4", "H100-PCIe-80GB", "MI325X"):
        spec = CATALOG.device(name)
        assert sustained_share(spec, found) == pytest.approx(sustained_share(spec, LAW), rel=0.06)
    assert found.typical == pytest.approx(np.median(list(reached.values())), rel=0.05)


def test_few_devices_give_no_law():
    assert fit_clock_law({"L40S": 0.6, "H100-SXM-80GB": 0.8, "P100-PCIe-16GB": 0.5}) is None


def test_every_architecture_of_the_catalogue_with_matrix_units_has_a_year():
    specs = CATALOG.devices.values()
    unknown = {s.architecture for s in specs if "fp16" in s.peak_flops_per_s} - set(LAUNCHED)
    assert unknown <= {"pascal"}
