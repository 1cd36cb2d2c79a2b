"""Where runs are kept: a name from outside leads nowhere but below the directory of runs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.run_directory import (
    RUN_DIRECTORY_VARIABLE,
    RUN_NAME_FORMAT,
    RUNS_VARIABLE,
    check_run_name,
    run_directory,
)
from protocol.errors import ConfigurationError

NAME = "2026-01-31_12-00-00"


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv(RUN_DIRECTORY_VARIABLE, raising=False)
    monkeypatch.delenv(RUNS_VARIABLE, raising=False)


def test_a_simulation_s_launcher_names_the_whole_directory(monkeypatch):
    monkeypatch.setenv(RUN_DIRECTORY_VARIABLE, "/runs/one")
    monkeypatch.setenv(RUNS_VARIABLE, "/srv/runs")

    assert run_directory(7, {"run": NAME}) == Path("/runs/one")


def test_a_provider_s_run_is_found_by_its_name(monkeypatch):
    monkeypatch.setenv(RUNS_VARIABLE, "/srv/runs")

    assert run_directory(7, {"run": NAME, "hydra": "..."}) == Path("/srv/runs", NAME)
    assert run_directory(7, {"run": ""}) == Path("/srv/runs/7")


def test_without_a_launcher_flower_s_id_names_it():
    assert run_directory(7).parts[-3:] == ("cipherward", "runs", "7")
    assert run_directory(7, {"run": ""}) == run_directory(7)


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "/etc",
        f"../{NAME}",
        f"{NAME}/..",
        f"{NAME}\n",
        f" {NAME}",
        "2026-01-31",
        "٢٠٢٦-01-31_12-00-00",
        f"{NAME}\0",
    ],
)
def test_what_is_no_name_is_refused(monkeypatch, name):
    monkeypatch.setenv(RUNS_VARIABLE, "/srv/runs")

    with pytest.raises(ConfigurationError):
        run_directory(7, {"run": name})


@given(name=st.text())
def test_whatever_passes_is_one_plain_file_name(name):
    try:
        path = Path("/srv/runs") / check_run_name(name)
    except ConfigurationError:
        return
    assert path.parent == Path("/srv/runs")


def test_the_present_moment_is_a_name():
    assert check_run_name(time.strftime(RUN_NAME_FORMAT))
