"""Optuna on equal budgets: every value of one setting has a study and as many trials as the others.

A single study would soon try only the recipe that looks best after a few trials, at rates nobody
had tuned for the others. Here the setting goes round, and each of its values is tuned for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState


class EqualBudgets(BaseSampler):  # type: ignore[misc] # Optuna is an extra
    """A sampler that gives trial number i the value number i mod n, and each value its own TPE.

    TPE is the tree-structured Parzen estimator (Bergstra et al., 2011). With one seed and the same
    losses it proposes the same settings again, so a command that is given twice finds its runs.
    """

    def __init__(self, *, over: str, seed: int, num_startup_trials: int) -> None:
        """Tune every value of the setting `over` for itself."""
        self._over = over
        self._seed = seed
        self._num_startup_trials = num_startup_trials
        self._studies: dict[Any, Study] = {}
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line per study
        self._trials: dict[int, Trial] = {}  # of the values' studies, by the outer trial's number

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return nothing: every setting is asked for by itself."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return nothing, as there is nothing to sample together."""
        return {}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the setting's next value in turn, or what its own study proposes."""
        if param_name == self._over and isinstance(param_distribution, CategoricalDistribution):
            choices = param_distribution.choices
            return choices[trial.number % len(choices)]
        inner = self._trials.get(trial.number)
        if inner is None:
            inner = self._trials[trial.number] = self._study(study, self._value(trial)).ask()
        return inner._suggest(param_name, param_distribution)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Tell the value's own study what came out."""
        inner = self._trials.pop(trial.number, None)
        if inner is not None:
            losses = values if state == TrialState.COMPLETE else None
            self._study(study, self._value(trial)).tell(inner, values=losses, state=state)

    def _value(self, trial: FrozenTrial) -> Any:
        return trial.params.get(self._over, trial.user_attrs.get(self._over))

    def _study(self, outer: Study, value: Any) -> Study:
        """Return the study of one value, with what a stored outer study knows of it."""
        if value not in self._studies:
            sampler = TPESampler(seed=self._seed, n_startup_trials=self._num_startup_trials)
            inner = optuna.create_study(direction="minimize", sampler=sampler)
            for past in outer.get_trials(deepcopy=True, states=(TrialState.COMPLETE,)):
                if self._value(past) == value and past.number not in self._trials:
                    params = {
                        name: param for name, param in past.params.items() if name != self._over
                    }
                    inner.add_trial(
                        optuna.trial.create_trial(
                            params=params,
                            distributions={name: past.distributions[name] for name in params},
                            value=past.value,
                        )
                    )
            self._studies[value] = inner
        return self._studies[value]
