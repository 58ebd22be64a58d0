"""The error that a person who gave us a file or an option can act on."""


class InputError(ValueError):
    """Bad input: the message names the file or key, what was expected, what was found and what to do.

    The command line prints it without a traceback; any other exception is a fault of this program and keeps
    its traceback.
    """
