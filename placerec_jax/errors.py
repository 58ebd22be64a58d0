"""What a user can mend.

Entry points print such an error as one line; any other is a defect and keeps its traceback.
"""


class UserError(Exception):
    """A message that names the file or key, what was expected, what was found and what to do."""


class ConfigError(UserError, ValueError):
    """A setting that cannot be, alone or with another."""
