"""What is tried next, and what is left out, from told trials alone."""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core import Basis, Candidate, Measurement, Outcome, Phase, Trial
from autotune.engine.arguments import argument_value
from autotune.serving.decide.quality import identical_share, without_speculation
from autotune.serving.forecast.acceptance import tokens_per_step
from autotune.serving.forecast.error_process import SPREAD, UNKNOWN, ErrorProcess, Seen
from autotune.serving.forecast.forecast import ForecastProposer, Guess, forecast
from autotune.serving.measure.levels import noise_of
from autotune.serving.recipe import Recipe
from autotune.serving.scenario import SpecScenario

REACHED = [0.8, 0.6, 0.3, 0.1]
LEVELS = (1, 4)


def scenario(objective: str = "geomean") -> SpecScenario:
    return SpecScenario("m", "d", "chat", "k", LEVELS, 8, True, True, 3, 1, objective)


def rate(gamma: int, concurrency: int, draft: float) -> float:
    """Tokens per second of a server whose steps take 10 ms and ``draft`` ms per drafted token."""
    return concurrency * tokens_per_step(REACHED, gamma) / (0.010 + gamma * draft / 1e3)


def trial(gamma: int, draft: float = 1.0, factor: float = 1.0, **more: Any) -> Trial:
    levels: dict[str, dict[str, Any]] = {
        str(c): {"tok_s": rate(gamma, c, draft) / factor, "per_step": REACHED[:gamma]}
        for c in LEVELS
    }
    by = scenario(more.pop("objective", "geomean"))
    value = by.microseconds({int(c): level["tok_s"] for c, level in levels.items()})
    details: dict[str, Any] = {"levels": levels, "outputs": more.pop("outputs", ["a", "b"])}
    details["slo_missed"] = more.pop("slo_missed", [])
    ok = Measurement(Outcome.OK, Basis.MEASURED, value, (value,), details=details)
    return Trial(Candidate.of({"gamma": gamma} | more), "w", Phase.SEARCH, 0, ok)


def failed(
    gamma: int, outcome: Outcome, details: dict[str, Any] | None = None, **more: Any
) -> Trial:
    bad = Measurement(outcome, Basis.MEASURED, message="no", details=details or {})
    return Trial(Candidate.of({"gamma": gamma} | more), "w", Phase.SEARCH, 0, bad)


def grid(*gammas: int, **more: Any) -> list[Candidate]:
    return [Candidate.of({"gamma": g} | more) for g in gammas]


def asked(proposer: ForecastProposer) -> int | None:
    found = proposer.ask(8)
    assert len(found) <= 1
    return found[0].int("gamma") if found else None


def test_the_forecast_is_exact_where_the_model_holds() -> None:
    found = forecast(trial(0), trial(4))
    assert found is not None
    for gamma in range(5):
        for concurrency in LEVELS:
            expected = rate(gamma, concurrency, 1.0)
            assert found.tok_s[gamma][concurrency] == pytest.approx(expected)


def test_probe_first_then_the_best_predicted_then_nothing_that_cannot_win() -> None:
    proposer = ForecastProposer(grid(0, 1, 2, 3, 4), trial(0, 3.0), scenario())
    assert asked(proposer) == 4
    proposer.tell(trial(4, 3.0))
    # Tokens per ms: 0.1, 0.138, 0.15, 0.142, 0.127.
    assert asked(proposer) == 2
    proposer.tell(trial(2, 3.0))
    assert asked(proposer) is None  # as forecast: 3 and 1 are 5 and 8 % behind


def test_what_was_measured_corrects_the_forecast() -> None:
    """A surprise at one gamma is believed of its neighbours, and then they are worth a boot."""
    proposer = ForecastProposer(grid(0, 1, 2, 3, 4), trial(0, 3.0), scenario())
    proposer.tell(trial(4, 3.0))
    (three,) = grid(3)
    before = proposer.predicted(three)
    proposer.tell(trial(2, 3.0, factor=1.1))
    after = proposer.predicted(three)
    assert before is not None
    assert after is not None
    assert after.us == pytest.approx(before.us * 1.1**0.5)
    assert after.spread == pytest.approx(SPREAD * (1 / 2) ** 0.5)
    assert asked(proposer) == 3


