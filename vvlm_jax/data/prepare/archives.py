"""Extract archives of media to where rows refer to; after an interruption, continue."""

import errno
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from vvlm_jax import atomic
from vvlm_jax.data.prepare.mixture import MixtureConfig
from vvlm_jax.data.prepare.sources import files_of
from vvlm_jax.storage.files import glob, stamp

_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, OSError)


def archives_of(mixture: MixtureConfig, root: Path) -> list[tuple[Path, Path]]:
    """Return (archive, folder to extract it into) for a mixture's archives that are not extracted
    yet.
    """
    found = {}
    for _, source, file in files_of(mixture, root):
        if source.archives and file.is_relative_to(root):
            folder = file.parent.relative_to(root).as_posix()
            into = root / source.media[0].replace("{folder}", folder)
            for archive in glob(root, source.archives.replace("{folder}", folder)):
                found[archive, into] = None
    return [one for one in found if not _is_extracted(*one)]


def extract(archive: Path, into: Path) -> None:
    """Extract a `.tar`, `.tar.gz` or `.zip`, skipping files that exist in full size.

    Raises ValueError naming the archive when it is damaged, truncated, or has paths outside the
    folder.
    """
    members = _zipped if archive.suffix == ".zip" else _tarred
    into.mkdir(parents=True, exist_ok=True)
    try:
        for name, size, read in members(archive):
            path = (into / name).resolve()
            if not path.is_relative_to(into.resolve()):
                raise ValueError(
                    f"{archive}: {name!r} is a path outside {into}; the archive is not used"
                )
            if not path.exists() or path.stat().st_size != size:
                _write(path, read())
    except _DAMAGED as e:
        if getattr(e, "errno", None) in _OWN_DISK:
            raise
        raise ValueError(f"{archive}: damaged or truncated ({e}); download it again") from e
    _marker(archive, into).write_text(stamp(archive))


def extract_all(archives: list[tuple[Path, Path]], progress: Callable[[int, int], None]) -> None:
    """Extract all archives in sequence, since the disk limits the speed."""
    for done, (archive, into) in enumerate(archives):
        progress(done, len(archives))
        extract(archive, into)
    progress(len(archives), len(archives))


def _marker(archive: Path, into: Path) -> Path:
    return into / f".{archive.name}.extracted"


def _is_extracted(archive: Path, into: Path) -> bool:
    marker = _marker(archive, into)
    return marker.exists() and marker.read_text() == stamp(archive)


def _write(path: Path, source: BinaryIO) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with source, atomic.replacing(path) as partial, partial.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)


def _tarred(archive: Path) -> Iterator[tuple[str, int, Callable[[], BinaryIO]]]:
    with tarfile.open(archive, "r|*") as tar:  # a stream: gzip cannot seek back cheaply
        for member in tar:
            if member.isfile():
                yield member.name, member.size, lambda member=member: tar.extractfile(member)


def _zipped(archive: Path) -> Iterator[tuple[str, int, Callable[[], BinaryIO]]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if not member.is_dir():
                yield member.filename, member.file_size, lambda member=member: file.open(member)
