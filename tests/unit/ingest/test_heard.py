"""What a runner said: the newest of each state, the fate of each revision, and no more than is bounded."""

from __future__ import annotations

from prometheus_client import REGISTRY

from services.common.errors import ConflictError
from services.ingest.bridge.events import Applied, Health, Loading, Problem, Refused
from services.ingest.bridge.heard import EVENTS_PER_S, NEWS, PROBLEMS, REVISIONS, Heard
from services.ingest.runner_news import condition, refusal, standing

MOST = int(EVENTS_PER_S)


def heard() -> Heard:
    return Heard(0.0, lambda: 1_700_000_000_000)


def problem(stage: str = "process", action: str = "held", frame: int | None = 1) -> Problem:
    return Problem(stage, "pipeline_error", "ValueError", "no", action, None, frame)


def unheard(kind: str) -> float:
    return REGISTRY.get_sample_value("sluice_runner_events_unheard_total", {"kind": kind}) or 0.0


def test_a_revision_is_shown_when_it_or_one_as_slow_after_it_is_in_a_picture() -> None:
    runner = heard()
    assert runner.shown(2, "live") is None
    runner.take(Applied(3, 93_000), 0)
    assert runner.shown(2, "live") == Applied(3, 93_000)
    assert runner.shown(2, "warm") is None
    assert runner.shown(2, "reload") is None
    runner.take(Applied(5, 99_000, "warm"), 0)
    assert runner.shown(2, "warm") == runner.shown(4, "live") == Applied(5, 99_000, "warm")
    assert runner.shown(4, "reload") is None
    runner.take(Applied(4, 105_000, "reload"), 0)
    assert runner.shown(2, "reload") == Applied(4, 105_000, "reload")
    assert (runner.applied_revision, runner.applied_pts) == (5, 105_000)


def test_a_revision_that_began_a_session_is_shown_by_its_first_picture() -> None:
    runner = heard()
    runner.take(Applied(2, 90_000), 0)
    assert runner.shown(2, "at_start") == Applied(2, 90_000)


def test_the_fate_of_the_newest_revisions_is_known_and_that_of_older_ones_forgotten() -> None:
    runner = heard()
    for revision in range(REVISIONS + 5):
        runner.take(Refused(revision, "", "param_refused", ""), float(revision))
    assert runner.refusal(4) is None
    assert runner.refusal(5) is not None
    assert len(runner.refused_revisions) == REVISIONS


def test_who_follows_gets_each_piece_of_news_once_and_misses_what_is_too_old() -> None:
    runner = heard()
    for revision in range(3):
        runner.take(Applied(revision, 90_000), 0)
    assert [one.revision for one in runner.since(1) if isinstance(one, Applied)] == [1, 2]
    assert runner.since(3) == []
    for revision in range(2 * NEWS):
        runner.take(Applied(revision, 90_000), 0)
    assert len(runner.since(3)) == NEWS


def test_a_flood_of_problems_is_counted_and_the_next_second_hears_again() -> None:
    runner, before = heard(), unheard("problem")
    taken = [runner.take(problem(frame=frame), 0) for frame in range(100)]
    assert taken.count(True) == MOST
    assert unheard("problem") - before == 100 - MOST
    assert [one.problem.frame for one in runner.problems] == list(range(MOST - PROBLEMS, MOST))
    assert runner.take(Refused(1, "", "param_refused", ""), 0), "a refusal is not lost among problems"
    assert runner.take(problem(), 1)


def test_of_a_flood_of_progress_the_newest_is_passed_on_later() -> None:
    runner, before = heard(), unheard("loading")
    for percent in range(101):
        runner.take(Loading("start", "weights", percent), 0)
    assert runner.loading == Loading("start", "weights", MOST - 1)
    assert not runner.tick(0.01), "still too much"
    assert runner.tick(0.2)
    assert runner.loading is None
    assert not runner.tick(0.3)
    assert unheard("loading") - before == 100 - MOST


def test_loading_is_over_when_it_is_done_or_came_to_nothing() -> None:
    at_40 = Loading("reload", "weights", 40)
    ends = (
        Loading("reload", "weights", 100),
        Refused(3, "", "out_of_memory", ""),
        Applied(3, 93_000, "reload"),
        Health("online", ""),
        problem("load"),
    )
    goes_on = (Applied(4, 93_000), problem("input"), Health("loading", ""))
    for said in ends:
        runner = heard()
        runner.take(at_40, 0)
        runner.take(said, 0)
        assert runner.loading is None, said
    for said in goes_on:
        runner = heard()
        runner.take(at_40, 0)
        runner.take(said, 0)
        assert runner.loading == at_40, said


def test_the_age_of_progress_counts_from_the_last_word_even_of_a_flood() -> None:
    runner = heard()
    assert runner.progress_age_ms(5) is None
    for step in range(100):
        runner.take(Loading("start", "weights", 1), step / 100)
    assert runner.progress_age_ms(3) == 2010


def test_who_comes_late_hears_how_the_runner_is() -> None:
    runner = heard()
    assert list(standing(runner)) == []
    assert condition(runner) == {"health": None, "loading": None, "problem": None}
    runner.take(Health("loading", ""), 0)
    runner.take(Loading("start", "weights", 40), 0)
    runner.take(problem(action="restarting"), 0)
    assert list(standing(runner)) == [Health("loading", ""), Loading("start", "weights", 40)]
    shown = condition(runner)
    assert shown["health"] == {"state": "loading", "cause": None, "since": "2023-11-14T22:13:20.000Z"}
    assert shown["problem"]["action"] == "restarting"
    assert (runner.restart_count, runner.restarted_unix_ms) == (1, 1_700_000_000_000)


def test_a_refusal_without_words_or_field_still_says_why() -> None:
    error = refusal(Refused(3, "", "poisoned_param", ""))
    assert isinstance(error, ConflictError)
    assert (error.reason, error.details) == ("POISONED_PARAM", {"revision": "3"})
    assert error.message.endswith(": poisoned_param")
