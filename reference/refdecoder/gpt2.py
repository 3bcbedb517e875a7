"""A gpt2 decoder (Radford et al. 2019): LayerNorm, learned positions, an MLP without a gate, and biases.

Cache, mask and attention are llama's, from ``model.py``, and so is the interface. Modules carry the names of the
tensors in a Hugging Face checkpoint.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache
from .config import GPT2Config
from .model import ACTIVATION, CausalAttention, CausalLM, last_of_each
from .rope import wide


class LayerNorm(nn.Module):
    """Take the mean away, divide by the standard deviation, scale and shift (Ba et al. 2016, arXiv:1607.06450)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed ``x`` [..., size]; statistics are taken in the wide format."""
        y = x.to(wide(x.dtype))
        y = y - y.mean(dim=-1, keepdim=True)
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return (y * self.weight + self.bias).to(x.dtype)


class Projection(nn.Module):
    """x W + b, with W stored [in, out]: the other way round than ``nn.Linear``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=inputs**-0.5))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [..., in] to [..., out]."""
        return F.linear(x, self.weight.T, self.bias)


class GPT2Attention(CausalAttention):
    """Self-attention with one fused projection, and no rotation."""

    def __init__(self, config: GPT2Config, layer_index: int, form: str = "eager") -> None:
        super().__init__(config, layer_index, form)
        self.head_dim = config.head_dim
        self.c_attn = Projection(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Projection(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Return what each token gathers, [B, T, hidden_size]; the new keys and values enter the cache."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, -1, self.head_dim)).unbind(2)  # [B, T, 3, H, D] to 3 [B, T, H, D]
        return self.c_proj(self.gather(q, k, v, positions, cache))  # [B, T, H * D] to [B, T, hidden_size]


class GPT2MLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_fc = Projection(config.hidden_size, config.intermediate_size)
        self.c_proj = Projection(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATION[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, T, hidden_size] to the same shape."""
        return self.c_proj(self.activation(self.c_fc(x)))


class GPT2Block(nn.Module):
    """Attention and MLP, each behind a norm and beside the residual stream."""

    def __init__(self, config: GPT2Config, layer_index: int, form: str) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = GPT2Attention(config, layer_index, form)
        self.ln_2 = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = GPT2MLP(config)

    def forward(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Map ``x`` [B, T, hidden_size] to the same shape."""
        x = x + self.attn(self.ln_1(x), positions, cache)
        return x + self.mlp(self.ln_2(x))


class GPT2(CausalLM):
    """A whole gpt2. The head is the embedding."""

    config: GPT2Config

    def __init__(self, config: GPT2Config, attention: str = "eager") -> None:
        """Build the model with random weights; raise InputError for an unknown form of attention."""
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.h = nn.ModuleList(GPT2Block(config, index, attention) for index in range(config.num_hidden_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.layer_norm_epsilon)
        self.requires_grad_(False)

    @property
    def embed_tokens(self) -> nn.Embedding:  # type: ignore[override]
        """The embedding of tokens, under llama's name."""
        return self.wte

    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        """Return logits [B, T, V], or [B, V]; see ``CausalLM.forward``."""
        x = self.wte(tokens) + self.wpe(positions.clamp(min=0))  # [B, T, hidden_size]; padding reads position 0
        for block in self.h:
            x = block(x, positions, cache)
        return self.logits(self.ln_f(last_of_each(x, positions) if last else x))
