"""`bucket.Client` for s3://, by boto3: Amazon S3, and servers with its conditional writes.

boto3 finds credentials, region and endpoint by its own environment variables and files.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

import contextlib
import errno
import math
from collections.abc import Iterator
from pathlib import Path

import boto3
import botocore.config
from boto3.exceptions import Boto3Error
from botocore import exceptions

from vvlm_jax.config import ConfigError
from vvlm_jax.storage.bucket import TIMEOUT, Found, Item, Retryable, Taken

_CONFLICT = 409  # two conditional writes at the same time; S3 asks for a retry
_RETRYABLE = (408, _CONFLICT, 429, 500, 502, 503, 504)
_NETWORK = (exceptions.ConnectionError, exceptions.HTTPClientError)


class S3:
    """A bucket of Amazon S3 or of a server that speaks its protocol."""

    resolution = 1.0

    def __init__(self, bucket: str):
        self.bucket, (connect, read) = bucket, TIMEOUT
        options = dict(connect_timeout=connect, read_timeout=read, max_pool_connections=32)
        try:
            self._one, self._many = (
                boto3.client("s3", config=botocore.config.Config(retries=retries, **options))
                for retries in (
                    {"total_max_attempts": 1},
                    {"total_max_attempts": 5, "mode": "standard"},
                )
            )
        except (exceptions.BotoCoreError, ValueError) as e:
            raise ConfigError(f"s3://{bucket}: {e}") from e

    def put(self, name: str, data: bytes, nonce: str, new: bool) -> str:
        """Implement `Client.put`."""
        return self._put(name, data, nonce, {"IfNoneMatch": "*"} if new else {})

    def _put(self, name: str, data: bytes, nonce: str, condition: dict) -> str:
        with self._translated(name):
            return self._one.put_object(
                Bucket=self.bucket, Key=name, Body=data, Metadata={"nonce": nonce}, **condition
            )["ETag"]

    def get(self, name: str, tail: int = 0) -> Item:
        """Implement `Client.get`."""
        part = {"Range": f"bytes=-{tail}"} if tail else {}
        try:
            with self._translated(name):
                found = self._one.get_object(Bucket=self.bucket, Key=name, **part)
                with contextlib.closing(found["Body"]) as body:
                    data = body.read()
        except _Empty:
            return Item("", 0.0)
        return Item(
            found["ETag"], _seconds(found["LastModified"]), found["Metadata"].get("nonce", ""), data
        )

    def touch(self, name: str, item: Item) -> str:
        """Implement `Client.touch`: write the same bytes again."""
        return self._put(name, item.data, item.nonce, {"IfMatch": item.tag})

    def list(self, prefix: str, most: int | None = None, deep: bool = True) -> Iterator[Found]:
        """Implement `Client.list`."""
        with self._translated(prefix):
            pages = self._one.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket,
                Prefix=prefix,
                PaginationConfig={"MaxItems": most},
                **({} if deep else {"Delimiter": "/"}),
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    seconds = _seconds(found["LastModified"])
                    yield Found(found["Key"], found["Size"], seconds, found["ETag"])
                yield from (Found(folder["Prefix"]) for folder in page.get("CommonPrefixes", ()))

    def delete(self, name: str) -> None:
        """Implement `Client.delete`."""
        with self._translated(name):
            self._one.delete_object(Bucket=self.bucket, Key=name)

    def fetch(self, name: str) -> bytes:
        """Implement `Client.fetch`."""
        with self._translated(name):
            found = self._many.get_object(Bucket=self.bucket, Key=name)
            with contextlib.closing(found["Body"]) as body:
                return body.read()

    def upload(self, file: Path, name: str) -> None:
        """Implement `Client.upload`."""
        with self._translated(name):
            self._many.upload_file(str(file), self.bucket, name)

    def download(self, name: str, file: Path) -> None:
        """Implement `Client.download`."""
        with self._translated(name):
            self._many.download_file(self.bucket, name, str(file))

    @contextlib.contextmanager
    def _translated(self, name: str):
        """Raise boto3's errors as those of `Client`."""
        url = f"s3://{self.bucket}/{name}"
        try:
            yield
        except exceptions.ClientError as e:
            raise self._error(e, url) from e
        except _NETWORK as e:
            raise Retryable(str(e)) from e
        except Boto3Error as e:  # of an upload, from one of the above, whose text it carries
            cause = e.__context__
            if isinstance(cause, exceptions.ClientError):
                raise self._error(cause, url) from e
            raise Retryable(str(e)) from e
        except exceptions.NoCredentialsError as e:
            line = "no credentials; set AWS_PROFILE, or see boto3's guide to credentials"
            raise PermissionError(errno.EACCES, line, url) from e
        except exceptions.BotoCoreError as e:
            raise OSError(errno.EIO, str(e), url) from e

    def _error(self, error: exceptions.ClientError, url: str) -> Exception:
        told = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code, text = told.get("Code", ""), told.get("Message", "")
        if code == "NoSuchBucket":
            return OSError(errno.ENODEV, "no such bucket", f"s3://{self.bucket}")
        if status == 404:
            return FileNotFoundError(errno.ENOENT, "no such object", url)
        if status == 412:
            return Taken(url)
        if status == 416:
            return _Empty()
        if status in (401, 403):
            return PermissionError(errno.EACCES, f"no permission ({code}: {text})", url)
        if status in _RETRYABLE:
            return Retryable(f"{status} {code}")
        return OSError(errno.EIO, f"{status} {code}: {text}", url)


class _Empty(Exception):
    """The last bytes of an empty object were requested."""


def _seconds(when) -> float:
    """Return whole seconds: listings have fractions that an object's own headers lack."""
    return float(math.floor(when.timestamp()))
