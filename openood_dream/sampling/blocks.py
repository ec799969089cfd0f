"""Work in blocks, so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK = 1 << 22  # elements of the largest temporary; float64 at that size is 32 MiB


def blocks(rows: int, width: int) -> Iterator[slice]:
    """Slices that cut rows into blocks of at most BLOCK elements.

    Args:
        rows: how many rows there are.
        width: elements that one row takes.

    Yields:
        Slices of rows, in order.
    """
    step = max(1, BLOCK // width)
    return (slice(start, start + step) for start in range(0, rows, step))
