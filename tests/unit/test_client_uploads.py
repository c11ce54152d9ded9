"""What the client corrects of the SDK's uploads: names that can be deleted, and logins that have ended."""

from __future__ import annotations

import string
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote_plus

import pytest
from clearml import Task
from clearml.backend_interface.metrics.events import UploadEvent
from clearml.backend_interface.model import Model
from clearml.storage.helper import _HttpDriver, _StorageHelper
from clearml.storage.url import quote_url
from clearml_client import _sdk
from clearml_client._storable import storable
from clearml_client.datasets._remote import artifact_uri
from furl import furl

FILES = "http://files.example.org:8081"
# As people write them, and every mark between two letters.
NAMES = [f"a{character}b" for character in string.punctuation + " ä漢"]
NAMES += ["resnet+fpn", "lr=1e-3, bs=8", "50%", "what?", "issue #12", "a%41b", "%2B", "100%+", "C++", "+", "a&b"]


@pytest.fixture(autouse=True)
def _corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "_get_output_destination_suffix", Task._get_output_destination_suffix)
    monkeypatch.setattr(Model, "_upload_model", Model._upload_model)
    _sdk._store_under_names_that_can_be_deleted()


def deleted(url: str) -> str:
    """Return the path that is deleted for an address: async_urls_delete.py, then delete_many of the file server."""
    return unquote_plus(str(furl(url).path).strip("/"))


def suffix(project: str, name: str, *extra: str) -> str:
    data: Any = SimpleNamespace(id="0123")
    task: Any = SimpleNamespace(get_project_name=lambda: project, project="45", name=name, data=data)
    return str(Task._get_output_destination_suffix(task, *extra))


@pytest.mark.parametrize("name", NAMES)
def test_an_artifact_can_be_deleted(name: str) -> None:
    event = UploadEvent(
        metric="artifacts",
        variant=name,
        image_data=None,
        local_image_path=f"/tmp/{name}.txt",
        upload_uri=FILES,
        override_storage_key_prefix=suffix(f"team/{name}", name),
    )
    event._upload_filename = event._filename = f"{name.replace('/', '_')}.txt"
    stored = event.get_target_full_upload_uri(FILES, quote_uri=False)[1].removeprefix(f"{FILES}/")
    url = event.get_target_full_upload_uri(FILES)[1]
    assert deleted(url) == stored


@pytest.mark.parametrize("name", NAMES)
def test_a_model_can_be_deleted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = []

    class Store:
        def upload(self, *, dest_path: str, **_: Any) -> None:
            stored.append(dest_path.removeprefix(f"{FILES}/"))

    monkeypatch.setattr("clearml.backend_interface.model.StorageHelper", SimpleNamespace(get=lambda _: Store()))
    place = suffix(f"team/{name}", name, "models")
    model: Any = SimpleNamespace(upload_storage_uri=FILES, _upload_storage_suffix=place, _upload_callback=None)
    model._upload_callback = lambda *_, **__: None
    file = PurePosixPath("/tmp") / f"{name.replace('/', '_')}.pt"
    # The address that the SDK registers is the one that it uploads to, as it is.
    url = Model._upload_model(model, str(file))
    assert [deleted(url)] == stored
    url = Model._upload_model(model, "/tmp/x.pt", target_filename=file.name)
    assert deleted(url) == stored[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_can_be_deleted(name: str) -> None:
    uri = artifact_uri(FILES, f"data/{name}", "kitti", "0123", "data", "0.zip")
    assert deleted(quote_url(uri)) == uri.removeprefix(f"{FILES}/")


def test_plain_names_stay_as_they_are() -> None:
    assert suffix("team/training", "digits, 3rd try") == "team/training/digits, 3rd try.0123"
    assert suffix("team/training", "resnet+fpn") == "team/training/resnet0x2bfpn.0123"
    assert storable("epoch=3-val_loss=0.1.ckpt") == "epoch=3-val_loss=0.1.ckpt"


def test_it_is_corrected_once() -> None:
    first = Task._get_output_destination_suffix
    _sdk._store_under_names_that_can_be_deleted()
    assert Task._get_output_destination_suffix is first


# --- logins that end ---------------------------------------------------------------------------------------------


class Doorkeeper(BaseHTTPRequestHandler):
    """A file server that accepts the token of today alone."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        good = self.headers["Authorization"] == "Bearer of-today"
        self.server.seen.append(200 if good else 401)  # type: ignore[attr-defined]
        self.send_response(200 if good else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Session:
    """What the SDK's session does with its token."""

    def __init__(self, renewed: str) -> None:
        self.token, self.renewed = "of-yesterday", renewed

    def refresh_token(self) -> None:
        self.token = self.renewed

    def add_auth_headers(self, headers: dict[str, str]) -> dict[str, str]:
        return {**headers, "Authorization": f"Bearer {self.token}"}


@pytest.mark.parametrize(("renewed", "seen"), [("of-today", [401, 200]), ("of-yesterday", [401, 401, 401])])
def test_an_upload_after_the_end_of_all_logins_logs_in_again(
    renewed: str, seen: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_HttpDriver, "upload_object_via_stream", _HttpDriver.upload_object_via_stream)
    _sdk._log_in_again_for_uploads()
    _sdk._log_in_again_for_uploads()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Doorkeeper)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(_HttpDriver, "get_file_server_hosts", lambda: [address])
    session = Session(renewed)
    file = tmp_path / "x.txt"
    file.write_text("hers")
    try:
        store = _StorageHelper(address, address)
        store._container._default_backend_session = session
        outcome: Any = None
        try:
            with file.open("rb") as stream:
                outcome = store.upload_from_stream(stream, f"{address}/p/x.txt", retries=3)
        except ValueError as error:
            outcome = error
        assert server.seen == seen  # type: ignore[attr-defined]
        assert isinstance(outcome, str) is (seen[-1] == 200)
    finally:
        server.shutdown()
        server.server_close()
