"""What the command line says in one line."""


class InputError(ValueError):
    """What the user asked for, or a file the user wrote, is wrong; the message is one line."""
