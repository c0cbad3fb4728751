"""Families whose captions go through CLIP: 75 tokens at a time, and perhaps not equally weighty words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from engine.memory import sent
from engine.models.family import BaseModel
from engine.models.weights import weighted_ids


class ClipModel(BaseModel):
    """A loaded base model whose text encoders are CLIP's."""

    text_blocks: ClassVar[tuple[str, ...]] = ("CLIPAttention", "CLIPSdpaAttention", "CLIPMLP")

    def __init__(
        self,
        unet: Any,
        vae: Any,
        text_encoders: dict[str, Any],
        tokenizers: Sequence[Any],
        *,
        clip_skip: int = 1,
        maximum_tokens: int = 75,
    ) -> None:
        super().__init__(unet, vae, text_encoders, tokenizers)
        self.clip_skip, self.maximum_tokens = clip_skip, maximum_tokens

    def weigh(self, hidden_states: Tensor, which: int, captions: Sequence[str]) -> Tensor:
        """The hidden states of each word times the weight that the caption gives it."""
        if not self.weighted_captions:
            return hidden_states
        _, weights = weighted_ids(self.tokenizers[which], captions, self.maximum_tokens)
        weights = sent(weights[:, : hidden_states.shape[1]], hidden_states.device).to(hidden_states.dtype)
        return hidden_states * weights[..., None]

    def encode(self, which: int, encoder: Any, captions: Sequence[str], padded: bool) -> tuple[Any, int]:
        """The outputs of text encoder `which` for all chunks of all captions, and the number of chunks of each."""
        ids = (
            self.token_ids(which, captions)
            if padded
            else self.token_ids(which, captions)[..., : self.longest(captions)]
        )
        return encoder(sent(ids.flatten(0, 1), encoder.device), output_hidden_states=True), ids.shape[1]

    def token_ids(self, which: int, captions: Sequence[str]) -> Tensor:
        """Token numbers [batch, chunks, 77] of the captions for tokenizer `which`; what does not fit is cut off.

        The encoders read 75 tokens at a time, between a begin and an end; longer captions go through in chunks.
        """
        tokenizer, most = self.tokenizers[which], self.maximum_tokens + 2
        ids: Tensor
        if self.weighted_captions:
            ids, _ = weighted_ids(tokenizer, captions, self.maximum_tokens)
        else:
            ids = tokenizer(
                list(captions), padding="max_length", truncation=True, max_length=most, return_tensors="pt"
            ).input_ids
        begin, end = ids[:, :1], ids[:, -1:]
        chunks = torch.stack(
            [torch.cat([begin, ids[:, at : at + 75], end], dim=1) for at in range(1, self.maximum_tokens, 75)], dim=1
        )
        if tokenizer.pad_token_id != tokenizer.eos_token_id and self.maximum_tokens > 75:
            # Where padding is not the end mark, every chunk still needs one, as kohya sets it.
            inside = (chunks[..., -2] != tokenizer.pad_token_id) & (chunks[..., -2] != tokenizer.eos_token_id)
            chunks[..., -1] = torch.where(inside, tokenizer.eos_token_id, chunks[..., -1])
            empty = chunks[..., 1] == tokenizer.pad_token_id
            chunks[..., 1] = torch.where(empty, tokenizer.eos_token_id, chunks[..., 1])
        return chunks

    def longest(self, captions: Sequence[str]) -> int:
        """Tokens of the longest caption with its begin and its end; all of a family's tokenizers count alike."""
        ids = self.token_ids(0, captions)[:, 0]
        return int((ids == self.tokenizers[0].eos_token_id).int().argmax(dim=1).max()) + 1


def final_layer_norm(encoder: Any) -> nn.Module:
    """The norm after a CLIP text encoder's last layer, wherever this version of transformers keeps it."""
    norm: nn.Module = getattr(encoder, "text_model", encoder).final_layer_norm
    return norm


def joined(hidden_states: Tensor, chunks: int) -> Tensor:
    """The chunks of each caption behind one another, [batch, 75 * chunks + 2, width]: one begin, one end.

    hidden_states: [batch * chunks, 77, width].
    """
    if chunks == 1:
        return hidden_states
    each = hidden_states.view(-1, chunks, *hidden_states.shape[1:])
    return torch.cat([each[:, 0, :1], each[:, :, 1:-1].flatten(1, 2), each[:, -1, -1:]], dim=1)
