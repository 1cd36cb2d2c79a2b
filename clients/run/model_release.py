"""Hand out the model that a run ended in, as its sites decide one by one: the file, and this site's decision.

The file holds what all sites share and nothing else, so every site that ended the run makes the same bytes of it.

Trust: runs at a site. What it returns is meant for others, who can then read the model; personal values, keys and
records are no part of it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from clients.learning.models import tensors_of
from clients.run.files import RunFiles
from clients.run.membership import Membership, Place
from clients.run.overview import run_overviews
from protocol.errors import ConfigurationError
from protocol.prediction.model_file import model_file
from protocol.prediction.release import ReleaseDecision, check_purpose, model_digest, release_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasableModel:
    """The shared model that a run ended in.

    Attributes:
        run: The run's id.
        file: The model's file, without personal tensors.
    """

    run: bytes
    file: bytes


def releasable_model(place: Place, beginning: str = "") -> ReleasableModel:
    """Return the shared model that a run of the pinned agreement ended in.

    Args:
        place: The site.
        beginning: The run's id or its beginning, hex; needed if several have ended.

    Raises:
        ConfigurationError: Not one run under this agreement that has ended here fits.
    """
    runs = [overview.run for overview in run_overviews(place) if overview.is_closed and overview.is_pinned]
    fitting = [run for run in runs if run.hex().startswith(beginning)]
    if len(fitting) != 1:
        which = f"that --run {beginning} fits " if beginning else ""
        raise ConfigurationError(
            f"{len(fitting)} runs {which}have ended here under the pinned agreement, and one is needed; see "
            "`cipherward site status`"
        )
    (run,) = fitting
    position, terms = RunFiles(place.vault, run).position(), place.agreement.terms
    if position is None or position.learner.standardisation is None:
        raise ConfigurationError(f"run {run.hex()[:16]} ended here without a model")
    common, shared = position.learner.standardisation, terms.model.shared_shapes(len(terms.data.inputs))
    tensors = tensors_of(shared, position.learner.model)
    return ReleasableModel(run=run, file=model_file(terms, tensors, mean=common.mean, deviation=common.deviation))


def release(membership: Membership, model: ReleasableModel, purpose: str) -> ReleaseDecision:
    """Sign this site's decision to hand out a model, and record it in the vault.

    Args:
        membership: The site.
        model: What `releasable_model` gave.
        purpose: To whom and what for; the same words at every site.

    Raises:
        ConfigurationError: The purpose is empty, too long, or not all of it can be seen.
    """
    check_purpose(purpose)
    agreement, run, digest = membership.agreement.digest.hex(), model.run.hex(), model_digest(model.file)
    now = int(time.time())
    signed = release_bytes(agreement=agreement, run=run, model=digest, purpose=purpose, site=membership.name, time=now)
    membership.vault.record("model_released", run=run, model=digest, purpose=purpose)
    return ReleaseDecision(
        agreement=agreement,
        run=run,
        model=digest,
        purpose=purpose,
        site=membership.name,
        time=now,
        signature=membership.identity.sign(signed).hex(),
    )
