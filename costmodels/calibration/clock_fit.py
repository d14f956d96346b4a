"""Fits how much of their peak devices hold (``costmodels.kernels.clocks``) on what their large products reach."""

from collections.abc import Mapping

import numpy as np
from scipy.optimize import least_squares

from costmodels.calibration.robust import TOLERANCE, FloatArray
from costmodels.kernels.clocks import ClockLaw, heat, sustained_share
from profiles.catalog import default_catalog

FEWEST_DEVICES = 4
# Where the constants lie for want of devices, and how far from there one is off by as much as a device by TOLERANCE.
# Full: matrix products on vector units, which no limit holds back, reach 0.94 to 0.97 of the peak on A100 and V100
# (NeuSight's timings). Growth: 2 to 3 years to double the work per joule. AMD: nothing is known.
_PRIORS = {"full": (np.log(0.95), 0.02), "growth": (0.25, 0.2), "amd": (0.0, 1.0)}


def fit_clock_law(reached: Mapping[str, float]) -> ClockLaw | None:
    """The law from shares of the 16-bit peak that devices reach; None if there are too few devices.

    Args:
        reached: By catalogue name: what the largest products of a device reach of its peak.
    """
    specs = [default_catalog().device(name) for name in sorted(reached)]
    specs = [spec for spec in specs if heat(spec) is not None]
    if len(specs) < FEWEST_DEVICES:
        return None
    logs = np.log([reached[spec.name] for spec in specs])

    def law(vector: FloatArray) -> ClockLaw:
        full, capacity, growth, amd = (float(value) for value in vector)
        return ClockLaw(full=float(np.exp(full)), capacity=capacity, growth=growth, amd=amd, typical=1.0)

    def residual(vector: FloatArray) -> FloatArray:
        shares = np.log([sustained_share(spec, law(vector)) for spec in specs])
        at = dict(zip(("full", "capacity", "growth", "amd"), vector, strict=True))
        pulls = [(at[name] - centre) / scale * TOLERANCE for name, (centre, scale) in _PRIORS.items()]
        return np.concatenate([shares - logs, pulls])

    start = np.array([_PRIORS["full"][0], 0.0, _PRIORS["growth"][0], 0.0])
    found = law(np.asarray(least_squares(residual, start, loss="soft_l1", f_scale=TOLERANCE).x, dtype=np.float64))
    shares = [sustained_share(spec, found) for spec in specs]
    return ClockLaw(**(found.as_parameters() | {"typical": float(np.median(shares))}))
