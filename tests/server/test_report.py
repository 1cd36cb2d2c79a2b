"""The provider's report: how the run went and what the provider holds, for runs that end well and others."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace

import pytest
from flwr.app import Context, RecordDict

import conf
import server.app
from conf.page import format_size
from protocol.envelope import Request
from protocol.errors import CohortError, RunPausedError
from server.report import write_provider_report

TALKS_TO_OTHERS = r"""(?ix) <(?:script|link|iframe|object|embed|img|base|form)\b | \son\w+\s*=
    | (?:href|src|action)\s*=\s*["'](?!\#) | url\((?!\#) | @import"""


@pytest.fixture
def finished(founded, run):
    """The directory of a run that has come to its end."""
    run(founded)
    return founded.directory


@pytest.fixture
def serve(grid_of):
    """Run a federation through the provider's ServerApp."""

    def serve_over(federation, interfere=lambda reply: reply):
        waits = {"join_seconds": 1.0, "ready_seconds": 1.0, "upload_seconds": 1.0}
        experiment = replace(federation.experiment, federation=replace(federation.experiment.federation, **waits))
        context = Context(
            run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"hydra": conf.to_yaml(experiment)}
        )
        server.app.app(grid_of(federation, interfere), context)

    return serve_over


def lose_preparations(reply):
    return None if reply.metadata.message_type == str(Request.PREPARE) else reply


def page_of(directory):
    write_provider_report(directory)
    return (directory / "provider" / "report.html").read_text()


def words_of(page):
    """Return what a reader sees, each run of white space as one space."""
    body = re.sub(r"(?s)<head>.*?</head>|<[^>]*>", " ", re.sub(r"</?b\b[^>]*>", "", page))
    return " ".join(html.unescape(body).split())


def write_events(tmp_path, *events):
    provider = tmp_path / "provider"
    (provider / "sums").mkdir(parents=True)
    lines = [json.dumps({"time": 1_795_351_312.0 + second, **event}) for second, event in enumerate(events)]
    (provider / "events.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


STARTED = {"event": "started", "rounds": 5, "sites": 4}


def test_a_finished_run_is_told_as_it_was_recorded(finished):
    words = words_of(page_of(finished))
    events = [json.loads(line) for line in (finished / "provider" / "events.jsonl").read_text().splitlines()]

    assert "Status Completed Sites 4 joined Training rounds summed 2 of 2" in words
    assert "hospital-1, hospital-2, hospital-3, hospital-4." in words
    rows = re.findall(r"(\d) (statistics|train|evaluate) 4 sites ([\d.]+ kB) ([\d.]+ kB) ", words)
    assert [(int(number), kind) for number, kind, _, _ in rows] == [
        (event["round"], event["kind"]) for event in events if event["event"] == "round"
    ]
    assert "None: every message was answered" in words


def test_the_page_lists_all_that_the_directory_holds(finished):
    words = words_of(page_of(finished))

    events = finished / "provider" / "events.jsonl"
    sums = sorted((finished / "provider" / "sums").iterdir())
    size = format_size(sum(path.stat().st_size for path in sums))
    assert f"events.jsonl 1 {format_size(events.stat().st_size)} names, sizes" in words
    assert f"sums/{sums[0].name} to sums/{sums[-1].name} {len(sums)} {size} an encrypted sum" in words
    assert "It did not see, and its directory does not hold: a patient's record" in words


def test_nothing_is_claimed_about_files_that_the_program_did_not_write(finished):
    (finished / "provider" / "sums" / "patients.csv").write_text("age\n61\n")

    words = words_of(page_of(finished))

    assert "sums/patients.csv 1 7 bytes not written by the provider's program" in words
    assert "Nothing is claimed about them." in words
    assert "It did not see" not in words


def test_the_page_is_one_file_that_talks_to_nobody(finished):
    page = page_of(finished)

    assert re.findall(TALKS_TO_OTHERS, re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)) == []
    assert page.count("<svg") == 2


