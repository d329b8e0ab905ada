"""Buckets for tests of what reads them; the servers are in `tests/conftest.py`."""

from pathlib import Path

import fsspec
from etils.epath import backend

from vvlm_jax.storage import files
from vvlm_jax.storage.bucket import Key


def forget_filesystems() -> None:
    """Clear cached filesystems: the next one reads credentials and addresses again."""
    files._filesystem.cache_clear()
    backend.fsspec_backend._get_filesystem.cache_clear()
    for scheme in ("gs", "s3"):
        try:
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
        except ImportError:  # not installed
            continue


def upload(folder: Path, address: str) -> None:
    """Upload all files below a folder."""
    key = Key.of(address)
    files = [file for file in folder.rglob("*") if file.is_file()]
    key.bucket.each(lambda f: key.bucket.upload(f, key / f.relative_to(folder).as_posix()), files)
