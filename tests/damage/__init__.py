"""Fuzzer of run directories: mutate a file of a real run, run one command on it, and watch what the command does.

python -m tests.damage RUN --seed 0 --first 0 --last 500
"""
