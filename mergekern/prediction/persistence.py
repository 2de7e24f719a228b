"""Fitted estimators as JSON documents of numbers, text and lists. Only known classes are read; no code is executed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mergekern.errors import PredictionError
from mergekern.prediction.forest import ForestRegressor
from mergekern.prediction.linear import ClippedScaler
from mergekern.prediction.predictors import PREDICTORS

# The predictors, and the scaler that one of them is fitted with.
CLASSES: dict[str, Any] = {
    kind.__name__: kind for kind in [ClippedScaler, *(predictor.make for predictor in PREDICTORS.values())]
}
# The dtypes that a file may name: float64, integers, booleans and text.
DTYPES = ("float64", "int64", "bool", "str")

# Fitted attributes with a number for each metric, where they are arrays.
PER_METRIC = ("coef_", "factor_", "high_", "low_", "mean_", "signs_", "weights_")


def to_document(estimator: Any) -> dict[str, Any]:
    """Return the parameters and fitted attributes of an estimator of this package, to the last bit.

    >>> from mergekern.prediction import LinearMetricRegressor
    >>> fitted = LinearMetricRegressor().fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 3.0])
    >>> from_document(to_document(fitted)).predict([[3.0]]) == fitted.predict([[3.0]])
    array([ True])
    """
    fitted = {name: value for name, value in vars(estimator).items() if name.endswith("_") and name[0] != "_"}
    return {
        "class": type(estimator).__name__,
        "parameters": {name: _encode(value) for name, value in estimator.get_params(deep=False).items()},
        "fitted": {name: _encode(value) for name, value in fitted.items()},
    }


def from_document(document: dict[str, Any]) -> Any:
    """Return the estimator that `to_document` describes.

    Raises:
        PredictionError: the document names a class that is not an estimator of this package.
        KeyError, TypeError, ValueError: the document is damaged.
    """
    name = document["class"]
    if name not in CLASSES:
        raise PredictionError(f"no estimator {name!r} is known to this version")
    estimator = CLASSES[name](**{key: _decode(value) for key, value in document["parameters"].items()})
    for key, value in document["fitted"].items():
        if not (key.isidentifier() and key.endswith("_") and key[0] != "_"):
            raise ValueError(f"{key!r} is no attribute of an estimator")
        setattr(estimator, key, _decode(value))
    if isinstance(estimator, ForestRegressor):
        estimator.check()
    if len(sizes := _sizes(estimator)) > 1:
        raise ValueError(f"{name}: arrays of {' and '.join(map(str, sorted(sizes)))} metrics")
    return estimator


def _sizes(estimator: Any) -> set[int]:
    """Return for how many metrics an estimator and its parts hold numbers: arrays of size 1 would fit any."""
    fitted = vars(estimator)
    sizes = {len(fitted[name]) for name in PER_METRIC if np.ndim(fitted.get(name)) == 1}
    if "n_features_in_" in fitted:
        sizes.add(fitted["n_features_in_"])
    return sizes.union(*(_sizes(part) for part in fitted.values() if type(part).__name__ in CLASSES))


def _encode(value: Any) -> Any:
    if type(value).__name__ in CLASSES:
        return {"estimator": to_document(value)}
    if isinstance(value, np.ndarray):
        kind = "str" if value.dtype.kind in "OU" else {"f": "float64", "i": "int64", "b": "bool"}[value.dtype.kind]
        return {"dtype": kind, "shape": list(value.shape), "values": [_encode(v) for v in value.ravel().tolist()]}
    if isinstance(value, dict):
        return {"entries": {key: _encode(entry) for key, entry in value.items()}}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return {"number": str(value)}
    if isinstance(value, (list, tuple)):
        return [_encode(entry) for entry in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a value of type {type(value).__name__} has no place in a model's file")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if "estimator" in value:
        return from_document(value["estimator"])
    if "entries" in value:
        return {key: _decode(entry) for key, entry in value["entries"].items()}
    if "number" in value:
        return float(value["number"])
    if value["dtype"] not in DTYPES:
        raise ValueError(f"no array of {value['dtype']!r}")
    values = [_decode(entry) for entry in value["values"]]
    return np.array(values, dtype=value["dtype"]).reshape(value["shape"])
