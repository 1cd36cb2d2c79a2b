"""What a run's noise promises: the epsilon of differential privacy.

It is about the model updates of one run, given the statistics: two runs are compared that differ in whether one
training patient's gradient counts, with the same numbers of patients, means and deviations in both. Statistics are
exact, and no epsilon is claimed for them.

Trust: public on both sides; it follows from the terms alone and is known before a run starts.
"""

from __future__ import annotations

import math

from clients.learning.noise import check_deviation, least_deviation, load_opendp
from protocol.terms import Terms


def epsilon_of(terms: Terms) -> float:
    """Return epsilon at `terms.privacy.delta`, over all training rounds.

    A round's sum, without what its readers added, carries the noise of n = `terms.cohort.honest_sites` sites or more.
    With standard deviation s at each and sensitivity D, it is (D / (sqrt(n) s) + tau sqrt(d))^2 / 2 concentrated
    differentially private in d values, where tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 s^2 k / (k + 1)) is how far a sum of
    discrete Gaussians is from one (Kairouz, Liu and Steinke, ICML 2021, theorem on sums of discrete Gaussians; it asks
    for s >= 1/2). By choice of s the first term is 1 / noise_multiplier; tau is taken at the least s that can be.
    Rounds add up, also where each depends on those before (Bun and Steinke, TCC 2016). OpenDP turns the sum into
    epsilon and delta (Canonne, Kamath and Steinke, NeurIPS 2020).

    Raises:
        ConfigurationError: The noise is too little to promise anything.
    """
    check_deviation(terms)
    variance = least_deviation(terms) ** 2
    sites, privacy = terms.cohort.honest_sites, terms.privacy
    tau = 10 * math.fsum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, sites))
    of_round = 1 / privacy.noise_multiplier + tau * math.sqrt(terms.shared_values)
    opendp = load_opendp()
    # a Gaussian of deviation 1 and this sensitivity is as concentrated as all rounds together
    unit = opendp.m.make_gaussian(opendp.atom_domain(T="f64", nan=False), opendp.absolute_distance(T="f64"), scale=1.0)
    profile = opendp.c.make_zCDP_to_approxDP(unit).map(math.sqrt(terms.training.rounds) * of_round)
    return float(profile.epsilon(privacy.delta))
