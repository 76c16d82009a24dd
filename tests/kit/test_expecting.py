"""What a check says to a learner: expected, got with shapes and types, and the likely reason."""
import numpy as np
import pytest
import torch

from milestones.expecting import Mismatch, expect, gives, refuses, same
from milestones.saying import NOTHING, describe
from milestones.stopping import stopped


def finding(call, *arguments, **options) -> Mismatch:
    with pytest.raises(Mismatch) as caught:
        call(*arguments, **options)
    return caught.value


def stop(code: str, module: str = "finetune_lib.own") -> tuple[str, str, str]:
    """What is said of code that stops with an error, run as a learner's module or as something else."""
    try:
        exec(compile(code, "<cell>", "exec"), {"__name__": module, "torch": torch})
    except Exception as error:
        return stopped(error, error.__traceback__)
    raise AssertionError("the code must stop")


def test_equal_values_pass_whatever_holds_them():
    same(torch.ones(2, dtype=torch.bfloat16), torch.ones(2), "a tensor of another type")
    same(np.ones(2), torch.ones(2), "an array")
    same(torch.tensor(2.0), 2.0, "a tensor without dimensions")
    same({"a": [1, (2.0, "x")]}, {"a": [1, (2.0 + 1e-9, "x")]}, "a nest")
    same(float("nan"), float("nan"), "NaN where it is right")


def test_a_wrong_tensor_is_shown_with_type_shape_and_place():
    found = finding(same, torch.tensor([1.0, 2.0, 4.5]), torch.tensor([1.0, 2.0, 3.0]), "the sums")
    assert found.what == "not right: the sums; the largest difference is 1.5, at [2]"
    assert found.got == "float32(3,) [1, 2, 4.5]" and found.expected == "float32(3,) [1, 2, 3]"


def test_a_known_mistake_is_named_before_the_general_ones():
    reasons = {"it is halved": 1.0, "it is doubled": 4.0}
    assert finding(same, 4.0, 2.0, "a number", reasons).reason == "this is what comes out when it is doubled"
    assert "4 times" in finding(same, 8.0, 2.0, "a number", reasons).reason


@pytest.mark.parametrize(("got", "reason"), [
    (torch.full((2, 2), float("nan")), "NaN"),
    (torch.full((2, 2), float("inf")), "infinities"),
    (torch.zeros(2, 2), "all of it is zero"),
    (-torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "sign"),
    (torch.tensor([[1.0, 2.0], [3.0, 4.0]]) * 1.5, "1.5 times"),
    (torch.ones(2, 2, 1), "the shape is (2, 2, 1) where (2, 2) was expected"),
    (torch.tensor([1.0, 2.0, 3.0, 4.0]), "same numbers in other axes"),
    (torch.tensor([[1.0, 2.0], [3.0, 4.0]]).mul(1.001).half(), "float16"),
    ([[1.0, 2.0], [3.0, 4.0]], "a Tensor was expected, not a list"),
    (None, NOTHING),
], ids=["nan", "inf", "zeros", "sign", "factor", "axis", "flat", "half", "list", "none"])
def test_general_mistakes_are_seen_without_knowing_the_task(got, reason):
    found = finding(same, got, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "a table")
    assert reason in found.reason, found


def test_rows_for_columns_are_seen():
    assert "transposed" in finding(same, torch.ones(3, 2), torch.ones(2, 3), "a table").reason


def test_a_forgotten_return_is_said_even_where_a_condition_is_true():
    assert finding(same, None, 2.0, "a number", {"something else happened": True}).reason == NOTHING


def test_a_single_number_is_told_a_factor_only_when_it_is_whole():
    assert "0.125 times" in finding(same, 0.5, 4.0, "bits").reason
    assert finding(same, 4.1, 4.0, "bits").reason == ""


def test_another_device_is_said_and_values_on_meta_are_not_read():
    found = finding(same, torch.ones(2, device="meta"), torch.ones(2), "a tensor")
    assert "it is on meta, and cpu was expected" in found.reason
    assert found.got == "float32(2,) on meta, without values"


def test_another_type_of_the_same_values_fails_where_the_type_is_asked_for():
    same(torch.ones(2), torch.ones(2), "a tensor", dtype=torch.float32)
    found = finding(same, torch.ones(2).double(), torch.ones(2), "a tensor", dtype=torch.float32)
    assert (found.expected, found.got) == ("torch.float32", "torch.float64") and "they are float64" in found.reason


def test_dicts_say_which_keys_are_missing_unexpected_and_different():
    found = finding(same, {"a": 1, "c": 2, "d": 3}, {"a": 0, "b": 2, "d": 3}, "the bytes")
    assert found.what == "not right: the bytes; missing: b; unexpected: c; different: a"


