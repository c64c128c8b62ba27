"""Command lines of `python -m launch`, drawn from a seed, of every declared key, with fitting and unfitting values."""

from collections.abc import Sequence
from dataclasses import fields
from random import Random
from typing import Any

from harness.schema.case import AXES, PROBE
from harness.schema.launcher import KINDS
from launch.compose import GROUPS, compose_config, declared_keys
from tests.running import ROOT

EXAMPLE = str(ROOT / "docs" / "example")


class Lines:
    """Generator of command lines; one seed gives one line."""

    def __init__(self, options: dict[str, list[str]]) -> None:
        self.options = options
        lists = (*AXES, PROBE)
        everything = compose_config([f"{axis}=[{','.join(options[axis])}]" for axis in lists], nproc_per_node=1)
        self.nodes: dict[str, dict[str, Any]] = {axis: getattr(everything, axis) for axis in lists}
        self.parameters = [
            (axis, option, name)
            for axis, nodes in self.nodes.items()
            for option, node in nodes.items()
            for name in node
            if name != "_target_"
        ]
        """(axis, option, parameter) of all options."""
        launchers = [f"launch.{key.name}" for kind in KINDS.values() for key in fields(kind)]
        self.trunk = [key for key in declared_keys() if key not in GROUPS]
        self.keys = [*self.trunk, *launchers]

    def draw(self, seed: int) -> list[str]:
        """Options and overrides of one command line."""
        random = Random(seed)
        line = random.choice(
            [self._parameter, self._parameter, self._parameter, self._key, self._key, self._option, self._noise]
        )(random)
        for _ in range(random.choice([0, 0, 0, 1, 2])):
            line += random.choice([self._parameter, self._key, self._key, self._option])(random)
        if random.random() < 0.1:
            line += ["--multirun", self._sweep(random)]
        if random.random() < 0.1:
            line += random.choice(_FLAGS)
        return [*self._selection(random, line), *line]

    def _selection(self, random: Random, line: Sequence[str]) -> list[str]:
        """One option on each axis that has several by default, so that a line composes quickly."""
        small = {"workload": "mlp_digits", "reduction": "mean"}
        return [
            f"{axis}=[{option}]"
            for axis, option in small.items()
            if not any(part.lstrip("+~").startswith((f"{axis}=", "--config-dir")) for part in line) and random.random() < 0.9
        ]

    def _parameter(self, random: Random) -> list[str]:
        """A parameter of an option that is selected."""
        axis, option, name = random.choice(self.parameters)
        default = self.nodes[axis][option][name]
        value = self._near(random, default) if random.random() < 0.5 else self._value(random)
        name = random.choice(
            [name] * 8 + ["_target_", "_sweepable_", "_partial_", "_args_", "_convert_", "_recursive_", "nonsense"]
        )
        value = self._special(random, name) if name.startswith("_") and random.random() < 0.8 else value
        return [f"{axis}=[{option}]", self._set(random, f"{axis}.{option}.{name}", value)]

    def _special(self, random: Random, name: str) -> str:
        """A value of a key that Hydra's instantiate reads."""
        axis, option, _ = random.choice(self.parameters)
        if name == "_target_":
            targets = [
                "harness.axes.reduction.base.Reduction",
                "harness.axes.sync.none",
                "torch.nn.Linear",
                "nosuch.Class",
                "a",
                "3",
                "null",
            ]
            return random.choice(
                [*targets, "builtins.int", "harness.schema.parameters.Range", self.nodes[axis][option]["_target_"]]
            )
        if name == "_sweepable_":
            return random.choice(["3", "null", "[]", "[size,size]", "[1]", "size", "[size]", "[hidden]", "{a: 1}", "[[size]]"])
        return random.choice(["true", "false", "[]", "[1]", "[1,2,3,4,5,6,7,8,9,10]", "all", "none", "3", "null", "{a: 1}"])

    def _key(self, random: Random) -> list[str]:
        """A key of the trunk, or of a launcher."""
        key = random.choice(self.keys if random.random() < 0.8 else self.trunk)
        chosen = (
            [f"launch={random.choice(self.options['launch'])}"] if key.startswith("launch.") and random.random() < 0.7 else []
        )
        value = self._likely(random, key) if random.random() < 0.5 else self._value(random)
        return [*chosen, self._set(random, key, value)]

    def _option(self, random: Random) -> list[str]:
        """Options of a group."""
        group = random.choice(GROUPS)
        if random.random() < 0.1:
            return ["--config-dir", EXAMPLE, random.choice(_EXAMPLES).format(value=self._value(random))]
        if group in ("experiment", "launch"):
            return [self._set(random, group, random.choice([*self.options[group], "nosuch", self._value(random)]))]
        names = random.sample(self.options[group], random.choice([1, 1, min(2, len(self.options[group]))]))
        value = f"[{','.join(names)}]"
        return [
            self._set(random, group, value if random.random() < 0.8 else random.choice([names[0], self._value(random), "[]"]))
        ]

    def _set(self, random: Random, key: str, value: str) -> str:
        sign = random.choice([""] * 12 + ["+", "++", "~"])
        if sign == "~" and random.random() < 0.7:
            return f"~{key}"
        return f"{sign}{key}={value}"

    def _noise(self, random: Random) -> list[str]:
        key = random.choice(
            [
                "",
                "==",
                "a.b.c",
                "hydra.run.dir",
                "+hydra.x",
                "hydra/launcher",
                "env",
                "+env.A",
                "++env.A",
                "drift",
                "until",
                "torchrun",
                "resume",
                "config_dir",
                "results_dir",
                "name",
                "~",
                "+",
                "workload@x",
                "workload.mlp_digits",
            ]
        )
        return [f"{key}{random.choice(['=', '=', '=', '', '.x='])}{self._value(random)}"]

    def _sweep(self, random: Random) -> str:
        key = random.choice([*self.trunk, "reduction", "workload.mlp_digits.hidden"])
        values = [
            "1,2",
            "range(1,4)",
            "range(1,1000000000)",
            "range(0,1,1e-12)",
            "choice(1,2)",
            "glob(*)",
            "interval(0,1)",
            "sort(3,1,2)",
            "shuffle(1,2)",
            "[sum],[mean]",
            "1,,2",
            "tag(a,1,2)",
            "range(3,1)",
            "range(1,inf)",
        ]
        return f"{key}={random.choice(values)}"

    def _near(self, random: Random, default: Any) -> str:
        """A value of the same type as the default."""
        if isinstance(default, bool):
            return random.choice(["true", "false"])
        if isinstance(default, list):
            return random.choice(
                [f"[{','.join(map(str, default))}]", "[64]", "[2,3]", "[]", f"[{default[0] if default else 1}]"]
            )
        if isinstance(default, int | float):
            return random.choice([str(default), "1", "2", "8", "64", "[4,8]", "64K", "1.5", "0", "4096"])
        return random.choice([str(default) if default is not None else "null", "null", "4", "sample", "bf16"])

    def _likely(self, random: Random, key: str) -> str:
        values = {
            "name": ["a", "a.b", "9_-"],
            "results_dir": ["here", "a/b", "'.'"],
            "order": ["matrix", "shuffled", "interleaved"],
            "device": ["auto", "cpu"],
            "backend": ["auto", "gloo"],
            "world_sizes": ["[]", "[1,2]"],
            "env": ["{}", "{A: b}", "{A: 1}"],
            "launch.hosts": ["[a,b]", "[a]", "[]"],
        }
        plain = ["1", "2", "3", "0", "true", "false", "null", "0.5", "10", "64"]
        return random.choice(values.get(key, plain))

    def _value(self, random: Random) -> str:
        """Any value."""
        if random.random() < 0.15:
            return f"[{','.join(random.choice(_VALUES) for _ in range(random.randrange(4)))}]"
        if random.random() < 0.1:
            text = "".join(random.choice(_CHARACTERS) for _ in range(random.randrange(1, 12)))
            quoted = text.replace("\\", "\\\\").replace("'", "\\'")
            return random.choice([text, f"'{quoted}'", f'"{text}"'])
        return random.choice(_VALUES)


