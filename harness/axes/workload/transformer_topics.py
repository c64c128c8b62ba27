"""A byte-level causal language model on CPython's own help texts: sequences of unequal length, padding ignored by the loss."""

from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from harness.axes.workload.base import Workload
from harness.schema.parameters import Count, MultipleOf, Range, Width

PADDING = 256
IGNORED = -100
"""Target of a position that the loss does not count (torch.nn.CrossEntropyLoss, ignore_index)."""


class TransformerTopicsWorkload(Workload):
    """A pre-norm transformer, `layers` deep and `width` wide, on paragraphs of pydoc_data.topics cut to `context` bytes."""

    def __init__(
        self,
        context: Annotated[int, Range(1, 2**14)] = 96,
        width: Annotated[Width, MultipleOf("heads")] = 32,
        heads: Width = 2,
        layers: Annotated[int, Range(1, 1024)] = 2,
        samples: Count | None = None,
    ) -> None:
        super().__init__(
            model=partial(CausalTransformer, context, width, heads, layers),
            loss=nn.CrossEntropyLoss,
            data=partial(load_topics, context),
            samples=samples,
        )


class CausalTransformer(nn.Module):
    """Logits of the next byte at every position."""

    def __init__(self, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.bytes = nn.Embedding(PADDING + 1, width)
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        layer = partial(nn.TransformerEncoderLayer, width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, PADDING)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [samples, context] to logits [samples, 256, context]. Padding follows the text, so that the mask hides it."""
        hidden = self.bytes(tokens) + self.positions
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(hidden))
        return logits.transpose(1, 2)


def load_topics(context: int) -> tuple[Tensor, Tensor]:
    """Tokens [samples, context] and targets, the next byte, of every different paragraph of at least two bytes."""
    sequences = [paragraph[: context + 1] for paragraph in _paragraphs()]
    tokens = torch.full((len(sequences), context), PADDING)
    targets = torch.full((len(sequences), context), IGNORED)
    for row, sequence in enumerate(sequences):
        text = torch.tensor(list(sequence))
        tokens[row, : len(text) - 1] = text[:-1]
        targets[row, : len(text) - 1] = text[1:]
    return tokens, targets


def _paragraphs() -> list[bytes]:
    from pydoc_data.topics import topics

    paragraphs = (paragraph.strip() for topic in sorted(topics) for paragraph in topics[topic].split("\n\n"))
    return [text for text in (paragraph.encode() for paragraph in dict.fromkeys(paragraphs)) if len(text) > 1]
