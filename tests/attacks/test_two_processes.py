"""Two client processes of one site get two calls at once, and each finds that nothing has left yet.

Who: the provider (or an operator who started the client twice), with one site that decrypts. Want: two updates of one
state for two cohorts, hence the difference of two sums. Answer: the vault's lock around every message. The processes
are real ones; the test holds each back between its look into the journal and its own line there, so that the race is
lost every time if there is no lock.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from coalition import Insider, model_fields, stands_at, truth

import clients
from clients.run.upload_journal import JOURNAL
from protocol.notes import UploadCall
from protocol.update import SealedUpdate

ROOT = Path(clients.__file__).parent.parent
EVERYONE, ALL_BUT_THE_VICTIM = (0, 1, 2, 3), (0, 1, 2)
INSIDER, ASKED, VICTIM = 0, 1, 3

CLIENT = """
import json, sys, time
from contextlib import nullcontext
from pathlib import Path
from clients.run.site import Site
from clients.run.upload_journal import UploadJournal
from clients.secrets.vault import Vault
from protocol.envelope import Request

number = int(sys.argv[1])
keep_upload, locked = UploadJournal.keep_upload, Vault.locked
meeting = None

def wait_for(what, seconds):
    deadline = time.monotonic() + seconds
    while not (meeting / what).exists() and time.monotonic() < deadline:
        time.sleep(0.005)

def keep_late(self, *arguments, **options):
    # until the other one has sealed too, and one after the other; if there is a lock, it cannot get this far
    (meeting / f"sealed-{number}").touch()
    seconds = 0.5 if order["lock"] else 60
    wait_for(f"sealed-{1 - number}", seconds)
    if number == 1:
        wait_for("kept-0", seconds)
    keep_upload(self, *arguments, **options)
    (meeting / f"kept-{number}").touch()

UploadJournal.keep_upload = keep_late
for line in sys.stdin:
    order = json.loads(line)
    meeting = Path(order["meeting"])
    Vault.locked = locked if order["lock"] else lambda self: nullcontext()
    site = Site.of(Vault(Path(order["vault"])))
    (meeting / f"ready-{number}").touch()
    wait_for(f"ready-{1 - number}", 60)
    try:
        parts = {"run": bytes.fromhex(order["run"]), "call": bytes.fromhex(order["call"])}
        answer = site.handle(Request.UPLOAD, parts)["update"].hex()
    except Exception as error:
        answer = type(error).__name__
    print(answer, flush=True)
"""


@pytest.fixture(scope="module")
def processes():
    """Two processes of the client; they take orders as lines."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(number)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    yield children
    for child in children:
        child.communicate(timeout=30)  # no more orders: they end


@pytest.fixture
def at_once(started, processes, tmp_path):
    """Ask one site for its update in two processes at once; return each one's answer, or its error's name."""

    def ask(site, *cohorts, lock):
        meeting = tmp_path / f"meeting-{site}"
        meeting.mkdir()
        for child, cohort in zip(processes, cohorts, strict=True):
            order = {
                "vault": str(started.vault(site).directory),
                "run": started.run.hex(),
                "call": UploadCall(round=1, cohort=cohort).to_bytes().hex(),
                "meeting": str(meeting),
                "lock": lock,
            }
            child.stdin.write(json.dumps(order) + "\n")
            child.stdin.flush()
        return [child.stdout.readline().strip() for child in processes]

    return ask


def updates_left(federation, state: bytes) -> int:
    """Return how many updates have left the site that was asked, for one state."""
    return sum(entry["state"] == state.hex() for entry in federation.vault(ASKED).lines(JOURNAL))


def test_without_the_lock_each_cohort_gets_an_update_and_the_victim_s_is_read(started, at_once):
    agreement, state, secret = started.agreement, stands_at(started, INSIDER)[1], truth(started, VICTIM)
    insider, cohorts = Insider(started, INSIDER), (EVERYONE, ALL_BUT_THE_VICTIM)
    terms = [insider.terms(1, cohort, state) for cohort in cohorts]

    answers = [at_once(site, *cohorts, lock=False) for site in (1, 2)]

    assert updates_left(started, state) == 2
    updates = [
        [SealedUpdate.from_bytes(bytes.fromhex(of_site[which]), terms[which]) for of_site in answers]
        + [insider.seal(truth(started, INSIDER), terms[which], state)]
        for which in range(2)
    ]
    updates[0].append(SealedUpdate.from_bytes(started.upload(VICTIM, EVERYONE), terms[0]))
    stolen = insider.read(updates[0]) - insider.read(updates[1])
    assert model_fields(agreement, 1, stolen) == model_fields(agreement, 1, secret)


def test_with_the_lock_one_of_two_cohorts_is_refused(started, at_once):
    state = stands_at(started, ASKED)[1]

    answers = at_once(ASKED, EVERYONE, ALL_BUT_THE_VICTIM, lock=True)

    assert answers.count("SecondUploadError") == 1
    left = bytes.fromhex(next(answer for answer in answers if answer != "SecondUploadError"))
    assert updates_left(started, state) == 1
    *_, entry = started.vault(ASKED).lines(JOURNAL)
    assert started.upload(ASKED, entry["cohort"]) == left


def test_with_the_lock_both_get_the_same_bytes_for_one_cohort(started, at_once):
    first, second = at_once(ASKED, EVERYONE, EVERYONE, lock=True)

    assert first == second == started.upload(ASKED, EVERYONE).hex()
    assert updates_left(started, stands_at(started, ASKED)[1]) == 1


def test_without_the_lock_two_updates_for_one_cohort_leave(started, at_once):
    first, second = at_once(ASKED, EVERYONE, EVERYONE, lock=False)

    assert first != second
    assert updates_left(started, stands_at(started, ASKED)[1]) == 2
