"""Everything about the Hub for one run, in one go: the endpoint, the repositories, the cache, and mirrors where it failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qlora_doctor.errors import UsageError
from qlora_doctor.facts import Hub, Mirror, ModelFacts
from qlora_doctor.gather.hub import described, failed, judged, reach, told_offline
from qlora_doctor.gather.hub_cache import read_cache, read_snapshots


def ask(
    environ: Mapping[str, str], models: Sequence[str], *, folder: str, offline: bool = False, details: bool = False
) -> tuple[Hub, tuple[ModelFacts, ...]]:
    """The Hub as `environ` means it, and with `details` the facts of the models. Never raises.

    With `details` the repositories are asked for through huggingface_hub itself, and what that gives says whether the Hub
    can be reached; else, and where it cannot be imported, one request without it does. Offline, and where nothing
    answers, the models are read from the cache. `folder` is where the project's settings are looked for.
    """
    offline = offline or told_offline(environ)
    hub, found = (reach(environ, offline=True, models=models), ()) if offline else _online(environ, models, details)
    hub = replace(hub, cache=read_cache(environ))
    if offline or hub.reachable is False:
        snapshots, found = read_snapshots(models, environ, details=details)
        hub = replace(hub, snapshots=snapshots)
    if hub.reachable is False:
        hub = replace(hub, mirrors=_mirrors(environ, models, folder))
    return hub, found


def _online(environ: Mapping[str, str], models: Sequence[str], details: bool) -> tuple[Hub, tuple[ModelFacts, ...]]:
    if details and models:
        from qlora_doctor.gather.hub_model import ask_each

        asked = ask_each(models, environ)
        if asked:
            hub, first = described(environ, models), asked[0].first
            url = f"//{first.host}" if first.host else hub.endpoint
            if first.failure == "too large":
                hub = replace(hub, reachable=True, detail=first.error)
            elif first.status:
                hub = judged(hub, first.status, first.body[:512], first.headers, url)
            else:
                hub = failed(hub, first.failure, first.error, url)
            if hub.reachable is False:
                return replace(hub, seconds=asked[0].seconds), ()
            return replace(
                hub,
                seconds=asked[0].seconds,
                repositories=tuple(a.repository for a in asked),
                routes=tuple(dict.fromkeys(r for a in asked for r in a.routes)),
            ), tuple(a.model for a in asked if a.model is not None)
    return reach(environ, models=models), ()


def _mirrors(environ: Mapping[str, str], models: Sequence[str], folder: str) -> tuple[Mirror, ...]:
    """The configured mirrors, each asked once and all at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    from qlora_doctor.config import nearest_config
    from qlora_doctor.gather.endpoints import choose

    try:
        _, *others = choose(environ, nearest_config(folder))
    except UsageError:
        return ()
    if not others:
        return ()

    def asked(endpoint: str) -> Mirror:
        hub = reach({**environ, "HF_ENDPOINT": endpoint}, models=models, timeout=2.0)
        return Mirror(hub.endpoint, hub.reachable, hub.failure, hub.seconds)

    with ThreadPoolExecutor(len(others[:4])) as pool:
        return tuple(pool.map(asked, others[:4]))
