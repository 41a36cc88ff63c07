"""QD6: a run of several processes: how it is launched, and what of QLoRA does not go with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from qlora_checks import builds
from qlora_checks.common import at_least, installed_version
from qlora_checks.runs import bits_of, by_trainer, by_trl, checkpoints, literal, script_of
from qlora_doctor.errors import UnknownArgument
from qlora_doctor.facts import Facts, Unknown
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice, EnvVar, LoadKwarg, TrainSetting
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests, TrainRequest
from qlora_doctor.source import Dotted

_DATA_CENTRE = re.compile(r"\b(A100|A800|H100|H800|H200|H20|B200|GB200|V100)\b")
_NO_ROUTE = ("lo", "docker0")
_SHARDED_OPTIMIZERS = ("paged", "8bit", "4bit", "bnb")


def _number(facts: Facts, name: str) -> int:
    environ = facts.state("environ")
    value = "" if isinstance(environ, Unknown) else environ.get(name, "")
    return int(value) if re.fullmatch(r"[1-9]\d{0,5}", value) else 1


def _several(facts: Facts) -> bool:
    """Whether it can be seen that several processes run: a launcher's variables, or what the script says."""
    script = script_of(facts)
    return _number(facts, "WORLD_SIZE") > 1 or bool(script is not None and script.distributed)


