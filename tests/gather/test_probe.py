from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.gather import probe
from tests.gather.environments import executable, install, module


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on sys.path; the current folder and the environment variables are empty."""
    folder = tmp_path / "lib" / "site-packages"
    folder.mkdir(parents=True)
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [str(folder)])
    return folder


def read(part: str, folder: Path | None = None) -> Any:
    """One part, through the wire: its class, or Unknown."""
    data = json.loads(json.dumps(probe.probe([part], str(folder) if folder else None)))
    return Facts.from_wire(data).state(part)


def versions(packages: Any) -> dict[str, str]:
    return {d.name: d.version for d in packages.distributions}


# ---- packages


def test_a_distribution_is_read_with_its_requirements_installer_and_origin(site: Path) -> None:
    install(
        site,
        "peft",
        "0.21.2",
        requires=["torch>=1.13", 'pytest; extra == "test"'],
        files={"INSTALLER": "uv\n", "direct_url.json": '{"url": "file:///src", "dir_info": {"editable": true}}'},
    )
    (peft,) = read("packages").distributions
    assert (peft.name, peft.version, peft.location) == ("peft", "0.21.2", str(site))
    assert peft.requires == ("torch>=1.13", 'pytest; extra == "test"')
    assert (peft.installer, peft.origin) == ("uv", "editable")


def test_headers_end_at_the_blank_line_however_many_there_are(site: Path) -> None:
    requires = [f"dependency-number-{i:05d}>=1.0" for i in range(4000)]
    install(site, "big", "1", requires=requires)
    (big,) = read("packages").distributions
    assert big.name == "big"
    assert big.requires == tuple(requires)


@pytest.mark.parametrize(
    ("vcs", "origin"), [('{"vcs_info": {}}', "vcs"), ('{"url": "https://x/y.whl"}', "url"), ("{", "url")]
)
def test_where_a_distribution_came_from_is_told(site: Path, vcs: str, origin: str) -> None:
    install(site, "x", "1", files={"direct_url.json": vcs})
    assert read("packages").find("x").origin == origin


def test_egg_info_folders_and_files_are_distributions_too(site: Path) -> None:
    folder = site / "old-1.0.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Name: old\nVersion: 1.0\n")
    (folder / "requires.txt").write_text('six\n\n[:python_version < "3"]\nenum34\n\n[gpu]\ncupy\n')
    (site / "older-2.0.egg-info").write_text("Name: older\nVersion: 2.0\n")
    packages = read("packages")
    assert versions(packages) == {"old": "1.0", "older": "2.0"}
    assert packages.find("old").requires == ("six", 'enum34; (python_version < "3")', 'cupy; extra == "gpu"')


def test_the_first_on_the_path_wins_and_the_later_copy_is_a_duplicate(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second"
    install(site, "torch", "2.13.0")
    hidden = install(second, "torch", "2.1.0")
    monkeypatch.setattr(sys, "path", [str(site), str(second)])
    packages = read("packages")
    assert versions(packages) == {"torch": "2.13.0"}
    assert packages.duplicates == {"torch": (str(hidden),)}


def test_two_copies_in_one_folder_are_a_duplicate(site: Path) -> None:
    install(site, "huggingface-hub", "0.36.0")
    install(site, "huggingface_hub", "1.0.0", package=False)
    packages = read("packages")
    assert len(packages.distributions) == 1
    assert list(packages.duplicates) == ["huggingface-hub"]


def test_a_folder_that_is_twice_on_the_path_is_read_once(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(site, "torch", "2.13.0")
    alias = tmp_path / "lib64"
    alias.symlink_to(site)
    monkeypatch.setattr(sys, "path", [str(site), str(alias), str(site)])
    assert read("packages").duplicates == {}


def test_leftovers_of_an_interrupted_pip_are_found(site: Path) -> None:
    (site / "~orch").mkdir()
    (site / "~ransformers-4.44.2.dist-info").mkdir()
    (site / "~$notes.docx").write_text("")
    assert [os.path.basename(p) for p in read("packages").leftovers] == ["~orch", "~ransformers-4.44.2.dist-info"]


@pytest.mark.parametrize("metadata", [None, b"", b"\0" * 4096, b"Name: torch\n\nVersion: 1\n"])
def test_broken_metadata_is_named_and_the_rest_is_still_read(site: Path, metadata: bytes | None) -> None:
    install(site, "peft", "0.21.2")
    info = install(site, "torch", "2.13.0")
    (info / "METADATA").unlink()
    if metadata is not None:
        (info / "METADATA").write_bytes(metadata)
    packages = read("packages")
    assert packages.broken == (str(info),)
    assert versions(packages) == {"peft": "0.21.2"}
    assert packages.without_metadata == ()


def test_a_stack_package_without_metadata_and_metadata_without_its_package_are_told(site: Path) -> None:
    module(site, "bitsandbytes")
    module(site, "somebodys_tool")
    install(site, "torch", "2.13.0", package=False, files={"RECORD": "torch/__init__.py,sha256=x,10\n"})
    install(site, "peft", "0.21.2", package=False)
    (site / "torch" / "lib").mkdir(parents=True)
    packages = read("packages")
    assert packages.without_metadata == (str(site / "bitsandbytes"),)
    assert packages.without_package == ("torch",)


def test_a_fork_under_another_name_counts_as_the_metadata(site: Path) -> None:
    install(site, "triton-windows", "3.2.0", package=False)
    install(site, "bitsandbytes-windows", "0.37.5", package=False, files={"top_level.txt": "bitsandbytes\n"})
    module(site, "triton")
    module(site, "bitsandbytes")
    packages = read("packages")
    assert packages.without_metadata == ()
    assert packages.find("bitsandbytes-windows").provides == ("bitsandbytes",)


def test_an_editable_install_with_a_finder_is_followed_to_its_source(site: Path, tmp_path: Path) -> None:
    source = module(tmp_path / "checkout" / "src", "transformers")
    install(
        site, "transformers", "5.23.0", package=False, files={"direct_url.json": '{"dir_info": {"editable": true}}'}
    )
    (site / "__editable___transformers_5_23_0_finder.py").write_text(
        f"from __future__ import annotations\nMAPPING: dict[str, str] = {{'transformers': {str(source)!r}}}\n"
    )
    packages = read("packages")
    assert packages.roots["transformers"] == str(source)
    assert packages.without_package == ()


def test_stray_files_of_an_unquoted_requirement_are_found(site: Path, tmp_path: Path) -> None:
    for name in ("=0.44.0", "=0.44", "=2.0,", "= notes.txt", "a=1"):
        (tmp_path / "project" / name).write_text("")
    names = [os.path.basename(p) for p in read("packages", tmp_path / "project").stray]
    assert names == ["=0.44", "=0.44.0", "=2.0,"]


def test_five_thousand_distributions_are_read(site: Path) -> None:
    for i in range(5000):
        install(site, f"package-{i}", "1.0", package=False)
    assert len(read("packages").distributions) == 5000


def test_a_path_entry_that_is_missing_or_a_file_is_passed_over(site: Path, tmp_path: Path, monkeypatch: Any) -> None:
    archive = tmp_path / "python311.zip"
    archive.write_text("")
    install(site, "torch", "2.13.0")
    monkeypatch.setattr(sys, "path", ["", str(archive), str(tmp_path / "gone"), str(site), 7])
    assert versions(read("packages")) == {"torch": "2.13.0"}


# ---- shadows


def test_a_module_beside_the_script_shadows_the_installed_one(site: Path, tmp_path: Path) -> None:
    install(site, "torch", "2.13.0")
    install(site, "bitsandbytes", "0.50.2")
    scripts = tmp_path / "scripts"
    module(scripts, "bitsandbytes")
    (scripts / "torch.py").write_text("")
    found = {s.module: s for s in read("shadows", scripts)}
    assert set(found) == {"torch", "bitsandbytes"}
    assert found["torch"].path == str(scripts / "torch.py")
    assert found["torch"].hidden == str(site / "torch")
    assert found["torch"].by == "script folder"


@pytest.mark.parametrize("case", ["namespace", "not installed", "editable by path", "editable by finder"])
def test_what_does_not_hide_anything_is_no_shadow(site: Path, tmp_path: Path, case: str, monkeypatch: Any) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    if case == "namespace":
        install(site, "datasets", "5.0.1")
        (scripts / "datasets" / "images").mkdir(parents=True)
    elif case == "not installed":
        module(scripts, "trl")
    else:
        source = module(scripts, "transformers")
        install(site, "transformers", "5.23.0", package=False)
        if case == "editable by path":
            monkeypatch.setattr(sys, "path", [str(site), str(scripts)])
        else:
            (site / "__editable___transformers_finder.py").write_text(
                f"MAPPING = {{'transformers': {str(source)!r}}}\n"
            )
    assert read("shadows", scripts) == ()


def test_pythonpath_and_the_current_folder_are_told_apart(site: Path, tmp_path: Path, monkeypatch: Any) -> None:
    install(site, "torch", "2.13.0")
    install(site, "peft", "0.21.2")
    extra = tmp_path / "extra"
    module(extra, "torch")
    module(Path.cwd(), "peft")
    monkeypatch.setenv("PYTHONPATH", str(extra))
    monkeypatch.setattr(sys, "path", [str(extra), str(site)])
    (tmp_path / "scripts").mkdir()
    assert [(s.module, s.by) for s in read("shadows", tmp_path / "scripts")] == [
        ("peft", "cwd"),
        ("torch", "PYTHONPATH"),
    ]


# ---- torch and bitsandbytes


def torch(site: Path, version_py: str) -> Any:
    install(site, "torch", "2.13.0+cu126", package=False)
    module(site, "torch", {"version.py": version_py})
    return read("torch")


def test_the_build_of_torch_is_read_from_its_version_file(site: Path) -> None:
    build = torch(
        site, "from typing import Optional\n__version__ = '2.13.0+cu126'\ncuda: Optional[str] = '12.6'\nhip = None\n"
    )
    assert (build.version, build.cuda, build.hip, build.kind) == ("2.13.0+cu126", "12.6", None, "cuda")


def test_no_torch_is_known_and_a_torch_that_cannot_be_read_is_not(site: Path) -> None:
    assert read("torch") is None
    assert isinstance(torch(site, "raise SystemExit ("), Unknown)


def test_torch_is_never_run(site: Path) -> None:
    assert torch(site, "import os\nos.abort()\n__version__ = '1'\ncuda = None\n").kind == "cpu"


@pytest.mark.parametrize(("version", "cuda"), [("2.1.2+cu121", "12.1"), ("2.1.2+cu118", "11.8"), ("2.1.2+cpu", None)])
def test_metadata_alone_tells_the_build_where_the_version_says_it(site: Path, version: str, cuda: str | None) -> None:
    install(site, "torch", version, package=False)
    assert (read("torch").cuda, read("torch").source) == (cuda, "METADATA")


def test_metadata_without_a_local_version_does_not_tell_the_build(site: Path) -> None:
    install(site, "torch", "2.1.2", package=False)
    assert isinstance(read("torch"), Unknown)


def test_the_native_libraries_of_bitsandbytes_are_listed_by_tag(site: Path) -> None:
    assert read("bitsandbytes") is None
    install(site, "bitsandbytes", "0.50.2")
    for name in (
        "libbitsandbytes_cpu.so",
        "libbitsandbytes_cuda121_nocublaslt.so",
        "libbitsandbytes_rocm64.dll",
        "x.so",
    ):
        (site / "bitsandbytes" / name).write_text("")
    build = read("bitsandbytes")
    assert (build.version, build.libraries) == ("0.50.2", ("cpu", "cuda121_nocublaslt", "rocm64"))


# ---- the machine


def tree(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root) + "/"


@pytest.mark.skipif(os.name == "nt", reason="reads /proc")
@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "8589934592\n"},
        {
            "proc/self/cgroup": "0::/kubepods/pod1\n",
            "sys/fs/cgroup/kubepods/memory.max": "8589934592\n",
            "sys/fs/cgroup/kubepods/pod1/memory.max": "max\n",
        },
        {
            "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "8589934592\n",
        },
    ],
    ids=["v2", "v2 nested", "v1"],
)
def test_the_memory_limit_of_both_kinds_of_control_groups_is_read(tmp_path: Path, files: dict[str, str]) -> None:
    assert probe.host(tree(tmp_path, files))["memory_limit"] == 8 << 30


@pytest.mark.skipif(os.name == "nt", reason="reads /proc")
def test_no_memory_limit_is_none(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    assert probe.host(tree(tmp_path, files))["memory_limit"] is None


@pytest.mark.skipif(os.name == "nt", reason="reads /proc")
def test_the_machine_is_described(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:  16 kB\nMemAvailable:  8 kB\nSwapTotal: 4 kB\n",
            "proc/cpuinfo": "processor: 0\nflags\t\t: fpu avx2 avx512_bf16 sse\n\nprocessor: 1\nflags\t: sve\n",
            "etc/os-release": 'NAME=x\nPRETTY_NAME="Debian GNU/Linux 12"\n',
            ".dockerenv": "",
        },
    )
    host = probe.host(root)
    assert (host["memory_total"], host["memory_available"], host["swap_total"]) == (16384, 8192, 4096)
    assert host["cpu_flags"] == ["avx2", "avx512_bf16"]
    assert host["distribution"] == "Debian GNU/Linux 12"
    assert host["container"] == "docker"


def test_a_cache_that_does_not_exist_yet_has_the_free_space_of_its_parent(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "not" / "yet"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    disks = {d.purpose: d for d in read("disks", tmp_path)}
    assert disks["hf-cache"].path == str(tmp_path / "not" / "yet" / "hub")
    assert disks["hf-cache"].total == disks["project"].total
    assert disks["hf-cache"].writable is True


# ---- environment variables


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HF_TOKEN", "abc", "<redacted>"),
        ("WANDB_API_KEY", "abc", "<redacted>"),
        ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1", "1"),
        ("TOKENIZERS_PARALLELISM", "false", "false"),
        ("CUDA_VISIBLE_DEVICES", "0,1", "0,1"),
        ("HF_HOME", "/data/hf_cache", "/data/hf_cache"),
        ("HF_ENDPOINT", "https://me:pass@mirror.example", "https://<redacted>@mirror.example"),
        ("HF_ENDPOINT", "https://m.example/?token=s3cret&a=b", "https://m.example/?token=<redacted>&a=b"),
        ("HF_HUB_CACHE", "/x/hf_AbCdEfGhIjKlMnOpQrStUvWx/y", "/x/<redacted>/y"),
        ("https_proxy", "me:pass@proxy.example:3128", "<redacted>@proxy.example:3128"),
    ],
)
def test_what_is_secret_is_replaced_and_nothing_else(name: str, value: str, shown: str, monkeypatch: Any) -> None:
    monkeypatch.setenv(name, value)
    assert read("environ")[name] == shown


def test_variables_that_do_not_matter_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DIARY", "private")
    assert "MY_DIARY" not in read("environ")


# ---- GPUs

SMI = """#!/bin/sh
case "$*" in
  *compute_cap*) {with_capability} ;;
  *--query-gpu*) echo "0, Tesla T4, GPU-1, 450.80.02, 15109, 15000, Default" ;;
  *) echo "| NVIDIA-SMI 1   {banner}     |" ;;
