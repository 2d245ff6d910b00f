"""Why a command ends: one sentence, and an exit code that the two programs use for the same."""

BAD_FLAG = 64
BAD_MODEL = 66
UNAVAILABLE = 69
INTERNAL = 70


class Failure(Exception):
    """A command cannot do what it was asked for. Prints as one sentence that says what to do."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Stopped(BaseException):
    """A signal to stop arrived before anything was served."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
