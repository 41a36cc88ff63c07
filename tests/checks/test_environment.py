"""QD010 to QD020: broken installations are explained, sound ones are left alone."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_checks import beside_torch, missing
from qlora_checks import environment as env
from qlora_doctor.facts import Distribution, Facts, Host, Packages, Shadow, Unknown
from qlora_doctor.request import Requests
from qlora_doctor.testing import assert_fixed_by, facts, findings, load, outcome, train

SITE = "/venv/lib/python3.11/site-packages"
FOUR_BIT = load()


def broken(versions: dict[str, str], **parts: Any) -> Facts:
    return Facts(packages=Packages(tuple(Distribution(n, v, SITE) for n, v in versions.items()), **parts))


@pytest.mark.parametrize("check", (*env.CHECKS, *beside_torch.CHECKS), ids=lambda c: c.code)
def test_a_sound_installation_is_silent(check: Any) -> None:
    sound = facts({"torch": "2.8.0", "torchvision": "0.23.0", "torchaudio": "2.8.0", "numpy": "2.3.0"}, shadows=())
    assert findings(check, sound, FOUR_BIT) == ()


@pytest.mark.parametrize("check", (*env.CHECKS, *beside_torch.CHECKS), ids=lambda c: c.code)
def test_what_could_not_be_read_is_unknown(check: Any) -> None:
    unread: Any = Unknown("permission denied")
    assert outcome(check, Facts(packages=unread, shadows=unread)) == "unknown"


@pytest.mark.parametrize(
    ("name", "copy", "severities"),
    [
        ("torch", f"{SITE}/torch-2.3.1.dist-info", ["warning"]),
        ("jinja2", f"{SITE}/jinja2-3.0.dist-info", ["info"]),
        ("torch", "/usr/lib/python3/dist-packages/torch-2.3.1.dist-info", ["info"]),
        ("jinja2", "/usr/lib/python3/dist-packages/jinja2-3.0.dist-info", []),
    ],
)
def test_a_distribution_installed_twice_matters_in_one_folder(name: str, copy: str, severities: list[str]) -> None:
    found = findings(env.distribution_installed_twice, broken({name: "9.0"}, duplicates={name: (copy,)}))
    assert [f.severity for f in found] == severities


@pytest.mark.parametrize(
    ("leftover", "versions", "severity"),
    [
        (f"{SITE}/~orch", {"torch": "2.8.0"}, "info"),
        (f"{SITE}/~orch", {}, "warning"),
        (f"{SITE}\\~ransformers-4.44.2.dist-info", {}, "warning"),
        (f"{SITE}/~inja2", {}, "info"),
    ],
)
def test_a_leftover_matters_where_the_package_is_gone(leftover: str, versions: dict[str, str], severity: str) -> None:
    (found,) = findings(env.leftovers_of_an_interrupted_install, broken(versions, leftovers=(leftover,)))
    assert found.severity == severity


def test_broken_metadata_is_named_once_and_not_as_missing() -> None:
    given = broken({"torch": "2.8.0", "accelerate": "1.15"}, broken=(f"{SITE}/bitsandbytes-0.50.2.dist-info",))
    assert [f.evidence["package"] for f in findings(env.metadata_that_cannot_be_read, given)] == ["bitsandbytes"]
    assert "bitsandbytes" not in {m.package for m in missing.find(given, Requests(loads=(FOUR_BIT,)))}


def test_a_package_without_metadata_is_an_error_where_transformers_asks_for_its_version() -> None:
    given = broken({"torch": "2.8.0"}, without_metadata=(f"{SITE}/bitsandbytes",))
    assert [f.severity for f in findings(env.package_without_metadata, given, FOUR_BIT)] == ["error"]
    assert [f.severity for f in findings(env.package_without_metadata, given)] == ["warning"]


def test_metadata_without_its_package_is_an_error_where_it_is_imported() -> None:
    given = broken({"peft": "0.21.2"}, without_package=("peft",))
    assert [f.severity for f in findings(env.metadata_without_package, given, train(lora={"r": 8}))] == ["error"]
    assert [f.severity for f in findings(env.metadata_without_package, given, FOUR_BIT)] == ["warning"]


@pytest.mark.parametrize("name", ["bitsandbytes-windows", "bitsandbytes-cuda117", "bitsandbytes_windows_webui"])
@pytest.mark.parametrize("beside", [{}, {"bitsandbytes": "0.50.2"}])
def test_an_obsolete_distribution_is_taken_out_and_the_real_one_put_in(name: str, beside: dict[str, str]) -> None:
    given = broken({name: "0.41.2", **beside})
    assert [f.severity for f in findings(env.obsolete_distribution_in_the_way, given, FOUR_BIT)] == ["error"]
    assert_fixed_by(env.obsolete_distribution_in_the_way, given, FOUR_BIT)


def test_bitsandbytes_itself_and_its_other_relatives_are_not_obsolete() -> None:
    assert (
        findings(env.obsolete_distribution_in_the_way, broken({"bitsandbytes": "0.50.2", "bitsandbytes-rocm": "1"}))
        == ()
    )


def test_the_file_of_an_unquoted_requirement_is_explained() -> None:
    (found,) = findings(env.file_left_by_an_unquoted_requirement, broken({}, stray=("/project/=0.44.0",)))
    assert found.severity == "info"
    assert '"NAME>=0.44.0"' in found.text


@pytest.mark.parametrize(
    ("by", "requests", "severity"),
    [("script folder", (FOUR_BIT,), "error"), ("script folder", (), "warning"), ("cwd", (FOUR_BIT,), "warning")],
)
def test_a_module_of_your_own_hides_the_installed_one(by: str, requests: Any, severity: str) -> None:
    given = Facts(shadows=(Shadow("torch", "/project/torch.py", f"{SITE}/torch", by),))
    assert [f.severity for f in findings(env.module_hidden_by_a_local_one, given, *requests)] == [severity]


@pytest.mark.parametrize(
    ("system", "torch", "numpy", "count"),
    [
        ("Linux", "2.2.2+cu121", "2.0.1", 1),
        ("Linux", "2.3.0", "2.0.1", 0),
        ("Windows", "2.4.0", "2.0.1", 1),
        ("Windows", "2.4.1", "2.1.0", 0),
        ("Linux", "2.2.2", "1.26.4", 0),
    ],
)
def test_numpy_2_beside_a_torch_made_for_numpy_1(system: str, torch: str, numpy: str, count: int) -> None:
    given = facts({"torch": torch, "numpy": numpy}, host=Host(system=system))
    assert len(findings(beside_torch.numpy_2_with_an_old_torch, given)) == count
    if count:
        assert_fixed_by(beside_torch.numpy_2_with_an_old_torch, given)


@pytest.mark.parametrize(
    ("torch", "other", "requests", "severity"),
    [
        ("2.6.0", {"torchvision": "0.20.1"}, (FOUR_BIT,), "error"),
        ("2.6.0", {"torchvision": "0.20.1"}, (), "warning"),
        ("2.5.1+cu124", {"torchvision": "0.20.1+cu118"}, (FOUR_BIT,), "error"),
        ("2.6.0", {"torchaudio": "2.5.1"}, (FOUR_BIT,), "warning"),
    ],
)
def test_a_torchvision_or_torchaudio_of_another_torch(torch: str, other: Any, requests: Any, severity: str) -> None:
    given = facts({"torch": torch, **other})
    assert [f.severity for f in findings(beside_torch.torchvision_of_another_torch, given, *requests)] == [severity]
    assert_fixed_by(
        beside_torch.torchvision_of_another_torch, facts({"torch": "2.6.0", "torchvision": "0.20.1"}), FOUR_BIT
    )


@pytest.mark.parametrize(
    "versions",
    [
        {"torch": "2.5.1+cu124", "torchvision": "0.20.1+cu121"},
        {"torch": "2.13.0+cpu", "torchvision": "0.28.0+cpu", "torchaudio": "2.11.0"},
        {"torch": "2.0.1", "torchvision": "0.15.2"},
        {"torch": "3.0.0", "torchvision": "1.0.0"},
    ],
)
def test_pairs_that_belong_together_or_that_no_rule_knows(versions: dict[str, str]) -> None:
    assert findings(beside_torch.torchvision_of_another_torch, facts(versions), FOUR_BIT) == ()


def test_the_torch_that_torchvision_names_beats_the_rule() -> None:
    packages = Packages(
        (Distribution("torch", "2.13.0"), Distribution("torchvision", "0.40.0", requires=("torch (==2.13.0)",)))
    )
    assert findings(beside_torch.torchvision_of_another_torch, Facts(packages=packages), FOUR_BIT) == ()
    packages = Packages(
        (Distribution("torch", "2.13.1"), Distribution("torchvision", "0.28.0", requires=("torch==2.13.0",)))
    )
    assert [
        f.severity for f in findings(beside_torch.torchvision_of_another_torch, Facts(packages=packages), FOUR_BIT)
    ] == ["info"]
