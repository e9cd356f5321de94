"""The tokenizer of all organisms that read: a word is a token."""

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


def word_tokenizer(
    vocabulary: Sequence[str],
    *,
    bos: str = "<bos>",
    eos: str = "<eos>",
    ends: bool = False,
    normalizer: Normalizer | None = None,
    **options: Any,
) -> PreTrainedTokenizerFast:
    """A word a token, between spaces; a text begins with `bos`.

    Args:
        vocabulary: has <pad>, <unk> and `bos`; where it has `eos`, that is the end of a text.
        bos: the word before every text.
        eos: the word after a text.
        ends: put `eos` after every text, as encoders want it.
        normalizer: what is done to a text before it is cut.
        options: of `PreTrainedTokenizerFast`, such as a chat template.
    """
    ids = {word: i for i, word in enumerate(vocabulary)}
    table = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    if normalizer:
        table.normalizer = normalizer
    table.pre_tokenizer = WhitespaceSplit()
    around = (bos, eos) if ends else (bos,)
    table.post_processor = TemplateProcessing(
        single=" ".join([bos, "$A", *around[1:]]), special_tokens=[(word, ids[word]) for word in around]
    )
    special = {"bos_token": bos, "eos_token": eos, "pad_token": "<pad>", "unk_token": "<unk>"}
    known = {name: word for name, word in special.items() if word in ids}
    # Prompts of unequal length end together, so that the next word of all of them is at -1.
    return PreTrainedTokenizerFast(tokenizer_object=table, **{"padding_side": "left"} | known | options)
