"""The plan: rounds until quiet, pip first, conflicts that name the checks, and what really goes away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qlora_doctor.examine import Examination, Question
from qlora_doctor.facts import Facts
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, Edit, EnvVar, Fix, LoadKwarg, PipRequirement, SourceEdit
from qlora_doctor.gather.targets import read_targets
from qlora_doctor.judge import Case, judge
from qlora_doctor.registry import Check, check, installed_checks
from qlora_doctor.repair.plan import Plan, Solution
from qlora_doctor.repair.rounds import make_plan
from qlora_doctor.request import LoadRequest
from qlora_doctor.source import Dotted
from qlora_doctor.testing import facts

LOAD = """import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B", quantization_config=bnb)
"""


def examined(checks: list[Check], given: Facts, path: Path | None = None) -> Examination:
    question = Question(paths=(str(path),) if path else ())
    cases = tuple(Case(r, s) for s, r in read_targets([str(path)])) if path else ()
    return Examination(question, given, cases, tuple(checks), judge(checks, given, cases))


def chosen(*codes: str) -> list[Check]:
    return [c for c in installed_checks().checks if c.code in codes]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(LOAD)
    return path


def left(plan: Plan) -> dict[str, str]:
    return {item.finding.code: item.why for item in plan.remains}


@check("TST101", needs=["packages"], since="0.1")
def old_transformers(facts: Facts) -> Iterator[Finding]:
    """transformers below 5."""
    if str(facts.version("transformers")) < "5":
        yield Finding("old", fixes=(PipRequirement("transformers>=5.23.0"),))


def test_a_keyword_follows_the_version_that_the_plan_itself_installs(script: Path) -> None:
    given = facts({"transformers": "4.44.2", "bitsandbytes": "0.50.2"}, gpus=())
    checks = [old_transformers, *chosen("QD101")]
    plan = make_plan(examined(checks, given, script))
    assert [s.codes for s in plan.steps] == [("TST101",), ("QD101",)]
    (change,) = plan.files
    assert b"quantization_config=bnb, dtype=torch.bfloat16)" in (change.after or b"")
    alone = make_plan(examined(checks, given, script), pip=False)
    assert b", torch_dtype=torch.bfloat16)" in (alone.files[0].after or b"")
    assert "needs a change of packages" in left(alone)["TST101"]


def asks(code: str, *fixes: Fix, name: str = "") -> Check:
    """A check that asks for the same whatever it sees, but is content once its first fix is made."""

    def found(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        """Asks."""
        first = fixes[0]
        if isinstance(first, LoadKwarg) and request.call.arguments.get(first.name) == first.value:
            return
        yield Finding("asks", site=request.site, fixes=fixes)

    found.__name__ = name or f"check_{code.lower()}"
    return check(code, since="0.1")(found)


def test_two_values_for_one_argument_are_not_applied_and_both_checks_are_named(script: Path) -> None:
    one = asks("TST201", LoadKwarg("dtype", Dotted("torch.bfloat16")))
    other = asks("TST202", LoadKwarg("dtype", Dotted("torch.float16")))
    plan = make_plan(examined([one, other], facts(), script))
    assert (plan.steps, plan.files) == ((), ())
    (conflict,) = plan.conflicts
    assert (conflict.what, conflict.codes) == ("dtype", ("TST201", "TST202"))
    assert all("TST201 and TST202 disagree" in why for why in left(plan).values())


def test_two_checks_that_undo_each_other_in_turn_are_stopped(script: Path) -> None:
    @check("TST211", since="0.1")
    def wants_bf16(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        """bfloat16 where nothing, or float16, is said."""
        if request.dtype != "bfloat16":
            yield Finding("a", site=request.site, fixes=(LoadKwarg("dtype", Dotted("torch.bfloat16")),))

    @check("TST212", since="0.1")
    def wants_fp16(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        """float16 in the place of bfloat16."""
        if request.dtype == "bfloat16":
            yield Finding("b", severity="info", site=request.site, fixes=(LoadKwarg("dtype", Dotted("torch.float16")),))

    plan = make_plan(examined([wants_bf16, wants_fp16], facts(), script))
    assert plan.files == ()
    assert [c.codes for c in plan.conflicts] == [("TST211", "TST212")]


@pytest.mark.parametrize(
    ("one", "other", "installed", "merged"),
    [
        ("peft>=0.18", "peft<0.21,>=0.17", "0.1", "peft>=0.18,<0.21"),
        ("peft>=0.18", "peft>=0.20", "0.1", "peft>=0.20"),
        ("peft==0.21.2", "peft>=0.20", "0.1", "peft==0.21.2,>=0.20"),
        ("peft>=0.21", "peft<0.20", "0.20.5", None),
        ("peft>=0.21", "peft<0.20", "99", None),
    ],
)
def test_requirements_of_one_package_are_asked_together_or_not_at_all(
    one: str, other: str, installed: str, merged: str | None
) -> None:
    def wants(code: str, requirement: str) -> Check:
        def found(facts: Facts) -> Iterator[Finding]:
            """Wants a version."""
            from packaging.requirements import Requirement

            if not Requirement(requirement).specifier.contains(str(facts.version("peft")), prereleases=True):
                yield Finding(requirement, fixes=(PipRequirement(requirement),))

        return check(code, needs=["packages"], since="0.1")(found)

    checks = [wants("TST301", one), wants("TST302", other)]
    plan = make_plan(examined(checks, facts({"peft": installed})))
    if merged:
        assert ([f.requirement for f in plan.pip], plan.remains) == ([merged], ())
    else:
        assert plan.pip == ()
        assert plan.conflicts[0].codes == ("TST301", "TST302")
        assert all("TST301 and TST302 disagree about peft" in why for why in left(plan).values())


def test_overlapping_edits_of_two_checks_are_not_applied(script: Path) -> None:
    import hashlib

    sha = hashlib.sha256(script.read_bytes()).hexdigest()

    def edits(code: str, start: int, end: int, text: str) -> Check:
        def found(facts: Facts) -> Iterator[Finding]:
            """Edits."""
            yield Finding(code, fixes=(SourceEdit(str(script), sha, (Edit(start, end, text),), what=f"edit {code}"),))

        return check(code, needs=["script"], since="0.1")(found)

    plan = make_plan(examined([edits("TST401", 0, 12, "import t"), edits("TST402", 7, 14, "x")], facts(), script))
    assert (plan.files, plan.conflicts[0].codes) == ((), ("TST401", "TST402"))


def test_a_fix_that_does_not_end_its_finding_is_not_applied(script: Path) -> None:
    @check("TST501", since="0.1")
    def never_content(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        """Always found."""
        yield Finding("still", site=request.site, fixes=(LoadKwarg("dtype", Dotted("torch.bfloat16")),))

    plan = make_plan(examined([never_content], facts(), script))
    assert plan.files == ()
    assert "does not end it" in left(plan)["TST501"]


def test_a_fix_that_brings_a_finding_as_grave_is_not_applied(script: Path) -> None:
    @check("TST511", since="0.1")
    def wants_a_dtype(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        """Wants a dtype."""
        if request.dtype is None:
            yield Finding("a", site=request.site, fixes=(LoadKwarg("dtype", Dotted("torch.bfloat16")),))

    @check("TST512", since="0.1")
    def hates_a_dtype(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        """Hates a dtype."""
        if request.dtype is not None:
            yield Finding("b", severity="error", site=request.site)

    plan = make_plan(examined([wants_a_dtype, hates_a_dtype], facts(), script))
    assert plan.files == ()
    assert "would bring TST512" in left(plan)["TST511"]


def test_unsafe_fixes_wait_for_the_word(script: Path) -> None:
    one = asks("TST521", LoadKwarg("dtype", Dotted("torch.bfloat16"), applicability="unsafe"))
    examination = examined([one], facts(), script)
    assert "needs --unsafe: pass dtype" in left(make_plan(examination))["TST521"]
    assert make_plan(examination, unsafe=True).remains == ()


def test_a_safe_fix_whose_edit_reaches_further_is_unsafe(script: Path) -> None:
    script.write_text(
        LOAD.replace(
            "model = ", "kw = dict(trust_remote_code=True)\nconfig = AutoConfig.from_pretrained('x', **kw)\nmodel = "
        )
        .replace("config=bnb)", "config=bnb, **kw)")
        .replace("import AutoModel", "import AutoConfig, AutoModel")
    )

    @check("TST525", since="0.1")
    def trusts(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        """Trusts."""
        if request.call.has("trust_remote_code"):
            yield Finding("t", site=request.site, fixes=(LoadKwarg("trust_remote_code", drop=True),))

    examination = examined([trusts], facts(), script)
    plan = make_plan(examination)
    assert plan.files == ()
    assert "kw feeds other calls too" in left(plan)["TST525"]
    assert make_plan(examination, unsafe=True).remains == ()


def test_a_load_that_cannot_be_fixed_does_not_keep_the_next_one_from_it(script: Path) -> None:
    first = LOAD.replace('from_pretrained("Qwen/Qwen3-0.6B"', "from_pretrained(pick()")
    script.write_text(f'{first}second = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-0.6B")\n')

    @check("TST526", since="0.1")
    def wants_a_model(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
        """Wants another model."""
        if request.call.seen("pretrained_model_name_or_path") != "new/model":
            fix = LoadKwarg("pretrained_model_name_or_path", "new/model")
            yield Finding("m", site=request.site, fixes=(fix,))

    plan = make_plan(examined([wants_a_model], facts(), script))
    (change,) = plan.files
    assert b'second = AutoModelForCausalLM.from_pretrained("new/model")' in (change.after or b"")
    assert left(plan) == {"TST526": "the model's name comes from pick(); change it there"}


def test_what_only_a_person_can_do_is_left_with_the_advice(script: Path) -> None:
    plan = make_plan(examined([asks("TST531", Advice("buy a GPU", "shop"))], facts(), script))
    assert left(plan)["TST531"] == "only you can do this: buy a GPU (shop)"


def test_an_argument_that_the_installed_function_drops_is_not_passed(script: Path) -> None:
    from qlora_doctor.facts import Installed, Signature

    one = asks("TST541", LoadKwarg("dtype", Dotted("torch.bfloat16")))
    name = "transformers.AutoModelForCausalLM.from_pretrained"
    known = Installed(signatures={name: Signature(("torch_dtype",), swallows=True, source="transformers/x.py:1")})
    plan = make_plan(examined([one], facts(installed=known), script))
    assert plan.files == ()
    assert "drops dtype= (transformers/x.py:1)" in left(plan)["TST541"]


def test_a_finding_that_can_only_be_judged_after_the_install_is_not_called_removed() -> None:
    @check("TST551", needs=["installed"], since="0.1")
    def from_the_source(facts: Facts) -> Iterator[Finding]:
        """Judged from the installed source."""
        yield Finding("source")

    from qlora_doctor.facts import Installed

    given = facts({"transformers": "4.44.2"}, installed=Installed())
    plan = make_plan(examined([old_transformers, from_the_source], given), unsafe=True)
    assert [f.code for f in plan.removes] == ["TST101"]
    assert left(plan) == {"TST551": "can be judged only after the installation"}


def test_environment_variables_that_differ_disagree() -> None:
    def wants(code: str, value: str) -> Check:
        def found(facts: Facts) -> Iterator[Finding]:
            """Wants a variable."""
            if facts.environ.get("HF_ENDPOINT") != value:
                yield Finding("v", fixes=(EnvVar("HF_ENDPOINT", value, applicability="safe"),))

        return check(code, needs=["environ"], since="0.1")(found)

    plan = make_plan(examined([wants("TST561", "a"), wants("TST562", "b")], facts(environ={})))
    assert (plan.environ, plan.conflicts[0].codes) == ((), ("TST561", "TST562"))


def test_what_the_solver_finds_is_what_is_judged() -> None:
    given = facts({"transformers": "4.44.2"})
    solved = facts({"transformers": "4.99.0"}).packages
    plan = make_plan(examined([old_transformers], given), unsafe=True, solver=lambda fixes: Solution(packages=solved))
    assert left(plan) == {"TST101": "its fix was made and does not end it: install transformers>=5.23.0"}


def test_a_package_that_no_longer_asks_is_taken_out_of_the_plan() -> None:
    @check("TST571", needs=["packages"], since="0.1")
    def needs_scipy_while_old(facts: Facts) -> Iterator[Finding]:
        """Old transformers wants scipy."""
        if str(facts.version("transformers")) < "5" and facts.packages.find("scipy") is None:
            yield Finding("scipy", fixes=(PipRequirement("scipy"),))

    @check("TST572", needs=["installed"], since="0.1")
    def from_the_source(facts: Facts) -> Iterator[Finding]:
        """Waits for the installation."""
        yield from ()

    from qlora_doctor.facts import Installed

    given = facts({"transformers": "4.44.2"}, installed=Installed())
    plan = make_plan(examined([needs_scipy_while_old, old_transformers, from_the_source], given))
    assert [f.requirement for f in plan.pip] == ["transformers>=5.23.0"]
    assert plan.remains == ()


def test_a_pip_fix_that_breaks_another_package_is_not_safe() -> None:
    import dataclasses

    given = facts({"transformers": "4.44.2", "other": "1.0"})
    rows = tuple(
        dataclasses.replace(d, requires=("transformers<5",)) if d.name == "other" else d
        for d in given.packages.distributions
    )
    given = given.but(packages=dataclasses.replace(given.packages, distributions=rows))
    assert "other asks for transformers<5" in left(make_plan(examined([old_transformers], given)))["TST101"]
    assert make_plan(examined([old_transformers], given), unsafe=True).remains == ()


def test_a_small_package_that_brings_torch_is_not_safe() -> None:
    @check("TST581", needs=["packages"], since="0.1")
    def needs_accelerate(facts: Facts) -> Iterator[Finding]:
        """accelerate is missing."""
        if facts.packages.find("accelerate") is None:
            yield Finding("a", fixes=(PipRequirement("accelerate"),))

    given = facts({"transformers": "5.23.0"})
    solved = facts({"transformers": "5.23.0", "accelerate": "1.15.0", "torch": "2.14.0"}).packages
    examination = examined([needs_accelerate], given)
    plan = make_plan(examination, solver=lambda fixes: Solution(packages=solved))
    assert plan.pip == ()
    assert "it would also install torch" in left(plan)["TST581"]
    assert make_plan(examination).remains == ()


@pytest.mark.parametrize(
    ("version", "origin", "reason"),
    [
        ("4.44.2+cu121", "", "a local build"),
        ("4.44.2", "editable", "an editable install"),
        ("4.44.2", "vcs", "vcs"),
        ("4.44.2", "conda", "installed by conda"),
    ],
)
def test_what_no_index_gives_back_is_not_changed_by_a_safe_fix(version: str, origin: str, reason: str) -> None:
    import dataclasses

    given = facts({"transformers": version})
    how = {"installer": origin} if origin == "conda" else {"origin": origin}
    row = dataclasses.replace(given.packages.distributions[0], **how)
    given = given.but(packages=dataclasses.replace(given.packages, distributions=(row,)))
    plan = make_plan(examined([old_transformers], given))
    assert plan.pip == ()
    assert reason in left(plan)["TST101"]


def test_planning_changes_nothing_on_disk(script: Path) -> None:
    before = {p: p.read_bytes() for p in script.parent.rglob("*") if p.is_file()}
    plan = make_plan(examined(chosen("QD101"), facts({"transformers": "5.23.0"}), script))
    assert plan.files
    assert {p: p.read_bytes() for p in script.parent.rglob("*") if p.is_file()} == before
