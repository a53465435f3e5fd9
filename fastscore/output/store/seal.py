"""The seal of a file: a JSON text in it, with the sha256 of all its bytes.

The text begins with ``{"seal": "fastscore-seal:`` and 64 hex digits: the sha256 of the whole file with these digits as
zeros. So one mechanism serves every format that has some place for a text that its readers pass over, and no byte of
a file can change unseen. A seal finds accidents; it is no signature, since whoever writes a file can seal it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from typing import Any

MARK = b"fastscore-seal:"
LARGEST = 1 << 16  # bytes of a text: a ZIP comment has no more
_BEFORE, _ZEROS = b'{"seal": "' + MARK, b"0" * 64


class DamagedError(OSError):
    """A file of a run does not hold what was written to it; the message says what is wrong."""


def note(**fields: Any) -> bytes:
    """Return the text of these fields, in JSON, with a place for the seal.

    Raises:
        ValueError: a text above LARGEST bytes.
    """
    text = json.dumps({"seal": (MARK + _ZEROS).decode(), **fields}).encode()
    if len(text) >= LARGEST:
        raise ValueError(
            f"a shard takes {len(text):,} bytes to describe, at most {LARGEST - 1:,} fit; take fewer arrays"
        )
    return text


def seal(file: BytesIO) -> bytes:
    """Return the bytes of a file that holds a note, sealed; the last one in it is meant."""
    at = _digits(file.getvalue())
    digest = _sha256(file.getvalue(), at)
    file.seek(at)
    file.write(digest)  # in place: nobody else holds the bytes any more
    return file.getvalue()


def opened(data: bytes) -> Mapping[str, Any]:
    """Return the fields of the note of a sealed file.

    Raises:
        DamagedError: no note, or other bytes than were sealed.
    """
    at = _digits(data)
    if data[at : at + 64] != _sha256(data, at):
        raise DamagedError("its bytes are not those that were sealed")
    try:
        text = data[at - len(_BEFORE) : at + LARGEST].decode(errors="replace")
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"its note is not JSON: {error}") from None


def _digits(data: bytes) -> int:
    """Return where the digits of the last note begin."""
    at = data.rfind(_BEFORE)
    if at < 0 or at + len(_BEFORE) + 64 > len(data):
        raise DamagedError("it has no seal")
    return at + len(_BEFORE)


def _sha256(data: bytes, at: int) -> bytes:
    """Return the digits of the sha256 of a file whose digits from ``at`` on count as zeros."""
    view = memoryview(data)
    digest = hashlib.sha256(view[:at])
    digest.update(_ZEROS)
    digest.update(view[at + 64 :])
    return digest.hexdigest().encode()
