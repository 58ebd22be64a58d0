"""What the values of command-line options may be: for argparse's `type`."""

import argparse
import math


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text}")
    return value


def zero_or_more(text: str) -> int:
    """A whole number of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, found {text}")
    return value


def positive_metres(text: str) -> float:
    """A finite length above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected metres above 0, found {text}")
    return value


def names(text: str) -> list[str]:
    """Names with commas between them, each once; none for an empty text."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected each name once, found {text}")
    return found
