"""One site's learning: what it adds to each sum, and what it makes of the sum.

A deterministic state machine without any cryptography. Every site that applies the same sums is in the same shared
state, bit for bit; beside it each site has its personal values, which no sum ever contains. The encrypted path and its
plaintext twin call the same methods.

Trust: runs at a site and sees patients' records. A contribution is that site's secret until it is encrypted and masked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from clients.data.generator import public_generator
from clients.data.table import Table, Values, split_table
from clients.learning.clipped_gradient import GRADIENT_BITS, clipped_gradient_sum
from clients.learning.evaluation import FederatedMetrics, Metrics, metric_sums, score
from clients.learning.grid import first_exponent, least_exponent, next_exponent
from clients.learning.learner_state import LearnerState
from clients.learning.models import ParameterLayout, initial_values
from clients.learning.noise import Noise, noise_of
from clients.learning.optimisers import apply_change
from clients.learning.starting_model import Start
from clients.learning.statistics import Standardisation, standardisation, statistics_sums
from clients.learning.training import train
from protocol.errors import RoundKindMismatchError, ValueRefusedError
from protocol.packing import FRACTION_BITS, Integers, RoundKind, packing_plan, quantise
from protocol.parameters import CkksParameters
from protocol.terms import Terms

MAX_CLIPPED_SHARE: Final = 0.001
"""A grid that cuts off more than this share of a tensor's values is widened."""

