"""The fast reading of versions and requirement lines agrees with `packaging`, which it replaces for the plain forms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.markers import Marker
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from qlora_checks.requirements import Need, environment, lower_bound, needs, satisfies
from qlora_doctor.facts import Host
from qlora_doctor.testing import facts

NUMBERS = st.lists(st.integers(0, 12), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
LOCAL = st.sampled_from(["", "", "+cpu", "+cu121"])
PRE = st.sampled_from(["", "", "", "rc1", ".dev3", ".post1"])
CLAUSE = st.one_of(
    st.tuples(st.sampled_from([">=", "<=", "==", "!=", "<", ">"]), NUMBERS).map("".join),
    st.tuples(st.sampled_from(["==", "!="]), NUMBERS, st.just(".*")).map("".join),
    NUMBERS.filter(lambda n: "." in n).map(lambda n: f"~={n}"),
)


@given(st.tuples(NUMBERS, PRE, LOCAL).map("".join), st.lists(CLAUSE, min_size=1, max_size=3).map(",".join))
def test_a_version_in_a_specifier_as_packaging_sees_it(version: str, specifier: str) -> None:
    assert satisfies(version, specifier) is SpecifierSet(specifier).contains(Version(version), prereleases=True)


@pytest.mark.parametrize(("version", "specifier"), [("not a version", ">=1"), ("1.0", ">= one"), ("2.0", "garbage")])
def test_what_is_no_version_or_specifier_is_neither_in_nor_out(version: str, specifier: str) -> None:
    assert satisfies(version, specifier) is None


@pytest.mark.parametrize(
    "marker",
    [
        'python_version < "3.11"',
        "python_version >= '3.9' and sys_platform == 'linux'",
        'platform_machine == "x86_64" or platform_machine == "arm64"',
        'sys_platform == "win32" or python_version == "3.12" and os_name == "posix"',
        '(sys_platform == "win32" or os_name == "posix") and python_version != "3.9"',
        'sys_platform in "linux darwin"',
        'python_full_version < "3.11.8"',
        'platform_system == "Windows"',
        'extra == "dev" or python_version > "3"',
        'implementation_name == "cpython"',
        'platform_release >= "6"',
    ],
)
@pytest.mark.parametrize("system", ["Linux", "Windows", "Darwin"])
def test_a_marker_holds_where_packaging_says_so(marker: str, system: str) -> None:
    here = environment(facts(python="3.11.7", host=Host(system=system, release="6.8")))
    expected = Marker(marker).evaluate({**dict(here), "extra": ""})
    assert bool(list(needs((f"numpy; {marker}",), here))) is expected


@pytest.mark.parametrize(
    ("line", "need"),
    [
        ("Foo_Bar.baz", Need("foo-bar-baz", "")),
        ("foo (>=1.0,<2)", Need("foo", ">=1.0,<2")),
        ("foo[extra1,extra2] >= 1.0", Need("foo", ">= 1.0")),
        ("foo @ https://example.invalid/foo-1.0.whl", Need("foo", "")),
        ("foo~=1.4 ; python_version>'3'", Need("foo", "~=1.4")),
    ],
)
def test_the_forms_of_a_requirement_line(line: str, need: Need) -> None:
    assert list(needs((line,), environment(facts()))) == [need]


@given(st.text(max_size=60))
def test_no_line_makes_it_fail(line: str) -> None:
    list(needs((line,), environment(facts())))


def test_the_lower_bound_of_a_specifier() -> None:
    assert [lower_bound(s) for s in (">=1.2,<2", "==3.1", "<4", "")] == ["1.2", "3.1", "", ""]
