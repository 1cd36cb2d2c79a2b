"""The provider and an insider give the victim one model and everybody else another.

Who: the provider, and one site that signs two updates for one round (and sees the others' sum before it makes them).
Want: a model on which all but the victim contribute zeros, so that the sum is the victim's update: here hidden units
that are dead. Source: Pasquini, Francati and Ateniese, Eluding Secure Aggregation in Federated Learning via Model
Inconsistency, CCS 2022. Answer: every mask depends on the state (`PairKeys.mask_keys`), so the masks of sites with
different models do not cancel; and proofs made in another state are refused by the sites that are asked to apply them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import (
    LEAST_LIKELY,
    Insider,
    added,
    model_fields,
    prepare_parts,
    refusal,
    stands_at,
    truth,
    uniform_noise_p,
)

from clients.learning.models import tensor_slices
from clients.secrets.keys import PairKeys
from protocol.envelope import Request
from protocol.errors import ResidualError
from protocol.terms import ModelTerms
from protocol.update import EncryptedAggregate, SealedUpdate
from strategies.round_sum import RoundSum

INSIDER, OTHERS, VICTIM = 0, (1, 2), 3
EVERYONE = (0, 1, 2, 3)
HIDDEN = ("hidden.0.weight", "hidden.0.bias")


@pytest.fixture
def consortium(found, founded_once):
    """Four hospitals with two hidden units and no weight decay, with round 1 prepared."""
    experiment = founded_once.experiment
    federation = found(
        replace(
            experiment,
            model=ModelTerms(kind="mlp", hidden=(2,)),
            strategy=replace(experiment.strategy, weight_decay=0.0),
        )
    )
    federation.open()
    federation.prepare_all()
    federation.sum_up()
    federation.prepare_all()
    return federation


def split(federation):
    """Have the victim apply a good sum and the others one that kills all hidden units; all are ready for round 2."""
    insider, state = Insider(federation, INSIDER), stands_at(federation, INSIDER)[1]
    terms, own = insider.terms(1, EVERYONE, state), truth(federation, INSIDER)
    updates = [SealedUpdate.from_bytes(federation.upload(site, EVERYONE), terms) for site in (*OTHERS, VICTIM)]
    first, *rest = updates
    of_others = insider.read([insider.complete(first, terms, state), *rest])

    for to, packed in (((VICTIM,), own), (OTHERS, killing(insider, own, of_others))):
        total = RoundSum(terms)
        for update in (insider.seal(packed, terms, state), *updates):
            total.add(update.to_bytes())
        sums = [*federation.sums, total.close().to_bytes()]
        for site in to:
            federation.prepare(site, 2, sums)


def killing(insider, own, of_others):
    """Return the insider's integers with which the sum sets hidden weights to 0 and hidden biases to -1."""
    learner, plan = insider.files.position().learner, insider.agreement.plan(insider.agreement.round_kind(1))
    content, rest = plan.unpack(own), plan.unpack(of_others)
    unit = 1 << (insider.agreement.parameters.value_bits - 2)
    content["weight"] = unit - rest["weight"]
    places = tensor_slices(insider.agreement.terms.model.shared_shapes(len(insider.agreement.terms.data.inputs)))
    for name, exponent in zip(places, learner.step_exponents.tolist(), strict=True):
        if name in HIDDEN:
            wanted = -float(name == HIDDEN[1]) - learner.model[places[name]]
            content[name] = np.rint(wanted / 2.0**exponent).astype(np.int64) - rest[name]
    return plan.pack(content)


def uploads(federation, insider):
    """Return (site, terms, state, update) of the three others in round 2, each in its own state."""
    collected = []
    for site in (*OTHERS, VICTIM):
        state = stands_at(federation, site)[1]
        terms = insider.terms(2, EVERYONE, state)
        update = SealedUpdate.from_bytes(federation.upload(site, EVERYONE, 2), terms)
        collected.append((site, terms, state, update))
    return collected


def hidden_part(federation, packed):
    fields = model_fields(federation.agreement, 2, packed)
    return [fields[name] for name in HIDDEN]


def test_without_the_state_in_the_masks_the_sum_is_the_victim_s_update(consortium, monkeypatch):
    mask_keys = PairKeys.mask_keys
    monkeypatch.setattr(PairKeys, "mask_keys", lambda self, terms, state: mask_keys(self, terms, bytes(32)))
    insider = Insider(consortium, INSIDER)
    split(consortium)

    collected = uploads(consortium, insider)
    stolen = insider.read([insider.unmask(update, terms, state) for _, terms, state, update in collected])

    assert hidden_part(consortium, stolen) == hidden_part(consortium, truth(consortium, VICTIM))
    assert np.any(hidden_part(consortium, stolen)[0])
    for site in OTHERS:
        assert not np.any(hidden_part(consortium, truth(consortium, site))[0])


def test_with_the_state_in_the_masks_the_sum_is_noise(consortium):
    insider = Insider(consortium, INSIDER)
    split(consortium)
    assert len({stands_at(consortium, site) for site in OTHERS}) == 1
    assert stands_at(consortium, VICTIM) != stands_at(consortium, OTHERS[0])

    collected = uploads(consortium, insider)
    unmasked = [insider.unmask(update, terms, state) for _, terms, state, update in collected]

    for chosen in (unmasked, unmasked[:2], unmasked[1:], unmasked[2:]):
        with pytest.raises(ResidualError):
            insider.read(chosen)
    assert uniform_noise_p(consortium.agreement, insider.read_noise(*unmasked)) > LEAST_LIKELY
    assert uniform_noise_p(consortium.agreement, insider.read_noise(*unmasked[:2])) > LEAST_LIKELY


def test_nobody_applies_a_sum_of_two_states(consortium, grid_of):
    insider, grid = Insider(consortium, INSIDER), grid_of(consortium)
    split(consortium)
    collected = uploads(consortium, insider)

    for site, terms, state, _ in collected:
        updates = [insider.seal(truth(consortium, INSIDER), terms, state), *(update for *_, update in collected)]
        mixed = EncryptedAggregate(
            round=2,
            residues=added(consortium.agreement, [update.residues for update in updates]),
            proofs=tuple(update.proof for update in updates),
        )
        parts = prepare_parts(3, [mixed.to_bytes()])
        assert refusal(grid, consortium, site, Request.PREPARE, **parts) == "StateMismatchError"
