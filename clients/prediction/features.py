"""Take records as programs hold them, arrays, lists and data frames, and refuse what would be scored as something else.

Trust: runs at the client, on patients' records. Errors name columns of the model, never what stands in a table: where a
header is missing, that is a patient's.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import issparse

from clients.prediction.records import Values
from protocol.errors import ConfigurationError
from protocol.prediction.description import ModelDescription

_NUMBERS: Final = "biufO"  # kinds of dtypes; an object may be a number, or None for a missing one


def feature_names(description: ModelDescription) -> npt.NDArray[np.object_]:
    """Return the names of a model's inputs, in order, shape (d,)."""
    return np.array([given.name for given in description.data.inputs], dtype=object)


def checked_features(records: object, description: ModelDescription) -> Values:
    """Return records as a model takes them.

    Args:
        records: Array, list or data frame of shape (n, d), in the columns' units, in the order of the model's inputs;
            NaN where missing. The columns of a data frame have to have the inputs' names.
        description: Of the model.

    Returns:
        float64 (n, d), finite or NaN.

    Raises:
        ConfigurationError: They have another shape, other columns, or values that are no numbers.
    """
    if issparse(records):
        raise ConfigurationError("records in a sparse matrix are not taken: give its toarray()")
    _check_columns(getattr(records, "columns", None), description)
    try:
        array = np.asarray(records)
        features = array.astype(np.float64) if array.dtype.kind in _NUMBERS else None
    except (ValueError, TypeError):  # their text might quote a value
        features = None
    if features is None:
        raise ConfigurationError("records hold something that is no number, or rows of several lengths")
    if features.ndim != 2 or features.shape[1] != description.inputs:  # noqa: PLR2004  rows and columns
        raise ConfigurationError(
            f"records of shape {features.shape}; the model {description.name} takes (n, {description.inputs}), in the "
            "order of description.data.inputs"
        )
    if np.isinf(features).any():
        raise ConfigurationError("records hold an infinite value; what is missing is NaN")
    return features


def _check_columns(columns: object, description: ModelDescription) -> None:
    """Raise unless a data frame's columns, if they have names, are the model's inputs."""
    try:
        found = list(columns)  # type: ignore[call-overload]  # whatever a data frame has there
    except TypeError:  # it is none
        return
    if all(isinstance(name, (int, np.integer)) for name in found):
        return  # numbered, as those of an array
    names = feature_names(description).tolist()
    wrong = [place for place, name in enumerate(names) if place >= len(found) or found[place] != name]
    if wrong or len(found) != len(names):
        what = f"column {wrong[0] + 1} is not {names[wrong[0]]!r}" if wrong else "there are more"
        raise ConfigurationError(
            f"the data frame's columns are not the inputs of the model {description.name}, in their order: {what}; "
            "frame[list(predictor.feature_names_in_)] picks them"
        )