_EXAMPLES = (
    "workload=[diabetes]",
    "sync=[straggler]",
    "aggregation=[butterfly]",
    "sync.straggler.milliseconds={value}",
    "++workload.diabetes.model.in_features={value}",
    "+workload.diabetes.samples={value}",
    "workload.diabetes.loss={value}",
)
_FLAGS = (
    ["--dry-run"],
    ["--accept-changes", "--accept-owner"],
    ["--world-sizes", "1,2"],
    ["--world-sizes=[1,1]"],
    ["--world-sizes", "2,\u0663"],
    ["--world-sizes", "x\x1b[0m"],
    ["--resume", "nosuch"],
    ["--resume="],
)
_CHARACTERS = "aZ09 _-.,:=/\\'\"[]{}()$%&|;#~+*?<>@!^`\t\n\r\0\x1b\x7f\x9b\u2028\u202e\u2603\ud800\U0001f600"
_VALUES = (
    *(
        "0",
        "-1",
        "1",
        "2.5",
        "1e3",
        "1e23",
        "1e999",
        "-1e999",
        "nan",
        "inf",
        "-inf",
        "1000000",
        "99999999999999999999",
        "9223372036854775807",
    ),
    *("-9223372036854775809", "0x10", "007", "1_000", "64M", "64MB", "64MiB", "1.5G", "64X", "M", "-64M"),
    *("true", "false", "null", "NULL", "~", "yes", "''", '""', "x", "a b", "'a b'", "a=b=c", "'it\\'s'"),
    *(
        "[]",
        "[[]]",
        "[nan,nan]",
        "[1,true]",
        "[1,1.0]",
        "[null]",
        "{}",
        "{a: 1}",
        "{a: {b: [1]}}",
        "{_target_: os.getcwd}",
        "[{}]",
    ),
    *(
        "${seed}",
        "${torchrun}",
        "${workload}",
        "${nosuch}",
        "${oc.env:HOME}",
        "${oc.env:NOSUCH_9}",
        "${oc.decode:'1'}",
        "${name}",
        "${",
    ),
    *(
        "${results_dir}",
        "${iterations}",
        "${drift.optimizers}",
        "${launch.kind}",
        "${env}",
        "\\${seed}",
        "${oc.create:{a:1}}",
        "${.x}",
        "${..seed}",
    ),
    *("../../etc", "/", "/proc/self/x", "..", ".", "-", "--", "a/../b", "a" * 300),
    *("range(1,5)", "1,2", "choice(1,2)", "int(3.7)", "str(5)", "float(1)", "bool(1)", "json_str('{}')", "glob(*)"),
)
"""Texts with control characters, surrogates and quotes come from _CHARACTERS."""