def test_lists_say_length_and_first_difference():
    found = finding(same, ["x", "z"], ["x", "y", "w"], "the names")
    assert found.what == "not right: the names; its length is 2, not 3; at position 1: 'z' where 'y' was expected"


def test_long_texts_say_from_where_they_differ():
    assert "; from position 6" in finding(same, "shared end", "sharedxend", "a text").what


def test_gives_hands_on_what_a_check_can_look_into():
    assert gives((1, 2), "f", (tuple, list), parts=2) == (1, 2)
    assert gives({"a": 1}, "f", dict) == {"a": 1}
    assert gives(np.ones(2), "f", fields=("shape",)).shape == (2,)


@pytest.mark.parametrize(("got", "options", "expected", "reason"), [
    (None, {"kind": torch.nn.Module}, "a Module", NOTHING),
    ([1.0], {"kind": torch.Tensor}, "a Tensor", "a Tensor must be returned, not a list"),
    ((1, 2), {"fields": ("codes", "offset")}, "something with codes, offset", "a tuple has no codes, offset"),
    (torch.ones(2), {"kind": (tuple, list), "parts": 2}, "2 values, `return a, b`",
     "must be returned, not a Tensor"),
    ((1, 2, 3), {"kind": tuple, "parts": 2}, "2 values, `return a, b`", "2 values belong behind `return`"),
])
def test_gives_says_what_was_returned_instead(got, options, expected, reason):
    found = finding(gives, got, "quantize", **options)
    assert found.what.startswith("quantize returns") and found.expected == expected and reason in found.reason


def test_expect_names_the_mistake_that_happened():
    expect(True, "the claim")
    found = finding(expect, False, "nothing learns", "[]", ["w"], {"no": False, "the base is left trainable": True})
    assert (found.what, found.expected, found.got) == ("this does not hold: nothing learns", "[]", "['w']")
    assert found.reason == "this is what comes out when the base is left trainable"


def refusal(kind, message):
    def call():
        raise kind(message)
    return call


def test_refuses_wants_the_kind_and_a_message_that_helps():
    refuses(refusal(ValueError, "rank must be at least 1"), "a rank of 0", mentions="rank")
    assert "does not help" in finding(refuses, refusal(ValueError, "no"), "a rank of 0", mentions="rank").what
    wrong = finding(refuses, refusal(KeyError, "rank"), "a rank of 0")
    assert wrong.expected == "ValueError" and wrong.got == "KeyError: 'rank'"
    quiet = finding(refuses, lambda: torch.nn.Linear(2, 2), "a rank of 0")
    assert quiet.got == "no error, but the Linear"


def test_descriptions_are_one_short_line():
    assert describe(torch.nn.Sequential(torch.nn.Linear(2, 2))) == "the Sequential"
    assert describe({"w": torch.ones(1)}) == "{'w': float32(1,) [1]}"
    assert describe([0.1 + 0.2, "a"]) == "[0.3, 'a']"
    assert describe(torch.arange(9)) == "int64(9,) [0, 1, 2, 3, 4, 5, 6, 7, …]"
    assert len(describe(["x" * 70] * 20)) <= 320 and "\n" not in describe("a\nb\n" * 20)


@pytest.mark.parametrize(("code", "reason"), [
    ("torch.ones(2, 3) @ torch.ones(2, 3)", "shapes do not fit"),
    ("torch.ones(2, 2) @ torch.ones(2, 2).bfloat16()", "two types of numbers meet"),
    ("x = None\nx.shape", "something is None there"),
    ("raise IndexError('The shape of the mask [9] at index 0 does not match')", "taken for a mask"),
    ("a, b = 1, 2, 3", "another number of values"),
    ("1 / 0", "a sum or count is zero"),
    ("total = rnak", "a name is used that was never set"),
    ("class A(torch.nn.Module):\n    def __init__(self):\n        self.b = torch.nn.Linear(1, 1)\nA()",
     "`super().__init__()` must be the first thing"),
    ("torch.ones(1).sum().backward()", "the graph is cut"),
])
def test_code_that_stops_is_told_its_line_and_a_reason(code, reason):
    what, place, found = stop(code)
    assert what.startswith("the code stops with ") and place.startswith("in ") and reason in found, (what, found)


def test_an_error_in_the_check_is_laid_to_what_was_returned():
    what, _, reason = stop("x = None\nx.shape", "checks")
    assert "in the check" in what and reason == NOTHING
    assert "`lora_A` is looked for" in stop("torch.nn.Linear(1, 1).lora_A", "checks")[2]
    assert "the key 'proj' is missing" in stop("{}['proj']", "checks")[2]