def guess(proposer: ForecastProposer, gamma: int, **more: Any) -> Guess:
    found = proposer.predicted(Candidate.of({"gamma": gamma} | more))
    assert found is not None
    return found


def test_other_parameters_err_on_top_of_what_gamma_does() -> None:
    proposer = ForecastProposer(grid(0, x="a"), trial(0, 3.0, x="a"), scenario())
    proposer.tell(trial(4, 3.0, x="a"))
    plain = trial(3, 3.0).measurement.value
    assert plain is not None
    assert guess(proposer, 3, x="a").us == pytest.approx(plain)
    assert guess(proposer, 3, x="b").spread == pytest.approx(
        math.hypot(guess(proposer, 3, x="a").spread, UNKNOWN, SPREAD * 3**0.5)
    )
    # gamma 2 is 10 % slower than forecast, and x=b 20 % slower there than x=a.
    proposer.tell(trial(2, 3.0, factor=1.1, x="a"))
    proposer.tell(trial(2, 3.0, factor=1.1 * 1.2, x="b"))
    assert guess(proposer, 2, x="b").spread == pytest.approx(0, abs=1e-4)
    three = guess(proposer, 3, x="b")
    assert three.us == pytest.approx(plain * 1.1**0.5 * 1.2)
    # One away from what is known of x=b, half way between two of x=a.
    assert three.spread == pytest.approx(SPREAD * (1 + 1 / 2) ** 0.5)
    assert guess(proposer, 4, x="b").spread == pytest.approx(SPREAD * 2**0.5)


def test_the_less_sure_of_two_guesses_is_tried() -> None:
    """An expected improvement, not the best guess: between 0 and 8, 4 is less sure than 7."""
    proposer = ForecastProposer(grid(4, 7), flat(0), scenario())
    proposer.tell(flat(8, 1.001))
    assert guess(proposer, 7).us < guess(proposer, 4).us
    assert asked(proposer) == 4


def test_with_nothing_to_recommend_the_best_guess_is_tried() -> None:
    missed = trial(0, 3.0, slo_missed=["ttft"])
    proposer = ForecastProposer(grid(0, 1, 2, 3, 4), missed, scenario())
    proposer.tell(trial(4, 3.0, outputs=["a", "x"]))
    assert asked(proposer) == 2


def flat(gamma: int, faster: float = 1.0) -> Trial:
    """A server on which every gamma is as fast as another."""
    reached = [0.5] * gamma
    rates = {c: 100.0 * c * faster for c in LEVELS}
    levels = {str(c): {"tok_s": rate, "per_step": reached} for c, rate in rates.items()}
    details = {"levels": levels, "outputs": []}
    value = scenario().microseconds(rates)
    ok = Measurement(Outcome.OK, Basis.MEASURED, value, (value,), details=details)
    return Trial(Candidate.of({"gamma": gamma}), "w", Phase.SEARCH, 0, ok)


@pytest.mark.parametrize(("objective", "slower"), [("single", 1.05), ("geomean", 1.05 * 1.2)])
def test_a_stopped_trial_tells_of_the_levels_that_decide(objective: str, slower: float) -> None:
    given: dict[str, Any] = {"x": "a", "objective": objective}
    proposer = ForecastProposer(grid(0, x="a"), trial(0, 3.0, **given), scenario(objective))
    proposer.tell(trial(4, 3.0, **given))
    before = guess(proposer, 2, x="a").us
    partial = {
        "1": {"tok_s": 1.0, "repeats": [rate(2, 1, 3.0) / 1.05, 1.0]},
        "4": {"tok_s": 1.0, "repeats": [1.0, rate(2, 4, 3.0) / (1.05 * 1.2**2)]},
    }
    proposer.tell(failed(2, Outcome.CANNOT_WIN, {"partial": partial}, x="b"))
    assert guess(proposer, 2, x="b").us == pytest.approx(before * slower)


