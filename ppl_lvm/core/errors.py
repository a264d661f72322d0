"""TODO."""


class CannotSayError(ValueError):
    """The question has no answer for this pair; the message says why, `remedy` what to do."""

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why)
        self.remedy = remedy
