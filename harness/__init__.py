"""reducebench: which gradient did the ranks really compute, what did it cost, and why does it differ?"""

__version__ = "0.1.0"