@pytest.mark.parametrize(("faster", "then"), [(1.1, 1), (1.2, None)])
def test_the_front_is_left_open_by_two_standard_deviations(faster: float, then: int | None) -> None:
    """Of the probe's rates gamma 1 is forecast to have 96.8 and 93.8 %; the line is at 94.5 %."""
    proposer = ForecastProposer(grid(1), flat(0), scenario("pareto"))
    proposer.tell(flat(2, faster))
    assert asked(proposer) == then


HOME: tuple[tuple[str, str], ...] = (("x", "a"),)


def at(gamma: int, known: dict[int, float], noise: float = 0.0) -> tuple[float, float]:
    seen = [Seen(HOME, gamma, error, noise) for gamma, error in known.items()]
    return ErrorProcess(seen, HOME).at(HOME, gamma)


@given(
    st.dictionaries(st.integers(1, 8), st.floats(-0.5, 0.5), max_size=4),
    st.floats(-0.5, 0.5),
    st.integers(0, 8),
)
def test_without_noise_it_is_a_brownian_bridge(
    more: dict[int, float], first: float, gamma: int
) -> None:
    known = {0: first, **more}
    mean, spread = at(gamma, known)
    below = max(g for g in known if g <= gamma)
    above = min((g for g in known if g > gamma), default=None)
    if below == gamma or above is None:
        share, expected = 0.0, known[below]
    else:
        share = (gamma - below) / (above - below)
        expected = known[below] * (1 - share) + known[above] * share
    assert mean == pytest.approx(expected, abs=1e-6)
    assert spread == pytest.approx(SPREAD * ((gamma - below) * (1 - share)) ** 0.5, abs=1e-4)


@given(
    st.dictionaries(st.integers(0, 8), st.floats(-0.5, 0.5), min_size=2, max_size=5),
    st.floats(0.01, 0.3),
    st.integers(0, 8),
)
def test_noise_makes_it_less_sure_and_the_measured_less_extreme(
    known: dict[int, float], noise: float, gamma: int
) -> None:
    mean, spread = at(gamma, known, noise)
    assert spread > at(gamma, known)[1]
    # The offset's prior is wide, not unbounded: it draws the mean towards 0 by noise² at most.
    assert min(known.values()) - noise**2 <= mean <= max(known.values()) + noise**2
    if gamma in known:
        assert spread < noise


def test_two_boots_as_noisy_as_they_differ_are_about_one() -> None:
    """Neighbours, a Wiener step of 4 % apart, measured 20 % apart with a noise of 20 %."""
    means = [at(gamma, {3: 0.0, 4: 0.2}, 0.2)[0] for gamma in (3, 4)]
    assert means == pytest.approx([0.1, 0.1], abs=0.01)


def test_noise_is_that_of_the_median_of_the_repeats() -> None:
    drawn = random.Random(1)
    boots = [[math.exp(drawn.gauss(5, 0.1)) for _ in range(5)] for _ in range(2000)]
    scatter = statistics.stdev(math.log(statistics.median(boot)) for boot in boots)
    told = statistics.fmean(noise_of({"repeats": boot}) for boot in boots)
    assert told == pytest.approx(scatter, rel=0.25)  # of five it tells a little less than there is
    assert noise_of({"repeats": [100, 101, 100, 102, 40]}) < 0.01
    assert noise_of({"tok_s": 100.0}) == 0


def test_a_lucky_boot_does_not_end_the_search() -> None:
    """Gamma 2 reads 10 % better than it is; whether 3 is booted depends on how sure it seems."""

    def then(scatter: float) -> int | None:
        proposer = ForecastProposer(grid(0, 1, 2, 3, 4), trial(0, 2.0), scenario())
        proposer.tell(trial(4, 2.0))
        lucky = trial(2, 2.0, factor=1 / 1.1)
        for level in lucky.measurement.details["levels"].values():
            level["repeats"] = [level["tok_s"] * (1 + scatter * x) for x in (-2, -1, 0, 1, 2)]
        proposer.tell(lucky)
        return asked(proposer)

    assert then(0.001) is None
    assert then(0.2) == 3


