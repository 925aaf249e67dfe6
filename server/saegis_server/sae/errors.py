"""The errors of SAEs: a file that cannot be read, or an SAE that does not fit its site."""

from pathlib import Path


class SAEFileError(ValueError):
    """A file or hub id from which no SAE can be read: `path` names it, `reason` says what is wrong."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class SAEMismatch(ValueError):
    """An SAE that does not reconstruct the activations of its site.

    fvu, l0: measured there. stated_fvu, stated_l0: as its file states them, if it does.
    """

    def __init__(
        self, message: str, fvu: float, l0: float, stated_fvu: float | None, stated_l0: float | None
    ) -> None:
        super().__init__(message)
        self.fvu = fvu
        self.l0 = l0
        self.stated_fvu = stated_fvu
        self.stated_l0 = stated_l0
