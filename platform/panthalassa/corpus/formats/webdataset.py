"""WebDataset: a tar file in which files that follow each other and share a name make one pair.

Beside `key.jpg` (or another kind of image) is `key.txt` with the caption, or `key.json` with `text` or
`caption`, and what a document may have. A name ends at the first dot behind its last slash. The file is
read as it streams by, plain or compressed; links and other special members are never followed.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from panthalassa.corpus.documents import Problem, Record, SourceFile, not_utf8, short
from panthalassa.corpus.formats.pairs import pair_of
from panthalassa.corpus.formats.stream import unpacked
from panthalassa.corpus.formats.tables import Row
from panthalassa.corpus.images import BadImage

NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)", re.S)
IMAGE_KINDS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXT_BYTES = 1 << 20


@dataclass
class _Sample:
    key: str = ""
    images: list[bytes | BadImage] = field(default_factory=list)
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
        elif self.images or self.columns:
            yield pair_of(Row(place, self.columns), self._image())

    def _image(self) -> bytes | BadImage:
        if not self.images:
            return BadImage("image-missing", "there is no image beside the caption")
        if len(self.images) > 1:
            return BadImage("image-several", f"{len(self.images)} images of one name")
        return self.images[0]


def read_webdataset(file: SourceFile, max_bytes: int) -> Iterator[Record | Problem]:
    sample = _Sample()
    try:
        with unpacked(file) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
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
    except (tarfile.TarError, EOFError) as error:
        yield Problem(f"{file.place}, {sample.key}", f"damaged; the rest is lost: {error}")
        return
    yield from sample.records(file)


def _add(
    sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str, max_bytes: int
) -> None:
    is_image = kind in IMAGE_KINDS
    if not is_image and kind not in ("txt", "json"):
        return
    if member.size > (max_bytes if is_image else TEXT_BYTES):
        if is_image:
            what = f"{member.size} bytes, more than {max_bytes}"
            sample.images.append(BadImage("image-too-large", what))
        else:
            sample.problem = f"{kind}: {member.size} bytes, more than {TEXT_BYTES}"
        return
    content = tar.extractfile(member)
    data = content.read() if content else b""
    if len(data) < member.size:
        raise tarfile.ReadError(f"{member.name} is cut off")
    if is_image:
        sample.images.append(data or BadImage("image-missing", "the image is empty"))
    else:
        sample.add(kind, data)
