"""
Which engine computes a model.

In:  a model's card, the operator's settings      Out: its engine
"""

from pathlib import Path

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.cards import BERT, DECODERS, Card, weights
from nv_embed_sidecar.engines import Engine, bert, checkpoint, torch_device
from nv_embed_sidecar.engines.bert import Bert, BertConfig
from nv_embed_sidecar.engines.llama import Llama, LlamaConfig
from nv_embed_sidecar.engines.torch_device import TorchDevice
from nv_embed_sidecar.engines.torch_engine import Model, TorchEngine
from nv_embed_sidecar.pooling import MEAN
from nv_embed_sidecar.settings import Settings


def load(card: Card, settings: Settings) -> Engine:
    """The engine for a model, with its weights in memory.

    Raises:
        InvalidInput: the model, or the device for it, is not one that is supported.
    """
    if card.architecture in DECODERS and card.pooling != MEAN:
        raise InvalidInput(f"the model's pooling is {card.pooling}, which is not supported for this architecture", hint="supported is mean")
    device = torch_device.choose(settings.device, settings.precision, settings.threads)
    return TorchEngine(lambda: _model(card, device), card.pooling, device)


def _model(card: Card, device: TorchDevice) -> Model:
    if card.architecture in DECODERS or (card.architecture == BERT and bert.is_plain(card.config)):
        with checkpoint.opened(weights(card.directory)) as opened:
            model = _own(card, opened, device)
            opened.finish()
        return model
    return _other(card.directory, card.architecture, device)


def _own(card: Card, opened: checkpoint.Checkpoint, device: TorchDevice) -> Model:
    if card.architecture in DECODERS:
        return Llama(LlamaConfig.read(card.config), card.max_tokens, opened, device)
    return Bert(BertConfig.read(card.config), opened, device)


def _other(directory: Path, architecture: str, device: TorchDevice) -> Model:
    # Imported here, because it takes seconds, and the modules above do without it.
    from nv_embed_sidecar.engines.transformers_encoder import TransformersEncoder

    if device.precision in torch_device.QUANTIZED:
        raise InvalidInput(f"there is no {device.precision} for a model of the architecture '{architecture}'", hint="serve it with --precision auto")
    return TransformersEncoder.load(directory, architecture, device)
