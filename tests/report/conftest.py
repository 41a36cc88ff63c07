"""The command line's fixtures, for reports that are made through it."""

from tests.cli.conftest import doctor, facts_file, find, plugin  # noqa: F401
