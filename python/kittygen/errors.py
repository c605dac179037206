"""What kittygen raises."""


class KittyError(RuntimeError):
    """Something was refused; nothing has changed. The message says what, with which values, and how to mend it.

    `status` is libkitty's name of the failure ("KT_FULL", ...), or None where the plug-in itself refused.
    """

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status