def test_making_it_again_gives_the_same_page(finished):
    assert page_of(finished) == page_of(finished)
    assert not list((finished / "provider").glob("*.partial"))


def test_a_paused_run_says_what_it_waits_for(founded, run):
    def lose(reply):
        is_lost = (reply.metadata.message_type, reply.metadata.src_node_id) == (str(Request.UPLOAD), 102)
        return None if is_lost else reply

    with pytest.raises(RunPausedError):
        run(founded, lose)

    words = words_of(page_of(founded.directory))
    assert "Status Paused" in words
    assert "round 0 waits for the updates of hospital-3" in words
    assert "No round was summed." in words


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ([STARTED], "Status Without an end"),
        ([STARTED, {"event": "failed", "reason": "CohortError: connected nodes"}], "Status Failed"),
        ([STARTED, {"event": "finished", "not_closed": ["a"], "states_identical": False}], "Status Failed"),
        ([], "Status Without an end"),
    ],
)
def test_a_run_without_a_good_end_has_a_page_too(tmp_path, events, status):
    words = words_of(page_of(write_events(tmp_path, *events)))

    assert status in words
    assert "No site joined." in words


def test_a_line_that_a_crash_cut_off_is_passed_over(tmp_path):
    write_events(tmp_path, STARTED)
    with (tmp_path / "provider" / "events.jsonl").open("a") as file:
        file.write('{"event":"rou')

    assert "Status Without an end" in words_of(page_of(tmp_path))


def test_refusals_are_listed_and_what_peers_wrote_is_text(tmp_path):
    directory = write_events(
        tmp_path,
        {"event": "refused", "node": "7", "round": 3, "reason": "site: got <script>alert(1)</script>"},
        {"event": "refused-by-site", "node": "8", "request": "train.prepare"},
        {"event": "no-answer", "node": "9", "code": 4},
        {"event": "states-differ", "round": 2, "agreeing": ["a", "b"], "differing": ["c"]},
    )

    page = page_of(directory)

    assert "<script" not in page
    words = words_of(page)
    assert "the provider refused a message 3 7 site: got <script>alert(1)</script>" in words
    assert "the site refused, and does not say why 8 train.prepare" in words
    assert "no answer 9 code 4" in words
    assert "not in the state of the others 2 c" in words


def test_sites_that_a_round_left_out_are_named(tmp_path):
    seconds = {"ready": 0.5, "upload": 0.25, "aggregate": 0.001, "total": 0.75}
    event = {"event": "round", "round": 0, "kind": "statistics", "cohort": ["a", "b", "c"], "left_out": ["d"]}
    directory = write_events(tmp_path, STARTED, {**event, "up_bytes": 900, "down_bytes": 1000, "seconds": seconds})

    assert "0 statistics 3 sites without d 900 bytes 1.0 kB 0.500 0.250 0.001" in words_of(page_of(directory))


def test_the_provider_s_app_leaves_the_report_of_a_run_that_failed(serve, founded):
    with pytest.raises(CohortError):
        serve(founded, lose_preparations)

    words = words_of((founded.directory / "provider" / "report.html").read_text())
    assert "Status Failed" in words
    assert "CohortError: sites ready for round 0" in words


def test_a_report_that_cannot_be_written_takes_nothing_from_the_run_s_own_error(serve, founded, monkeypatch, caplog):
    def fail(directory):
        raise OSError("no space left")

    monkeypatch.setattr("server.report.write_provider_report", fail)

    with pytest.raises(CohortError):
        serve(founded, lose_preparations)
    assert "the provider's report could not be written" in caplog.text


def test_a_report_that_cannot_be_written_does_not_fail_a_good_run(serve, founded, monkeypatch):
    def fail(directory):
        raise OSError("no space left")

    monkeypatch.setattr("server.report.write_provider_report", fail)

    serve(founded)

    assert '"event":"finished"' in (founded.directory / "provider" / "events.jsonl").read_text()
