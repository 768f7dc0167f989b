"""Cold-start curation (Qwen3 report, section 4.1): from query-verifier pairs to few, sound, long chains of thought."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from qwen3_jax.curation.balance import balance, reserve
from qwen3_jax.curation.criteria.judged import judged
from qwen3_jax.curation.criteria.similarity import ValidationIndex
from qwen3_jax.curation.jsonl import write_lines
from qwen3_jax.curation.labels import DOMAINS, label
from qwen3_jax.curation.query_filters import Judge, not_verifiable, solved_without_thinking
from qwen3_jax.curation.report import Report
from qwen3_jax.curation.response_filters import CRITERIA, first_defects
from qwen3_jax.curation.responses import Answered, respond
from qwen3_jax.curation.review import Decision, read_review, write_review
from qwen3_jax.curation.trace import Trace
from qwen3_jax.evaluation.answers import extract_answer, same_answer
from qwen3_jax.language_models.disk_cache import DiskCache
from qwen3_jax.language_models.language_model import LanguageModel
from qwen3_jax.on_task import OnTask
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.registry import verify_all


@dataclasses.dataclass(frozen=True)
class ColdStart:
  """What is wanted of a curation."""

  seed: int = 0
  domains: tuple[str, ...] = DOMAINS  # that queries without one are labelled with
  most_of_median: float = 2.0  # queries of a domain, in those of the median domain; 0: any number
  validation_share: float = 0.05  # of the queries of each sub-domain, reserved
  samples: int = 4  # responses to each query: the N of Pass@N
  max_tokens: int = 32768  # of a response
  responses_per_query: int = 1  # that are kept, the first ones; few on purpose
  judge_traces: bool = False  # whether the assistant judges, too, what the rules let pass
  processes: int = 1  # for the rules
  tolerated_failures: float = 0.01  # share of a step's replies that may fail for good

  def __post_init__(self):
    for name in ("samples", "max_tokens", "responses_per_query", "processes"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}, expected at least 1")
    for name in ("validation_share", "tolerated_failures"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}, expected at least 0 and less than 1")


def curate(
  problems: Sequence[Problem],
  folder: Path,
  *,
  assistant: LanguageModel,
  reasoner: LanguageModel,
  settings: ColdStart = ColdStart(),
  judge: Judge = verify_all,
  on_progress: OnTask = lambda step, done, total: None,
) -> Report:
  """Curates problems into `folder`.

    cold_start.jsonl  {"id", "domain", "messages": [user, assistant with reasoning_content]} a line, for fine-tuning
    validation.jsonl  the reserved problems
    review.jsonl      queries whose responses are all wrong, for a person; what they write is read by the next run
    report.json, .md  what each filter removed
    replies.sqlite    what the models replied

  The same problems, settings and replies give the same files. A run that was killed goes on from the replies it had
  got; files are written whole, cold_start.jsonl last.

  Args:
    assistant: filters and labels queries, and answers them without thinking.
    reasoner: writes the responses.
    judge: verdicts of (problems, responses).
    on_progress: called with a step's name, how many requests are done, and of how many.

  Raises ValueError for problems that share an id, and for a review file that is malformed; CurationError when a model
  fails too often.
  """
  _check_ids(problems)
  decisions = read_review(folder / "review.jsonl")
  assistant = _cached(assistant, folder)
  reasoner = _cached(reasoner, folder)
  report = Report(facts={"problems": len(problems)})
  common = (settings.seed, on_progress, settings.tolerated_failures)

  reasons = not_verifiable(problems, assistant, *common)
  queries = _filter(report, "not easily verifiable", problems, reasons)
  reasons = solved_without_thinking(queries, assistant, judge, *common)
  queries = _filter(report, "solved without thinking", queries, reasons)
  queries = label(queries, assistant, settings.domains, *common)
  stays = balance(queries, settings.most_of_median, settings.seed)
  queries = _filter(
    report, "balance", queries, ["" if stay else "its domain has more than its share" for stay in stays]
  )
  reserved = reserve(queries, settings.validation_share, settings.seed)
  validation = [problem for problem, held in zip(queries, reserved) if held]
  train = [problem for problem, held in zip(queries, reserved) if not held]
  report.facts["reserved for validation"] = len(validation)
  write_lines(folder / "validation.jsonl", map(dataclasses.asdict, validation))

  seed, progress, tolerated = common
  answered = respond(train, reasoner, judge, settings.samples, settings.max_tokens, seed, progress, tolerated)
  report.facts[f"pass@{settings.samples}"] = _pass_shares(answered)
  write_review(folder / "review.jsonl", [one for one in answered if not one.passes], decisions)
  answered, by_person = _reviewed(report, answered, decisions, judge)

  traces = _right_ones(report, answered)
  traces = _sound_ones(report, traces, assistant, settings, common)
  index = ValidationIndex(validation, queries)
  traces = [*by_person, *traces]
  similar = {
    trace.problem.id: index.similarity(trace.problem) for trace in traces
  }  # of a question once; of each trace its text
  reasons = [
    similar[trace.problem.id] or index.quoted(f"{trace.thinking}\n{trace.response}", trace.problem) for trace in traces
  ]
  traces = _filter_traces(report, "similarity", traces, reasons)
  traces = _first_ones(report, traces, settings.responses_per_query)
  report.facts["conversations"] = len(traces)
  report.facts["by domain"] = dict(sorted(collections.Counter(trace.problem.domain for trace in traces).items()))
  report.write(folder)
  order = {problem.id: i for i, problem in enumerate(problems)}
  traces.sort(key=lambda trace: (order[trace.problem.id], trace.sample))
  write_lines(folder / "cold_start.jsonl", (trace.conversation() for trace in traces))
  return report


def _check_ids(problems: Sequence[Problem]) -> None:
  counts = collections.Counter(problem.id for problem in problems)
  twice = [id for id, count in counts.items() if count > 1]
  if twice:
    raise ValueError(f"problems: {len(twice)} ids are there more than once, e.g. {twice[0]!r}")


def _cached(model: LanguageModel, folder: Path) -> LanguageModel:
  return model if isinstance(model, DiskCache) else DiskCache(model, folder / "replies.sqlite")


def _filter(report: Report, name: str, problems: Sequence[Problem], reasons: Sequence[str]) -> list[Problem]:
  report.add(name, "queries", [(problem, reason, problem.prompt) for problem, reason in zip(problems, reasons)])
  return [problem for problem, reason in zip(problems, reasons) if not reason]


def _filter_traces(report: Report, name: str, traces: Sequence[Trace], reasons: Sequence[str]) -> list[Trace]:
  seen = [(t.problem, reason, f"{t.thinking} {t.response}") for t, reason in zip(traces, reasons)]
  report.add(name, "responses", seen)
  return [trace for trace, reason in zip(traces, reasons) if not reason]


def _pass_shares(answered: Sequence[Answered]) -> dict[str, float]:
  by_domain: dict[str, list[bool]] = collections.defaultdict(list)
  for one in answered:
    by_domain[one.problem.domain].append(one.passes)
    by_domain["all"].append(one.passes)
  return {name: round(sum(passes) / len(passes), 4) for name, passes in sorted(by_domain.items())}


def _reviewed(
  report: Report, answered: Sequence[Answered], decisions: dict[str, Decision], judge: Judge
) -> tuple[list[Answered], list[Trace]]:
  """What is left after a person's decisions: queries with a right response, and the responses that they wrote."""
  left: list[Answered] = []
  by_person: list[Trace] = []
  seen: list[tuple[Problem, str, str]] = []
  for one in answered:
    reason = ""
    decision = decisions.get(one.problem.id, Decision())
    if one.passes:
      left.append(one)
    elif decision.drop:
      reason = "dropped by a person"
    elif decision.response.strip():
      by_person.append(Trace(one.problem, 0, decision.thinking, decision.response))
    elif reference := decision.changed_reference(one.problem):
      again = _judged_by(one, reference, judge)
      reason = "" if again.passes else f"no response is right by the reference {reference!r} either"
      left += [again] if again.passes else []
    else:
      reason = f"all {len(one.traces)} responses are wrong, e.g. {next(iter(one.wrong), '')}: waits for a person"
    seen.append((one.problem, reason, one.problem.prompt))
  report.add("always fails", "queries", seen)
  return left, by_person


