"""Evaluates a LightGBM model from its text, through the library's C interface.

``import lightgbm`` loads scikit-learn and takes a second; a command that prices one plan takes a fraction of
that. The C interface (https://lightgbm.readthedocs.io/en/latest/C-API.html) is all that evaluation needs.
"""

import ctypes
import threading
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT64, _ROW_MAJOR, _NORMAL, _EVERY_TREE = 1, 1, 0, -1  # C_API_DTYPE_FLOAT64 and so on
_ONE_THREAD = b"num_threads=1 predict_disable_shape_check=false"
_load_lock = threading.Lock()


class Booster:
    """A gradient-boosted ensemble that maps (N, F) features to (N,) values; deterministic, safe to share."""

    def __init__(self, text: str) -> None:
        """Build the ensemble.

        Args:
            text: What LightGBM's ``save_model`` writes.

        Raises:
            ValueError: If it is something else.
        """
        self._text = text
        self._library = _library()
        self._handle = ctypes.c_void_p()
        trees = ctypes.c_int(0)
        _check(
            self._library,
            self._library.LGBM_BoosterLoadModelFromString(
                text.encode(), ctypes.byref(trees), ctypes.byref(self._handle)
            ),
        )
        features = ctypes.c_int(0)
        _check(self._library, self._library.LGBM_BoosterGetNumFeature(self._handle, ctypes.byref(features)))
        self.num_trees, self.num_features = trees.value, features.value

    def __reduce__(self) -> tuple[type["Booster"], tuple[str]]:
        """Another process gets the text: the handle means nothing there."""
        return Booster, (self._text,)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle:
            self._library.LGBM_BoosterFree(handle)

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) values of (N, F) rows, on one thread.

        Raises:
            ValueError: If F is not the number of features of the model.
        """
        rows = np.ascontiguousarray(features, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.num_features:
            raise ValueError(f"the model has {self.num_features} features; got an array of shape {rows.shape}")
        values = np.zeros(len(rows))
        if not len(rows):
            return values
        count = ctypes.c_int64(0)
        failed = self._library.LGBM_BoosterPredictForMat(
            self._handle, rows.ctypes.data_as(ctypes.c_void_p), _FLOAT64, ctypes.c_int32(len(rows)),
            ctypes.c_int32(self.num_features), _ROW_MAJOR, _NORMAL, 0, _EVERY_TREE, _ONE_THREAD,
            ctypes.byref(count), values.ctypes.data_as(ctypes.c_void_p),
        )  # fmt: skip
        _check(self._library, failed)
        return values


@lru_cache(maxsize=1)
def _library() -> Any:
    with _load_lock:
        spec = find_spec("lightgbm")
        folder = None if spec is None or spec.origin is None else Path(spec.origin).parent
        found = (
            [] if folder is None else sorted(folder.rglob("lib_lightgbm.*")) + sorted(folder.rglob("*_lightgbm.dll"))
        )
        if not found:
            raise ImportError("lightgbm is installed without its library")
        library = ctypes.CDLL(str(found[0]))
        library.LGBM_GetLastError.restype = ctypes.c_char_p
        return library


def _check(library: Any, failed: int) -> None:
    if failed:
        raise ValueError(f"LightGBM: {library.LGBM_GetLastError().decode(errors='replace')[:200]}")
