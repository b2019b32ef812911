"""What a sweep varies: a family's configuration, its presets, what may be swept and how ASHA sees it.

A search space turns the user's choices (preset, configuration file, ``--set``, ``--sweep``) into one checked
configuration and the domains that are drawn from. How a single value or domain is written is in
`search_spaces.settings`, which values a setting may have in `search_spaces.fields`; who trains the drawn configurations
is decided in `sweeps`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.tune.search.sample import Categorical, Domain, Float, Integer

from search_spaces import fields
from search_spaces.fields import Setting, settings_of
from search_spaces.settings import (
    ConfigFile,
    SettingError,
    is_exhaustive,
    load_config_file,
    parse_set,
    parse_sweep,
    resolve,
    sample_configs,
)
from trainables.common.errors import InputError, did_you_mean
from trainables.common.family import Family, Mode


@dataclass(frozen=True)
class Preset:
    """A named starting point.

    Attributes:
        description: One line for ``--help``.
        values: Settings that differ from the defaults of the family's dataclass.
        sweep: What is swept when nothing else says what to sweep; domains that are drawn from only count when several
            samples are asked for.
        tasks: Tasks that are trained on unless ``--tasks`` says otherwise, in the same notation.
        data, base: What ``--data`` and ``--base`` are unless they are given, where a family has them and the preset
            does not leave them at their defaults.
    """

    description: str
    values: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Domain] = field(default_factory=dict)
    tasks: str = "all"
    data: str = ""
    base: str = ""


@dataclass(frozen=True)
class SearchSpace:
    """One family's search space.

    Attributes:
        family: What is trained: its columns, and the metric that ASHA and searchers compare.
        config: The family's frozen dataclass of settings.
        presets: Presets by name.
        validate: Checks how the settings of a configuration go together, once each is in its own range; raises
            `SettingError`. None where they have nothing to do with each other.
        default_preset: Name of the preset used when none is chosen.
        rung_setting: Setting that holds the time between two reports, which is also ASHA's grace period.
        budget_setting: Setting that holds the most time one trial may train.
        reduction_factor: ASHA keeps about one in this many at each rung.
        groups: Headings for ``--help`` and ``docs/settings.md``, each with the first setting below it.
    """

    family: Family
    config: type
    presets: Mapping[str, Preset]
    validate: Callable[[Any], None] | None = None
    default_preset: str = "full"
    rung_setting: str = "report_every"
    budget_setting: str = "epochs"
    reduction_factor: int = 3
    groups: Mapping[str, str] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """What ASHA and searchers compare, from the reports."""
        return self.family.metric

    @property
    def mode(self) -> Mode:
        """Which way the metric is better: ``min`` or ``max``."""
        return self.family.mode

    def resolve(
        self,
        preset: str,
        config_path: str | None = None,
        sets: Sequence[str] = (),
        sweeps: Sequence[str] = (),
        num_samples: int = 1,
        defaults: Mapping[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Domain]]:
        """Return the checked configuration and the swept domains.

        Values come from the dataclass's defaults, then ``defaults``, the preset, the configuration file and the command
        line. What is swept is what ``sweeps`` and the file say; where neither says anything it is the preset's sweep
        without the settings that were fixed explicitly and, for one sample, without what is drawn at random.

        Args:
            preset: Name of a preset.
            config_path: YAML file given with ``--config``.
            sets: Texts given with ``--set``.
            sweeps: Texts given with ``--sweep``.
            num_samples: Number of configurations that will be drawn, or of repetitions of grids and ablations.
            defaults: Values that replace the dataclass's own; the preset's sweep leaves them alone.

        Raises:
            InputError: If anything is unknown, of the wrong type or out of range.
        """
        if preset not in self.presets:
            near = did_you_mean(preset, self.presets) or "."
            raise InputError(f"There is no preset {preset!r} among {', '.join(self.presets)}{near}")
        chosen = self.presets[preset]
        file = load_config_file(config_path, self.config) if config_path else None
        defaults = defaults or {}
        config = resolve(self.config, {**defaults, **chosen.values}, file, sets, self.check)
        preset_sweep = {name: domain for name, domain in chosen.sweep.items() if name not in defaults}
        domains = _swept(self.config, preset_sweep, file or ConfigFile(""), sets, sweeps, num_samples)
        self._check_domains(config, domains)
        return config, domains

    def check(self, config: Any) -> None:
        """Refuse a configuration with which nothing can be trained.

        Raises:
            SettingError: For the first setting that is out of range or contradicts another.
        """
        fields.check(config)
        if self.validate is not None:
            self.validate(config)

    def sample(
        self, config: Any, domains: Mapping[str, Domain], num_samples: int, seed: int
    ) -> list[tuple[dict[str, Any], int]]:
        """Draw configurations with their training seeds (see `sample_configs`), each checked as a whole.

        Raises:
            InputError: If settings that are swept together contradict each other in one of the samples.
        """
        samples = sample_configs(dataclasses.asdict(config), domains, num_samples, seed)
        for index, (values, _) in enumerate(samples):
            try:
                self.check(self.config(**values))
            except SettingError as error:
                drawn = ", ".join(f"{name}={values[name]}" for name in domains)
                raise InputError(f"Sample {index} of the sweep ({drawn}) cannot be trained: {error}") from None
        return samples

    def sections(self) -> dict[str, list[Setting]]:
        """Return the settings in their order, by the headings of ``groups``; by ``""`` where there are none."""
        headings = {first: heading for heading, first in self.groups.items()}
        sections: dict[str, list[Setting]] = {}
        heading = ""
        for setting in settings_of(self.config):
            heading = headings.get(setting.name, heading)
            sections.setdefault(heading, []).append(setting)
        return sections

    def grace_period(self, config: Any) -> int:
        """Return ASHA's grace period: the time until the first report of ``config``."""
        return int(getattr(config, self.rung_setting))

    def longest(self, config: Any, domains: Mapping[str, Domain]) -> int:
        """Return the most time that any drawn configuration may train: ASHA's ``max_t``."""
        swept = domains.get(self.budget_setting)
        return int(max(extremes(swept)) if swept is not None else getattr(config, self.budget_setting))

    def _check_domains(self, config: Any, domains: Mapping[str, Domain]) -> None:
        """Check every choice and both bounds of each domain, one setting at a time.

        Whether settings that are swept together go together is only known of a complete configuration, which is checked
        when it is drawn.
        """
        for name, domain in domains.items():
            for value in extremes(domain):
                try:
                    self.check(dataclasses.replace(config, **{name: value}))
                except SettingError as error:
                    # a setting that is swept as well may be drawn with a value that goes with this one
                    if error.name == name or error.name not in domains:
                        raise InputError(f"The sweep over {name} reaches {value!r}: {error}") from None


def extremes(domain: Domain) -> list[Any]:
    """Return the values between which a domain draws: all choices, or the least and the greatest number."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer):
        return [domain.lower, domain.upper - 1]
    if isinstance(domain, Float):
        return [domain.lower, domain.upper]
    raise TypeError(f"No bounds are known for {type(domain).__name__}.")


def _swept(
    config_class: type,
    preset_sweep: Mapping[str, Domain],
    file: ConfigFile,
    sets: Sequence[str],
    sweeps: Sequence[str],
    num_samples: int,
) -> dict[str, Domain]:
    fixed = dict(parse_set(text, config_class) for text in sets)
    swept = dict(parse_sweep(text, config_class) for text in sweeps)
    for name in fixed.keys() & swept.keys():
        raise InputError(f"{name} is given both with --set and with --sweep; keep one of the two.")
    domains = {name: domain for name, domain in file.domains.items() if name not in fixed} | swept
    if domains:
        return domains
    free = {name: domain for name, domain in preset_sweep.items() if name not in fixed and name not in file.values}
    return {name: domain for name, domain in free.items() if num_samples > 1 or is_exhaustive(domain)}
