"""Generate small images of two classes for a small network, as lists of pixels and as lines of text."""

from __future__ import annotations

from pathlib import Path

SIDE = 8


def image(index: int) -> tuple[list[int], int]:
    """Return the pixels of image `index`, row by row, and its label: 0 if the left half is bright, 1 if the right."""
    label = index % 2
    pixels = [
        (index * 7 + at * 13) % 60 + (190 if (at % SIDE >= SIDE // 2) == bool(label) else 0)
        for at in range(SIDE * SIDE)
    ]
    return pixels, label


def write_csv(path: Path, sizes: list[int]) -> None:
    """Write one text file per size to the folder `path`. Each line is an image: the label, then the pixels."""
    path.mkdir()
    first = 0
    for part, size in enumerate(sizes):
        lines = []
        for index in range(first, first + size):
            pixels, label = image(index)
            lines.append(",".join(map(str, [label, *pixels])))
        (path / f"part-{part:05d}").write_text("".join(f"{line}\n" for line in lines))
        first += size
