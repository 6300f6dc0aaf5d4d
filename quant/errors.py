"""The one exception that means "the user can mend this"."""


class InputError(ValueError):
    """A user's mistake, told in one line.

    The message names the argument or file, the value received, what is allowed and the way out.
    The command line prints it and exits with 2; every other exception is a fault of this package.
    """