@given(st.floats(1.0, 1e6), st.floats(0.0, 0.5), st.floats(1.0, 1e6))
def test_expected_improvement(us: float, spread: float, best: float) -> None:
    found = Guess(us, spread).improvement(best)
    assert found >= max(math.log(best / us), 0.0) - 1e-9
    assert Guess(us, 0.0).improvement(best) == max(math.log(best / us), 0.0)
    assert Guess(us, spread).improvement(math.inf) == math.inf


def test_expected_improvement_of_a_tie() -> None:
    """Of a guess as good as the best: the mean of the positive half, spread / √(2π)."""
    assert Guess(10.0, 0.04).improvement(10.0) == pytest.approx(0.04 / math.sqrt(2 * math.pi))


def test_a_clear_winner_ends_the_search() -> None:
    proposer = ForecastProposer(grid(0, 1, 4), trial(0, 0.0), scenario())
    proposer.tell(trial(4, 0.0))
    assert asked(proposer) is None
    (left,) = proposer.left_out()
    assert left.int("gamma") == 1
    guess = proposer.predicted(left)
    assert guess is not None
    assert guess.us == pytest.approx(trial(1, 0.0).measurement.value)


def test_a_failed_probe_is_followed_by_the_next_largest() -> None:
    proposer = ForecastProposer(grid(0, 1, 2, 4), trial(0), scenario())
    assert asked(proposer) == 4
    proposer.tell(failed(4, Outcome.OUT_OF_MEMORY))
    assert asked(proposer) == 2


def test_nothing_accepted_ends_all_drafting() -> None:
    proposer = ForecastProposer(
        [*grid(0, 1, 2, x="a"), *grid(0, 2, x="b")], trial(0, x="a"), scenario()
    )
    assert asked(proposer) == 2
    proposer.tell(failed(2, Outcome.CONSTRAINT, {"nothing_accepted": True}, x="a"))
    (other,) = proposer.ask(8)
    assert other.params == {"gamma": 0, "x": "b"}
    proposer.tell(trial(0, x="b"))
    assert proposer.ask(8) == []


def test_other_parameters_are_tried_once_and_again_only_where_they_help() -> None:
    candidates = [*grid(0, 2, 4, x="a"), *grid(0, 2, 4, x="b")]
    proposer = ForecastProposer(candidates, trial(0, 3.0, x="a"), scenario())
    proposer.tell(trial(4, 3.0, x="a"))
    proposer.tell(trial(2, 3.0, x="a"))
    (first,) = proposer.ask(8)
    assert first.params == {"gamma": 2, "x": "b"}
    proposer.tell(trial(2, 3.0, factor=2.0, x="b"))
    assert proposer.ask(8) == []


def test_an_invalid_parameter_is_not_tried_again() -> None:
    candidates = [*grid(0, 2, x="a"), *grid(0, 1, 2, x="b")]
    proposer = ForecastProposer(candidates, trial(0, x="a"), scenario())
    proposer.tell(trial(2, x="a"))
    proposer.tell(failed(2, Outcome.CONSTRAINT, x="b"))
    assert proposer.ask(8) == []


def test_a_trial_with_other_outputs_rules_nothing_out() -> None:
    for outputs, then in ((["a", "b"], None), (["a", "x"], 1)):
        proposer = ForecastProposer(grid(0, 1, 4), trial(0, 0.0), scenario())
        proposer.tell(trial(4, 0.0, outputs=outputs))
        assert asked(proposer) == then


def test_what_is_told_decides_and_not_who_asked() -> None:
    told = [trial(4, 3.0), trial(2, 3.0)]
    asking = ForecastProposer(grid(0, 1, 2, 3, 4), trial(0, 3.0), scenario())
    restored = ForecastProposer(grid(0, 1, 2, 3, 4), trial(0, 3.0), scenario())
    for one in told:
        asking.ask(1)
        asking.tell(one)
        restored.tell(one)
    assert asking.ask(1) == restored.ask(1)


def test_without_counters_there_is_no_forecast() -> None:
    probe = trial(4)
    for level in probe.measurement.details["levels"].values():
        del level["per_step"]
    assert forecast(trial(0), probe) is None


