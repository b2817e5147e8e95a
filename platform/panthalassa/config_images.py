"""The part of a configuration that says which images a corpus takes."""

from typing import Annotated

from pydantic import Field

from panthalassa.config_values import Positive, Section


class Images(Section):
    """Sources have pairs of an image and a text when the model has `vision`, which tells the size."""

    max_pixels: int = Field(default=2**26, ge=1, le=2**27)
    """Pixels that an image may have; a larger one is left out, unread. Preparing one takes up to 8 bytes
    of memory a pixel."""
    max_megabytes: Positive = 32
    """MiB that the file of an image may have."""
    near_duplicates: Annotated[int, Field(ge=0, le=32)] | None = 8
    """Of the 256 bits of two images' perceptual hashes, how many may differ for them to count as the
    same image, which a language has once and one side of the split has; or null, where likenesses are
    the point, as in icons: then only equal pixels are the same image."""
