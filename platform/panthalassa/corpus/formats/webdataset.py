"""WebDataset: a tar file in which files that follow each other and share a name make one pair.

Beside `key.jpg` (or another kind of image) is `key.txt` with the caption, or `key.json` with `text` or
`caption`, and what a document may have. A name ends at the first dot behind its last slash. The file is
read as it streams by, plain or compressed; links and other special members are never followed, and
nothing in it decides how much memory that takes.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from panthalassa.corpus.documents import Problem, Record, SourceFile, not_utf8, short
from panthalassa.corpus.formats.pairs import pair_of
from panthalassa.corpus.formats.stream import unpacked
from panthalassa.corpus.formats.tables import Row
from panthalassa.corpus.images import BadImage

NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.S)
IMAGE_KINDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXT_BYTES = 1 << 20
HEADER_BYTES = 1 << 16
"""The longest name or set of attributes of a member: `tarfile` holds them whole, and takes time that
grows with their square."""
BROKEN = (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError)  # type: ignore[attr-defined]
EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Header(tarfile.TarInfo):
    """A header of a bounded size. Raises ReadError for another, and for one that is damaged, at which
    `tarfile` would take the file to end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except BROKEN as error:
            raise tarfile.ReadError(str(error)) from error
        if header.type in EXTENDED and header.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes, more than {HEADER_BYTES}")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError(NO_SPARSE)
        return header

    def _proc_gnusparse_10(self, *_: object) -> None:
        raise tarfile.ReadError(NO_SPARSE)


NO_SPARSE = "a sparse file, whose map has no bounds"


DAMAGED = (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError)
APART = "there is no image beside the caption: the files of a pair follow each other directly"
SEVERAL = "several images of one name, which ends at the first dot behind its last slash"


@dataclass
class _Sample:
    key: str = ""
    image: bytes | BadImage | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    def add(self, kind: str, data: bytes) -> None:
        """Take one of the files with a text. Problems are kept until the pair is whole."""
        try:
            text = data.decode("utf-8-sig")
            if kind == "txt":
                self.columns["text"] = text
                return
            columns = json.loads(text)
        except UnicodeDecodeError as error:
            self.problem = f"{kind}: {not_utf8(error)}"
        except (ValueError, RecursionError) as error:
            self.problem = f"{kind}: not JSON: {error}"
        else:
            if isinstance(columns, dict):
                self.columns = {**columns, **self.columns}
            else:
                self.problem = f"{kind}: expected an object, found {short(columns)}"

    def records(self, file: SourceFile) -> Iterator[Record | Problem]:
        place = f"{file.place}, {self.key}"
        if self.problem:
            yield Problem(place, self.problem)
        elif self.image is not None or self.columns:
            missing = BadImage("image-missing", APART)
            yield pair_of(Row(place, self.columns), missing if self.image is None else self.image)


def read_webdataset(file: SourceFile, max_bytes: int) -> Iterator[Record | Problem]:
    sample = _Sample()
    try:
        with (
            unpacked(file) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar,
        ):
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all
                found = NAME.fullmatch(member.name)
                if not found or not member.isreg():
                    continue
                key, kind = found[1], found[2].lower()
                if key != sample.key:
                    yield from sample.records(file)
                    sample = _Sample(key)
                _add(sample, tar, member, kind.rpartition(".")[2], max_bytes)
    except DAMAGED as error:
        yield Problem(f"{file.place}, {sample.key}", f"damaged; the rest is lost: {error}")
        return
    yield from sample.records(file)


def _add(
    sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str, max_bytes: int
) -> None:
    is_image = kind in IMAGE_KINDS
    if not is_image and kind not in ("txt", "json"):
        return
    if is_image and sample.image is not None:
        sample.image = BadImage("image-several", SEVERAL)
        return
    if member.size > (max_bytes if is_image else TEXT_BYTES):
        if is_image:
            what = f"{member.size} bytes, more than {max_bytes}"
            sample.image = BadImage("image-too-large", what)
        else:
            sample.problem = f"{kind}: {member.size} bytes, more than {TEXT_BYTES}"
        return
    content = tar.extractfile(member)
    data = content.read() if content else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} is cut off")
    if is_image:
        sample.image = data or BadImage("image-missing", "the image is empty")
    else:
        sample.add(kind, data)
