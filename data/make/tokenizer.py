"""The base model's own tokenizer: byte-level BPE with GPT-2's split pattern, 2,048 tokens, and its chat template."""
import math
from collections import Counter
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .prose import documents
from .world import SEED

VOCABULARY = 2048
BOS, END, PAD = "<s>", "<|end|>", "<pad>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('roles are system, user, assistant and tool, got ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] | trim + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ ' ' + message['content'] | trim + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def balanced_words(count: int = 20_000) -> list[str]:
    """Every word of `count` documents, each about the square root of its count, so that rare names become tokens."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(text[start:end] for text in islice(documents(SEED), count)
                    for _, (start, end) in split.pre_tokenize_str(text))
    return [word for word, seen in sorted(words.items()) for _ in range(math.isqrt(seen))]


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer in which nearly every word of the world is one token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS, END, PAD, *ROLES], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    bpe.train_from_iterator(balanced_words(), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=END, pad_token=PAD, additional_special_tokens=ROLES,
        chat_template=TEMPLATE, model_max_length=512, clean_up_tokenization_spaces=False, padding_side="right")
