"""Compressed request bodies, unpacked up to a bound: a few kilobytes may stand for gigabytes."""

from __future__ import annotations

import zlib

IDENTITY = (b"", b"identity")
GZIP = (b"gzip", b"x-gzip")
DEFLATE = (b"deflate",)
KNOWN = ("gzip", "deflate")
GZIP_BITS = 16 + zlib.MAX_WBITS
MOST_MEMBERS = 64  # each one copies what is behind it: a body of empty ones would hold the proxy up for minutes


class UnknownEncodingError(Exception):
    """A body is packed in a way that is not known here."""


class DamagedBodyError(Exception):
    """A body cannot be unpacked: it is something else, or cut off."""


class GrowsTooLargeError(Exception):
    """A body is larger than the bound once it is unpacked."""


def unpack(body: bytes, encoding: bytes, limit_bytes: int) -> bytes:
    """Return a body without its content encoding.

    Raises UnknownEncodingError, DamagedBodyError, or GrowsTooLargeError as soon as it passes limit_bytes.
    """
    encoding = encoding.strip().lower()
    if encoding in IDENTITY:
        return body
    if encoding not in (*GZIP, *DEFLATE):
        raise UnknownEncodingError
    try:
        if encoding in GZIP:
            return _inflate(body, GZIP_BITS, limit_bytes)
        try:
            return _inflate(body, zlib.MAX_WBITS, limit_bytes)
        except zlib.error:  # some clients leave zlib's frame out
            return _inflate(body, -zlib.MAX_WBITS, limit_bytes)
    except zlib.error as error:
        raise DamagedBodyError from error


def _inflate(body: bytes, window_bits: int, limit_bytes: int) -> bytes:
    """Unpack every member of a body: gzip files may be put one behind the other, MOST_MEMBERS of them."""
    unpacked = bytearray()
    members = 0
    while body:
        members += 1
        if members > MOST_MEMBERS:
            raise DamagedBodyError
        member = zlib.decompressobj(window_bits)
        unpacked += member.decompress(body, limit_bytes + 1 - len(unpacked))
        if len(unpacked) > limit_bytes:
            raise GrowsTooLargeError
        if not member.eof:
            raise DamagedBodyError
        body = member.unused_data
    return bytes(unpacked)