def test_objectives() -> None:
    rates = {1: 100.0, 4: 200.0}
    assert scenario("single").microseconds(rates) == pytest.approx(1e4)
    assert scenario("aggregate").microseconds(rates) == pytest.approx(5e3)
    assert scenario().microseconds(rates) == pytest.approx(1e6 / 20_000**0.5)


def test_a_scenario_is_known_by_its_content() -> None:
    first = scenario()
    assert first.key == scenario().key
    assert first.in_round(1).key != first.key
    assert scenario("single").key != first.key
    assert (first.label, first.in_round(2).label) == ("c=1,4", "c=1,4 round 2")


def test_identical_outputs() -> None:
    assert identical_share(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == 0.75
    assert identical_share([], []) is None
    home = Candidate.of({"gamma": 0, "x": "a", "spec.n": "1"})
    searched = Candidate.of({"gamma": 3, "x": "y", "spec.n": "2"})
    plain = {"gamma": 0, "x": "y", "spec.n": "1"}  # a drafter's option changes nothing then
    assert without_speculation(searched, home).params == plain


def test_flags_of_a_candidate() -> None:
    recipe = Recipe("m", "draft_model", "d", (0.9, 0.5, 0.1), ("--max-model-len=9",), {"A": "b"})
    params: dict[str, Any] = {"gamma": 2, "kv_cache_dtype": "fp8", "gpu_memory_utilization": "0.5"}
    settings = recipe.settings(
        Candidate.of(params | {"max_num_seqs": "8", "eager": True, "x": False})
    )
    assert settings.speculative == {
        "method": "draft_model",
        "model": "d",
        "num_speculative_tokens": 2,
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_rates": [0.9, 0.5],
    }
    assert (settings.kv_cache_dtype, settings.gpu_memory_utilization) == ("fp8", 0.5)
    expected = ("--eager", "--max-num-seqs", "8", "--no-x", "--max-model-len=9")
    assert settings.extra_args == expected
    assert recipe.settings(Candidate.of({"gamma": 0})).speculative is None
    assert argument_value(settings.extra_args, "--max-model-len") == "9"
    assert argument_value(["--a", "1", "--a", "2"], "--a") == "2"


@pytest.mark.parametrize("outcome", [Outcome.CRASH, Outcome.CONSTRAINT, Outcome.OUT_OF_MEMORY])
@pytest.mark.parametrize(
    ("boots", "draft", "expected"),
    [
        (4, 1.0, [8, 4]),  # at 4 nothing more is gained
        (4, 0.01, [8, 4, 6, 5]),  # more drafting would gain
        (6, 0.01, [8, 4, 6, 7]),
        (0, 1.0, [8, 4, 2, 1, 7, 6, 5, 3]),
    ],
)
def test_what_boots_is_found_by_halves(
    outcome: Outcome, boots: int, draft: float, expected: list[int]
) -> None:
    proposer = ForecastProposer(grid(*range(9)), trial(0, draft), scenario())
    tried: list[int] = []
    while len(tried) < len(expected) and (gamma := asked(proposer)) is not None:
        tried.append(gamma)
        told = long_trial(gamma, draft) if gamma <= boots else failed(gamma, outcome)
        proposer.tell(told)
    assert tried == expected


def long_trial(gamma: int, draft: float) -> Trial:
    """Acceptance that falls by a tenth at each of eight positions."""
    reached = [0.9**k for k in range(1, gamma + 1)]
    levels: dict[str, dict[str, Any]] = {
        str(c): {
            "tok_s": c * tokens_per_step(reached, gamma) / (0.010 + gamma * draft / 1e3 * 5),
            "per_step": reached,
        }
        for c in LEVELS
    }
    value = scenario().microseconds({int(c): level["tok_s"] for c, level in levels.items()})
    details: dict[str, Any] = {"levels": levels, "outputs": ["a", "b"], "slo_missed": []}
    ok = Measurement(Outcome.OK, Basis.MEASURED, value, (value,), details=details)
    return Trial(Candidate.of({"gamma": gamma}), "w", Phase.SEARCH, 0, ok)
