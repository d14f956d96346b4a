"""Prices that are remembered are those of the model, and neither more calls nor more devices are kept than said."""

from dataclasses import dataclass, field, replace
from weakref import WeakSet

import numpy as np
import pytest

from costmodels.kernels import remembered
from costmodels.kernels.calls import KernelCallBatch, KernelOp, Prediction, kernel_calls, take
from costmodels.kernels.remembered import RememberedKernelModel
from planner.prices.price_lists import kernel_model_of
from profiles.catalog import default_catalog
from profiles.hardware import DeviceSpec
from tests.fakes import RateKernels

A100 = default_catalog().device("A100-SXM-80GB")


@dataclass
class Counting:
    """Prices by rates, and counts the calls it was asked about."""

    asked: list[int] = field(default_factory=list)

    def predict(self, calls: KernelCallBatch, device: DeviceSpec) -> Prediction:
        self.asked.append(len(calls))
        return RateKernels(bytes_per_s=device.memory_bandwidth_bytes_per_s, relative_half_width=0.1).predict(
            calls, device
        )


def passes(*sizes: float) -> KernelCallBatch:
    return kernel_calls(len(sizes), op=KernelOp.MEMORY, batch=1, bytes=np.array(sizes))


def same(one: Prediction, other: Prediction) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Prediction.__dataclass_fields__)


def test_a_call_is_worked_out_once_and_costs_what_the_model_says() -> None:
    counting = Counting()
    model = RememberedKernelModel(counting)
    for calls in (passes(1e9, 2e9, 1e9), passes(2e9, 3e9), passes(3e9, 1e9)):
        assert same(model.predict(calls, A100), Counting().predict(calls, A100))
    assert counting.asked == [2, 1]


def test_a_device_that_is_faster_has_prices_of_its_own() -> None:
    model = RememberedKernelModel(Counting())
    faster = replace(A100, memory_bandwidth_bytes_per_s=2 * A100.memory_bandwidth_bytes_per_s)
    slow_s, fast_s = (model.predict(passes(1e12), device).time_s[0] for device in (A100, faster))
    assert slow_s == pytest.approx(2 * fast_s)


def test_tables_are_priced_once_and_not_kept() -> None:
    counting = Counting()
    model = RememberedKernelModel(counting)
    table = passes(*np.arange(1.0, remembered.MOST_LOOKED_UP + 2))
    twice = take(table, np.tile(np.arange(len(table)), 2))
    assert same(model.predict(twice, A100), Counting().predict(twice, A100))
    model.predict(table, A100)
    assert counting.asked == [len(table), len(table)]


def test_memory_that_is_set_aside_changes_no_price() -> None:
    counting = Counting()
    model = RememberedKernelModel(counting)
    for usable_bytes in (40e9, 50e9):
        model.predict(passes(1e9), replace(A100, usable_memory_bytes=usable_bytes))
    assert counting.asked == [1]
    less = replace(A100, usable_memory_bytes=40e9)
    assert kernel_model_of(less) is kernel_model_of(A100)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "MOST_REMEMBERED", 10)
    monkeypatch.setattr(remembered, "MOST_DEVICES", 3)
    model = RememberedKernelModel(Counting())
    for size in range(1, 40):
        device = replace(A100, memory_bytes=1e9 * (1 + size % 7))
        model.predict(passes(*range(size, size + 5)), device)
        assert len(model._remembered) <= 3
        assert all(len(memory) <= 15 for memory in model._remembered.values())


def test_what_all_devices_and_models_remember_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the device that is asked about stays."""
    monkeypatch.setattr(remembered, "_MODELS", WeakSet())  # what other tests left
    monkeypatch.setattr(remembered, "MOST_TOGETHER", 12)
    counting = [Counting(), Counting()]
    models = [RememberedKernelModel(each) for each in counting]
    devices = [A100, replace(A100, memory_bytes=1e9)]
    for _ in range(2):
        for model in models:
            for device in devices:
                model.predict(passes(*range(1, 6)), device)
                model.predict(passes(*range(1, 6)), device)
                kept = [memory for each in models for memory in each._remembered.values()]
                assert sum(map(len, kept)) <= 12 + 5
    assert [each.asked for each in counting] == [[5] * 4, [5] * 4]
