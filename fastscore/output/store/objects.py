"""A place in an object store, by obstore: S3 and what speaks its protocol, Google Cloud Storage, Azure."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fastscore.output.store.place import HOUR, Clock, Entry, valid

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ObjectStore

TRIES = 5
TIMEOUT = "300s"  # of one request; obstore's own 30 s would need 9 MB/s for a shard of 256 MB
PROBE = ".probe-"

_SETTINGS = {  # the variables of the environment that obstore reads; the word before the first "_" begins all of them
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION, but no files below ~/.aws",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_DENIED = ("169.254.169.254", "Account must be specified")  # asking a cloud machine's own service, where there is none
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_WRITER = "writer"  # an attribute that tells whose an object is; only letters, for Azure's sake


def bucket(scheme: str, rest: str) -> Bucket:
    """Return the place at scheme://rest, with credentials and endpoint from the environment.

    Args:
        scheme: s3 reads AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL, ..; gs GOOGLE_APPLICATION_CREDENTIALS, ..; az
            AZURE_STORAGE_ACCOUNT_NAME, ..; plain http is refused unless AWS_ALLOW_HTTP=true.
        rest: bucket, or Azure's container, and prefix.

    Raises:
        ValueError: it names no bucket, or no prefix that can be one.
        ImportError: obstore is not installed.
        OSError: the environment lacks what the store needs.
    """
    name, _, prefix = rest.partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(name):
        raise ValueError(f"{scheme}://{rest} names no bucket; write {scheme}://bucket/prefix")
    if prefix:
        valid(prefix)
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise ImportError(f"{scheme}:// needs obstore", name="obstore") from error
    store = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
    config = {} if f"{_SETTINGS[scheme].split('_')[0]}_TIMEOUT" in os.environ else {"timeout": TIMEOUT}
    with _told(f"{scheme}://{name}"):
        return Bucket(store(name, config=config), prefix, f"{scheme}://{rest}".rstrip("/"))


class Bucket:
    """The objects below a prefix.

    obstore repeats what the store refuses for a moment: 10 times in 3 minutes. What it cannot repeat is a create whose
    answer is lost, as the first attempt may have succeeded; so each object names its writer.

    Args:
        store: of obstore, one that keeps attributes: any but LocalStore.
        prefix: without slashes at its ends; "" is the whole bucket.
        url: for messages.
    """

    def __init__(self, store: ObjectStore, prefix: str = "", url: str = "") -> None:
        self.url = url or f"{type(store).__name__}/{prefix}"
        self._store, self._prefix = store, f"{prefix}/" if prefix else ""
        self._clock, self._proved = Clock(), False

    def create(self, name: str, data: bytes) -> bool:
        from obstore import put
        from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

        key, writer, failed = self._key(name), secrets.token_hex(16), None
        with _told(f"{self.url}/{name}"):
            self._prove()
            for attempt in range(TRIES):
                try:
                    put(self._store, key, data, mode="create", use_multipart=False, attributes={_WRITER: writer})
                    return True
                except (PermissionDeniedError, UnauthenticatedError):
                    raise
                except AlreadyExistsError as error:  # or S3 answers 409, as a delete of that name came in between
                    failed = error
                except BaseError as error:  # whether or not the object was made
                    failed = error
                found = self._writer(key)
                if found is not None:
                    return found == writer
                time.sleep(0.2 * 2**attempt)
            assert failed is not None
            raise failed

    def replace(self, name: str, data: bytes) -> None:
        from obstore import put

        with _told(f"{self.url}/{name}"):
            put(self._store, self._key(name), data, use_multipart=False)

    def read(self, name: str) -> bytes:
        from obstore import get

        with _told(f"{self.url}/{name}"):
            return bytes(get(self._store, self._key(name)).bytes())

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        from obstore import head
        from obstore import list as list_objects

        key = self._key(prefix.rstrip("/")) if prefix else self._prefix
        with _told(f"{self.url}/{prefix}"):
            if prefix and not prefix.endswith("/"):
                with suppress(FileNotFoundError):
                    yield self._entry(head(self._store, key))
                    return
            for chunk in list_objects(self._store, key):
                for entry in map(self._entry, chunk):
                    if not any(part.startswith(".") for part in entry.name.split("/")):
                        yield entry

    def delete(self, name: str) -> None:
        self._delete(self._key(name))

    def tidy(self) -> int:
        from obstore import list_with_delimiter

        with _told(self.url):  # what lies at the top: one request, however many shards there are
            found = list_with_delimiter(self._store, self._prefix or None)["objects"]
        left = [entry for entry in map(self._entry, found) if entry.name.startswith(PROBE) and entry.age > HOUR]
        for entry in left:
            self._delete(self._prefix + entry.name)
        return len(left)

    def _entry(self, found: ObjectMeta) -> Entry:
        name = found["path"].removeprefix(self._prefix)
        return Entry(name, found["size"], self._clock.age(found["last_modified"].timestamp()))

    def _key(self, name: str) -> str:
        return self._prefix + valid(name)

    def _delete(self, key: str) -> None:
        from obstore import delete

        with _told(f"{self.url}/{key.removeprefix(self._prefix)}"):
            with suppress(FileNotFoundError):
                delete(self._store, key)

    def _writer(self, key: str) -> str | None:
        """Return the writer that an object names, "" if it names none; None if there is no object."""
        from obstore import get

        try:
            return str(get(self._store, key, options={"head": True}).attributes.get(_WRITER, ""))
        except FileNotFoundError:
            return None

    def _prove(self) -> None:
        """See, once, that this store refuses to make what is there, and what time it has.

        Raises:
            OSError: it does not refuse.
        """
        from obstore import delete, head, put
        from obstore.exceptions import AlreadyExistsError

        if self._proved:
            return
        probe = f"{self._prefix}{PROBE}{secrets.token_hex(8)}"
        put(self._store, probe, b"first", use_multipart=False)
        try:
            self._clock.set(head(self._store, probe)["last_modified"].timestamp())
            put(self._store, probe, b"second", mode="create", use_multipart=False)
        except AlreadyExistsError:
            self._proved = True
        finally:
            delete(self._store, probe)
        if not self._proved:
            raise OSError(
                f"{self.url}: this store overwrites an object that a request with If-None-Match only wants to make, "
                "so that no run is safe there; choose one that has conditional writes, as S3, R2, MinIO, GCS and Azure"
            )


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Make an error of obstore an OSError that names the object, in one line."""
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: no such object, or bucket") from error
    except BaseError as error:
        text = str(error).split("\n\nDebug source", 1)[0].strip()
        scheme = url.split(":", 1)[0]
        denied = isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(w in text for w in _DENIED)
        if denied and scheme in _SETTINGS:
            text += f"; of the environment obstore reads {_SETTINGS[scheme]}"
        raise OSError(f"{url}: {text}") from error
