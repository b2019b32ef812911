"""Settings of a family, typed by its frozen dataclass: one value, a swept domain, a configuration file, samples.

Every way to say a value (``--set rank=8``, ``--sweep 'lr_multiple=loguniform(0.03, 0.3)'``, a YAML file) ends here, so
that each is checked in the same way and refused with a sentence that says where the value came from. A file looks so::

    set:
      rank: 8
    sweep:
      lr_multiple: loguniform(0.03, 0.3)
      batch_size: [2, 4, 8]

Text is read with `ast` and never evaluated. Ranges are checked by `search_spaces.fields`. This module imports Ray
Tune's domains but no torch, and starts nothing.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import itertools
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np
import yaml  # type: ignore[import-untyped]
from ray.tune.search.sample import (
    Categorical,
    Domain,
    Float,
    Integer,
    LogUniform,
    Quantized,
    choice,
    quniform,
    uniform,
)

from trainables.common.errors import InputError, did_you_mean
from trainables.common.text import read_text

Config = TypeVar("Config")
FLOAT_DOMAINS = ("uniform", "loguniform", "quniform")
INTEGER_DOMAINS = ("randint", "lograndint")
# characters of a value, and of what it was given with, in a message
MAX_SHOWN = 200
DOMAINS = ("choice", "grid", "ablate", *FLOAT_DOMAINS, *INTEGER_DOMAINS)


class Ablation(Categorical):
    """Values that replace the configuration's own one at a time: no two settings are ablated in one sample."""


