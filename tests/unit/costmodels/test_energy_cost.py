import pytest

from costmodels.energy_cost import Price, cost_usd, device_hours, steps_in_run
from costmodels.workload import TrainingJob
from profiles.errors import SpecError


def test_steps_count_useful_tokens_only():
    job = TrainingJob(sequence_length=1000, global_batch_size=10, train_tokens=5e5, padding_efficiency=0.5)
    assert steps_in_run(job) == pytest.approx(100)


def test_no_length_no_steps():
    assert steps_in_run(TrainingJob(sequence_length=8, global_batch_size=1)) is None


def test_dollars_are_device_hours_times_price():
    # GPT-3 175B on 1024 GPUs takes 34 days (arXiv:2104.04473 section 5.1); at 2 dollars each.
    assert device_hours(34 * 86400.0, 1024) == pytest.approx(835_584)
    assert cost_usd(34 * 86400.0, 1024, Price(usd_per_device_hour=2.0)) == pytest.approx(1_671_168)


@pytest.mark.parametrize("value", [-1.0, float("nan"), 2e6])
def test_impossible_prices_are_refused(value):
    with pytest.raises(SpecError, match="price_per_device_hour_usd: must be between 0 and 1e\\+06"):
        Price(usd_per_device_hour=value)
