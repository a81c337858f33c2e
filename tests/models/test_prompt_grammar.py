"""A1111's prompt grammar: weights, breaks, editing, alternation, LoRA tags, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.config.rules import check_prompts
from optbench.models.text.prompt_grammar import (
    LoraTag,
    at_steps,
    changes_by_step,
    emphasized,
    is_balanced,
    mistakes,
    read_sections,
    reads_as_written,
    without_loras,
)
from optbench.render.notices import grammar_notices
from optbench.schema import Prompt, PromptOptions


def weights(text: str) -> list[list[tuple[str, float]]]:
    sections = read_sections(text)
    return [[(span.text, round(span.weight, 6)) for span in one] for one in sections]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (b) c", [("a ", 1), ("b", 1.1), (" c", 1)]),
        ("((b))", [("b", 1.21)]),
        ("(b:1.3)", [("b", 1.3)]),
        ("(b: .5 )", [("b", 0.5)]),
        ("((b:2) c)", [("b", 2.2), (" c", 1.1)]),
        ("[b]", [("b", round(1 / 1.1, 6))]),
        ("[[b]]", [("b", round(1 / 1.21, 6))]),
        ("(b:-1)", [("b", -1)]),
        ("(b:0)", [("b", 0)]),
        ("(b:x)", [("b:x", 1.1)]),
        ("(b:1.2:1.3)", [("b:1.2", 1.3)]),
        ("a:b", [("a:b", 1)]),
        ("a:1.2)", [("a:1.2)", 1)]),
        ("mirelle (series)", [("mirelle ", 1), ("series", 1.1)]),
        (r"mirelle \(series\)", [("mirelle (series)", 1)]),
        (r"(mirelle \(series\):1.2)", [("mirelle (series)", 1.2)]),
        (r"a \\ b \[c\] d\e", [(r"a \ b [c] de", 1)]),
        ("a (b", [("a ", 1), ("b", 1.1)]),
        ("a [b, c", [("a ", 1), ("b, c", round(1 / 1.1, 6))]),
        ("a) b] :)", [("a) b] :)", 1)]),
        ("", []),
        ("()", []),
    ],
)
def test_brackets_weigh_as_in_a1111(text: str, expected: list[tuple[str, float]]) -> None:
    assert weights(text) == [expected]


def test_break_begins_a_section_inside_of_brackets_too() -> None:
    assert weights("a BREAK\nb") == [[("a", 1)], [("b", 1)]]
    assert weights("(a BREAK b:1.5)") == [[("a", 1.5)], [("b", 1.5)]]
    assert weights("BREAK a BREAK BREAK") == [[], [("a", 1)], [], []]
    assert weights("BREAKFAST break") == [[("BREAKFAST break", 1)]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a:b:0.5]", "aabb"),
        ("[a:b:3]", "aaab"),
        ("[b:2]", "..bb"),
        ("[a::1]", "a..."),
        ("[a:b: 0.75 ]", "aaab"),
        ("[a:b:9]", "aaaa"),
        ("[a:b:0]", "bbbb"),
        ("[a:b:1.0]", "aaaa"),
        ("[a|b]", "abab"),
        ("[a|b|c]", "abca"),
        ("[a|]", "a.a."),
        ("[[a|b]:c:0.5]", "abcc"),
        ("[a|[b:c:0.5]]", "abac"),
    ],
)
def test_a_prompt_may_change_from_step_to_step(text: str, expected: str) -> None:
    assert "".join(one or "." for one in at_steps(text, 4)) == expected
    around = [f"x {one}, y" for one in at_steps(text, 4)]
    assert list(at_steps(f"x {text}, y", 4)) == around


def test_what_is_put_in_keeps_its_brackets() -> None:
    assert at_steps("(x [a|(b:1.2)]:1.3)", 2) == ("(x a:1.3)", "(x (b:1.2):1.3)")
    assert at_steps("[x [a|b] y]", 2) == ("[x a y]", "[x b y]")


@pytest.mark.parametrize(
    "text", ["[a]", "[a:b]", "[a:b:c:1]", r"\[a|b\]", r"[a\|b]", "a|b", "[a|b"]
)
def test_other_brackets_are_no_editing(text: str) -> None:
    assert at_steps(text, 3) == (text,) * 3
    assert not changes_by_step(text)


def test_lora_tags_are_taken_out() -> None:
    text = "a <lora:my file-1:0.8>, b <lora:c> <3"
    assert without_loras(text) == (
        "a , b  <3",
        (LoraTag(name="my file-1", strength=0.8), LoraTag(name="c", strength=1.0)),
    )
    assert mistakes(text) == []


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a AND b", "AND"),
        ("<lora:x:much>", "much"),
        ("<lora:x:1:2>", "1:2"),
        ("<hypernet:x:1>", "hypernet"),
        ("[a|b:0.5]", "alternates"),
        ("(a:9000000)", "9000000"),
        (f"[a:b:{'9' * 400}]", "larger than"),
        (f"<lora:a:{'9' * 400}>", "larger than"),
        ("[" * 51 + "]" * 51, "51 brackets"),
        ("([" * 30 + ")]" * 30, "60 brackets"),
    ],
)
def test_what_is_not_read_is_said(text: str, word: str) -> None:
    (found,) = mistakes(text)
    assert word in found


def test_negative_prompts_hold_no_loras_and_may_say_and() -> None:
    assert mistakes("a AND b", is_negative=True) == []
    assert len(mistakes("<lora:x:1>", is_negative=True)) == 1


def test_prompts_of_a_run_name_no_lora() -> None:
    prompt = Prompt(name="a", text="b <lora:x:1>", negative="<lora:x:1>", width=64, height=64)
    problems = check_prompts(PromptOptions(name="own", prompts=(prompt,)))
    assert [one.where for one in problems] == [
        "prompts.prompts.a.text",
        "prompts.prompts.a.negative",
    ]


def test_brackets_are_told_and_lone_ones_too() -> None:
    (notice,) = grammar_notices(["1girl", "mirelle (series)"])
    assert "1 of 2" in notice
    assert "series x1.1" in notice
    assert r"\(" in notice
    assert [
        text for text in ("(a)", "(a", "a)", r"\(a", "[a", "(b:1.2)") if not is_balanced(text)
    ] == [
        "(a",
        "a)",
        "[a",
    ]
    assert len(list(grammar_notices(["(a"]))) == 2
    assert list(grammar_notices([r"mirelle \(series\)", "a, b"])) == []


PLAIN = st.text(st.characters(exclude_characters="()[]\\<", exclude_categories=["Cs"]))
PIECES = [*"ab:|.1 ,\\()[]<>", "BREAK", "<lora:"]
ANY = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


@given(PLAIN.filter(lambda text: "BREAK" not in text))
def test_a_text_without_grammar_stays_as_it_is(text: str) -> None:
    assert reads_as_written(text)
    assert "".join(span.text for span in read_sections(text)[0]) == text
    assert all(span.weight == 1 for span in read_sections(text)[0])
    assert at_steps(text, 2) == (text, text)
    assert without_loras(text) == (text, ())
    assert emphasized(text) == ()


@given(PLAIN.filter(lambda text: "BREAK" not in text), st.floats(0.1, 3), st.integers(0, 3))
def test_brackets_multiply(text: str, weight: float, depth: int) -> None:
    wrapped = "(" * depth + f"({text}:{weight:.3f})" + ")" * depth
    spans = read_sections(wrapped)[0]
    assert "".join(span.text for span in spans) == text
    assert all(span.weight == pytest.approx(float(f"{weight:.3f}") * 1.1**depth) for span in spans)


@given(PLAIN | ANY)
def test_escaped_letters_come_back(text: str) -> None:
    escaped = "".join(f"\\{letter}" if letter in "()[]\\" else letter for letter in text)
    if "BREAK" not in text:
        spans = read_sections(escaped)[0]
        assert "".join(span.text for span in spans) == text
        assert all(span.weight == 1 for span in spans)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "[" * 9_000 + "]" * 9_000,
        "(" * 9_000 + ")" * 9_000,
        "[a|" * 6_000 + "]" * 6_000,
    ]
    + [f"[a:b:{sign}{'9' * 400}{point}]" for sign in "+-" for point in ("", ".")],
)
def test_texts_that_nest_without_end_are_read_too(text: str) -> None:
    assert len(at_steps(text, 3)) == 3
    assert read_sections(text)
    mistakes(text)
    emphasized(text)
    is_balanced(text)
    changes_by_step(text)


@given(ANY, st.integers(1, 5))
def test_every_text_is_read_without_an_error(text: str, num_steps: int) -> None:
    for one in at_steps(text, num_steps):
        sections = read_sections(one)
        assert sections
        assert all(span.text for section in sections for span in section)
    assert len(at_steps(text, num_steps)) == num_steps
    mistakes(text)
    emphasized(text)
    is_balanced(text)
