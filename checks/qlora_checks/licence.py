"""QD338: the terms under which a model may be used."""

from __future__ import annotations

from collections.abc import Iterator

from qlora_checks.hub import hub_models
from qlora_doctor.facts import Facts, Repository
from qlora_doctor.finding import Finding
from qlora_doctor.fix import Advice
from qlora_doctor.registry import Check, check
from qlora_doctor.request import Requests

# Licences, by the Hub's own words, that leave free what is done with the model and what is trained from it.
_FREE = frozenset(
    [
        "apache-2.0",
        "mit",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "isc",
        "zlib",
        "unlicense",
        "wtfpl",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-3.0",
        "cc-by-2.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "postgresql",
        "ecl-2.0",
        "ncsa",
    ]
)


@check("QD338", needs=["hub"], since="0.2", requires=["QD201", "QD202", "QD205"])
def terms_of_the_model(facts: Facts, requests: Requests) -> Iterator[Finding]:
    """The model that the run loads comes with a licence of its own, or its repository asks for terms to be accepted.

    Named here, so that it is read before the night of training: some licences forbid commercial use (`cc-by-nc-4.0`, most models
    trained with LLaVA's data), some ask for a name or a notice on whatever is trained from the model (`llama3.1`, `gemma`). An
    adapter counts as such a work. Whether the terms suit you is for you to judge; nothing is changed.

    For information. Silent where the licence leaves all that free (Apache, MIT, BSD and the like), and where the
    repository states none.

    Source: the model card's `license`, and `gated`, in the Hub's answer for the repository.
    """
    wanted = hub_models(requests)
    for repository in facts.hub.repositories:
        if repository.name in wanted and repository.status == "ok" and (text := _text(repository)):
            yield Finding(
                text,
                {
                    "model": repository.name,
                    "licence": repository.licence,
                    "page": f"{facts.hub.endpoint}/{repository.name}",
                },
                severity="info",
                fixes=(Advice("read the terms on the model's page"),),
            )


def _text(repository: Repository) -> str:
    own = bool(repository.licence) and repository.licence.lower() not in _FREE
    if repository.terms:
        if own:
            return "{model} is gated, and its licence is {licence}: read the terms on {page} before you publish what you train"
        return "{model} is gated: the terms that were accepted on {page} hold for what is trained from it too"
    if own:
        return "{model} has the licence {licence}: read on {page} what it asks of the adapter that you train"
    return ""


CHECKS: tuple[Check, ...] = (terms_of_the_model,)
