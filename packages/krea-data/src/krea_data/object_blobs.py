"""Content-addressed bytes in a bucket of an object store that speaks S3, by boto3.

What goes wrong comes as the exceptions that a folder would raise: KeyError (no such blob), FileNotFoundError (no such
bucket), PermissionError (credentials, or what they allow), ConnectionError (no answer), OSError for all the rest.
"""

import base64
import hashlib
import re
import threading
from dataclasses import dataclass, field
from typing import Any, NoReturn

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError, NoCredentialsError
    from botocore.exceptions import ConnectionError as NoConnection
except ImportError as error:
    raise ImportError("an object store needs boto3; install krea-data[s3]") from error

__all__ = ["ObjectBlobs"]

_KEY = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"s3://([^/]+)/?(.*)")
_DENIED = frozenset(
    ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401")
)
_THERE = frozenset(("PreconditionFailed", "412"))
_UNCONDITIONAL = frozenset(("NotImplemented", "501"))  # a store that does not know If-None-Match
_RACED = frozenset(("ConditionalRequestConflict", "409", "OperationAborted"))


@dataclass(kw_only=True, eq=False)
class ObjectBlobs:
    """Blobs as objects `<prefix><first two hex digits>/<sha256>` of a bucket that exists.

    An object is written once: whoever comes later is told that it is there. With `verify` every `get` hashes what came
    and raises OSError if that is not the key. Credentials and region, unless given, are found as boto3 finds them;
    `endpoint` is the address of a store that is not Amazon's. Safe among threads; may be pickled without its
    connections.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    verify: bool = False
    connections: int = 32
    connect_s: float = 10.0
    read_s: float = 60.0
    tries: int = 4
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.bucket or "/" in self.bucket:
            raise ValueError(
                f"{self.bucket!r} is no name of a bucket; give it alone, and what follows it as the prefix"
            )
        self.prefix = f"{self.prefix.strip('/')}/" if self.prefix.strip("/") else ""
        self._guard = threading.Lock()
        self._made: Any = None

    @classmethod
    def at(cls, address: str, **settings: Any) -> "ObjectBlobs":
        """The store at "s3://bucket/prefix"; ValueError for another kind of address."""
        match = _ADDRESS.fullmatch(address)
        if match is None:
            raise ValueError(f"{address!r} is no address of a bucket; write s3://bucket or s3://bucket/prefix")
        return cls(bucket=match[1], prefix=match[2], **settings)

    def name(self, key: str) -> str:
        """The name of the object of this key; ValueError if the key is no sha256 in hex."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a blob key; a key is a sha256 as 64 lower-case hex digits")
        return f"{self.prefix}{key[:2]}/{key}"

    def get(self, key: str) -> bytes:
        """The bytes of a blob."""
        try:
            data = self._client().get_object(Bucket=self.bucket, Key=self.name(key))["Body"].read()
        except (ClientError, BotoCoreError) as error:
            if _code(error) in ("NoSuchKey", "404"):
                raise KeyError(key) from None
            self._complain(error, "reading from")
        if self.verify and hashlib.sha256(data).hexdigest() != key:
            raise OSError(f"the object {self.name(key)} in {self._place()} is damaged: its bytes have another hash")
        return data

    def put(self, data: bytes) -> str:
        """Store and return the key; a no-op if the blob is there, however many write it at once."""
        digest = hashlib.sha256(data)
        key = digest.hexdigest()
        body = {
            "Bucket": self.bucket,
            "Key": self.name(key),
            "Body": data,
            "ChecksumSHA256": base64.b64encode(digest.digest()).decode(),
        }
        try:
            self._put_once(body)
        except (ClientError, BotoCoreError) as error:
            if _code(error) not in _THERE:
                self._complain(error, "writing to")
        return key

    def __contains__(self, key: str) -> bool:
        name = self.name(key)
        try:
            self._client().head_object(Bucket=self.bucket, Key=name)
        except (ClientError, BotoCoreError) as error:
            if _code(error) not in ("404", "NoSuchKey"):
                self._complain(error, "looking into")
            self._has_bucket()
            return False
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_guard", "_made")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def _put_once(self, body: dict[str, Any]) -> None:
        client = self._client()
        for _ in range(self.tries):
            try:
                client.put_object(**body, IfNoneMatch="*")
                return
            except ClientError as error:
                if _code(error) in _UNCONDITIONAL:
                    break
                if _code(error) not in _RACED:
                    raise
        client.put_object(**body)  # the same bytes again are no harm

    def _has_bucket(self) -> None:
        """FileNotFoundError where an object is missing because its bucket is: the answer to a look has no words."""
        try:
            self._client().head_bucket(Bucket=self.bucket)
        except (ClientError, BotoCoreError) as error:
            if _code(error) in ("404", "NoSuchBucket"):
                raise FileNotFoundError(self._no_bucket()) from error
            if _code(error) not in _DENIED:  # who may read objects need not be allowed to look at the bucket
                self._complain(error, "looking into")

    def _client(self) -> Any:
        with self._guard:
            if self._made is None:
                retries: Any = {"mode": "standard", "total_max_attempts": self.tries}
                config = Config(
                    retries=retries,
                    connect_timeout=self.connect_s,
                    read_timeout=self.read_s,
                    max_pool_connections=self.connections,
                )
                keys = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
                session = boto3.Session(**keys, region_name=self.region)
                region = session.region_name or "us-east-1"
                self._made = session.client("s3", region_name=region, endpoint_url=self.endpoint, config=config)
            return self._made

    def _place(self) -> str:
        return f"the bucket {self.bucket}" + (f" at {self.endpoint}" if self.endpoint else "")

    def _no_bucket(self) -> str:
        return f"there is no {self._place().removeprefix('the ')}; make it, or look at its name and at the endpoint"

    def _complain(self, error: Exception, what: str) -> NoReturn:
        code, said = _code(error), f"{what} {self._place()} failed"
        if code == "NoSuchBucket":
            raise FileNotFoundError(self._no_bucket()) from error
        if isinstance(error, NoCredentialsError):
            raise PermissionError(
                f"{said}: there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            ) from error
        if code in _DENIED:
            raise PermissionError(
                f"{said}: it refused these credentials ({code}); look at the keys, their time and what they allow"
            ) from error
        if isinstance(
            error, NoConnection | HTTPClientError | IncompleteReadError
        ):  # no connection, no answer, a broken one
            raise ConnectionError(f"{said}: {_words(error)}; look at the endpoint and at the network") from error
        raise OSError(f"{said}: {_words(error)}") from error


def _code(error: Exception) -> str:
    """What the store calls the mistake, or nothing where it said nothing."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
