"""The exceptions, as a tree.

QloraDoctorError
├── UsageError           the user asked for something that cannot be done; the message says what to do (exit code 2)
│   └── WireError        data (a facts file, a plan, a journal) is not of the shape it should have; names the place in it
│       └── NewerSchema  the data was written by a newer version
├── ProbeError           an interpreter could not be asked (absent, hangs, prints no facts)
├── RegistryError        the checks themselves are wrong: none found, a code used twice, a check without a docstring
├── RepairError          a change could not be made, or could not be taken back; says what was done and how to go on
└── NotKnown             a check needs something that nobody could read; the runner turns it into the outcome `unknown`
    ├── UnknownFact      ... a fact
    └── UnknownArgument  ... an argument of the call that is judged
"""

from __future__ import annotations


class QloraDoctorError(Exception):
    """Root of everything that this package raises on purpose."""


class UsageError(QloraDoctorError):
    """A mistake in what was asked; the message names the argument, file or line and the way out."""


class WireError(UsageError):
    """Data that does not have the expected shape. `where` is a path such as `$.gpus[0].name`."""

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


class NewerSchema(WireError):
    """Data written by a newer version of the doctor than this one."""


class ProbeError(QloraDoctorError):
    """An interpreter could not be asked for its facts."""


class RegistryError(QloraDoctorError):
    """The set of installed checks cannot be used."""


class RepairError(QloraDoctorError):
    """A change could not be made or taken back."""


class NotKnown(QloraDoctorError):
    """A check asked for something that is not known. Not an error of the check."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class UnknownFact(NotKnown):
    """A fact that could not be read, or that was not asked for."""


class UnknownArgument(NotKnown):
    """An argument whose value cannot be known without running the script."""
