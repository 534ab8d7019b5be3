"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A user's mistake or a missing thing they can supply.

    The message says what is wrong, where, and what to do. The command line prints it and exits with 2; it shows no traceback.
    """


class RayLost(UserError):
    """Ray itself is gone: nothing can be asked of it any more, not even to shut down."""
