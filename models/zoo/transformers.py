"""Transformers: ViT with fused qkv, BERT, and a decoder with grouped-query attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class FusedAttention(nn.Module):
    """Self-attention with one projection for query, key and value."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = ((query * self.scale) @ key.transpose(-2, -1)).softmax(-1)
        return self.project((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class PreNormBlock(nn.Module):
    """Attention and a GELU feed-forward network, each normalised before and added after."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = FusedAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021); by default DeiT-tiny's size."""

    def __init__(
        self,
        image: int = 224,
        patch: int = 16,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(PreNormBlock(width, heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class BertLayer(nn.Module):
    """Post-normalised encoder layer with separate query, key and value projections."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.size = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, S, H*D]` as `[N, H, S, D]`."""
        return x.view(x.shape[0], x.shape[1], self.heads, self.size).permute(0, 2, 1, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.value(x)
        scores = query @ key.transpose(-1, -2) / self.size**0.5 + mask
        context = (scores.softmax(-1) @ self.split(value)).permute(0, 2, 1, 3).contiguous()
        context = context.view(x.shape[0], x.shape[1], self.heads * self.size)
        x = self.norm1(x + self.output(context))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))


class Bert(nn.Module):
    """BERT (Devlin et al. 2019), by default 4 layers of width 256, as a classifier.

    Inputs are token ids, attention mask and segment ids, each `[N, S]`.
    """

    def __init__(
        self,
        vocabulary: int = 30522,
        positions: int = 512,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        hidden: int = 1024,
        classes: int = 2,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(2, width)
        self.register_buffer("ids", torch.arange(positions)[None])
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(width, heads, hidden) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        positions = self.positions(self.ids[:, : input_ids.shape[1]])
        x = self.words(input_ids) + self.segments(token_type_ids) + positions
        x = self.norm(x)
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


class RMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon))


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], -1)


class GroupedQueryAttention(nn.Module):
    """Causal attention; `heads // kv_heads` query heads share each key and value head."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.query = nn.Linear(width, heads * self.size, bias=False)
        self.key = nn.Linear(width, kv_heads * self.size, bias=False)
        self.value = nn.Linear(width, kv_heads * self.size, bias=False)
        self.output = nn.Linear(heads * self.size, width, bias=False)

    def repeat(self, x: torch.Tensor) -> torch.Tensor:
        """`[N, KV, S, D]` as `[N, KV * R, S, D]`, each head `R` times in a row."""
        batch, kv_heads, tokens, size = x.shape
        times = self.heads // self.kv_heads
        x = x[:, :, None].expand(batch, kv_heads, times, tokens, size)
        return x.reshape(batch, self.heads, tokens, size)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        batch, tokens, _ = x.shape
        query = self.query(x).view(batch, tokens, self.heads, self.size).transpose(1, 2)
        key = self.key(x).view(batch, tokens, self.kv_heads, self.size).transpose(1, 2)
        value = self.value(x).view(batch, tokens, self.kv_heads, self.size).transpose(1, 2)
        query = query * cos + rotate_half(query) * sin
        key = key * cos + rotate_half(key) * sin
        scores = query @ self.repeat(key).transpose(2, 3) * self.size**-0.5 + mask
        context = scores.softmax(-1) @ self.repeat(value)
        return self.output(context.transpose(1, 2).reshape(batch, tokens, self.heads * self.size))


class DecoderLayer(nn.Module):
    """Pre-normalised attention and a gated feed-forward network (SwiGLU, Shazeer 2020)."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = GroupedQueryAttention(width, heads, kv_heads)
        self.norm2 = RMSNorm(width)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        x = x + self.attention(self.norm1(x), cos, sin, mask)
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """A small LLaMA-like language model; output logits `[N, S, vocabulary]`.

    Rotary position embedding (Su et al. 2021), RMSNorm, grouped-query attention
    (Ainslie et al. 2023); the embedding is also the output projection.
    """

    def __init__(
        self,
        vocabulary: int = 32000,
        width: int = 512,
        depth: int = 8,
        heads: int = 8,
        kv_heads: int = 4,
        hidden: int = 1408,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.embed.initial_deviation = width**-0.5  # it also makes the logits
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, kv_heads, hidden) for _ in range(depth)
        )
        self.norm = RMSNorm(width)
        size = width // heads
        frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
        self.register_buffer("frequencies", frequencies)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(input_ids.shape[1])
        angles = positions[:, None].float() * self.frequencies[None]
        angles = torch.cat([angles, angles], -1)
        future = (positions[None, :] > positions[:, None]).float() * -10000.0
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin(), future)
        return functional.linear(self.norm(x), self.embed.weight)
