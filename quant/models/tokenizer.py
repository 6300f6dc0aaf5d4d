"""Tokenizers: bytes, a Hugging Face tokenizer.json, or byte-level BPE from a GGUF's vocabulary."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HubTokenizer

from bitwright.quant import InputError


class ByteTokenizer:
    """Token = byte of the UTF-8 text."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


class BpeTokenizer:
    """A tokenizer of the `tokenizers` library, without begin or end tokens."""

    def __init__(self, tokenizer: HubTokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def inner(self) -> HubTokenizer:
        """The library's own."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)


# How each pre-tokenizer named by `tokenizer.ggml.pre` cuts text before byte pairs are merged.
# "digits": each digit alone, then GPT-2's pattern; a pattern of its own: that; None: GPT-2's.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": "digits",
    "starcoder": "digits",
    "refact": "digits",
    "command-r": "digits",
    "llama-bpe": _CONTRACTION + r"\p{N}{1,3}" + _OTHERS,
    "qwen2": _CONTRACTION + r"\p{N}" + _OTHERS,
}
_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type


def byte_level_bpe(
    tokens: Sequence[str],
    merges: Sequence[str],
    token_types: Sequence[int],
    pre_tokenizer: str,
    file: Path,
) -> BpeTokenizer:
    """The tokenizer that a GGUF describes by its vocabulary and merges."""
    if pre_tokenizer not in _PRE_TOKENIZERS:
        raise InputError(
            f"{file}: pre-tokenizer {pre_tokenizer!r} is not known; "
            f"can be one of {', '.join(_PRE_TOKENIZERS)}, or load the Hugging Face folder instead"
        )
    pattern = _PRE_TOKENIZERS[pre_tokenizer]
    whole_words = pre_tokenizer == "llama-bpe"  # a word that is a token is not cut further
    try:
        tokenizer = HubTokenizer(
            models.BPE(
                vocab={token: index for index, token in enumerate(tokens)},
                merges=[_pair(merge) for merge in merges],
                ignore_merges=whole_words,
            )
        )
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{file}: its vocabulary and merges do not fit: {error}") from None
    if pattern is None or pattern == "digits":
        cut: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        ]
        if pattern == "digits":
            cut.insert(0, pre_tokenizers.Digits(individual_digits=True))
    else:
        cut = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    for kind, add in (
        (_CONTROL, tokenizer.add_special_tokens),
        (_USER_DEFINED, tokenizer.add_tokens),
    ):
        chosen = (t for t, k in zip(tokens, token_types, strict=True) if k == kind)
        add([AddedToken(token, normalized=False) for token in chosen])
    return BpeTokenizer(tokenizer)


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def from_tokenizer_json(path: Path) -> BpeTokenizer:
    """The tokenizer of a Hugging Face folder."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing; a Hugging Face model folder needs it beside config.json"
        )
    try:
        return BpeTokenizer(HubTokenizer.from_file(str(path)))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path} is not a tokenizer: {error}") from None
