"""Folders of buckets; `tests/conftest.py` has the server."""

import uuid

import pytest


@pytest.fixture(params=["gs", "s3"])
def url(request, server):
    """Return a folder of a bucket, of its own for each test."""
    from vvlm_jax.storage.bucket import Key

    url = f"{request.param}://bucket/{uuid.uuid4().hex[:8]}"
    Key.of(url).bucket._clock = None  # the server's may have been another
    return url
