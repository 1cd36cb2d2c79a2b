from __future__ import annotations

import pytest

from scripts import quality


def test_every_check_runs_and_one_failure_fails_all(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = tuple(("python", "-c", f"print('check {code}'); raise SystemExit({code})") for code in (0, 3, 0))
    monkeypatch.setattr(quality, "CHECKS", commands)
    assert not quality.run_checks()
    assert capfd.readouterr().out.count("\ncheck") == 3


def test_checks_pass_if_each_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "CHECKS", (("python", "-c", ""),) * 2)
    assert quality.run_checks()


def test_tests_end_with_the_exit_code_of_pytest(tmp_path_factory: pytest.TempPathFactory) -> None:
    failing = tmp_path_factory.mktemp("tests") / "test_failing.py"
    failing.write_text("def test_failing():\n    raise ValueError\n")
    assert quality.run_tests([str(failing), "-p", "no:cacheprovider"]) == 1
    assert quality.run_tests(["--version"]) == 0
