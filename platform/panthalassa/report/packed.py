"""CSV files that lie in a page: rows in, text for a script element out."""

import base64
import csv
import gzip
import io
from collections.abc import Iterable, Sequence

Row = Sequence[object]


def table(header: Row, rows: Iterable[Row]) -> str:
    """The text of a CSV file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def packed(text: str) -> str:
    """Compressed (gzip) and as base64, for the page to unpack."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
