"""Vocabularies: text to token identifiers and back, one for both languages of a task."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmpp_core.text.special_tokens import BOS, EOS, PAD, UNK

_SPECIAL = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>", UNK: "<unk>"}
#: What stands for a space in subwords (U+2581).
SPACE_MARK = "\u2581"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A trained tokenizer with the special tokens in front: `subwords` or `morphemes`; the same sentences give the same vocabulary."""

    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        # A sentence that holds the letters "<pad>" must not end there.
        self.tokenizer.encode_special_tokens = True

    def __reduce__(self) -> tuple[Any, ...]:
        return Vocabulary.from_json, (self.to_json(),)

    def to_json(self) -> str:
        """Return the vocabulary as text; `from_json` reads it."""
        return self.tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read what `to_json` wrote; raises ValueError if it is something else."""
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing more specific
            raise ValueError(f"not a vocabulary: {error}") from None
        if [tokenizer.id_to_token(i) for i in _SPECIAL] != list(_SPECIAL.values()):
            raise ValueError(f"not a vocabulary of this package: it does not begin with {' '.join(_SPECIAL.values())}")
        return cls(tokenizer)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    @classmethod
    def subwords(cls, texts: Iterable[str], size: int) -> Vocabulary:
        """Train byte-pair encoding on the sentences of both languages; ValueError if `size`, the most tokens, leaves no room for any.

        Case and punctuation stay; decoding gives back the text in Unicode's composed form with single spaces, as `normalise` does.
        """
        if not isinstance(size, int) or size <= len(_SPECIAL):
            raise ValueError(f"subwords: expected an integer from {len(_SPECIAL) + 1}, got {size!r}")
        tokenizer = Tokenizer(models.BPE(unk_token=_SPECIAL[UNK]))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(_SPECIAL.values()), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        if (n := tokenizer.get_vocab_size()) > size:
            raise ValueError(f"subwords: expected at least {n:,}, as the text has {n - len(_SPECIAL):,} characters, got {size:,}")
        return cls(tokenizer)

    @classmethod
    def morphemes(cls, texts: Iterable[str]) -> Vocabulary:
        """Take every morpheme of the sentences as a token; words part at spaces, morphemes before hyphens."""
        tokenizer = Tokenizer(models.WordLevel(unk_token=_SPECIAL[UNK]))
        split = pre_tokenizers.Split("-", "merged_with_next")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
        # Words come back with spaces between all morphemes; those that begin with a hyphen lose theirs.
        joined = [decoders.Replace(Regex("^"), " "), decoders.Fuse(), decoders.Replace(" -", "-"), decoders.Strip(" ", 1, 0)]
        tokenizer.decoder = decoders.Sequence(joined)
        trainer = trainers.WordLevelTrainer(special_tokens=list(_SPECIAL.values()), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def normalise(self, texts: Iterable[str]) -> list[str]:
        """Return what `decode` gives back where every character of the sentences is known."""
        normaliser = self.tokenizer.normalizer
        return [" ".join((normaliser.normalize_str(text) if normaliser else text).split()) for text in texts]

    @property
    def space_mark(self) -> str:
        """The character that stands for a space, and so cannot be told from one in a text; nothing where there is none."""
        return SPACE_MARK if isinstance(self.tokenizer.decoder, decoders.Metaspace) else ""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token identifiers of each sentence, without markers."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, sentences: Iterable[Sequence[int]]) -> list[str]:
        """Return the text of each row of token identifiers, special tokens left out, unknown ones among them."""
        return [" ".join(text.split()) for text in self.tokenizer.decode_batch([list(ids) for ids in sentences])]
