"""
The pages for operators say what the sidecar takes and serves, and which tests show what.
"""

import re
from pathlib import Path

from nv_embed_sidecar.registry import MINILM, Known, known_as
from nv_embed_sidecar.settings import Settings, option

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/operations.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of each row of the table below a heading."""
    (section,) = re.findall(rf"^### {heading}\n(.*?)^#", PAGE, re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_setting_is_an_option_in_the_table() -> None:
    named = {name for row in table("Options") for name in re.findall(r"--[a-z-]+", row[0])}
    assert {"--model" if name == "models" else option(name) for name in Settings.model_fields} <= named


def test_the_table_of_models_is_the_registrys() -> None:
    rows = {re.findall("`(.*?)`", row[0])[-1]: row[1:] for row in table("Models") if "`fake`" not in row[0]}
    family = {"nvidia/nv-embedqa-e5-v5", "nvidia/nv-embedqa-e5-v4", "intfloat/e5-large-unsupervised", f"sentence-transformers/{MINILM}"}
    assert family <= set(rows)
    for name, (dims, tokens, prompts) in rows.items():
        known = known_as(name)
        assert known is not None, name
        assert dims == ", ".join(map(str, (known.width, *known.dims)))
        assert tokens == f"{known.max_tokens:,}"
        assert prompts == expected_prompts(known)


def expected_prompts(known: Known) -> str:
    if known.query_prompt:
        return f"`{known.query_prompt}`, `{known.passage_prompt}`"
    return "none" if known.name == MINILM else "by configuration"


def test_what_the_page_on_security_says_is_shown_by_tests_that_there_are() -> None:
    page = (ROOT / "docs/security.md").read_text()
    named = set(re.findall(r"`(test_\w+\.py)`", page))
    assert len(named) > 10
    assert named <= {file.name for file in (ROOT / "tests").rglob("test_*.py")}
