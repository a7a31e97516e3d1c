"""Decoding within a budget, whatever the bytes: what is not certain to be quick is decoded in a process of its own.

That process gets `MOST_S` seconds of CPU and `MOST_BYTES` of memory for a photo. A decoder that crashes takes nothing
else with it either. The pixels are those of `flowers.data.images`, on either way.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flowers.bounded import BoundedProcess, Crashed, Exhausted
from flowers.data import images
from flowers.data.complexity import MOST_BYTES, MOST_S, is_quick, too_complex
from flowers.errors import BadImage

Decoded = tuple[npt.NDArray[np.uint8], tuple[int, int]]

# What a decoder holds besides pixels: tables, and the photo's own bytes again.
_SPARE_BYTES = 64 << 20


class DecoderProcess:
    """A process that decodes photos, one after the other.

    Args:
        niceness: added to that of this process.
    """

    def __init__(self, niceness: int = 0) -> None:
        self._process = BoundedProcess(MOST_S, MOST_BYTES + _SPARE_BYTES, niceness)

    def decode(self, data: bytes, size: int | None, max_pixels: int) -> Decoded:
        """As `flowers.data.images.decode_with_extent`.

        Raises:
            BadImage: also with the code too_complex, for a photo that needs more than it may.
        """
        try:
            return self._process.call(_decode, data, size, max_pixels)
        except Exhausted as error:
            raise too_complex("this photo") from error
        except Crashed as error:
            raise BadImage("corrupt", f"the decoder ended with {error}") from error

    def close(self) -> None:
        """Ends the process."""
        self._process.close()


_shared = DecoderProcess()


def decode_with_extent(data: bytes, size: int | None = None, *, max_pixels: int = images.MAX_PIXELS) -> Decoded:
    """As `flowers.data.images.decode_with_extent`, within the budget.

    Raises:
        BadImage: for all bytes that are no usable photo, also with the code too_complex.
    """
    if is_quick(images.sniff(data), data, size):
        return images.decode_with_extent(data, size, max_pixels=max_pixels)
    return _shared.decode(data, size, max_pixels)


def decode(data: bytes, size: int | None = None, *, max_pixels: int = images.MAX_PIXELS) -> npt.NDArray[np.uint8]:
    """The pixels alone: uint8 [H, W, 3]."""
    return decode_with_extent(data, size, max_pixels=max_pixels)[0]


def _decode(data: bytes, size: int | None, max_pixels: int) -> Decoded:
    return images.decode_with_extent(data, size, max_pixels=max_pixels)
