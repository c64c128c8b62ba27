"""Masking of values that look like a secret, by the name of their environment variable or by their form."""

import re

MASK = "(not recorded)"
_WORDS = "TOKEN|SECRET|PASS|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|AUTH"
_NAME = rf"[A-Z0-9_]*(?:{_WORDS})[A-Z0-9_]*"
_SECRET = re.compile(_NAME, re.IGNORECASE)
_GIVEN = re.compile(rf"((?:(?<![A-Za-z0-9_]){_NAME}|(?i:\benv\.{_NAME}))\s*[=:]).*", re.DOTALL)
"""A variable in an override and all that follows in the word: `+env.hf_token=x,y`, `env={HF_TOKEN: "x", ...}`.

Lower-case names match only after `env.`: a workload may have `tokens=96`.
"""
_USER = re.compile(r"(://)[^/\s]+@")
"""User part of an address: `https://name:password@host`, and `https://token@host`."""


def mask_variable(name: str, value: str) -> str:
    """Return the value of an environment variable, masked if it looks like a secret."""
    return MASK if _SECRET.fullmatch(name) else mask_text(value)


def mask_text(text: str) -> str:
    """Return a word of a command line, or another text, without the values that look like secrets."""
    return _USER.sub(rf"\1{MASK}@", _GIVEN.sub(rf"\1{MASK}", text))