MAX_TRAINING_LOSS: Final = 4.0
"""Mean training loss over all sites, in nats, at which a run has diverged; knowing nothing costs 0.7."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Contribution:
    """What one site makes in a round.

    Attributes:
        packed: int64 of the packing plan's shape: what goes into the sum.
        personal: float64, the site's personal values if the round's sum contains this contribution.
        has_noise: Whether `packed` holds noise, so that it could not be made again.
    """

    packed: Integers
    personal: Values
    has_noise: bool = False


class Learner:
    """One site's part in learning, from its own table.

    Args:
        terms: What the agreement fixes.
        parameters: The CKKS parameters, which fix the grid.
        table: The site's patients, at least 2.
        site: The site's name.
        start: The model to begin from; None for the public initial model.

    Attributes:
        terms: What the agreement fixes.
        site: The site's name.
        table: All of the site's patients.
        training_table: The patients to train on.
        held_out_table: The patients to test on; nothing is learnt from them.

    Raises:
        DataError: The table has too few rows to hold some out.
    """

    def __init__(
        self, *, terms: Terms, parameters: CkksParameters, table: Table, site: str, start: Start | None = None
    ) -> None:
        self.terms = terms
        self.site = site
        self.table = table
        self._parameters = parameters
        self._start = start
        self._layout = ParameterLayout(terms.model, len(terms.data.inputs))
        self.training_table, self.held_out_table = split_table(
            table, folds=terms.data.folds, fold=terms.data.fold, seed=terms.training.seed, site=site
        )

    def initial_state(self) -> LearnerState:
        """Return the state before the first sum, the same at every site."""
        clip, clip_steps = self.terms.training.clip, self._parameters.clip_steps
        tensors = len(self._layout.shared_slices)
        shared, _ = self._layout.split(self._initial_values)
        return LearnerState(
            model=shared if self._start is None else self._start.model.values,
            step_exponents=np.full(tensors, first_exponent(clip=clip, clip_steps=clip_steps), dtype=np.int64),
            least_exponents=np.full(tensors, least_exponent(clip=clip, clip_steps=clip_steps), dtype=np.int64),
        )

    def initial_personal(self) -> Values:
        """Return this site's personal values before the first sum; empty where all are shared."""
        if self._start is not None and self._start.personal is not None:
            return self._start.personal
        return self._layout.split(self._initial_values)[1]

    def values(self, state: LearnerState, personal: Values) -> Values:
        """Return all values of this site's model, float64 (P,): the shared ones and its own."""
        return self._layout.join(state.model, personal)

    def contribution(self, state: LearnerState, personal: Values, kind: RoundKind, round_number: int) -> Contribution:
        """Return this site's part in a round.

        Args:
            state: The state after the round before.
            personal: The site's personal values.
            kind: What the round sums.
            round_number: The round, from 1; fixes the batch order of a TRAIN round.

        Raises:
            RoundKindMismatchError: STATISTICS is not the first sum, or not the only one of its kind.
            ValueRefusedError: Training diverged (names the tensor), or this site's training patients outnumber those of
                the statistics sum.
        """
        common = _statistics_for(state, kind)
        plan = packing_plan(kind, self.terms, self._parameters)
        has_noise = self.terms.privacy.has_noise and common is not None
        if common is None:
            content = statistics_sums(
                self.training_table.features, self.terms.data, smallest_cell=self.terms.privacy.smallest_cell
            )
        else:
            values = self.values(state, personal)
            content = self._metric_sums(values, common)
            if state.federated is None and not has_noise:
                self._check_own_loss(content)  # nobody has seen how good the shared model is
            if kind is RoundKind.TRAIN and has_noise:
                content |= self._noisy_update(values, common)
            elif kind is RoundKind.TRAIN:
                trained, personal = self._layout.split(self._trained(values, common, round_number))
                content |= self._update(state, trained, common)
                if not np.isfinite(personal).all():
                    raise ValueRefusedError("personal values: NaN or infinite after training; the run diverged")
        packed = plan.pack(content)
        # beside noise, exact counts and metrics would be the end of what it promises
        return Contribution(
            packed=plan.model_only(packed) if has_noise else packed, personal=personal, has_noise=has_noise
        )

    def apply(self, state: LearnerState, kind: RoundKind, packed_sum: Integers) -> LearnerState:
        """Return the state after a round's sum.

        Args:
            state: The state in which the contributions were made.
            kind: What the round summed.
            packed_sum: Exact sum of all contributions, int64 of the packing plan's shape.

        Raises:
            RoundKindMismatchError: STATISTICS is not the first sum, or not the only one of its kind.
            ValueRefusedError: The sum holds too few patients or no weight, or the model diverged.
        """
        content = packing_plan(kind, self.terms, self._parameters).unpack(packed_sum)
        if _statistics_for(state, kind) is None:
            common = standardisation(content, self.terms.data)
            state = replace(state, model=self._under(common, state.model, self.initial_personal())[0])
            if self.terms.privacy.has_noise:
                exponents = np.full_like(state.step_exponents, self._noise(common).step_exponent)
                return replace(state, standardisation=common, step_exponents=exponents, least_exponents=exponents)
            return replace(state, standardisation=common)
        measured = replace(state, federated=None)
        counts = ("records", "training_records")
        # none in a round whose cohort withheld them, and nothing is made of too few patients
        if all(int(content[name][0]) >= self.terms.data.smallest_count for name in counts):
            federated = FederatedMetrics.from_sums(content)
            _check_loss("all sites'", federated.training_loss)
            measured = replace(state, federated=federated, best_loss=min(state.best_loss, federated.training_loss))
        return self._apply_update(measured, content) if kind is RoundKind.TRAIN else measured

    def personal_after(self, before: LearnerState, after: LearnerState, personal: Values) -> Values:
        """Return this site's personal values after a sum was applied.

        They change with the STATISTICS sum alone, and only those of a starting model that lie in its first layer.

        Args:
            before: The state before the sum.
            after: The state after it.
            personal: The values that were trained for the sum.
        """
        if before.standardisation is None and after.standardisation is not None:
            return self._under(after.standardisation, before.model, personal)[1]
        return personal

    def local_baseline(self) -> tuple[Values, Standardisation]:
        """Return what this site learns alone: as many epochs, its own patients' statistics, no sum.

        Where training alone diverges, it is the model of the last epoch before.
        """
        training = replace(self.terms.training, proximal=0.0)  # there is no shared model to stay near to
        data = replace(self.terms.data, smallest_count=1)  # the floors are against other sites
        own = standardisation(statistics_sums(self.training_table.features, data, smallest_cell=1), data)
        features, labels = own.apply(self.training_table.features), self.training_table.labels
        rng = public_generator("local baseline", seed=training.seed, site=self.site)
        values = self._initial_values
        for _ in range(training.rounds * training.local_epochs):
            trained = train(self.terms.model, values, features, labels, training, epochs=1, rng=rng)
            if not np.isfinite(trained).all():
                break
            values = trained
        return values, own

    def held_out_scores(self, values: Values, common: Standardisation) -> Values:
        """Return the held-out patients' probabilities of label 1, float64 (n,), under a model."""
        return score(self.terms.model, values, common.apply(self.held_out_table.features))

    def evaluate(self, values: Values, common: Standardisation) -> Metrics:
        """Return a model's exact metrics on this site's held-out patients; they stay at the site."""
        return Metrics.of(self.held_out_table.labels, self.held_out_scores(values, common))

    def _check_own_loss(self, content: Mapping[str, Integers]) -> None:
        loss = int(content["training_loss"][0]) / (1 << FRACTION_BITS) / self.training_table.records
        _check_loss("this site's", loss)

    @property
    def _initial_values(self) -> Values:
        return initial_values(self.terms.model, len(self.terms.data.inputs), self.terms.training.seed)

    def _under(self, common: Standardisation, shared: Values, personal: Values) -> tuple[Values, Values]:
        """Return shared and personal values under a run's standardisation; only a starting model has another one."""
        if self._start is None:
            return shared, personal
        return self._layout.split(self._start.model.under(common, self._layout.join(shared, personal)))

    def _metric_sums(self, values: Values, common: Standardisation) -> dict[str, Integers]:
        return metric_sums(
            self.held_out_table.labels,
            self.held_out_scores(values, common),
            self.training_table.labels,
            score(self.terms.model, values, common.apply(self.training_table.features)),
            smallest_cell=self.terms.privacy.smallest_cell,
        )

    def _trained(self, values: Values, common: Standardisation, round_number: int) -> Values:
        training = self.terms.training
        return train(
            self.terms.model,
            values,
            common.apply(self.training_table.features),
            self.training_table.labels,
            training,
            epochs=training.local_epochs,
            rng=public_generator("batches", seed=training.seed, site=self.site, round_number=round_number),
        )

    def _noise(self, common: Standardisation) -> Noise:
        return noise_of(self.terms, self._parameters, common.records)

    def _noisy_update(self, values: Values, common: Standardisation) -> dict[str, Integers]:
        """Return the grid fields of one step along all patients' clipped gradients, with this site's noise."""
        privacy, noise = self.terms.privacy, self._noise(common)
        gradient = clipped_gradient_sum(
            self.terms.model,
            values,
            common.apply(self.training_table.features),
            self.training_table.labels,
            clip_norm=privacy.clip_norm,
        )
        unit = math.ldexp(privacy.clip_norm, -GRADIENT_BITS - noise.step_exponent)
        steps = np.rint(-self.terms.training.learning_rate * unit / common.records * gradient).astype(np.int64)
        noisy = steps + noise.draw(len(steps))
        content = {name: noisy[place] for name, place in self._layout.shared_slices.items()}
        return content | {name: np.zeros(1, dtype=np.int64) for name in ("weight", "clipped")}

    def _update(self, state: LearnerState, trained: Values, common: Standardisation) -> dict[str, Integers]:
        """Return the grid fields: each shared tensor's weighted change, the weight and the clipped share."""
        weight = self.training_table.records / common.records
        if weight > 1:
            raise ValueRefusedError("field weight: this site's patients are not in the statistics sum")
        with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinity are refused by name below
            change = trained - state.model.astype(np.float32)
        content: dict[str, Integers] = {}
        clipped_share = 0.0
        for (name, place), exponent in zip(
            self._layout.shared_slices.items(), state.step_exponents.tolist(), strict=True
        ):
            content[name], clipped = quantise(
                change[place],
                step=math.ldexp(1.0, exponent),
                clip_steps=self._parameters.clip_steps,
                weight=weight,
                name=name,
            )
            clipped_share = max(clipped_share, clipped / len(content[name]))
        unit = self._weight_unit
        content["weight"] = np.array([math.floor(weight * unit)], dtype=np.int64)
        content["clipped"] = np.array([round(weight * clipped_share * unit)], dtype=np.int64)
        return content

    def _apply_update(self, state: LearnerState, content: Mapping[str, Integers]) -> LearnerState:
        training, has_noise = self.terms.training, self.terms.privacy.has_noise
        # a cohort that withheld its weights counts the sites outside it as unchanged
        weight = int(content["weight"][0]) or self._weight_unit
        if not 0 < weight <= self._weight_unit:
            raise ValueRefusedError("field weight: the sites' weights do not add up to a share of at most 1")
        clipped = int(content["clipped"][0]) > MAX_CLIPPED_SHARE * weight
        steps = np.ldexp(1.0, state.step_exponents)
        change = np.empty_like(state.model)
        for (name, place), step in zip(self._layout.shared_slices.items(), steps.tolist(), strict=True):
            change[place] = content[name].astype(np.float64) * step / (weight / self._weight_unit)
            if has_noise and len(self._layout.shapes[name]) > 1:  # elsewhere the sites' own steps have decayed weights
                change[place] -= training.learning_rate * training.weight_decay * state.model[place]
        with np.errstate(over="ignore", invalid="ignore"):  # refused by name below
            model, optimiser = apply_change(training.optimiser, state.model, change, state.optimiser)
        # a range that has cut off too much is not tried again: sites go further than their mean, and go on doing so
        least = np.maximum(state.least_exponents, state.step_exponents + 1) if clipped else state.least_exponents
        exponents = state.step_exponents.copy()
        for position, (name, place) in enumerate(self._layout.shared_slices.items()):
            if not np.isfinite(model[place]).all():
                raise ValueRefusedError(f"tensor {name}: NaN or infinite after the sum; the run diverged")
            if not has_noise:  # whose grid is fixed, because it must have room for the noise
                exponents[position] = next_exponent(
                    least=int(least[position]),
                    largest_change=float(np.abs(change[place]).max()),
                    clip=training.clip,
                    clip_steps=self._parameters.clip_steps,
                )
        return replace(state, model=model, step_exponents=exponents, least_exponents=least, optimiser=optimiser)

    @property
    def _weight_unit(self) -> int:
        """What a weight of 1 counts in the fields `weight` and `clipped`."""
        return 1 << (self._parameters.value_bits - 2)


def _check_loss(whose: str, loss: float) -> None:
    if loss > MAX_TRAINING_LOSS:
        raise ValueRefusedError(
            f"the shared model diverged: its mean loss over {whose} training patients is {loss:.1f} nats, more than "
            f"{MAX_TRAINING_LOSS:g}; lower strategy.learning_rate"
        )


def _statistics_for(state: LearnerState, kind: RoundKind) -> Standardisation | None:
    """Return the statistics a round works with; None exactly if the round is the one that makes them."""
    if (kind is RoundKind.STATISTICS) != (state.standardisation is None):
        expected = "STATISTICS" if state.standardisation is None else "TRAIN or EVALUATE"
        raise RoundKindMismatchError("statistics come first and once", expected=expected, got=kind.name)
    return state.standardisation
