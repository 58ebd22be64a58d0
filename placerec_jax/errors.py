"""What a user can mend.

Entry points print such an error as one line; any other is a defect and keeps its traceback.
"""

from collections.abc import Iterable, Mapping
from typing import Any


class UserError(Exception):
    """A message that names the file or key, what was expected, what was found and what to do."""


class ConfigError(UserError, ValueError):
    """A setting that cannot be, alone or with another."""


def one_of(settings: Mapping[str, Any], where: str, name: str, choices: Iterable[Any]) -> Any:
    """`settings[name]`; ConfigError, which calls it `where.name`, when it is none of `choices`."""
    if settings[name] not in choices:
        raise ConfigError(f"{where}.{name} is {settings[name]!r}; expected one of {sorted(choices)}")
    return settings[name]
