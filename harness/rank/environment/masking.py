"""Values that look like a secret, by the name of their environment variable or by their form, are not written down."""

import re

MASK = "(not recorded)"
_NAME = r"[A-Z0-9_]*(?:TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY|AUTH)[A-Z0-9_]*"
_SECRET = re.compile(_NAME)
_GIVEN = re.compile(rf"(?<![A-Za-z0-9_])({_NAME})(\s*[=:]\s*)('[^']*'|\"[^\"]*\"|[^,}}\]\s]+)")
"""A variable in an override: `+env.HF_TOKEN=x`, or `env={HF_TOKEN: x}`."""
_PASSWORD = re.compile(r"(://[^/:@\s]*:)[^/@\s]+@")
"""In an address: `https://name:password@host`."""


def mask_variable(name: str, value: str) -> str:
    """Return the value of an environment variable as it may be written down."""
    return MASK if _SECRET.fullmatch(name) else mask_text(value)


def mask_text(text: str) -> str:
    """Return a word of a command line, or another text, without the values that look like secrets."""
    return _PASSWORD.sub(rf"\1{MASK}@", _GIVEN.sub(rf"\1\2{MASK}", text))
