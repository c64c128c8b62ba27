"""The one exception that stands for a configuration which cannot be run."""


class RefusedError(Exception):
    """The user's configuration cannot be run: the message names the key and what it accepts. Exit status 2."""
