"""Small pictures without an imaging library: PNG files written by hand, and their pixels."""

from __future__ import annotations

import struct
import zlib

import numpy as np

COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
"""Channels -> PNG's colour type: gray, RGB, RGBA."""


def picture(number: int, height: int = 4, width: int = 6, channels: int = 3) -> np.ndarray:
    """Return the pixels of a picture, ``(height, width, channels)`` uint8; red, green and blue all differ."""
    cells = np.arange(height * width * channels).reshape(height, width, channels)
    return ((cells * 7 + number * 13) % 251).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Encode pixels as a PNG file (RFC 2083: signature, IHDR, IDAT, IEND; no filter on any line)."""
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(lines)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
