"""QD337: the room that a download and its conversion need together."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.model_parts import GIB, by_transformers, model_of, original_llava, weight_files
from qlora_doctor.errors import UnknownFact
from qlora_doctor.facts import Facts, known
from qlora_doctor.families import known_model
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check
from qlora_doctor.request import LoadRequest

# The vision tower that LLaVA takes from another repository: 1.6 GiB as a download, 0.6 GiB of it are written.
TOWER = int(2.2 * GIB)


@check(
    "QD337",
    needs=["model", "hub", "disks"],
    since="0.2",
    requires=["QD201", "QD202", "QD205", "QD206", "QD310", "QD314"],
)
def no_room_for_the_download_and_its_conversion(facts: Facts, request: LoadRequest) -> Iterator[Finding]:
    """A model of the Hub must be converted before it loads, and the disk holds the download, but not both copies.

    For a fine-tune in the original LLaVA layout without a converted twin, `load_quantized` and `qlora-core convert` download
    the weights, take the vision tower from its own repository, and write everything anew: twice the size, and about 2.2 GiB.
    The download alone fits (another check says where it does not), so the disk fills up at the very end.

    Silent where the Hub has the converted model, which is taken instead, and where nothing is to be converted.

    Fix: free room; `qlora-doctor clean` lists what can go, with the sizes: other models and revisions in the cache, downloads
    that were broken off, checkpoints of this project.
    """
    model = model_of(facts, request)
    if model.origin != "hub" or known_model(model.name) or not original_llava(model) or not by_transformers(request):
        return
    asked = next((r for r in facts.hub.repositories if r.name == model.name), None)
    if asked is None or asked.to_download is None:
        raise UnknownFact("hub.repositories", f"what is still to be downloaded of {model.name}")
    written = sum(f.size for f in weight_files(model))
    needed = asked.to_download + written + TOWER
    disk = next((d for d in facts.disks if d.purpose == "hf-cache"), None)
    if disk is None:
        raise UnknownFact("disks", "the disk of the Hub cache was not read")
    free = known(disk.free, f"free space of {disk.path}")
    if free < needed:
        yield Finding(
            "{model} is downloaded ({download} GiB) and then converted ({written} GiB more, and the vision tower), and {path} has "
            "{free} GiB free: free some room (`qlora-doctor clean` lists what can go)",
            {
                "model": model.name,
                "download": f"{asked.to_download / GIB:.1f}",
                "written": f"{written / GIB:.1f}",
                "free": f"{free / GIB:.1f}",
                "path": disk.path,
            },
            severity="warning",
            site=request.site,
            fixes=(Advice("see what can be deleted, with the sizes", "qlora-doctor clean"),),
        )


CHECKS: tuple[Check, ...] = (no_room_for_the_download_and_its_conversion,)
