"""Byte-level BPE as our own models use it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PIECES = r"\p{N}|\p{L}+|\s+|[^\s\p{L}\p{N}]"
"""No merge reaches over these: digits and punctuation stay single, so a letter after line feeds is one token."""


def train_bpe(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """A tokeniser of ``vocabulary`` entries, the 256 bytes among them, without special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
