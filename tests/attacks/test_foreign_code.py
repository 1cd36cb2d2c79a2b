"""Attack: the provider starts a run with code or terms of its own, to have them run at a hospital.

Flower hands the app's bundle to every node. A hospital's site process takes such a message as any other; it compares
the bundle's code and the run's terms with its agreement before it does anything, and never runs what is in the bundle.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace

import pytest
from bundles import bundle_of, sources
from flwr.common.serde import recorddict_to_proto

import clients.node.message_process
from clients.node.message_process import MessageProcess, Question
from clients.run.code import code_digest
from protocol.envelope import ANSWER_PARTS, Request, is_refusal, pack_envelope, unpack_envelope
from protocol.errors import AgreementMismatchError

SPY = b"import pathlib\npathlib.Path(__file__).parents[0].joinpath('ran').touch()\nraise SystemExit\n"


@pytest.fixture
def foreign():
    """A bundle with one line of other code in it, where each site imports it first."""
    return bundle_of(sources() | {"clients/__init__.py": SPY, "clients/app.py": SPY, "protocol/__init__.py": SPY})


def question(federation, bundle, terms=None):
    return Question(
        request=Request.ANNOUNCE,
        content=recorddict_to_proto(pack_envelope({"run": federation.run})).SerializeToString(),
        run_config={"terms": federation.agreement.terms.digest if terms is None else terms},
        bundle=bundle,
    )


def answer(federation, asked):
    with MessageProcess(federation.vault(1).directory, None, asked) as process:
        return process.answer()


def test_a_run_with_the_agreed_code_and_terms_is_answered(founded):
    reply = answer(founded, question(founded, bundle_of(sources())))

    assert unpack_envelope(reply, ANSWER_PARTS[Request.ANNOUNCE])["agreement"] == founded.agreement.to_bytes()


def test_without_the_comparison_a_foreign_run_would_be_answered(founded, foreign, monkeypatch):
    monkeypatch.setattr(clients.node.message_process, "check_pinned", lambda agreement, run_config, bundle: None)
    asked = question(founded, foreign, terms="0" * 64)

    site = clients.node.message_process._site_of(founded.vault(1), None, asked)

    assert site.handle(Request.ANNOUNCE, {"run": founded.run})["agreement"] == founded.agreement.to_bytes()


def test_a_foreign_bundle_is_refused_and_nothing_of_it_is_run_or_unpacked(founded, foreign, tmp_path):
    before = code_digest.__wrapped__()

    assert is_refusal(answer(founded, question(founded, foreign)))

    assert not list(founded.vault(1).directory.rglob("ran"))
    assert code_digest.__wrapped__() == before
    with pytest.raises(AgreementMismatchError, match="code of the run's bundle"):
        clients.node.message_process._site_of(founded.vault(1), None, question(founded, foreign))


def test_other_terms_are_refused_whatever_the_rest_of_the_run_config_says(founded):
    terms = founded.agreement.terms
    larger = replace(terms, cohort=replace(terms.cohort, tolerated_colluders=0, smallest_cohort=2))

    asked = question(founded, bundle_of(sources()), terms=larger.digest)

    assert is_refusal(answer(founded, asked))


def test_a_bundle_that_is_a_bomb_ends_in_a_refusal(founded):
    bomb = bundle_of({"clients/zeros.py": bytes(256 << 20)}, zipfile.ZIP_DEFLATED)

    assert is_refusal(answer(founded, question(founded, bomb)))
