"""`bucket.Client` for gs://, by google-cloud-storage.

Credentials are the machine's or the user's own (Application Default Credentials).
https://cloud.google.com/storage/docs/request-preconditions
"""

import contextlib
import errno
import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import google.auth.exceptions
import requests
from google.api_core import exceptions
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from vvlm_jax.storage.bucket import TIMEOUT, Found, Item, Retryable, Taken

_RETRYABLE = (exceptions.TooManyRequests, exceptions.ServerError)
_NETWORK = (requests.RequestException, google.auth.exceptions.TransportError, DataCorruption)
_FILE_TIMEOUT = 60.0


class Gcs:
    """A bucket of Google Cloud Storage."""

    resolution = 0.001

    def __init__(self, bucket: str):
        self.name = bucket
        with self._translated(""):
            # A project is needed to make buckets alone.
            self._client = storage.Client(project="none")
        self._bucket = self._client.bucket(bucket)

    def put(self, name: str, data: bytes, nonce: str, new: bool) -> str:
        """Implement `Client.put`."""
        blob = self._bucket.blob(name)
        blob.metadata = {"nonce": nonce}
        condition = {"if_generation_match": 0} if new else {}
        with self._translated(name):
            blob.upload_from_string(data, timeout=TIMEOUT, retry=None, **condition)
        return str(blob.generation)

    def get(self, name: str, tail: int = 0) -> Item:
        """Implement `Client.get`."""
        with self._translated(name):
            blob = self._bucket.get_blob(name, timeout=TIMEOUT, retry=None)
            if blob is None:
                raise FileNotFoundError(errno.ENOENT, "no such object", f"gs://{self.name}/{name}")
            part = {"start": max(0, blob.size - tail)} if tail and blob.size else {}
            data = blob.download_as_bytes(timeout=TIMEOUT, retry=None, **part)
        nonce = (blob.metadata or {}).get("nonce", "")
        return Item(str(blob.generation), blob.updated.timestamp(), nonce, data)

    def touch(self, name: str, item: Item) -> str:
        """Implement `Client.touch`: a change of metadata, which leaves the generation as it is."""
        blob = self._bucket.blob(name)
        blob.metadata = {"nonce": item.nonce, "touched": uuid.uuid4().hex}
        with self._translated(name):
            blob.patch(if_generation_match=int(item.tag), timeout=TIMEOUT, retry=None)
        return item.tag

    def list(self, prefix: str, most: int | None = None, deep: bool = True) -> Iterator[Found]:
        """Implement `Client.list`."""
        with self._translated(prefix):
            found = self._client.list_blobs(
                self._bucket,
                prefix=prefix,
                max_results=most,
                delimiter=None if deep else "/",
                fields="items(name,size,updated,generation),prefixes,nextPageToken",
                timeout=TIMEOUT,
                retry=None,
            )
            for blob in found:
                yield Found(blob.name, blob.size, blob.updated.timestamp(), str(blob.generation))
            yield from map(Found, sorted(found.prefixes))

    def delete(self, name: str) -> None:
        """Implement `Client.delete`."""
        with contextlib.suppress(FileNotFoundError), self._translated(name):
            self._bucket.blob(name).delete(timeout=TIMEOUT, retry=None)

    def fetch(self, name: str) -> bytes:
        """Implement `Client.fetch`."""
        with self._translated(name):
            return self._bucket.blob(name).download_as_bytes(timeout=_FILE_TIMEOUT)

    def upload(self, file: Path, name: str) -> None:
        """Implement `Client.upload`."""
        with self._translated(name):
            self._bucket.blob(name).upload_from_filename(
                str(file), timeout=_FILE_TIMEOUT, retry=DEFAULT_RETRY
            )

    def download(self, name: str, file: Path) -> None:
        """Implement `Client.download`."""
        with self._translated(name):
            self._bucket.blob(name).download_to_filename(str(file), timeout=_FILE_TIMEOUT)

    @contextlib.contextmanager
    def _translated(self, name: str):
        """Raise the library's errors as those of `Client`."""
        url = f"gs://{self.name}/{name}"
        try:
            yield
        except exceptions.PreconditionFailed as e:
            raise Taken(url) from e
        except exceptions.NotFound as e:
            if "bucket" in e.message and "does not exist" in e.message:
                raise OSError(errno.ENODEV, "no such bucket", f"gs://{self.name}") from e
            raise FileNotFoundError(errno.ENOENT, "no such object", url) from e
        except (exceptions.Forbidden, exceptions.Unauthorized) as e:
            raise PermissionError(errno.EACCES, f"no permission ({_line(e.message)})", url) from e
        except _RETRYABLE as e:
            raise Retryable(f"{e.code} {_line(e.message)}") from e
        except google.auth.exceptions.DefaultCredentialsError as e:
            line = "no credentials; gcloud auth application-default login"
            raise PermissionError(errno.EACCES, line, url) from e
        except _NETWORK as e:
            raise Retryable(_line(str(e))) from e
        except google.auth.exceptions.GoogleAuthError as e:
            raise PermissionError(errno.EACCES, _line(str(e)), url) from e
        except exceptions.GoogleAPICallError as e:
            if e.code == 408:
                raise Retryable(_line(e.message)) from e
            raise OSError(errno.EIO, f"{e.code} {_line(e.message)}", url) from e


def _line(text: str) -> str:
    """Return the server's words from a message that may hold the whole request and answer."""
    if said := re.search(r'"message": "([^"]+)"', text):
        return said[1]
    lines = text.strip().splitlines() or ["no reason given"]
    return lines[0].rpartition("prettyPrint=false: ")[2][:300]
