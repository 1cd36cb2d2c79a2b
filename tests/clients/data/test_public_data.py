"""Public files come from a directory, the cache or the publisher, and are the published ones or refused."""

from __future__ import annotations

import hashlib
import ssl
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import clients.data.public_data
import conf
from clients.data.public_data import DATA_VARIABLE, find_files, load_hospitals, located
from clients.data.table_file import encode_table
from conf import DataConfig, SourceConfig
from protocol.data_terms import ColumnTerms, LabelTerms
from protocol.errors import ConfigurationError, DataError

PUBLISHED = b"age,label\n" + b"".join(b"%d,%d\n" % (age, age % 2) for age in range(20, 90))
ALTERED = PUBLISHED.replace(b"20,0", b"20,1")
FILE = "wards/east.csv"


class Publisher:
    """A real HTTPS server with one file.

    Attributes:
        content: What it serves.
        length: The length that it announces; more than it has cuts the transfer off.
        status: Its answer.
        requests: Number of requests so far.
    """

    def __init__(self, server):
        self.content, self.length, self.status, self.requests = PUBLISHED, len(PUBLISHED), 200, 0
        self.url = f"https://127.0.0.1:{server.server_port}/{FILE}"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "publisher")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("publisher") / "certificate.pem"
    path.write_bytes(
        signed.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture
def publisher(certificate, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            published.requests += 1
            self.send_response(published.status)
            self.send_header("Content-Length", str(published.length))
            self.end_headers()
            self.wfile.write(published.content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    published = Publisher(server)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield published
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user cache, and a machine on which no directory is named; retries do not wait."""
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setattr(clients.data.public_data, "user_cache_path", lambda name: tmp_path / "cache" / name)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    return tmp_path / "cache" / "cipherward" / "data"


def data_of(url="", *, content=PUBLISHED, directory=""):
    source = SourceConfig(site="east", file=FILE, sha256=hashlib.sha256(content).hexdigest(), url=url)
    return DataConfig(
        name="wards", columns=(ColumnTerms(name="age", centre=50, scale=20),), sources=(source,), dir=str(directory)
    )


def put(directory, content=PUBLISHED):
    path = directory / FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def left_in(cache):
    return [path for path in cache.rglob("*") if path.is_file()] if cache.exists() else []


# --- Where a file is looked for -----------------------------------------------------------------------------------


def test_the_directory_of_the_configuration_comes_first(cache, publisher, tmp_path, monkeypatch):
    wanted = put(tmp_path / "named")
    put(tmp_path / "variable")
    put(cache)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "variable"))

    assert find_files(data_of(publisher.url, directory=tmp_path / "named")) == [wanted]
    assert publisher.requests == 0


def test_then_the_environment_s(cache, publisher, tmp_path, monkeypatch):
    wanted = put(tmp_path / "variable")
    put(cache)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "variable"))

    assert find_files(data_of(publisher.url)) == [wanted]
    assert publisher.requests == 0


def test_then_the_user_s_cache(cache, publisher):
    wanted = put(cache)

    assert find_files(data_of(publisher.url)) == [wanted]
    assert publisher.requests == 0


def test_then_the_publisher_once(cache, publisher):
    first, second = (find_files(data_of(publisher.url)) for _ in range(2))

    assert first == second == [cache / FILE]
    assert first[0].read_bytes() == PUBLISHED
    assert publisher.requests == 1


def test_a_directory_may_be_named_from_the_user_s_home(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = put(tmp_path / "tables")

    assert find_files(data_of(directory="~/tables")) == [wanted]


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_named_directory_without_the_file_is_an_error_and_no_download(
    cache, publisher, tmp_path, monkeypatch, by_variable
):
    if by_variable:
        monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    data = data_of(publisher.url, directory="" if by_variable else tmp_path)

    with pytest.raises(ConfigurationError) as refusal:
        find_files(data)

    assert str(refusal.value) == (
        f"{tmp_path / FILE} does not exist; put wards/east.csv from {publisher.url.rpartition('/')[0]}/ below a "
        "directory DIR, and set data.dir=DIR or the variable CIPHERWARD_DATA"
    )
    assert publisher.requests == 0


def test_a_file_that_nobody_publishes_must_be_put_somewhere(cache):
    with pytest.raises(ConfigurationError, match=r"does not exist; put wards/east\.csv below a directory") as refusal:
        find_files(data_of())

    assert "https" not in str(refusal.value)


# --- What is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["directory", "cache"])
def test_an_altered_copy_is_refused_with_what_to_do(cache, publisher, tmp_path, place):
    altered = put(tmp_path if place == "directory" else cache, ALTERED)

    with pytest.raises(ConfigurationError) as refusal:
        find_files(data_of(publisher.url, directory=tmp_path if place == "directory" else ""))

    text = str(refusal.value)
    assert text.startswith(f"{altered} is not the published file: its SHA-256 is ")
    assert hashlib.sha256(ALTERED).hexdigest()[:16] in text
    assert hashlib.sha256(PUBLISHED).hexdigest()[:16] in text
    assert text.endswith(f"take the original from {publisher.url}")
    assert altered.read_bytes() == ALTERED  # it is the user's file


def test_an_altered_download_is_refused_and_not_kept(cache, publisher):
    publisher.content = ALTERED

    with pytest.raises(ConfigurationError, match="is not the published file") as refusal:
        find_files(data_of(publisher.url))

    assert all(part in str(refusal.value) for part in (publisher.url, FILE, "data.dir", DATA_VARIABLE))
    assert left_in(cache) == []


def test_an_interrupted_download_leaves_nothing_behind(cache, publisher):
    publisher.length = 2 * len(PUBLISHED)
    data = data_of(publisher.url)

    with pytest.raises(ConfigurationError, match="cannot be fetched"):
        find_files(data)

    assert publisher.requests == 3  # it is tried again, twice
    assert left_in(cache) == []
    publisher.length = len(PUBLISHED)
    assert find_files(data) == [cache / FILE]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_publisher_that_refuses_is_an_error_and_its_page_is_no_table(cache, publisher, status):
    publisher.status = status

    with pytest.raises(ConfigurationError, match=r"cannot be fetched .* \(HTTPError\)"):
        find_files(data_of(publisher.url))
    assert left_in(cache) == []


def test_a_publisher_with_a_certificate_nobody_knows_is_refused(cache, publisher, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")

    with pytest.raises(ConfigurationError, match=r"\(SSLError\)"):
        find_files(data_of(publisher.url))
    assert (publisher.requests, left_in(cache)) == (0, [])


def test_without_a_network_the_error_says_what_to_put_where(cache, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"https://127.0.0.1:1/{FILE}"

    with pytest.raises(ConfigurationError) as refusal:
        find_files(data_of(url))

    assert str(refusal.value) == (
        f"{url} cannot be fetched into {cache} (ConnectionError); put wards/east.csv from https://127.0.0.1:1/wards/ "
        "below a directory DIR, and set data.dir=DIR or the variable CIPHERWARD_DATA"
    )


def test_a_cache_that_cannot_be_written_is_an_error_too(cache, publisher):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where a directory should be")

    with pytest.raises(ConfigurationError, match=f"cannot be fetched into {cache}"):
        find_files(data_of(publisher.url))


# --- Hospitals ----------------------------------------------------------------------------------------------------


def test_each_hospital_has_its_own_file(tmp_path):
    put(tmp_path)
    (tmp_path / "west.csv").write_bytes(PUBLISHED[:-5])
    data = data_of(directory=tmp_path)
    data = replace(data, sources=(*data.sources, SourceConfig(site="west", file="west.csv")))

    hospitals = load_hospitals(data)

    assert {name: len(file.rows) for name, file in hospitals.items()} == {"east": 70, "west": 69}


def test_a_file_of_other_columns_is_refused_by_name(tmp_path):
    put(tmp_path, b"years,label\n50,1\n")

    with pytest.raises(DataError, match=r"east\.csv, line 1, column 1"):
        load_hospitals(data_of(content=b"years,label\n50,1\n", directory=tmp_path))


@pytest.fixture(scope="module")
def breast_cancer():
    return conf.compose([]).data


def test_the_data_set_that_needs_no_file_has_its_known_patients(breast_cancer):
    (file,) = load_hospitals(breast_cancer).values()
    table = encode_table(file, breast_cancer)

    assert table.features.shape == (569, 30)
    assert int(table.labels.sum()) == 212


def test_its_columns_are_matched_by_name(breast_cancer):
    whole, swapped = (
        encode_table(load_hospitals(data)["wisconsin"], data)
        for data in (
            breast_cancer,
            replace(breast_cancer, columns=(breast_cancer.columns[3], breast_cancer.columns[0])),
        )
    )

    np.testing.assert_array_equal(swapped.features, whole.features[:, [3, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "moles"}, "'moles' is not a data set that comes with Cipherward"),
        ({"columns": (ColumnTerms(name="shoe size", centre=0, scale=1),)}, "no column 'shoe size'"),
        ({"label": LabelTerms(name="benign")}, r"data\.label\.name: the outcome of breast_cancer is 'malignant'"),
    ],
)
def test_an_unknown_data_set_or_column_is_refused_by_name(breast_cancer, change, message):
    with pytest.raises(ConfigurationError, match=message):
        load_hospitals(replace(breast_cancer, **change))


@pytest.mark.parametrize("is_variable", [False, True])
def test_a_relative_directory_is_named_so_that_processes_elsewhere_find_it(tmp_path, monkeypatch, is_variable):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "east.csv").write_bytes(PUBLISHED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(DATA_VARIABLE, "tables")
    data = replace(conf.compose([]).data, sources=(SourceConfig(site="east", file="east.csv"),))
    found = located(data if is_variable else replace(data, dir="tables"))

    monkeypatch.chdir("/")

    assert find_files(found) == [tmp_path / "tables" / "east.csv"]


def test_without_files_there_is_nothing_to_name_and_missing_ones_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    data = conf.compose([]).data
    assert located(data) == data
    with pytest.raises(ConfigurationError, match=r"east\.csv does not exist"):
        located(replace(data, sources=(SourceConfig(site="east", file="east.csv"),)))