@check("QD613", needs=["packages"], wants=["environ"], since="0.3")
def unused_parameters_with_reentrant_checkpointing(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """DDP that looks for unused parameters, together with re-entrant gradient checkpointing.

    Backward then stops: `RuntimeError: Expected to mark a variable ready only once`. The Trainer looks for unused
    parameters by itself where the model is a PeftModel (it is no PreTrainedModel), unless it is told not to. Checkpointing
    is re-entrant by default with transformers below 5.0, and from there on where `use_reentrant` says so.

    Silent for one process, without adapters, for TRL's trainers (which choose for themselves), and for a loop of the
    script's own. A warning where only the script says that it is launched as several processes.

    Fix: `ddp_find_unused_parameters=False`.

    Source: transformers `trainer.py` (`find_unused = True` where the model is no PreTrainedModel) 4.57.6 and 5.23.0;
    torch DistributedDataParallel, "find_unused_parameters".
    """
    settings = request.settings
    if settings is None or not by_trainer(request) or by_trl(request) or not _several(facts):
        return
    if not (request.peft or request.lora):
        return
    if not checkpoints(settings) or settings.get("ddp_find_unused_parameters") is False:
        return
    if settings.get("fsdp") or settings.get("deepspeed"):
        return
    how = settings.get("gradient_checkpointing_kwargs")
    reentrant = how.get("use_reentrant") if isinstance(how, Mapping) else None
    version = installed_version(facts, "transformers")
    if reentrant is False or (reentrant is None and at_least(version, "5.0")):
        return
    yield Finding(
        "Several processes train adapters with re-entrant gradient checkpointing, and the Trainer of transformers "
        "{transformers} looks for unused parameters of a PeftModel: backward stops with 'Expected to mark a variable ready "
        "only once'. Pass ddp_find_unused_parameters=False",
        {"transformers": str(version)},
        severity="error" if _number(facts, "WORLD_SIZE") > 1 else "warning",
        site=settings.site,
        fixes=(TrainSetting("ddp_find_unused_parameters", False, applicability="unsafe", site=settings.site),),
    )


@check("QD614", needs=["environ", "gpus", "torch"], since="0.3")
def more_processes_than_gpus(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """A launcher started more processes on this machine than GPUs are visible.

    The first process without a GPU of its own stops with `CUDA error: invalid device ordinal`; with NCCL two processes on
    one GPU stop with `Duplicate GPU detected`.

    Judged in a process that a launcher started (LOCAL_WORLD_SIZE), with a CUDA build of torch and an NVIDIA GPU that can be
    seen. Slices (MIG) are not counted and not judged.

    Fix: `--nproc-per-node` as many as GPUs are visible.

    Source: torch `distributed/run.py`; NCCL "Duplicate GPU detected".
    """
    processes, gpus = _number(facts, "LOCAL_WORLD_SIZE"), builds.visible(facts)
    if processes < 2 or not builds.nvidia(facts) or any(g.mig for g in gpus):
        return
    torch = facts.torch
    if torch is None or torch.cuda is None or len(gpus) >= processes:
        return
    yield Finding(
        "{processes} processes were started on this machine and {gpus} GPUs are visible: those beyond stop with 'invalid "
        "device ordinal'. Start as many as there are GPUs: --nproc-per-node {gpus}",
        {"processes": processes, "gpus": len(gpus)},
        severity="error",
        fixes=(Advice(f"launch with --nproc-per-node {max(1, len(gpus))}"),),
    )


@check("QD615", needs=["environ", "gpus"], since="0.3")
def nccl_variables_that_hurt(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """NCCL variables that make a run of several processes slow, or let it hang.

    `NCCL_SOCKET_IFNAME=lo` (or docker0) on several machines: they never find each other, and the run waits until its
    timeout. `NCCL_P2P_DISABLE=1` on data-centre cards: what NVLink would carry goes through host memory. Together with
    `NCCL_SHM_DISABLE=1` everything goes through sockets.

    Silent for a single process; and `NCCL_P2P_DISABLE=1` alone on other cards is right where GPUs hang in the bus (RTX 40).

    Fix: unset it.

    Source: NVIDIA NCCL documentation, environment variables.
    """
    if not _several(facts) or (len(builds.nvidia(facts)) < 2 and _number(facts, "WORLD_SIZE") < 2):
        return
    environ = facts.environ
    name = environ.get("NCCL_SOCKET_IFNAME", "")
    machines = _number(facts, "WORLD_SIZE") > _number(facts, "LOCAL_WORLD_SIZE") and "LOCAL_WORLD_SIZE" in environ
    if name.lstrip("=") in _NO_ROUTE and machines:
        yield Finding(
            'NCCL_SOCKET_IFNAME="{name}" on several machines: nothing leaves a machine through {name}, so the processes wait '
            "for each other until the timeout. Unset it, or name the network card that the machines share",
            {"name": name},
            severity="error",
            fixes=(EnvVar("NCCL_SOCKET_IFNAME", None),),
        )
    no_p2p, no_shm = (environ.get(f"NCCL_{word}_DISABLE", "0") == "1" for word in ("P2P", "SHM"))
    card = next((g.name for g in builds.nvidia(facts) if _DATA_CENTRE.search(g.name)), "")
    if no_p2p and (no_shm or card):
        yield Finding(
            "NCCL_P2P_DISABLE=1{shm}: gradients go {way} instead of from GPU to GPU ({card}). Unset it unless these GPUs hang "
            "without it",
            {
                "shm": " and NCCL_SHM_DISABLE=1" if no_shm else "",
                "way": "through network sockets" if no_shm else "through host memory",
                "card": card or "any card",
            },
            severity="warning" if no_shm else "info",
            fixes=(EnvVar("NCCL_P2P_DISABLE", None), *((EnvVar("NCCL_SHM_DISABLE", None),) if no_shm else ())),
        )


@check("QD616", since="0.3")
def deepspeed_batch_against_the_trainer(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A DeepSpeed configuration with other batch sizes than the training arguments.

    The Trainer compares them when training begins: `ValueError: Please correct the following DeepSpeed config values that
    mismatch TrainingArguments values`. `"auto"` takes the Trainer's.

    Judged where the configuration is a dictionary in the script; a file is not read here. `train_batch_size` is not judged,
    since the number of processes belongs to it.

    Fix: `"auto"`.

    Source: transformers `integrations/deepspeed.py`, HfTrainerDeepSpeedConfig (4.57.6, 5.23.0).
    """
    settings = request.settings
    if settings is None or not by_trainer(request):
        return
    config = settings.arguments.get("deepspeed")
    if not isinstance(config, Mapping):
        return
    pairs = (
        ("train_micro_batch_size_per_gpu", "per_device_train_batch_size", 8),
        ("gradient_accumulation_steps", "gradient_accumulation_steps", 1),
    )
    for theirs, ours, default in pairs:
        there, here = config.get(theirs), settings.get(ours, default)
        if type(there) is int and type(here) is int and there != here:
            yield Finding(
                "The DeepSpeed configuration says {theirs}={there} and the training arguments {ours}={here}: training stops "
                "with 'Please correct the following DeepSpeed config values'. Write \"auto\" into the DeepSpeed "
                "configuration",
                {"theirs": theirs, "there": there, "ours": ours, "here": here},
                severity="error",
                site=settings.site,
                fixes=(Advice(f'write "{theirs}": "auto" into the DeepSpeed configuration'),),
            )


@check("QD617", needs=["packages"], wants=["environ"], since="0.3")
def sharded_bitsandbytes_optimizer(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """An optimizer of bitsandbytes (`paged_adamw_8bit`, `adamw_bnb_8bit`, ...) in a run that FSDP2 shards.

    The first step stops: `NotImplementedError: Operator bitsandbytes.optimizer_update_32bit.default does not have a sharding
    strategy registered` (run on bitsandbytes 0.50.2, torch 2.13.0, accelerate 1.15.0).

    FSDP is seen in the training arguments, or in what `accelerate launch` sets (ACCELERATE_USE_FSDP). Silent where
    version 1 is asked for, where no version is asked for with transformers below 5.23, and for a loop of the script's own.

    Fix: `optim="adamw_torch"`; the state of an adapter is small, and sharded.

    Source: run as said; torch `distributed/tensor/_sharding_prop.py`.
    """
    settings = request.settings
    if settings is None or not by_trainer(request) or _fsdp_version(facts, request) != 2:
        return
    optimizer = literal(settings.get("optim"))
    if optimizer is None or not any(word in optimizer for word in _SHARDED_OPTIMIZERS):
        return
    yield Finding(
        "optim={optimizer!r} under FSDP: bitsandbytes {bitsandbytes} cannot step sharded weights, and the first step stops "
        "with 'does not have a sharding strategy registered'. Pass optim='adamw_torch'",
        {"optimizer": optimizer, "bitsandbytes": str(installed_version(facts, "bitsandbytes"))},
        severity="error",
        site=settings.site,
        fixes=(TrainSetting("optim", "adamw_torch", applicability="unsafe", site=settings.site),),
    )


@check("QD618", needs=["packages"], wants=["environ"], since="0.3")
def unsharded_4_bit_weights(facts: Facts, request: TrainRequest) -> Iterator[Finding]:
    """A 4-bit model under FSDP whose packed weights are stored in uint8, the default.

    FSDP shards floating-point tensors. accelerate leaves packed uint8 weights whole on every GPU under FSDP2, with a log
    line (1.15.0), so nothing is saved of what FSDP is there for; FSDP1 stops with `Must flatten tensors with uniform dtype`.
    With `bnb_4bit_quant_storage` in the dtype of the model they are sharded (53 of 53 tensors instead of 39, run).

    Silent where it is given, where FSDP cannot be seen, and for other quantisations. `qlora-core train` sets it.

    Fix: `bnb_4bit_quant_storage=torch.bfloat16`, the dtype of the model.

    Source: accelerate `utils/fsdp_utils.py`, fsdp2_prepare_model (1.15.0); run on two processes.
    """
    version = _fsdp_version(facts, request)
    if request.load is None or not version:
        return
    try:
        if bits_of(request) != 4:
            return
        dtype = request.load.dtype
    except UnknownArgument:
        return
    quantization = request.load.quantization
    config = quantization.config if quantization is not None else None
    if config is None or "bnb_4bit_quant_storage" in config.arguments or config.has("bnb_4bit_quant_storage"):
        return
    right = dtype if dtype in ("bfloat16", "float16", "float32") else "bfloat16"
    yield Finding(
        "FSDP does not shard 4-bit weights that are stored in uint8: {effect}. Give bnb_4bit_quant_storage=torch.{dtype} in "
        "the BitsAndBytesConfig, the dtype of the model",
        {
            "dtype": right,
            "effect": "each GPU keeps all of them" if version == 2 else "FSDP1 asks for tensors of one dtype",
        },
        severity="warning",
        site=request.load.site,
        fixes=(
            LoadKwarg(
                "bnb_4bit_quant_storage",
                Dotted(f"torch.{right}"),
                target="quantization",
                applicability="unsafe",
                site=request.load.site,
            ),
        ),
    )


def _fsdp_version(facts: Facts, request: TrainRequest) -> int:
    """1 or 2 where the run is sharded by FSDP, as far as can be seen; 0 where nothing says so."""
    settings, environ = request.settings, facts.state("environ")
    variables = {} if isinstance(environ, Unknown) else environ
    asked = settings.seen("fsdp") if settings is not None else None
    if asked not in (None, "", False, (), []) and not isinstance(asked, (int, str, tuple, list, bool)):
        return 0
    launched = variables.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")
    if not asked and not launched:
        return 0
    config = settings.seen("fsdp_config") if settings is not None else None
    said = (config.get("version") or config.get("fsdp_version")) if isinstance(config, Mapping) else None
    said = said or variables.get("FSDP_VERSION")
    if str(said) in ("1", "2"):
        return int(str(said))
    if asked and config is not None and not isinstance(config, Mapping):
        return 1
    # The default was seen to be 2 in 5.23; what older releases take is not judged.
    return 2 if asked and at_least(installed_version(facts, "transformers"), "5.23") else 1


CHECKS: tuple[Check, ...] = (
    unused_parameters_with_reentrant_checkpointing,
    more_processes_than_gpus,
    nccl_variables_that_hurt,
    deepspeed_batch_against_the_trainer,
    sharded_bitsandbytes_optimizer,
    unsharded_4_bit_weights,
)
