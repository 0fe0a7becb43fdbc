"""HTTPS by the server itself: certificates made here, files that cannot be used, and what a browser is told."""

from __future__ import annotations

import hashlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.conftest import running

from shoal.cli.serve import command
from shoal.errors import ShoalError, UsageError
from shoal.serve.accounts import Accounts
from shoal.serve.app import create_app
from shoal.serve.listener import tls_context
from shoal.serve.models import ModelCard, ModelTable
from shoal.serve.settings import ServerSettings
from shoal.serve.store import Store

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="no openssl program to make a certificate with")


def make(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    """A self-signed certificate for this machine, and its key."""
    certificate, key = folder / f"{name}.pem", folder / f"{name}-key.pem"
    command = [str(OPENSSL), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
               "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
               "-keyout", str(key), "-out", str(certificate), *(options or ("-nodes",))]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("tls"), "good")


@pytest.fixture(scope="module")
def secure(
    files: tuple[Path, Path], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    place = tmp_path_factory.mktemp("secure") / "chats.sqlite"
    accounts = Accounts(place)
    accounts.add_user("ann", "four odd words here", admin=True)
    accounts.close()
    settings = ServerSettings(allowed_hosts=("shoal.example",))
    with running(create_app(settings, no_models(), Store(place)), tls=tls_context(*files)) as url:
        yield url


def no_models() -> ModelTable:
    """The door and the sign-in need none."""

    def opener(spec: str, progress: Any) -> Any:
        raise ShoalError("there is no model")

    return ModelTable([ModelCard("none", "none")], opener)


def test_https_with_a_certificate_that_the_client_trusts(secure: str, files: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(files[0]))
    with httpx.Client(base_url=secure, verify=trusting, trust_env=False, timeout=30) as client:
        assert secure.startswith("https://127.0.0.1:")
        page = client.get("/")
        assert page.status_code == 200 and "strict-transport-security" not in page.headers, (
            "an address has no HSTS"
        )
        own = {"origin": secure}
        answer = client.post(
            "/api/session", json={"name": "ann", "password": "four odd words here"}, headers=own
        )
        cookie = answer.headers["set-cookie"].lower()
        assert answer.status_code == 204 and "; secure" in cookie and "httponly" in cookie
        assert client.get("/api/chats").status_code == 200
        plain = {"origin": secure.replace("https", "http"), "sec-fetch-site": "cross-site"}
        assert client.get("/api/chats", headers=plain).status_code == 403, "http is another origin"
        whole = client.get("/static/vendor/katex-0.19.1/katex.min.js").content
        assert len(whole) > 200_000, "more than fits a record of TLS or a buffer"
        named = client.get("/", headers={"host": "shoal.example"})
        assert named.headers["strict-transport-security"].startswith("max-age=")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(secure, trust_env=False)
    plain_url = secure.replace("https", "http")
    with pytest.raises(httpx.TransportError):
        httpx.get(plain_url, trust_env=False)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with pytest.warns(DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        httpx.get(secure, verify=old, trust_env=False)


def test_files_that_cannot_be_used_are_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = files
    other_certificate, other_key = make(tmp_path, "other")
    _, locked = make(tmp_path, "locked", "-passout", "pass:secret")
    (tmp_path / "cut.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    (tmp_path / "der.pem").write_bytes(b"\x30\x82\x01")
    for pair, words in (
        ((tmp_path / "absent.pem", key), "cannot read the certificate .*absent.pem"),
        ((certificate, tmp_path), "cannot read the private key"),
        ((tmp_path / "der.pem", key), "der.pem holds no certificate in PEM form"),
        ((key, certificate), "holds no certificate"),
        ((certificate, certificate), "holds no private key"),
        ((tmp_path / "cut.pem", key), "cannot use .*cut.pem"),
        ((certificate, other_key), "is not the key of"),
        ((other_certificate, locked), "is encrypted"),
    ):
        with pytest.raises(ShoalError, match=words):
            tls_context(*pair)


def test_a_new_certificate_needs_no_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = make(tmp_path, "first"), make(tmp_path, "second")
    used = tmp_path / "used.pem", tmp_path / "used-key.pem"

    def put(source: Path, target: Path) -> None:
        shutil.copyfile(source, tmp_path / "coming")
        os.replace(tmp_path / "coming", target)

    def fingerprint() -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address))).hexdigest()

    def wanted(pair: tuple[Path, Path]) -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pair[0].read_text())).hexdigest()

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]

    for source, target in zip(first, used, strict=True):
        put(source, target)
    app = create_app(ServerSettings(), no_models(), Store(tmp_path / "chats.sqlite"))
    trusting = ssl.create_default_context(cafile=str(first[0]))
    with (
        running(app, tls=tls_context(*used)) as url,
        httpx.Client(base_url=url, verify=trusting, trust_env=False, timeout=30) as kept,
    ):
        address = "127.0.0.1", httpx.URL(url).port or 0
        assert fingerprint() == wanted(first) and kept.get("/").status_code == 200
        caplog.clear()
        put(second[0], used[0])  # its key is not there yet
        assert [fingerprint() for _ in range(3)] == [wanted(first)] * 3
        assert (
            len(told()) == 1
            and "old certificate stays in use" in told()[0]
            and "is not the key of" in told()[0]
        )
        used[0].unlink()
        assert fingerprint() == wanted(first) and "cannot read the certificate" in told()[-1]
        put(second[0], used[0])
        put(second[1], used[1])
        assert fingerprint() == wanted(second) and len(told()) == 2
        assert kept.get("/").status_code == 200, "a connection that is open stays as it is"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url, verify=trusting, trust_env=False)
        new = ssl.create_default_context(cafile=str(second[0]))
        assert httpx.get(url, verify=new, trust_env=False).status_code == 200


def test_serve_refuses_half_a_pair(files: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="belong together"):
        command(models=["nowhere"], host="127.0.0.1", api_key=None, log_level="warning", tls_cert=files[0],
                tls_key=None, allowed_host=[], cors_origin=[], strict=False)  # fmt: skip
