"""Calibrations of devices in the catalogue directories: what measured kernels say of one device's prices.

``<directory>/calibrations/<device>.json``, written by ``planner calibrate``; the last directory that has one wins.
What a file means is known to ``costmodels.kernels.calibrated``; this module only finds, bounds and writes it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from profiles.bounded_files import read_bounded
from profiles.errors import SpecError, reason_of
from profiles.timing_store import TimingStore, device_file_name

FOLDER = "calibrations"
MAX_CALIBRATION_BYTES = 16 << 20


def calibration_path(directory: Path, device: str) -> Path:
    """Where the calibration of a device is kept."""
    return directory / FOLDER / f"{device_file_name(device)}.json"


def read_calibration(store: TimingStore, device: str) -> tuple[Path, Mapping[str, Any]] | None:
    """The calibration of a device as its file holds it, with the file; None if there is none.

    Raises:
        SpecError: If the file cannot be read, is too large or no JSON object.
    """
    found = [path for folder in store.directories if (path := calibration_path(folder, device)).is_file()]
    if not found:
        return None
    path = found[-1]
    try:
        document = json.loads(read_bounded(path, MAX_CALIBRATION_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        reason = reason_of(error)
        raise SpecError(str(path)[:200], f"cannot be read: {reason}", _AGAIN) from None
    if not isinstance(document, dict):
        raise SpecError(str(path)[:200], "must be a JSON object", _AGAIN)
    return path, document


_AGAIN = "write it again with 'planner calibrate', or delete it"


def write_calibration(directory: Path, device: str, document: Mapping[str, Any]) -> Path:
    """Keep the calibration of a device; the file written.

    Raises:
        SpecError: If it cannot be written.
    """
    path = calibration_path(directory, device)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")  # who reads meanwhile sees the old one
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise SpecError(str(path)[:200], f"cannot be written: {reason_of(error)}") from None
    return path
