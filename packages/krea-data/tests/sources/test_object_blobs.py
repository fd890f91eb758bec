"""The contract of `Blobs`, on a folder, in memory, and on a real S3 server."""

import hashlib
import os
import pickle
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any

import pytest
from krea_data.blobs import FolderBlobs
from krea_data.interfaces import Blobs
from krea_data.testing import MemoryBlobs

pytest.importorskip("boto3")

from krea_data.object_blobs import ObjectBlobs

SERVE = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def served(**settings):
    """The address of a server in a process of its own, which ends with its standard input."""
    more: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(command, env=os.environ | settings, text=True, **more) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.stdin.close()


@pytest.fixture(scope="module")
def endpoint():
    pytest.importorskip("moto")
    with served() as address:
        yield address


@pytest.fixture
def bucket(endpoint):
    """A function that opens a store in a new bucket."""
    import boto3

    name = f"bucket-{time.monotonic_ns()}"
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=name)

    def make(**settings):
        keys = {"endpoint": endpoint, "access_key": "k", "secret_key": "s"}
        return ObjectBlobs(**({"bucket": name, "tries": 2} | keys | settings))

    return make


@pytest.fixture(params=["folder", "memory", "object"])
def blobs(request, tmp_path):
    if request.param == "object":
        return request.getfixturevalue("bucket")()
    return FolderBlobs(tmp_path) if request.param == "folder" else MemoryBlobs()


def raw(store):
    return store._client()


class TestContract:
    def test_what_is_put_is_got_by_its_sha256(self, blobs: Blobs):
        for data in (b"picture", b"", bytes(range(256)) * 5000):
            key = blobs.put(data)
            assert key == hashlib.sha256(data).hexdigest()
            assert blobs.get(key) == data
            assert blobs.put(data) == key

    def test_what_was_not_put_is_not_there(self, blobs: Blobs):
        with pytest.raises(KeyError):
            blobs.get(hashlib.sha256(b"x").hexdigest())

    def test_many_writers_agree(self, blobs: Blobs):
        keys: list[str] = []
        threads = [threading.Thread(target=lambda: keys.append(blobs.put(b"x" * 100_000))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert keys == [hashlib.sha256(b"x" * 100_000).hexdigest()] * 8
        assert blobs.get(keys[0]) == b"x" * 100_000


@pytest.mark.parametrize("key", ["", "ab", "../../etc/passwd", "G" * 64, "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_only_keys_are_looked_up(bucket, key):
    for look in (bucket().get, bucket().__contains__):
        with pytest.raises(ValueError, match="not a blob key"):
            look(key)


def test_objects_lie_below_the_prefix(bucket):
    store = bucket(prefix="/a/b/")
    key = store.put(b"picture")
    listed = raw(store).list_objects_v2(Bucket=store.bucket)["Contents"]
    assert [one["Key"] for one in listed] == [f"a/b/{key[:2]}/{key}"]
    assert key in store
    assert key not in bucket(prefix="c")
    assert (
        ObjectBlobs.at(f"s3://{store.bucket}/a/b", endpoint=store.endpoint, access_key="k", secret_key="s").get(key)
        == b"picture"
    )


def test_what_is_there_is_not_written_again(bucket):
    store = bucket()
    key = store.put(b"picture")
    name = {"Bucket": store.bucket, "Key": store.name(key)}
    raw(store).put_object(**name, Body=b"marked")
    assert store.put(b"picture") == key
    assert raw(store).get_object(**name)["Body"].read() == b"marked"


def test_a_store_without_conditions_is_written_to_plainly(bucket):
    from botocore.exceptions import ClientError

    store = bucket()
    client, asked = raw(store), []

    class Old:
        def put_object(self, **request):
            asked.append("IfNoneMatch" in request)
            if "IfNoneMatch" in request:
                raise ClientError({"Error": {"Code": "NotImplemented", "Message": "a header"}}, "PutObject")
            return client.put_object(**request)

    store._made = Old()
    key = store.put(b"picture")
    assert asked == [True, False]
    store._made = client
    assert store.get(key) == b"picture"


def test_damage_is_found_when_asked(bucket):
    store = bucket()
    key = store.put(b"picture")
    raw(store).put_object(Bucket=store.bucket, Key=store.name(key), Body=b"damage")
    assert store.get(key) == b"damage"
    with pytest.raises(OSError, match=f"{key} in the bucket {store.bucket} at http.*damaged"):
        bucket(bucket=store.bucket, verify=True).get(key)
    whole = store.put(b"another")
    assert bucket(verify=True).get(whole) == b"another"


def test_a_missing_bucket_is_named(bucket):
    store = bucket(bucket="nobody-has-it")
    key = hashlib.sha256(b"x").hexdigest()
    for call in (lambda: store.get(key), lambda: store.put(b"x"), lambda: key in store):
        with pytest.raises(FileNotFoundError, match="there is no bucket nobody-has-it at http"):
            call()


def test_a_missing_blob_is_no_missing_bucket(bucket):
    assert hashlib.sha256(b"x").hexdigest() not in bucket()


def test_wrong_credentials_are_refused_in_words():
    pytest.importorskip("moto")
    with served(INITIAL_NO_AUTH_ACTION_COUNT="0") as address:
        keys: dict[str, Any] = {"access_key": "wrong", "secret_key": "wrong"}
        store = ObjectBlobs(bucket="some-bucket", endpoint=address, tries=1, **keys)
        key = hashlib.sha256(b"x").hexdigest()
        for call in (lambda: store.get(key), lambda: store.put(b"x"), lambda: key in store):
            with pytest.raises(PermissionError, match=r"some-bucket at http.*refused these credentials"):
                call()


def test_no_credentials_are_told_how_to_come_by(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionError, match="set AWS_ACCESS_KEY_ID"):
        ObjectBlobs(bucket="some-bucket", endpoint="http://127.0.0.1:1").put(b"x")


def test_an_endpoint_that_does_not_answer_is_named():
    keys = {"access_key": "k", "secret_key": "s", "tries": 1, "connect_s": 1.0, "read_s": 0.2}
    store = ObjectBlobs(bucket="some-bucket", endpoint="http://127.0.0.1:1", **keys)
    for call in (lambda: store.get("0" * 64), lambda: store.put(b"x"), lambda: "0" * 64 in store):
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1.*look at the endpoint"):
            call()
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = ObjectBlobs(bucket="some-bucket", endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}", **keys)
        with pytest.raises(ConnectionError, match="look at the endpoint"):
            store.put(b"x")


def test_an_answer_that_breaks_off_is_no_blob():
    import socket

    def answer(listening):
        connection, _ = listening.accept()
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        endpoint = f"http://127.0.0.1:{listening.getsockname()[1]}"
        store = ObjectBlobs(bucket="some-bucket", endpoint=endpoint, access_key="k", secret_key="s", tries=1)
        with pytest.raises(ConnectionError):
            store.get("0" * 64)
        thread.join()


def test_a_store_travels_without_its_connections_and_shows_no_secrets(bucket):
    store = bucket()
    key = store.put(b"picture")
    other = pickle.loads(pickle.dumps(store))
    assert other.get(key) == b"picture"
    assert "secret_key" not in repr(store)
    assert len({store, other}) == 2


@pytest.mark.parametrize("address", ["", "bucket", "http://host/bucket", "s3://", "s3:///x"])
def test_addresses_are_checked(address):
    with pytest.raises(ValueError, match="no address of a bucket"):
        ObjectBlobs.at(address)
    with pytest.raises(ValueError, match="no name of a bucket"):
        ObjectBlobs(bucket="a/b")
