"""The network: embedding, decoder layers, final norm, head - and the MTP modules where asked for.

Legend: T flat tokens, D hidden, V vocabulary. Parameter names are Hugging Face's, but experts are stacked
(`mlp.experts.gate_proj` [E, out, in]). What a token may see is the context's business (model/context.py), so one
network trains on rows, prefills in chunks and decodes from a cache.
"""

from __future__ import annotations

from torch import Tensor, nn

from shoal.model.config import ModelConfig
from shoal.model.context import TokenContext
from shoal.model.layer import DecoderLayer
from shoal.model.mtp import MTPLayer
from shoal.model.norm import RMSNorm
from shoal.model.rope import RotaryEmbedding


class Decoder(nn.Module):
    """What the names call `model`: everything but the head. MTP modules follow the layers in `layers`."""

    def __init__(self, config: ModelConfig, *, mtp: bool):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        if mtp:
            modules = range(config.num_hidden_layers, config.num_layers_with_mtp)
            self.layers.extend(MTPLayer(config, layer) for layer in modules)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class CausalLM(nn.Module):
    """A causal language model of any supported family. `state_dict()` is the whole truth about it.

    The weights are torch's defaults until `init_weights` (model/init.py) or a checkpoint fills them.
    """

    def __init__(self, config: ModelConfig, *, mtp: bool = False):
        super().__init__()
        self.config = config
        self.mtp_modules = config.num_nextn_predict_layers if mtp else 0
        self.model = Decoder(config, mtp=mtp)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rotary = RotaryEmbedding(config)

    def forward(self, input_ids_T: Tensor, context: TokenContext) -> Tensor:
        """Token ids -> hidden states [T, D] after the final norm."""
        rotation = self.rotary(context.position_ids_T)
        x_TD = self.model.embed_tokens(input_ids_T)
        for layer in self.model.layers[: self.config.num_hidden_layers]:
            x_TD = layer(x_TD, rotation, context)
        return self.model.norm(x_TD)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """[T, D] -> [T, V], of the main network and of MTP modules alike."""
        return self.lm_head(hidden_TD)

    def mtp_forward(self, k: int, hidden_TD: Tensor, next_ids_T: Tensor, context: TokenContext) -> Tensor:
        """Hidden states of MTP module `k` (from 0), ready for `logits`, which then predict token i + k + 2.

        hidden [T, D]: what `forward` returned, after the final norm (k = 0), or what module k - 1 returned, after
        its `shared_head.norm` - as transformers and (for k = 0) vLLM do. next_ids [T]: token i + k + 1 of each
        position i. Positions stay those of `hidden`: RoPE sees only differences.
        """
        layer = self.model.layers[self.config.num_hidden_layers + k]
        assert isinstance(layer, MTPLayer)
        embedding_TD = self.model.embed_tokens(next_ids_T)
        return layer.predict(embedding_TD, hidden_TD, self.rotary(context.position_ids_T), context)
