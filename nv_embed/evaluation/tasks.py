"""
Retrieval tasks of MTEB, by name: `mteb:SciFact`.

Their data come from the network, by the package `mteb`, which is large and not one of ours: whoever wants them installs it.

In:  a task's name      Out: a `Collection`
"""

from typing import Any

from nv_embed.evaluation import languages
from nv_embed.evaluation.collection import Collection, Document
from nv_embed.evaluation.errors import EvaluationFailed

PREFIX = "mteb:"
LANGUAGES = {
    "ara": "ar", "deu": "de", "ell": "el", "eng": "en", "fra": "fr", "hin": "hi", "ita": "it", "nld": "nl", "por": "pt", "ron": "ro", "rus": "ru",
    "spa": "es", "swe": "sv", "tha": "th", "tur": "tr", "vie": "vi", "cmn": "zh", "zho": "zh",
}  # fmt: skip
"""The codes of three letters that MTEB uses, where words are searched in the language's own way."""


def read_task(name: str, split: str) -> Collection:
    """Fetch a task of one language.

    Raises:
        EvaluationFailed: the package is missing, the task is unknown, or its data cannot be fetched.
    """
    try:
        import mteb
    except ModuleNotFoundError as error:
        raise EvaluationFailed(
            f"{PREFIX}{name} is fetched by the Python package mteb, and {error.name} is not installed: `pip install mteb`, or give a folder"
        ) from None
    try:
        task: Any = mteb.get_task(name)
        task.load_data()
        task.convert_v1_dataset_format_to_v2()
    except Exception as error:  # noqa: BLE001
        # mteb, datasets and the hub's client raise what they like.
        said = str(error).splitlines()
        raise EvaluationFailed(
            f"{PREFIX}{name} could not be fetched: {said[0] if said else type(error).__name__} (it needs the network and a name that mteb knows)"
        ) from None
    # Neither is asked for what it lacks: both make it up.
    if "default" not in task.dataset:
        raise EvaluationFailed(f"{PREFIX}{name} has parts of its own ({', '.join(task.dataset)}): only tasks of one language can be evaluated")
    if split not in task.dataset["default"]:
        raise EvaluationFailed(f"{PREFIX}{name} has no split {split}: its splits are {', '.join(task.dataset['default'])}")
    return from_task(name, task.dataset["default"][split], LANGUAGES.get(task.metadata.languages[0][:3], languages.DEFAULT))


def from_task(name: str, data: Any, language: str) -> Collection:
    """Of a split's data as MTEB 2 gives them: rows with id, title and text, and grades by query."""
    grades = {query: dict(each) for query, each in data["relevant_docs"].items()}
    return Collection(
        name,
        {row["id"]: Document(row.get("title") or "", row["text"], language) for row in data["corpus"]},
        {row["id"]: row["text"] for row in data["queries"] if row["id"] in grades},
        grades,
        language,
    )
