from __future__ import annotations

import pytest

from counterpoise.reinforcement._outputs import code_of, same_output


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("5\n6\n", "5\n6", True),
        ("5\r\n6  \n\n\n", "5\n6\n", True),
        ("5\n", "5\n6\n", False),  # zip stops here
        ("5\n6\n7\n", "5\n6\n", False),  # and here
        ("", "", True),
        ("\n\n", "", True),
        ("", "5", False),
        (" 5", "5", False),
        ("5\n\n6", "5\n6", False),
        ("ä 🙂", "ä 🙂", True),
        ("a\x0cb", "a\nb", False),
        ("a\u2028b", "a\nb", False),
        ("5.0", "5", False),
    ],
)
def test_outputs_are_compared_line_by_line(printed, expected, same) -> None:
    assert same_output(printed, expected) == same


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("0.33333333 x", "0.33333334 x", True),
        ("0.3333", "0.3334", False),
        ("1000000.5", "1000000.4", True),
        ("10000001", "10000000", False),
        ("0.1 0.2", "0.1", False),
        ("nan", "0.5", False),
        ("inf", "inf", True),
        ("inf", "1e400", False),
        ("5", "5.0", True),
        ("word", "0.5", False),
    ],
)
def test_numbers_with_a_point_may_differ_by_the_tolerance(printed, expected, same) -> None:
    assert same_output(printed, expected, 1e-6) == same


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("no code", None),
        ("```python\nprint(1)\n", None),  # cut off
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("```Python\r\nprint(1)\r\n```", "print(1)\n"),
        ("```py\n1\n```\n```python3\n2\n```", "2\n"),
        ("```python\nprint(1)\n```\nprints\n```\n1\n```", "print(1)\n"),
        ("```\n1\n```\n```\n2\n```", "2\n"),
        ("```cpp\nint main;\n```", None),
        ([{"role": "user", "content": "?"}, {"role": "assistant", "content": "```python\n3\n```"}], "3\n"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "```python\n4\n```"}]}], "4\n"),
        ([], None),
    ],
)
def test_the_program_of_a_completion(completion, code) -> None:
    assert code_of(completion) == code
