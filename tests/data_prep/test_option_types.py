"""Values of command-line options: what is taken and what is refused."""

import argparse

import pytest

from data_prep import option_types


def test_names():
    assert option_types.names("00, 08,,") == ["00", "08"]
    assert option_types.names("") == []


def test_a_name_that_comes_twice():
    """Its frames would be stored twice, and be true loops of each other."""
    with pytest.raises(argparse.ArgumentTypeError, match="expected each name once, found 00,08,00"):
        option_types.names("00,08,00")
