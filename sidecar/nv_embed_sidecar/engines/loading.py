"""
Which engine computes a model.

In:  a model's card, the operator's settings      Out: its engine
"""

from nv_embed.errors import InvalidInput
from nv_embed_sidecar.cards import DECODERS, Card, weights
from nv_embed_sidecar.engines import Engine, bert, checkpoint, torch_device
from nv_embed_sidecar.engines.bert import Bert, BertConfig
from nv_embed_sidecar.engines.llama import Llama, LlamaConfig
from nv_embed_sidecar.engines.torch_device import TorchDevice
from nv_embed_sidecar.engines.torch_engine import Model, TorchEngine
from nv_embed_sidecar.engines.transformers_encoder import TransformersEncoder
from nv_embed_sidecar.pooling import MEAN
from nv_embed_sidecar.settings import Settings


def load(card: Card, settings: Settings) -> Engine:
    """The engine for a model, with its weights in memory.

    Raises:
        InvalidInput: the model, or the device for it, is not one that is supported.
    """
    device = torch_device.choose(settings.device, settings.precision, settings.threads)
    if card.architecture in DECODERS and card.pooling != MEAN:
        raise InvalidInput(f"the model's pooling is {card.pooling}, which is not supported for this architecture", hint="supported is mean")
    return TorchEngine(lambda: _model(card, device), card.pooling, device, batch_tokens=settings.batch_tokens)


def _model(card: Card, device: TorchDevice) -> Model:
    if card.architecture in DECODERS:
        config = LlamaConfig.read(card.config)
        with checkpoint.opened(weights(card.directory)) as opened:
            llama = Llama(config, card.max_tokens, opened, device)
            opened.finish()
        return llama
    if bert.is_plain(card.config):
        with checkpoint.opened(weights(card.directory)) as opened:
            plain = Bert(BertConfig.read(card.config), opened, device)
            opened.finish()
        return plain
    return TransformersEncoder.load(card.directory, card.architecture, device)
