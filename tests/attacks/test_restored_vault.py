"""A vault that is copied back from before an upload uploads once more: NOT defended, and here is what it costs.

Who: the provider and one site that decrypts for it; the site's own people, who restore a backup in good faith. Want:
single updates. Nothing on a machine can know that the machine was set back, so the README says: do not restore a vault,
make a new agreement. These tests show what is lost if somebody does, and what still holds.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from coalition import (
    LEAST_LIKELY,
    Insider,
    added,
    call_parts,
    collect,
    model_fields,
    prepare_parts,
    put_back,
    refusal,
    truth,
    uniform_noise_p,
)

from protocol.envelope import Request
from protocol.errors import ResidualError
from protocol.packing import RoundKind
from protocol.update import EncryptedAggregate, SealedUpdate

INSIDER, VICTIM = 0, 3
EVERYONE, ALL_BUT_THE_VICTIM = (0, 1, 2, 3), (0, 1, 2)


def test_lost_if_all_others_are_restored_the_update_of_the_one_that_is_not(started):
    # one backup system for several hospitals is enough for that; the victim did nothing wrong
    secret, insider = truth(started, VICTIM), Insider(started, INSIDER)

    with put_back(started, *ALL_BUT_THE_VICTIM):
        first = insider.read_sum(collect(started, EVERYONE))
    second = insider.read_sum(collect(started, ALL_BUT_THE_VICTIM))

    assert model_fields(started.agreement, 1, first - second) == model_fields(started.agreement, 1, secret)


def test_lost_if_one_site_is_restored_the_difference_of_two_others_updates(started):
    # sums with the restored site beside one honest site each; a difference is no update, but no sum over two either
    secrets, insider = {site: truth(started, site) for site in EVERYONE}, Insider(started, INSIDER)

    with put_back(started, INSIDER, 1):
        first = insider.read_sum(collect(started, (0, 1, 2)))
    second = insider.read_sum(collect(started, (0, 1, 3)))

    assert model_fields(started.agreement, 1, first - second) == model_fields(
        started.agreement, 1, secrets[2] - secrets[VICTIM]
    )


def test_lost_if_the_table_grew_since_the_backup_the_new_patient(opened):
    # the same cohort, state and hence masks twice: all cancels in the difference but what differs between the tables
    insider, table = Insider(opened, INSIDER), opened.vault(VICTIM).path("data.csv")
    header, *rows = table.read_text().splitlines()
    with put_back(opened, VICTIM):
        table.write_text("\n".join([header, *rows, *rows[:2]]) + "\n")
        opened.prepare_all()
        terms, grown = opened.terms(EVERYONE), truth(opened, VICTIM)
        first = {site: SealedUpdate.from_bytes(opened.upload(site, EVERYONE), terms) for site in EVERYONE}
    opened.prepare(VICTIM, 0)
    second = first | {VICTIM: SealedUpdate.from_bytes(opened.upload(VICTIM, EVERYONE), terms)}

    stolen = insider.read(list(first.values())) - insider.read(list(second.values()))

    assert np.array_equal(stolen, grown - truth(opened, VICTIM))
    assert opened.agreement.plan(RoundKind.STATISTICS).unpack(stolen)["records"].item() > 0


def test_holds_sites_that_were_not_restored_still_upload_once(started, grid_of):
    with put_back(started, 1):
        collect(started, EVERYONE)
    grid = grid_of(started)

    started.upload(1, ALL_BUT_THE_VICTIM)  # what is lost

    for site in (0, 2):
        assert refusal(grid, started, site, Request.UPLOAD, **call_parts(1, ALL_BUT_THE_VICTIM)) == "SecondUploadError"


def twice_uploaded(federation, site):
    """Return a site's two updates for one cohort in one state, before and after it was restored."""
    terms = federation.terms(EVERYONE)
    with put_back(federation, site):
        first = federation.upload(site, EVERYONE)
    return [SealedUpdate.from_bytes(data, terms) for data in (first, federation.upload(site, EVERYONE))]


def test_lost_the_one_time_keys_of_a_mask_and_a_tag_are_used_twice(started):
    one, other = twice_uploaded(started, VICTIM)
    insider, agreement = Insider(started, INSIDER), started.agreement

    # the masks cancel in the difference, which is empty here, but for the noise of two encryptions
    difference = insider.read_noise(one) - insider.read_noise(other)
    assert np.abs(difference).max() <= 1
    assert uniform_noise_p(agreement, difference) < LEAST_LIKELY
    # the provider alone can take the difference of the sealed tags; of the seeds' digests it knows what it must be
    sealed = bitwise_difference(one.proof.tag, other.proof.tag)[-48:-16]
    assert sealed == bitwise_difference(one.proof.seeds_digest, other.proof.seeds_digest)


def test_holds_each_of_the_two_updates_for_itself_is_noise(started):
    insider, agreement = Insider(started, INSIDER), started.agreement

    for update in twice_uploaded(started, VICTIM):
        with pytest.raises(ResidualError):
            insider.read([update])
        assert uniform_noise_p(agreement, insider.read_noise(update)) > LEAST_LIKELY


def test_holds_a_tag_that_was_forged_with_a_key_used_twice_lacks_its_signature(started, grid_of):
    with put_back(started, VICTIM):
        updates = [
            SealedUpdate.from_bytes(started.upload(site, EVERYONE), started.terms(EVERYONE)) for site in EVERYONE
        ]
    _, other = twice_uploaded(started, VICTIM)
    # the restored site's second tag beside its first signature; any other forged tag lacks one as well
    proofs = [update.proof for update in updates]
    proofs[VICTIM] = replace(proofs[VICTIM], tag=other.proof.tag)
    residues = added(started.agreement, [update.residues for update in updates])
    forged = EncryptedAggregate(round=1, residues=residues, proofs=tuple(proofs)).to_bytes()

    parts = prepare_parts(2, [forged])
    assert refusal(grid_of(started), started, 1, Request.PREPARE, **parts) == "SignatureError"


def bitwise_difference(one, other):
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


def test_holds_a_site_notices_a_sum_with_an_update_that_it_does_not_remember(started, grid_of):
    with put_back(started, VICTIM):
        started.sum_up(EVERYONE)

    assert refusal(grid_of(started), started, VICTIM, Request.PREPARE, **prepare_parts(2, started.sums)) == "TagError"


def test_holds_a_site_notices_a_sum_with_its_first_update_after_it_made_a_second(started, grid_of):
    with put_back(started, VICTIM):
        started.sum_up(EVERYONE)
    sums = started.sums
    started.sums = sums[:1]
    started.upload(VICTIM, EVERYONE)

    assert refusal(grid_of(started), started, VICTIM, Request.PREPARE, **prepare_parts(2, sums)) == "TagError"


def test_holds_what_left_before_the_backup_is_remembered(started, grid_of):
    with put_back(started, VICTIM):
        started.sum_up(EVERYONE)

    # the statistics were summed before the backup: no second cohort for them
    assert (
        refusal(grid_of(started), started, VICTIM, Request.UPLOAD, **call_parts(0, (0, 1, 3))) == "RoundMismatchError"
    )
