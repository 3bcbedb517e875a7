"""A llama decoder: token ids and positions in, logits out; and what decoders of every family share.

Dimensions: B rows, T new tokens, S cache slots, H_q query heads, H_kv key and value heads, G = H_q / H_kv query heads
a KV head, D dimensions a head, V ids. Modules carry the names of the tensors in a Hugging Face checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cache import Cache
from .config import Config, DecoderConfig
from .errors import InputError
from .rope import cos_sin, rotate, wide

ATTENTION_FORMS = ("eager", "sdpa")
ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),  # two names of one function
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}


class RMSNorm(nn.Module):
    """Divide by the root mean square, then scale (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed ``x`` [..., size]. Squares overflow float16 at 256, so this works in the wide format."""
        y = x.to(wide(x.dtype))
        y = y * torch.rsqrt(y.square().mean(dim=-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


class CausalAttention(nn.Module):
    """From queries, keys and values to what each token gathers (Vaswani et al. 2017; Ainslie et al. 2023, GQA).

    ``form`` is "eager" (written out) or "sdpa" (torch's fused operator). Both take the mask from ``visible``.
    """

    def __init__(self, config: Config, layer_index: int, form: str = "eager") -> None:
        """Raise InputError if ``form`` is not one of ``ATTENTION_FORMS``."""
        super().__init__()
        if form not in ATTENTION_FORMS:
            raise InputError(f"Attention form {form!r} is not known; it may be one of: {ATTENTION_FORMS}.")
        self.layer_index, self.form = layer_index, form
        self.scale = config.head_dim**-0.5
        self.window = config.sliding_window

    def gather(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Return the mixed values [B, T, H_q * D]; k and v [B, T, H_kv, D] enter the cache, q is [B, T, H_q, D]."""
        k, v = cache.write(self.layer_index, positions, k, v)  # [B, S, H_kv, D]
        # A padding query looks as if from position 0, so that no row of the softmax is empty (and NaN).
        visible = self.visible(positions.clamp(min=0), torch.arange(k.shape[1], device=k.device))
        heads = self.attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), visible)  # [B, H_q, T, D]
        return heads.transpose(1, 2).flatten(2)  # [B, T, H_q * D]

    def visible(self, positions: Tensor, slots: Tensor) -> Tensor:
        """Return which of ``slots`` [S] a query at ``positions`` [B, T] may see, as bool [B, T, S]."""
        visible = slots <= positions[:, :, None]
        if self.window is not None:  # its own slot and the window - 1 before it
            visible = visible & (slots > positions[:, :, None] - self.window)
        return visible

    def attend(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """Return the weighted values [B, H_q, T, D] for q [B, H_q, T, D], k and v [B, H_kv, S, D]."""
        if self.form == "sdpa":
            mask = visible[:, None]  # [B, 1, T, S]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, enable_gqa=True)
        weights = self.weights(q, k, visible)  # [B, H_kv, G, T, S]
        return (weights @ v[:, :, None]).flatten(1, 2)  # [B, H_kv, G, T, D] to [B, H_q, T, D]

    def weights(self, q: Tensor, k: Tensor, visible: Tensor) -> Tensor:
        """Return the attention weights of the eager form, [B, H_kv, G, T, S]; query head h reads KV head h // G."""
        q = q.unflatten(1, (k.shape[1], -1))  # [B, H_q, T, D] to [B, H_kv, G, T, D]
        scores = (q @ k[:, :, None].transpose(-1, -2)).to(wide(q.dtype)) * self.scale  # [B, H_kv, G, T, S]
        scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
        return scores.softmax(dim=-1).to(q.dtype)


class Attention(CausalAttention):
    """Self-attention of a llama: rotary embedding, and query heads that share KV heads."""

    def __init__(self, config: DecoderConfig, layer_index: int, form: str = "eager") -> None:
        super().__init__(config, layer_index, form)
        self.config = config
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        """Return what each token gathers, [B, T, hidden_size]; the new keys and values enter the cache."""
        q, k, v = self.project(x, cos, sin)
        return self.o_proj(self.gather(q, k, v, positions, cache))  # [B, T, H_q * D] to [B, T, hidden_size]

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, T, H_q, D], keys and values [B, T, H_kv, D]; queries and keys are turned, values not."""
        D = self.config.head_dim
        q = self.q_proj(x).unflatten(-1, (-1, D))  # [B, T, H_q * D] to [B, T, H_q, D]
        k = self.k_proj(x).unflatten(-1, (-1, D))
        v = self.v_proj(x).unflatten(-1, (-1, D))
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class MLP(nn.Module):
    """The gated feed-forward layer (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = ACTIVATION[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` [B, T, hidden_size] to the same shape."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside the residual stream (pre-norm; Xiong et al. 2020)."""

    def __init__(self, config: DecoderConfig, attention: Attention) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, cache: Cache) -> Tensor:
        """Map ``x`` [B, T, hidden_size] to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), positions, cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class CausalLM(nn.Module):
    """What ``generate`` needs of a model of any family. For inference only: no parameter asks for a gradient."""

    config: Config
    embed_tokens: nn.Embedding
    kv_heads: int | None = None
    """KV heads that this process caches, where it has a share of the model (``parallel.py``); None: all of them."""

    def new_cache(self, rows: int, capacity: int) -> Cache:
        """Return an empty cache for ``rows`` rows of up to ``capacity`` tokens, in this model's format and place."""
        weight = self.embed_tokens.weight
        return Cache(self.config, rows, capacity, weight.dtype, weight.device, self.kv_heads)

    @property
    def head(self) -> Tensor:
        """The weight that makes logits, [V, hidden_size]; that of the embedding, where both are tied."""
        return self.embed_tokens.weight

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [..., V] of ``x`` [..., hidden_size], what the last norm gave."""
        return F.linear(x, self.head)

    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        """Return logits [B, T, V]; with ``last`` those of every row's last token alone, [B, V].

        Args:
            tokens: ids, [B, T]; any valid id where there is padding.
            positions: what ``cache.reserve`` gave for these tokens, [B, T]; -1 is padding, whose logits mean nothing.
            cache: takes the new keys and values.
            last: leave out the head's work for all but the last token, as generation does.
        """
        raise NotImplementedError


def last_of_each(x: Tensor, positions: Tensor) -> Tensor:
    """Return the last token's entry of each row, [B, hidden_size], for ``x`` [B, T, hidden_size]."""
    rows = torch.arange(len(x), device=x.device)
    return x[rows, positions.argmax(dim=1)]  # positions grow along a row


class Decoder(CausalLM):
    """A whole llama, or phi3."""

    config: DecoderConfig

    def __init__(
        self, config: DecoderConfig, attention: str = "eager", attention_class: type[Attention] = Attention
    ) -> None:
        """Build the model with random weights; ``checkpoint.load`` builds one with those of a checkpoint.

        Raises:
            InputError: ``attention`` is not one of ``ATTENTION_FORMS``.
        """
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Block(config, attention_class(config, index, attention)) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.requires_grad_(False)

    @property
    def head(self) -> Tensor:
        """The weight that makes logits, [V, hidden_size]."""
        return self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, tokens: Tensor, positions: Tensor, cache: Cache, last: bool = False) -> Tensor:
        """Return logits [B, T, V], or [B, V]; see ``CausalLM.forward``."""
        x = self.embed_tokens(tokens)  # [B, T, hidden_size]
        cos, sin = cos_sin(positions.clamp(min=0), self.config.rope, self.config.head_dim, x.dtype)
        for block in self.layers:
            x = block(x, positions, cos, sin, cache)
        return self.logits(self.norm(last_of_each(x, positions) if last else x))