def _judged_by(one: Answered, reference: str, judge: Judge) -> Answered:
  """Judged by another reference: as the verifier does with it, or as the same answer in other spelling."""
  problem = dataclasses.replace(one.problem, reference=reference)
  traces = [dataclasses.replace(trace, problem=problem) for trace in one.traces]
  verdicts = judge([problem] * len(traces), [trace.response for trace in traces])
  right = [
    trace.finished and (verdict.right or same_answer(extract_answer(trace.response), reference))
    for trace, verdict in zip(traces, verdicts)
  ]
  return Answered(problem, traces, ["" if good else "another answer than the reviewed one" for good in right])


def _right_ones(report: Report, answered: Sequence[Answered]) -> list[Trace]:
  pairs = [pair for one in answered for pair in zip(one.traces, one.wrong)]
  return _filter_traces(report, "wrong", [trace for trace, _ in pairs], [reason for _, reason in pairs])


def _sound_ones(
  report: Report,
  traces: list[Trace],
  assistant: LanguageModel,
  settings: ColdStart,
  common: tuple[int, OnTask, float],
) -> list[Trace]:
  """Criteria 2 to 5, each on what those before it let pass."""
  defects = first_defects(traces, settings.processes)
  if settings.judge_traces:
    passed = [i for i, (name, _) in enumerate(defects) if not name]
    for i, said in zip(passed, judged([traces[i] for i in passed], assistant, *common)):
      defects[i] = said
  left = list(zip(traces, defects))
  for criterion in CRITERIA:
    reasons = [reason if name == criterion else "" for _, (name, reason) in left]
    _filter_traces(report, criterion, [trace for trace, _ in left], reasons)
    left = [pair for pair, reason in zip(left, reasons) if not reason]
  return [trace for trace, _ in left]


def _first_ones(report: Report, traces: Sequence[Trace], most: int) -> list[Trace]:
  counts: collections.Counter[str] = collections.Counter()
  reasons = []
  for trace in traces:
    counts[trace.problem.id] += 1
    reasons.append("" if counts[trace.problem.id] <= most else f"the query has {most} already")
  return _filter_traces(report, "enough of a query", traces, reasons)
