"""The error tree. Every message says what holds, why it matters and what to do.

TruescaleError
|- UsageError      exit 2  the command line or the arguments cannot be carried out as given
|  `- ModelError           unknown model, or a bundle whose weights do not match its card
|- InputError      exit 3  the input cannot be read, or must not be super-resolved
|  `- GeometryError        its grid cannot be used
|- BudgetError     exit 4  not even one tile fits the memory budget
`- StoppedError    exit 5  stopped half-way; the same call with --resume goes on
   |- StoreError           the work folder or the disk under it
   |- TileError            one or more tiles failed
   `- ExportError          the product could not be written
"""

from __future__ import annotations


class TruescaleError(Exception):
    """Base of all errors that a user can act on. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what, why, fix)

    def __str__(self) -> str:
        sentences = (part.strip().rstrip(".") for part in (self.what, self.why, self.fix))
        ended = ((n, s if s.endswith(("?", "!")) else f"{s}.") for n, s in enumerate(sentences) if s)
        return " ".join(s[:1].upper() + s[1:] if n else s for n, s in ended)

    def to_json(self) -> dict[str, object]:
        """What a program reads of a failure."""
        return {"error": {"what": self.what, "why": self.why, "fix": self.fix}, "exit_code": self.exit_code}


class UsageError(TruescaleError, ValueError):
    """The arguments contradict each other or the file system (unknown name, output exists)."""

    exit_code = 2


class ModelError(UsageError):
    """A model is unknown, does not fit the input, or its weights differ from its card."""


class InputError(TruescaleError, ValueError):
    """The input cannot be read as what it claims to be, or is of a kind that is refused."""

    exit_code = 3


class GeometryError(InputError):
    """The grid of the input, or the grid asked for, cannot be used."""


class BudgetError(TruescaleError, MemoryError):
    """The work does not fit into the memory or disk budget."""

    exit_code = 4


class StoppedError(TruescaleError, RuntimeError):
    """The run stopped half-way and can be resumed."""

    exit_code = 5


class StoreError(StoppedError):
    """The work folder could not be read or written."""


class TileError(StoppedError):
    """One or more tiles failed."""


class ExportError(StoppedError):
    """The product could not be written."""
