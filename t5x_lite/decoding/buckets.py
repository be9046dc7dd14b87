"""Sizes are rounded up to a few, so that few programs compile."""

from collections.abc import Iterable


def power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(size - 1, 0).bit_length()


def range_of_buckets(sizes: Iterable[int]) -> list[int]:
    """Every power of two up to that of the largest size."""
    largest = power_of_two(max(sizes))
    return [1 << n for n in range(largest.bit_length())]
