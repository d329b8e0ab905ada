"""Buckets for tests of what reads them; the HTTP servers are in `tests/conftest.py`."""

import errno
from pathlib import Path

from vvlm_jax.storage.bucket import Found, Key


def upload(folder: Path, address: str) -> None:
    """Copy all files below a folder into a bucket's folder."""
    key = Key.of(address, root=True)
    files = [file for file in folder.rglob("*") if file.is_file()]
    key.bucket.each(lambda f: key.bucket.upload(f, key / f.relative_to(folder).as_posix()), files)


class FolderClient:
    """The part of `bucket.Client` that readers of data use, over a folder; may raise `fails`."""

    resolution = 0.0

    def __init__(self, folder: Path):
        self.folder, self.fails = folder, None

    def list(self, prefix, most=None, deep=True):
        if self.fails:
            raise self.fails
        above = self.folder / prefix.rpartition("/")[0]
        files = above.rglob("*") if deep else above.glob("*")
        names = [
            file.relative_to(self.folder).as_posix() + "/" * file.is_dir()
            for file in files
            if not deep or file.is_file()
        ]
        tails = sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))
        for tail in tails[:most]:
            if tail.endswith("/"):
                yield Found(prefix + tail)
            else:
                stat = (self.folder / f"{prefix}{tail}").stat()
                yield Found(prefix + tail, stat.st_size, stat.st_mtime, str(stat.st_mtime_ns))

    def fetch(self, name):
        if self.fails:
            raise self.fails
        file = self.folder / name
        if not file.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such object", name)
        return file.read_bytes()

    def download(self, name, file):
        file.write_bytes(self.fetch(name))
