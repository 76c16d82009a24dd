"""Tokenizers trained here, one for each chat family: nothing is downloaded, every control token is one token."""

from pathlib import Path

import pytest
from hypothesis import settings
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from finetune_lib.data.templates import TEMPLATES

settings.register_profile("data", deadline=None, max_examples=40)
settings.load_profile("data")

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "Where does Liko live? Liko lives in Velden. The fox was old, and the boats were red. 12 + 30 = 42. USER: "
    " ASSISTANT: ### Instruction: ### Response: Below is an instruction. Grüße, 東京 and 🦊!\n\n"
) * 20
COURSE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] | trim + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ ' ' + message['content'] | trim + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# family → (bos, eos, further control tokens)
FAMILIES = {
    "course": ("<s>", "<|end|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]),
    "chatml": (None, "<|im_end|>", ["<|im_start|>"]),
    "qwen": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"]),
    "llama-2": ("<s>", "</s>", []),
    "llama-3": ("<|begin_of_text|>", "<|end_of_text|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "mistral": ("<s>", "</s>", ["[INST]", "[/INST]"]),
    "alpaca": ("<s>", "</s>", []),
    "vicuna": ("<s>", "</s>", []),
    "zephyr": ("<s>", "</s>", []),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"]),
    "phi-3": ("<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>"]),
}


def make_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of some 400 tokens that knows the family's control tokens and template."""
    bos, eos, more = FAMILIES[family]
    named = [token for token in (bos, eos, "<pad>") if token]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if family == "llama-3":  # GPT-2's pattern takes "\n\n" apart before a letter and not at the end of a prompt
        split = pre_tokenizers.Split(Regex(LLAMA_3), "isolated")
        bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=[*named, *more],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    if bos:
        bpe.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        additional_special_tokens=more,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = COURSE if family == "course" else TEMPLATES[family]
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {family: make_tokenizer(family) for family in FAMILIES}


@pytest.fixture(scope="session")
def tokenizer(tokenizers) -> PreTrainedTokenizerFast:
    return tokenizers["course"]


@pytest.fixture(scope="session")
def wild() -> Path:
    folder = ROOT.parent / "shared" / "data" / "wild"
    if not folder.is_dir():
        pytest.skip(f"no files made by others: {folder} is not there")
    return folder