esac
"""
ROW = "echo '0, NVIDIA GeForce RTX 3060, GPU-1, 550.54.15, 12288, 12000, Default, 8.6, [N/A]'"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    if probe.nvidia_traces():
        pytest.skip("this machine has an NVIDIA driver of its own")

    def write(text: str) -> None:
        executable(tmp_path / "bin" / "nvidia-smi", text)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    return write


def test_no_trace_of_nvidia_is_known_to_be_no_gpu(smi: Any) -> None:
    assert read("gpus") == () and read("driver") is None


@pytest.mark.parametrize(
    ("banner", "cuda"),
    [
        ("Driver Version: 550.54.15    CUDA Version: 12.4", "12.4"),
        ("KMD Version: 550.54.15    CUDA UMD Version: 13.3", "13.3"),
        ("Driver Version: 550.54.15    CUDA Version: ERR!", None),
    ],
)
def test_nvidia_smi_tells_gpus_and_driver(smi: Any, banner: str, cuda: str | None) -> None:
    smi(SMI.format(with_capability=ROW, banner=banner))
    (gpu,) = read("gpus")
    assert (gpu.name, gpu.capability, gpu.memory_total) == ("NVIDIA GeForce RTX 3060", "8.6", 12 << 30)
    assert gpu.mig is False
    assert (read("driver").version, read("driver").cuda) == ("550.54.15", cuda)


FULL = """#!/bin/sh
case "$*" in
  *compute-apps*) echo 'GPU-1, 4711, 9000, /usr/bin/python3, of ours'; echo 'GPU-1, 4712, [N/A], vllm'; echo 'junk' ;;
  *ecc.mode*) echo '0, Enabled, 3'; echo '1, [N/A], [N/A]' ;;
  *compute_cap*) echo '0, NVIDIA A100, GPU-1, 580.95.05, 81920, 70000, Exclusive_Process, 8.0, Enabled'
                 echo '1, NVIDIA RTX A2000, GPU-2, 580.95.05, 12288, 12000, Default, 8.6, [N/A]' ;;
  -L) echo 'GPU 0: NVIDIA A100 (UUID: GPU-1)'; echo '  MIG 2g.20gb     Device  0: (UUID: MIG-aa)'
      echo 'GPU 1: NVIDIA RTX A2000 (UUID: GPU-2)' ;;
  *) echo 'Driver Version: 580.95.05    CUDA Version: 13.0' ;;
