"""What a run costs beyond one step: days, device-hours, dollars, energy.

Prices and tariffs are always the caller's, with their date; nothing here has a default price.
"""

from dataclasses import dataclass

from costmodels.workload import TrainingJob
from profiles.errors import check_between
from profiles.hardware import DeviceSpec
from profiles.units import SECONDS_PER_HOUR

MAX_PRICE_USD = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What one device-hour costs, as the user states it.

    Attributes:
        usd_per_device_hour: Dollars.
        date: When that was the price, as the user wrote it.
    """

    usd_per_device_hour: float
    date: str = ""

    def __post_init__(self) -> None:
        check_between("price_per_device_hour_usd", self.usd_per_device_hour, 0, MAX_PRICE_USD)


def steps_in_run(job: TrainingJob) -> float | None:
    """Optimizer steps to train ``job.train_tokens`` useful tokens; None when no length was given."""
    if job.train_tokens is None:
        return None
    return job.train_tokens / (job.tokens_per_step * job.padding_efficiency)


def device_hours(duration_s: float, num_devices: int) -> float:
    """Device-hours that ``num_devices`` spend in ``duration_s``."""
    return duration_s * num_devices / SECONDS_PER_HOUR


def cost_usd(duration_s: float, num_devices: int, price: Price) -> float:
    """Dollars for the devices over that time; idle, storage and network cost are not in it."""
    return device_hours(duration_s, num_devices) * price.usd_per_device_hour


def energy_j(duration_s: float, num_devices: int, device: DeviceSpec) -> float:
    """Joules the devices draw at most: board power limit times time, hosts and cooling not counted.

    An upper bound of the devices' share: no device draws more than its limit for long.
    """
    return duration_s * num_devices * device.power_w
