"""Errors that users may want to catch."""


class CannotSayError(ValueError):
    """A diagnostic that cannot be computed for this fit.

    Args:
        why: the reason.
        remedy: how to make it computable; empty if there is no remedy.
    """

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy
