"""Noise that a site adds to its update, so that the sum says little about any one patient.

Each site adds discrete Gaussian noise to its integers. No site adds enough alone; any cohort does together, also
without the noise of sites that collude, because they know their own.

Source: Kairouz, Liu and Steinke, The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure
Aggregation (ICML 2021).
Trust: runs at a site. The noise drawn is its secret, as long as the update is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Final

import numpy as np

from clients.learning.grid import first_exponent
from protocol.errors import ConfigurationError, ValueRefusedError
from protocol.packing import Integers
from protocol.parameters import CkksParameters
from protocol.terms import Terms

MAX_DEVIATIONS: Final = 10.0
"""The grid has room for so many standard deviations of noise in each value of each site.

More come once in 10^22 values. Noise is never clipped to what fits: that would break what it promises.
"""

_LEAST_DEVIATION: Final = 0.5
"""What is known of sums of discrete Gaussians holds from this standard deviation on, in grid steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """How much noise a site adds in every training round, and on which grid.

    Attributes:
        step_exponent: log2 of the grid step, the same for all tensors and rounds.
        sensitivity: By how much one patient can change the integers of all shared values, in L2 norm.
        deviation: Standard deviation of one site's noise in each value, in grid steps.
    """

    step_exponent: int
    sensitivity: float
    deviation: float

    def draw(self, count: int) -> Integers:
        """Draw exactly discrete Gaussian integers, int64 (count,), from the operating system's randomness.

        Raises:
            ValueRefusedError: An integer has no room on the grid, once in 10^22.
        """
        opendp = load_opendp()
        space = opendp.vector_domain(opendp.atom_domain(T="i64")), opendp.l2_distance(T="f64")
        noise = np.array(opendp.m.make_gaussian(*space, scale=self.deviation)([0] * count), dtype=np.int64)
        if np.abs(noise).max() > MAX_DEVIATIONS * self.deviation:
            raise ValueRefusedError("noise: an integer beyond the room that the grid has for it")
        return noise


def noise_of(terms: Terms, parameters: CkksParameters, records: int) -> Noise:
    """Return the noise of each site, which follows from the agreement and the number of all sites' patients.

    One patient's gradient, at most `clip_norm` long, moves the sum by `learning_rate * clip_norm / records`; rounding
    to the grid can move each of the shared values by one step more.

    Args:
        terms: What the agreement fixes, with a noise multiplier above 0.
        parameters: The CKKS parameters, which fix the grid's range.
        records: Training patients of all sites together.

    Raises:
        ConfigurationError: The grid has no room for so much noise, or the noise is too little to promise anything.
    """
    check_deviation(terms)
    privacy, values = terms.privacy, terms.shared_values
    reach = terms.training.learning_rate * privacy.clip_norm
    per_site = privacy.noise_multiplier / math.sqrt(terms.cohort.honest_sites)
    room = parameters.sites * MAX_DEVIATIONS * per_site
    left = int(parameters.clip_steps - room * math.sqrt(values))
    if left <= 0:
        raise ConfigurationError(
            f"privacy.noise_multiplier = {privacy.noise_multiplier:g}: the noise of {parameters.sites} sites in "
            f"{values} values has no room in {parameters.value_bits} bits; raise crypto.value_bits"
        )
    exponent = first_exponent(clip=reach * (1 + room / records), clip_steps=left)
    sensitivity = math.ldexp(reach / records, -exponent) + math.sqrt(values)
    return Noise(step_exponent=exponent, sensitivity=sensitivity, deviation=per_site * sensitivity)


def least_deviation(terms: Terms) -> float:
    """Return the standard deviation, in grid steps, that each site's noise has at least, whatever the patients.

    Rounding alone makes the sensitivity the root of the number of values.
    """
    return terms.privacy.noise_multiplier * math.sqrt(terms.shared_values / terms.cohort.honest_sites)


def check_deviation(terms: Terms) -> None:
    """Refuse noise that could be too little to promise anything.

    Raises:
        ConfigurationError: Names the multiplier.
    """
    if least_deviation(terms) < _LEAST_DEVIATION:
        raise ConfigurationError(
            f"privacy.noise_multiplier = {terms.privacy.noise_multiplier:g} is too little for {terms.shared_values} "
            f"values and {terms.cohort.honest_sites} honest sites to promise anything"
        )


@cache
def load_opendp() -> ModuleType:
    """Return OpenDP, which samples and accounts."""
    import opendp.prelude as opendp  # noqa: PLC0415  takes two seconds, and most runs have no noise

    opendp.enable_features("contrib")  # all that it has is behind this name, vetted or not
    return opendp
