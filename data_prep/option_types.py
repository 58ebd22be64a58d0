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


def height_width(text: str) -> tuple[int, int]:
    """Two whole numbers of 1 or more, as 352x640: height, then width."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, e.g. 352x640, found {text}")
    return int(parts[0]), int(parts[1])


def share(text: str) -> float:
    """A number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to below 1, found {text}")
    return value


def days(text: str) -> tuple[float, ...]:
    """Finite numbers of 0 or more with commas between them."""
    found = tuple(float(part) for part in text.split(",") if part.strip())
    if not all(0 <= value < math.inf for value in found):
        raise argparse.ArgumentTypeError(f"expected days of 0 or more with commas between, found {text}")
    return found


def days_by_name(text: str) -> dict[str, float]:
    """NAME=DAYS,... → name → days; a number alone stands under the name ""."""
    found = {}
    for part in text.split(","):
        name, _, value = part.rpartition("=")
        (found[name.strip()],) = days(value)
    return found
