"""What a run brings along is compared with the pin by digests; nothing of it is run or interpreted."""

from __future__ import annotations

import io
import zipfile

import pytest
from bundles import bundle_of, sources
from hypothesis import given
from hypothesis import strategies as st

from clients.run.code import code_digest
from clients.run.pinned_run import MAX_BUNDLE_FILES, bundle_code_digest, check_pinned
from protocol.errors import AgreementMismatchError, LengthError, MalformedError


@pytest.fixture(scope="module")
def bundle():
    return bundle_of(sources() | {"server/app.py": b"", "pyproject.toml": b"[tool.flwr]"})


def test_the_code_of_a_bundle_of_this_release_has_this_release_s_digest(bundle):
    assert bundle_code_digest(bundle) == code_digest()


@pytest.mark.parametrize(
    "change",
    [
        {"clients/app.py": b"import os"},
        {"protocol/extra.py": b""},
        {"conf/deep/extra.py": b""},
    ],
    ids=str,
)
def test_another_line_of_code_is_another_digest(change):
    assert bundle_code_digest(bundle_of(sources() | change)) != code_digest()


def test_a_file_less_is_another_digest():
    files = sources()
    del files["clients/app.py"]

    assert bundle_code_digest(bundle_of(files)) != code_digest()


def test_the_run_that_was_agreed_on_passes(founded, bundle):
    agreement = founded.agreement

    check_pinned(agreement, {"terms": agreement.terms.digest, "hydra": "${oc.env:HOME}: ["}, bundle)


@pytest.mark.parametrize("terms", [None, "", 1, "0" * 64, "x" * 10_000], ids=str)
def test_a_run_with_other_terms_is_refused(founded, bundle, terms):
    config = {} if terms is None else {"terms": terms}

    with pytest.raises(AgreementMismatchError, match=r"terms of the run: expected .{64}, got (none|0{64})$"):
        check_pinned(founded.agreement, config, bundle)


def test_a_bundle_with_other_code_is_refused(founded):
    other = bundle_of(sources() | {"clients/app.py": b"raise SystemExit"})

    with pytest.raises(AgreementMismatchError, match="code of the run's bundle"):
        check_pinned(founded.agreement, {"terms": founded.agreement.terms.digest}, other)


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_archive_are_refused_by_name(data):
    with pytest.raises(MalformedError):
        bundle_code_digest(data)


@given(place=st.integers(min_value=0), value=st.integers(min_value=1, max_value=255))
def test_a_changed_byte_is_refused_or_changes_nothing_that_counts(bundle_bytes, place, value):
    changed = bytearray(bundle_bytes)
    changed[place % len(changed)] ^= value

    try:
        digest = bundle_code_digest(bytes(changed))
    except MalformedError:
        return
    assert len(digest) == 64


@pytest.fixture(scope="module")
def bundle_bytes():
    return bundle_of({"clients/a.py": b"a" * 300, "protocol/b.py": b"b = 1\n", "README.md": b"c"})


def test_a_file_that_is_there_twice_is_refused():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("clients/app.py", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("clients/app.py", b"2")

    with pytest.raises(MalformedError, match="twice"):
        bundle_code_digest(data.getvalue())


def test_a_bomb_is_refused_before_it_is_unpacked():
    bomb = bundle_of({"clients/zeros.py": bytes(64 << 20)})

    assert len(bomb) < 1 << 20
    with pytest.raises(LengthError, match="bytes of code in the bundle"):
        bundle_code_digest(bomb)


def test_too_many_files_are_refused():
    with pytest.raises(LengthError, match="files in the bundle"):
        bundle_code_digest(bundle_of({f"clients/{number}.py": b"" for number in range(MAX_BUNDLE_FILES + 1)}))


def test_an_unusual_compression_is_refused():
    with pytest.raises(MalformedError, match="compressed"):
        bundle_code_digest(bundle_of({"clients/app.py": b"1"}, zipfile.ZIP_BZIP2))
