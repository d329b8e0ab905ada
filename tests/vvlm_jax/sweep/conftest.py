"""Buckets: real requests to a server on this machine."""

import importlib.util
import json
import os
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def forget_clients():
    from vvlm_jax.sweep import buckets

    buckets._bucket.cache_clear()


@pytest.fixture(scope="session")
def object_server():
    """A process that serves gs:// and s3://; `ask(next=["lost"], …)` sets its faults, `ask()`
    counts what there was.
    """
    for name in ("moto", "boto3", "google.cloud.storage"):
        parent = name.partition(".")[0]
        if not importlib.util.find_spec(parent) or not importlib.util.find_spec(name):
            pytest.skip(f"needs {name}: pip install -r tests/requirements.txt")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.vvlm_jax.sweep.object_server"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address = f"http://127.0.0.1:{server.stdout.readline().strip()}"

    def ask(**options) -> dict:
        data = json.dumps(options).encode() if options else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/control", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    forget_clients()  # of another server: tests of other folders have one of their own
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL"):
            patch.setenv(variable, address)
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(variable, "nobody")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield ask
    forget_clients()
    server.kill()
    server.communicate()


@pytest.fixture
def server(object_server):
    """The same, without faults before and after."""
    object_server(share=0)
    yield object_server
    object_server(share=0)


@pytest.fixture(params=["gs", "s3"])
def url(request, server):
    """A folder of a bucket, of its own for each test."""
    from vvlm_jax.sweep.buckets import Key

    url = f"{request.param}://bucket/{uuid.uuid4().hex[:8]}"
    Key.of(url).bucket._clock = None  # the server's may have been another
    return url
