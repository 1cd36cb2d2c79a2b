"""A deployed federation whose processes are killed, frozen, out of disk or of time: nothing is lost or counted twice.

One provider and three sites stay up for all tests; each test pins a new agreement, which carries its run.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from deployment import Deployment, deployment, wait_until

from conf import DataConfig, ExperimentConfig, FederationConfig
from protocol.data_terms import ColumnTerms, LabelTerms
from protocol.terms import CohortTerms, TrainingTerms

pytestmark = [
    pytest.mark.xdist_group("deployment"),
    pytest.mark.simulation,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by their environment"),
    pytest.mark.timeout(600),
]

SMALL = ExperimentConfig(
    data=DataConfig(
        name="breast_cancer",
        label=LabelTerms(name="malignant"),
        columns=(ColumnTerms(name="mean radius", centre=14.0, scale=4.0),),
    ),
    strategy=TrainingTerms(rounds=3, local_epochs=1),
    federation=FederationConfig(sites=3, partition="iid", cohort=CohortTerms(tolerated_colluders=0, smallest_cohort=2)),
)
EVERYBODY = [0, 1, 2]
WITHOUT_THIRD = [0, 1]
ROUNDS = [0, 1, 2, 3, 4]  # statistics, training, evaluation
DISKS = {"provider": "96m", "deployed/sites/hospital-3": "32m"}
SHIFTED = str(Path(__file__).parents[1] / "vectors" / "shifted_clock")


class Disk:
    """A small disk of its own, mounted in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"

    @contextlib.contextmanager
    def filled(self) -> Iterator[None]:
        """Fill it to the last byte, until the context is left."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        with pytest.raises(OSError, match="No space left"):
            (self.directory / "more").write_bytes(b"more")
        try:
            yield
        finally:
            self._ballast.unlink()


@contextlib.contextmanager
def mounted(directory: Path, size: str) -> Iterator[None]:
    directory.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=False)
    try:
        yield
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", directory], check=True)


@pytest.fixture(scope="module")
def up(founded_once, tmp_path_factory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("faults")
    with contextlib.ExitStack() as stack:
        for directory, size in DISKS.items():
            stack.enter_context(mounted(home / directory, size))
        founded = type(founded_once).found(home / "founded", SMALL)
        shutil.copytree(founded.directory, home / "deployed", dirs_exist_ok=True)
        yield stack.enter_context(deployment(replace(founded, directory=home / "deployed"), home))


@pytest.fixture
def deployed(up) -> Deployment:
    """All processes up, and a new agreement."""
    up.renew()
    return up


@pytest.fixture
def disk(up) -> Callable[[Path], Disk]:
    """Return the small disk that a directory is."""

    def of(directory: Path) -> Disk:
        if not directory.is_mount():
            pytest.skip("only root can mount a small disk")
        return Disk(directory)

    return of


def kill(process: psutil.Process) -> None:
    process.kill()
    psutil.wait_procs([process], timeout=10)


def texts(deployed: Deployment, name: str, kind: str) -> list[str]:
    return [event["text"] for event in deployed.events(name) if event["event"] == kind]


def wait_for_upload(deployed: Deployment, position: int, round_number: int) -> None:
    journal = deployed.founded.vault(position).path("journal.jsonl")
    before = journal.read_text().count(f'"round":{round_number},') if journal.exists() else 0
    assert wait_until(lambda: journal.read_text().count(f'"round":{round_number},') > before)


def assert_each_uploaded_where_it_was_named(deployed: Deployment, cohorts: list[list[int]]) -> None:
    named = [[number for number in ROUNDS if position in cohorts[number]] for position in EVERYBODY]
    assert [deployed.uploads(position) for position in EVERYBODY] == named


def test_a_process_killed_while_it_trains_leaves_its_site_out_of_that_round(deployed):
    deployed.renew(
        strategy=replace(SMALL.strategy, local_epochs=1000)
    )  # a second or two: no other message takes as long
    site = deployed.sites[2]
    forks = site.forks()
    name = deployed.submit()
    deployed.wait_for(name, "round")  # after statistics comes training

    def at_work() -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in forks.children() if time.time() - child.create_time() > 1.0]
        return []

    assert wait_until(lambda: bool(at_work()))
    (trains,) = at_work()
    trains.kill()

    deployed.finish(name)

    cohorts = deployed.cohorts(name)
    assert (cohorts[0], cohorts[1]) == (EVERYBODY, WITHOUT_THIRD)
    assert_each_uploaded_where_it_was_named(deployed, cohorts)
    (told,) = site.lines("ended by itself")
    assert told == "train.prepare: the process that answered it ended by itself, exit code -9"
    (returned,) = texts(deployed, name, "returned")
    assert returned.startswith("hospital-3 is back, and stands before round ")
    assert deployed.events(name)[-1]["closed"] == ["hospital-1", "hospital-2", "hospital-3"]
    deployed.check_models(name)


def test_a_site_that_is_killed_and_started_again_uploads_what_it_had_promised(deployed):
    site = deployed.sites[2]
    name = deployed.submit()
    deployed.wait_for(name, "round", 2)
    wait_for_upload(deployed, 2, 2)
    site.kill()
    assert wait_until(lambda: not site.processes(), 30)  # nothing of it outlives it
    site.start()

    deployed.finish(name)

    assert deployed.cohorts(name) == [EVERYBODY] * 5
    assert [deployed.uploads(position) for position in EVERYBODY] == [ROUNDS] * 3
    deployed.check_models(name)


def test_a_frozen_site_is_gone_on_without_and_comes_back_when_it_thaws(deployed):
    site = deployed.sites[2]
    name = deployed.submit("federation.ready_seconds=12")
    deployed.wait_for(name, "round", 2)
    frozen = site.processes()
    for process in frozen:
        process.suspend()
    deployed.wait_for(name, "absent")
    deployed.wait_for(name, "round", 3)
    for process in frozen:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()

    deployed.finish(name)

    cohorts = deployed.cohorts(name)
    assert WITHOUT_THIRD in cohorts
    assert deployed.uploads(2) == [number for number in ROUNDS if 2 in cohorts[number]]
    assert texts(deployed, name, "absent")[0].startswith("hospital-3: no answer in round ")
    assert deployed.events(name)[-1]["closed"] == ["hospital-1", "hospital-2", "hospital-3"]
    deployed.check_models(name)


def test_supernodes_killed_before_while_and_after_they_send_are_started_again_and_send_once(deployed):
    before, sending, after = deployed.sites
    supernodes = {site.name: site.supernode() for site in deployed.sites}
    answered = {site.name: len(site.lines("train.upload: answered")) for site in deployed.sites}
    name = deployed.submit()
    deployed.wait_for(name, "round", 2)
    wait_for_upload(deployed, 0, 2)
    supernodes[before.name].suspend()  # it has not got the answer yet, and gets it no more
    kill(supernodes[before.name])
    for site, pause in ((sending, 0.0), (after, 1.0)):
        assert wait_until(lambda site=site: len(site.lines("train.upload: answered")) >= answered[site.name] + 3)
        time.sleep(pause)
        kill(supernodes[site.name])

    deployed.finish(name)

    cohorts = deployed.cohorts(name)  # Flower takes a killed node back after up to a minute: rounds may go on meanwhile
    assert cohorts[2] == EVERYBODY
    assert_each_uploaded_where_it_was_named(deployed, cohorts)
    for site in deployed.sites:
        assert site.lines("the SuperNode ended, and is started again: it was killed, or ended without a word")
    assert texts(deployed, name, "waiting")[0].startswith("round 2 waits for the uploads of ")
    deployed.check_models(name)


def test_a_superlink_killed_between_and_within_rounds_comes_back_and_the_run_is_resumed(deployed):
    provider = deployed.provider
    ended = provider.output.read_text().count("the SuperLink has ended")
    name = deployed.submit()
    for rounds, pause in ((2, 0.0), (3, 1.0)):
        deployed.wait_for(name, "round", rounds)
        time.sleep(pause)
        kill(provider.program("flower-superlink"))
        ended += 1
        assert wait_until(lambda count=ended: provider.output.read_text().count("the SuperLink has ended") == count)
        assert wait_until(provider.directory.is_running)
        if rounds == 2:
            done = provider.command("submit", "--resume", name, "--no-wait")
            assert done.returncode == 0, done.stderr

    done = deployed.resume(name)

    assert done.returncode == 0, done.stdout + done.stderr + deployed.story(name)
    assert deployed.kinds(name).count("round") == 5
    assert deployed.cohorts(name) == [EVERYBODY] * 5  # as if nothing had happened
    assert [deployed.uploads(position) for position in EVERYBODY] == [ROUNDS] * 3
    assert provider.said("the SuperLink has ended and is started again in ")
    deployed.check_models(name)


def test_a_provider_whose_disk_is_full_goes_on_when_there_is_room_again(deployed, disk):
    small = disk(deployed.provider.directory.path)
    with deployed.submitted() as (name, submission):
        deployed.wait_for(name, "round", 2)
        with small.filled():
            assert submission.wait(200) == 1
            told = submission.stderr.read()
            assert wait_until(lambda: not deployed.is_worked_on(name))
    assert "No space left on device" in told
    assert f"to go on with it: cipherward submit --resume {name}" in told
    assert "Traceback" not in told

    done = deployed.resume(name)

    assert done.returncode == 0, done.stdout + done.stderr + deployed.story(name)
    assert deployed.cohorts(name) == [EVERYBODY] * 5
    assert [deployed.uploads(position) for position in EVERYBODY] == [ROUNDS] * 3
    deployed.check_models(name)


def test_a_site_whose_disk_is_full_is_gone_on_without_and_comes_back_when_there_is_room(deployed, disk):
    name = deployed.submit()
    deployed.wait_for(name, "round", 2)
    with disk(deployed.sites[2].vault).filled():
        deployed.wait_for(name, "round", 4)

    deployed.finish(name)

    cohorts = deployed.cohorts(name)
    assert WITHOUT_THIRD in cohorts
    assert deployed.uploads(2) == [number for number in ROUNDS if 2 in cohorts[number]]
    assert deployed.sites[2].said("train.prepare refused: OSError: No space left on device")
    deployed.check_models(name)


@pytest.mark.parametrize(("shift", "word"), [(86_400, "ahead of"), (-86_400, "behind")])
def test_a_site_one_day_off_is_told_so_by_check(up, shift, word):
    done = up.sites[2].check(**shifted(shift))

    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("provider")]
    assert "NOT OK" in line
    assert f"s {word} the provider's, and Flower lets no site in whose clock is wrong: set it" in line


def test_a_site_one_day_off_is_told_why_it_is_refused_and_gets_in_when_its_clock_is_set(up):
    site = up.sites[2]
    site.process.send_signal(signal.SIGTERM)
    site.process.wait(30)
    assert wait_until(lambda: not site.processes(), 30)

    site.start(**shifted(86_400))
    assert wait_until(lambda: len(site.lines("clock is")) == 2)
    site.end()

    first, second = site.lines("clock is")
    assert first.startswith("this machine's clock is 86")
    assert second.startswith("the SuperNode ended, and is started again: this machine's clock is 86")

    site.start()
    assert wait_until(up.is_online)


def shifted(seconds: float) -> dict[str, str]:
    return {"SHIFT_SECONDS": str(seconds), "PYTHONPATH": SHIFTED}