class SettingError(InputError):
    """A value outside the range of its setting.

    Args:
        name: The setting.
        problem: Rest of the sentence that starts with the name, such as ``"is 0 but must be at least 1"``.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}.")
        self.name, self.problem = name, problem


@dataclass(frozen=True)
class ConfigFile:
    """What a configuration file says: fixed values and swept domains, already checked for name and type."""

    path: str
    values: Mapping[str, Any] = field(default_factory=dict)
    domains: Mapping[str, Domain] = field(default_factory=dict)


def parse_set(text: str, config_class: type) -> tuple[str, Any]:
    """Parse ``"rank=8"`` into ``("rank", 8)``.

    Raises:
        InputError: If the text is not ``name=value``, the name is unknown, or the value has the wrong type.
    """
    name, value = _split(text, "--set")
    return name, _typed(name, value, config_class, f"--set {text}")


def parse_sweep(text: str, config_class: type) -> tuple[str, Domain]:
    """Parse ``"lr_multiple=loguniform(0.03, 0.3)"`` into a name and a Ray Tune domain.

    Known are ``choice(a, b, ...)`` (but for list settings also written ``a,b,...``), ``uniform(low, high)``,
    ``loguniform(low, high)``, ``quniform(low, high, step)`` for numbers, and ``randint(low, high)``,
    ``lograndint(low, high)`` for whole numbers, ``high`` itself excluded as in Ray Tune. Nothing is drawn from
    ``grid(a, b, ...)`` and ``ablate(a, b, ...)``, of which every value is tried (see `sample_configs`).

    Raises:
        InputError: If the name is unknown, the domain is malformed or it does not fit the type of the setting.
    """
    name, value = _split(text, "--sweep")
    return name, _domain(name, value, config_class, f"--sweep {text}")


def load_config_file(path: str | Path, config_class: type) -> ConfigFile:
    """Read a YAML file with the sections ``set`` and ``sweep`` (see the module's docstring).

    Raises:
        InputError: If the file cannot be read, is not of that form, or holds a name, type or domain that is refused.
    """
    text = read_text(Path(path), f"The configuration file {path}")
    try:
        content = yaml.safe_load(text)
    except RecursionError as error:
        raise InputError(f"The configuration file {path} is not valid YAML: it is nested too deeply.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The configuration file {path} is not valid YAML: {reason}.") from error
    except ValueError as error:
        raise InputError(
            f"The configuration file {path} is not valid YAML: it holds a number of thousands of digits."
        ) from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"The configuration file {path} must hold the sections 'set' or 'sweep', or both.")
    for section, body in content.items():
        if section not in ("set", "sweep"):
            raise InputError(
                f"The configuration file {path} has a section {section!r} but only 'set' and 'sweep' are read"
                + (f"; put '{section}' under one of them." if section in _names(config_class) else ".")
            )
        if not isinstance(body, dict):
            raise InputError(f"Section '{section}' of {path} must map names to values, not {body!r}.")
    values = typed(content.get("set", {}), config_class, f"{path}, set")
    domains = {
        str(name): _domain(str(name), value, config_class, f"{path}, sweep, {name}: {value}")
        for name, value in content.get("sweep", {}).items()
    }
    for name in values.keys() & domains.keys():
        raise InputError(f"{path} both sets and sweeps {name}; keep one of the two.")
    return ConfigFile(str(path), values, domains)


def typed(values: Mapping[Any, Any], config_class: type, source: str) -> dict[str, Any]:
    """Return values of settings, as a file holds them, in the settings' types.

    Raises:
        InputError: If a name is unknown or a value has the wrong type; the message begins with ``source``.
    """
    return {
        str(name): _typed(str(name), value, config_class, f"{source}, {name}: {value}")
        for name, value in values.items()
    }


def resolve(
    config_class: type[Config],
    preset_values: Mapping[str, Any],
    config_file: ConfigFile | None,
    sets: Sequence[str],
    validate: Callable[[Config], None] | None = None,
) -> Config:
    """Return the configuration: the dataclass's defaults, then the preset, then the file, then the command line.

    Args:
        config_class: The family's frozen dataclass.
        preset_values: Values of the chosen preset.
        config_file: What the file given with ``--config`` says, if any.
        sets: The texts given with ``--set``; of two for the same name the last one counts.
        validate: Checks the whole; it raises `SettingError`.

    Raises:
        InputError: If a name is unknown or a value has the wrong type or range; it says where the value came from.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, value in preset_values.items():
        values[name], sources[name] = _typed(name, value, config_class, f"the preset's {name}={value}"), "the preset"
    if config_file is not None:
        values.update(config_file.values)
        sources.update(dict.fromkeys(config_file.values, f"the configuration file {config_file.path}"))
    for text in sets:
        name, value = parse_set(text, config_class)
        values[name], sources[name] = value, f"--set {text}"
    config = config_class(**values)
    if validate is not None:
        try:
            validate(config)
        except SettingError as error:
            source = sources.get(error.name)
            raise SettingError(error.name, error.problem + (f" (given by {source})" if source else "")) from None
    return config


def domain_text(domain: Domain) -> str:
    """Return a domain as it is written after ``--sweep NAME=``; `parse_sweep` reads it."""
    sampler = domain.get_sampler()
    if isinstance(domain, Categorical):
        function = "ablate" if isinstance(domain, Ablation) else "grid" if domain.is_grid() else "choice"
        arguments = list(domain.categories)
    elif isinstance(domain, Integer):
        function = "lograndint" if isinstance(sampler, LogUniform) else "randint"
        arguments = [domain.lower, domain.upper]
    elif isinstance(domain, Float) and isinstance(sampler, Quantized):
        function, arguments = "quniform", [domain.lower, domain.upper, sampler.q]
    elif isinstance(domain, Float):
        function = "loguniform" if isinstance(sampler, LogUniform) else "uniform"
        arguments = [domain.lower, domain.upper]
    else:
        raise TypeError(f"{type(domain).__name__} cannot be written after --sweep.")
    return f"{function}({', '.join(map(repr, arguments))})"


def config_hash(config: Mapping[str, Any], seed: int) -> str:
    """Return 10 hex digits that name a complete configuration with its seed; lists and tuples count as the same."""
    canonical = json.dumps(
        {"config": dict(config), "seed": seed}, sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def sample_configs(
    config: Mapping[str, Any], domains: Mapping[str, Domain], num_samples: int, seed: int
) -> list[tuple[dict[str, Any], int]]:
    """Draw ``num_samples`` configurations, each with the seed to train it with.

    With grids or ablations a sample is a repetition of them: the product of all grids, each combination once with the
    configuration's own values and once with each ablated value in the place of one of them. What is drawn besides is
    the same for all of a repetition.

    What sample i draws for a setting depends on ``seed``, i and the setting's name and domain alone, so asking for more
    samples extends the list and sweeping one more setting leaves the others as they were. Drawn floats are rounded to
    six significant digits: they name units of work, and the last bits of ``exp`` differ between machines. All samples
    have the same training seed, but for repetitions of a configuration: each of those gets the next seed (so without
    any domain sample i is trained with ``seed + i``), which keeps every unit of work distinct.
    """
    samples: list[tuple[dict[str, Any], int]] = []
    repetitions: dict[str, int] = {}
    random = {name: domain for name, domain in domains.items() if not is_exhaustive(domain)}
    for index in range(num_samples):
        drawn = {name: _draw(domain, f"{seed}/{index}/{name}") for name, domain in random.items()}
        for tried in _every_value(config, domains):
            complete = {**config, **drawn, **tried}
            key = config_hash(complete, seed)
            samples.append((complete, seed + repetitions.get(key, 0)))
            repetitions[key] = repetitions.get(key, 0) + 1
    return samples


def is_exhaustive(domain: Domain) -> bool:
    """Return whether every value of a domain is tried, in a grid or an ablation, instead of some being drawn."""
    return domain.is_grid() or isinstance(domain, Ablation)


def _every_value(config: Mapping[str, Any], domains: Mapping[str, Domain]) -> list[dict[str, Any]]:
    grids = {name: domain.categories for name, domain in domains.items() if domain.is_grid()}
    ablated = [
        {name: value}
        for name, domain in domains.items()
        if isinstance(domain, Ablation)
        for value in domain.categories
        if value != config[name]
    ]
    combinations = [dict(zip(grids, values, strict=True)) for values in itertools.product(*grids.values())]
    return [{**combination, **change} for combination in combinations for change in ({}, *ablated)]


def _draw(domain: Domain, key: str) -> Any:
    # RandomState and not Generator: numpy promises that its stream never changes between versions
    state = np.random.RandomState(int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big"))
    value = domain.sample(random_state=state)
    if isinstance(domain, Float):
        return min(max(float(f"{value:.6g}"), float(domain.lower)), float(domain.upper))
    return value


def _names(config_class: type) -> list[str]:
    return sorted(item.name for item in dataclasses.fields(config_class))


def _hint(name: str, config_class: type, source: str) -> Any:
    names = _names(config_class)
    if name not in names:
        near = did_you_mean(name, names)
        if not near:  # a shortened name, such as lr for lr_multiple, is too far for the edit distance
            near = did_you_mean(next((n for n in names if name and n.startswith(name)), name), names)
        raise InputError(f"{source}: there is no setting {name!r} among {', '.join(names)}{near or '.'}")
    return get_type_hints(config_class)[name]


def _split(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        example = "rank=8" if option == "--set" else "lr=loguniform(1e-4, 1e-2)"
        raise InputError(f"{option} {text}: write NAME=VALUE, as in {option} '{example}'.")
    return name.strip(), value.strip()


def _typed(name: str, value: Any, config_class: type, source: str) -> Any:
    hint = _hint(name, config_class, source)
    try:
        return _coerce(value, hint)
    except ValueError:
        options = [str(option) for option in get_args(hint)] if get_origin(hint) is Literal else []
        near = did_you_mean(str(value), options)
        given, place = (text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..." for text in (repr(value), source))
        raise InputError(f"{place}: {name} must be {_describe(hint)}, not {given}{near or '.'}") from None


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return f"a list in which every item is {_describe(get_args(hint)[0])}"
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    simple = {bool: "true or false", int: "a whole number (int)", float: "a finite number (float)", str: "text (str)"}
    return simple.get(hint, "none")


def _coerce(value: Any, hint: Any) -> Any:
    """Return ``value``, which is text or already typed, as the type ``hint``. Raises ValueError where it is not one."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _first(options, lambda option: type(value) in (type(option), str) and str(value) == str(option))
    if origin in (Union, types.UnionType):
        for option in options:
            try:
                return _coerce(value, option)
            except ValueError:
                continue
        raise ValueError
    if origin is tuple:
        if isinstance(value, str):
            value = [item.strip().strip("'\"") for item in value.strip("()[] ").rstrip(",").split(",")]
        if not isinstance(value, list | tuple) or "" in value:
            raise ValueError
        return tuple(_coerce(item, options[0]) for item in value)
    if hint is type(None) and (value is None or value in ("none", "null")):
        return None
    if hint is bool and (isinstance(value, bool) or str(value).lower() in ("true", "false")):
        return value if isinstance(value, bool) else value.lower() == "true"
    if hint is str and isinstance(value, str):
        return value
    if hint is int and isinstance(value, int | str) and not isinstance(value, bool):
        # what the results' columns hold
        if not -(2**63) <= int(value) < 2**63:
            raise ValueError
        return int(value)
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool) and _finite(value):
        return float(value)
    raise ValueError


def _finite(value: int | float | str) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _first(options: Iterable[Any], wanted: Callable[[Any], bool]) -> Any:
    for option in options:
        if wanted(option):
            return option
    raise ValueError


def _domain(name: str, value: Any, config_class: type, source: str) -> Domain:
    hint = _hint(name, config_class, source)
    if isinstance(value, list):  # from a file
        function, arguments = "choice", value
    else:
        function, arguments = _call(str(value), hint, source)
    if function in ("choice", "grid", "ablate"):
        # one list of choices is Ray Tune's own way to write them; for a list setting it could be a choice itself
        if len(arguments) == 1 and isinstance(arguments[0], tuple):
            if get_origin(hint) is not tuple or all(isinstance(item, tuple) for item in arguments[0]):
                arguments = list(arguments[0])
        if not arguments:
            raise InputError(f"{source}: {function}() needs at least one value to choose from.")
        values = [_typed(name, item, config_class, source) for item in arguments]
        if function == "choice":
            return choice(values)
        if len(set(values)) < len(values):
            raise InputError(f"{source}: {function}() tries every value once; give none of them twice.")
        return Ablation(values) if function == "ablate" else Categorical(values).grid()
    numeric = {int: INTEGER_DOMAINS, float: FLOAT_DOMAINS}.get(hint, ())
    if function not in numeric:
        instead = {"loguniform": "lograndint", "lograndint": "loguniform", "randint": "uniform"}.get(
            function, "randint"
        )
        advice = f"{instead}(low, high) or choice(...)" if numeric else "choice(...)"
        raise InputError(f"{source}: {function} does not fit {name}, which is {_describe(hint)}; use {advice} instead.")
    return _range(function, [_typed(name, item, config_class, source) for item in arguments], source)


def _range(function: str, numbers: list[Any], source: str) -> Domain:
    form = "low, high, step" if function == "quniform" else "low, high"
    if len(numbers) != len(form.split(", ")):
        raise InputError(f"{source}: write {function}({form}), not {len(numbers)} numbers.")
    low, high = numbers[:2]
    if low >= high:
        raise InputError(f"{source}: the lower bound {low} must be below the upper bound {high}.")
    if function.startswith("log") and low <= 0:
        raise InputError(f"{source}: the lower bound {low} of {function} must be above 0.")
    if function == "quniform":
        step = numbers[2]
        if step <= 0 or any(not math.isclose(bound / step, round(bound / step)) for bound in (low, high)):
            raise InputError(f"{source}: both bounds must be multiples of the step {step}, which must be above 0.")
        return quniform(low, high, step)
    if function in INTEGER_DOMAINS:
        return Integer(low, high).loguniform() if function == "lograndint" else Integer(low, high).uniform()
    return Float(low, high).loguniform() if function == "loguniform" else uniform(low, high)


def _call(text: str, hint: Any, source: str) -> tuple[str, list[Any]]:
    """Split ``"loguniform(0.03, 0.3)"`` or ``"4,8"`` into a domain's name and its arguments, without evaluating it."""
    function, arguments = "", []
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Tuple | ast.List) and get_origin(hint) is not tuple:
            function, arguments = "choice", [_literal(item) for item in node.elts]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            function, arguments = node.func.id, [_literal(item) for item in node.args]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass  # all of them mean that the text is no domain
    if not function:
        forms = "such as choice(a, b), uniform(low, high) or loguniform(low, high)"
        raise InputError(f"{source}: {text!r} is not a domain to draw from, {forms}; a fixed value goes under 'set'.")
    if function not in DOMAINS:
        near = did_you_mean(function, DOMAINS) or "."
        raise InputError(f"{source}: there is no domain {function!r} among {', '.join(DOMAINS)}{near}")
    return function, arguments


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node)  # a bare word, so that text needs no second pair of quotes in a shell
    return ast.literal_eval(node)
