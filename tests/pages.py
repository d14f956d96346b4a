"""Generated pages as other machines write them: processors differ in the last bits of sums, so last digits may too."""

import re

_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")


def assert_same_page(written: str, again: str) -> None:
    """Fail unless two pages have the same words, and numbers that differ by one in their last digit at most."""
    assert len(written.splitlines()) == len(again.splitlines())
    for one, other in zip(written.splitlines(), again.splitlines(), strict=True):
        assert _NUMBER.sub("#", one) == _NUMBER.sub("#", other)
        for number, another in zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True):
            assert abs(_value(number) - _value(another)) <= 1.01 * max(_last_digit(number), _last_digit(another)), other


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _last_digit(number: str) -> float:
    return 10.0 ** -len(number.partition(".")[2])