esac
"""


def test_nvidia_smi_also_tells_processes_errors_and_slices(smi: Any) -> None:
    smi(FULL)
    split, plain = read("gpus")
    held = [(p.pid, p.name, p.memory) for p in split.processes]
    assert held == [(4711, "python3, of ours", 9000 << 20), (4712, "vllm", None)]
    assert (split.ecc, split.ecc_errors, split.compute_mode) == (True, 3, "exclusive-process")
    assert [(s.uuid, s.name) for s in split.slices] == [("MIG-aa", "NVIDIA A100 MIG 2g.20gb")]
    assert (plain.ecc, plain.slices, plain.processes) == (None, None, ())


def test_an_old_nvidia_smi_that_does_not_know_the_capability_is_asked_again(smi: Any) -> None:
    refuse = "echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2"
    smi(SMI.format(with_capability=refuse, banner="CUDA Version: 11.0"))
    (gpu,) = read("gpus")
    assert (gpu.name, gpu.capability) == ("Tesla T4", None)


def test_an_nvidia_smi_that_fails_is_unknown_with_its_words(smi: Any) -> None:
    smi("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'\nexit 9\n")
    gpus, driver = read("gpus"), read("driver")
    assert isinstance(gpus, Unknown) and "could not communicate" in gpus.reason
    assert isinstance(driver, Unknown)


def test_an_nvidia_smi_that_hangs_is_unknown(smi: Any) -> None:
    smi("#!/bin/sh\nsleep 60\n")
    with pytest.raises(probe.Unreadable, match="did not answer in time"):
        probe.nvidia_smi(limit=0.3)


@pytest.mark.parametrize(
    ("size", "owner"), [(3, "nvidia-nccl-cu12"), (5, "nvidia-nccl-cu11"), (4, ""), (None, "")], ids=str
)
def test_two_wheels_that_installed_one_file_are_told_apart_by_its_size(
    site: Path, size: int | None, owner: str
) -> None:
    path = "nvidia/nccl/lib/libnccl.so.2"
    install(site, "nvidia-nccl-cu11", "2.14.3", package=False, files={"RECORD": f"{path},sha256=x,5\n"})
    install(site, "nvidia-nccl-cu12", "2.27.3", package=False, files={"RECORD": f"{path},sha256=y,3\nnvidia/x.py,,\n"})
    install(
        site, "nvidia-cublas-cu12", "12.8", package=False, files={"RECORD": "nvidia/cublas/lib/libcublas.so.12,,9\n"}
    )
    if size is not None:
        (site / path).parent.mkdir(parents=True)
        (site / path).write_bytes(b"x" * size)
    assert read("packages").contested == {path: owner}


# ---- as a file


def pythons() -> list[str]:
    """Other interpreters here: on PATH, and those that pyenv keeps."""
    from shutil import which

    kept = (Path.home() / ".pyenv" / "versions").glob("3.*/bin/python3.*")
    found = [which(f"python3.{minor}") for minor in range(6, 16)]
    every = [*filter(None, found), *map(str, kept)]
    named = {os.path.basename(p): p for p in every if os.path.basename(p)[9:].isdigit()}
    return [named[name] for name in sorted(named, key=lambda n: int(n[9:]))]


@pytest.mark.parametrize("python", pythons(), ids=os.path.basename)
def test_it_runs_on_every_python_at_hand(python: str) -> None:
    run = subprocess.run([python, "-B", probe.__file__, "ab", "cd", "", *probe.PARTS], capture_output=True, check=True)
    out = run.stdout.decode()
    assert out.startswith("ba{") and out.rstrip().endswith("}dc")
    data = json.loads(out.strip()[2:-2])
    facts = Facts.from_wire(data)
    assert python.endswith(facts.interpreter.version.rpartition(".")[0])
    for part in ("host", "packages", "shadows", "disks", "environ"):
        assert not isinstance(facts.state(part), Unknown), facts.state(part)
