"""Strangers' templates are tried under limits; roles that they drop or repeat are named; tokenizers fit their model."""

import re

import pytest

from finetune_lib.core import ConfigError
from finetune_lib.data.chat import tokenize
from finetune_lib.data.templates import (
    TEMPLATES,
    UntrainableError,
    check_limits,
    check_vocabulary,
    role_problem,
    vocabulary_hash,
)
from finetune_lib.data.turns import Conversation, Turn

LOOPS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3
SMALL = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{ 'A' * 10**9 }}", "MemoryError"),
        (LOOPS, "stopped"),
        ("{% set x = namespace(v='A') %}{% for i in range(40) %}{% set x.v = x.v ~ x.v %}{% endfor %}", "MemoryError"),
        ("{{ 'a' | center(3000000) }}", "3,000,003 characters"),
        ("{% if messages | length > 9 %}" + LOOPS + "{% endif %}", "stopped"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + LOOPS, "stopped"),
    ],
    ids=["repeat", "loops", "doubling", "filter", "long talks only", "behind a refusal"],
)
def test_a_template_without_bounds_is_refused_before_it_is_used(tokenizer, template, word):
    chat = Conversation("c", [Turn("user", "a"), Turn("assistant", "b")])
    with pytest.raises(ConfigError, match=word):
        tokenize(chat, tokenizer, template=template)


def test_plain_templates_and_those_that_fail_quickly_pass_the_trial():
    for template in (SMALL, "{{ messages[99].content }}", "{% for %}", "{{ 1 / 0 }}", "{{ raise_exception('no') }}"):
        check_limits(template)


def test_a_template_that_is_no_jinja_is_named_for_each_conversation(tokenizer):
    with pytest.raises(UntrainableError, match="does not take"):
        tokenize(Conversation("c", [Turn("user", "a"), Turn("assistant", "b")]), tokenizer, template="{% for %}")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}", r"turn 2 \(tool\) 0 times"),
        ("{{ messages[0].content }}" + SMALL, r"turn 0 \(user\) 2 times"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "out of their order"),
    ],
)
def test_a_role_that_is_dropped_repeated_or_moved_is_named(tokenizer, template, words):
    turns = [Turn(role, f"{role} says") for role in ("user", "assistant", "tool", "assistant")]
    special = tuple(tokenizer.special_tokens_map.items())
    problem = role_problem(tuple(turn.role for turn in turns), template, special)
    pytest.raises(UntrainableError, tokenize, Conversation("c", turns), tokenizer, template=template)
    assert re.search(words, problem)


def test_built_in_templates_drop_no_role(tokenizers):
    for family in TEMPLATES:
        special = tuple(tokenizers[family].special_tokens_map.items())
        for roles in (("user", "assistant"), ("system", "user", "assistant", "user", "assistant")):
            assert role_problem(roles, TEMPLATES[family], special) == "", family


def test_a_tokenizer_must_fit_the_embedding_and_be_the_one_of_the_data(tokenizers):
    one, other = tokenizers["course"], tokenizers["zephyr"]
    highest = max(one.get_vocab().values())
    assert check_vocabulary(one, highest + 1) == vocabulary_hash(one) != vocabulary_hash(other)
    with pytest.raises(ConfigError, match=f"below the model's {highest} embedding rows, got {highest}"):
        check_vocabulary(one, highest)
    with pytest.raises(ConfigError, match="the one that the data was made with"):
        check_vocabulary(other, 10**6, vocabulary_hash(one))
