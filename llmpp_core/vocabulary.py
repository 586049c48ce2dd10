"""Vocabularies: text to token identifiers and back, one for both languages of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmpp_core.transformer import BOS, EOS, PAD, UNK

_SPECIAL = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>", UNK: "<unk>"}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer with the special tokens of `llmpp_core.transformer` in front.

    Make one with `Vocabulary.subwords` or `Vocabulary.morphemes`.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        The trained tokenizer.
    """

    tokenizer: Tokenizer

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    @classmethod
    def subwords(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """Train byte-pair encoding with at most `size` tokens on the sentences of both languages."""
        tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL[UNK]))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(_SPECIAL.values()), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def morphemes(cls, texts: Iterable[str]) -> Vocabulary:
        """Take every morpheme of the sentences as a token; words part at spaces, morphemes before hyphens."""
        tokenizer = Tokenizer(models.WordLevel(unk_token=_SPECIAL[UNK]))
        split = pre_tokenizers.Split("-", "merged_with_next")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
        # Words come back with spaces between all morphemes; those that begin with a hyphen lose theirs.
        tokenizer.decoder = decoders.Sequence([_spaced(), decoders.Fuse(), decoders.Replace(" -", "-"), decoders.Strip(" ", 1, 0)])
        trainer = trainers.WordLevelTrainer(special_tokens=list(_SPECIAL.values()), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token identifiers of each sentence, without markers."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, sentences: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each row of token identifiers, special tokens left out."""
        return self.tokenizer.decode_batch([list(ids) for ids in sentences])


def _spaced() -> decoders.Decoder:
    return decoders.Replace(Regex("^"), " ")
