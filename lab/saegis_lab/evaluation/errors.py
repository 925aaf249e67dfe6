"""What goes wrong with a file that an evaluation reads."""

from pathlib import Path


class EvaluationFileError(ValueError):
    """A file that cannot be used: `path` names it, `reason` says what is wrong, in `line` if there is one."""

    def __init__(self, path: Path | str, reason: str, line: int | None = None) -> None:
        place = f"{path}: " if line is None else f"{path}: line {line}: "
        super().__init__(place + reason)
        self.path = path
        self.reason = reason
        self.line = line
