"""Criteria on single cases: plain defects, and what only looks like one."""

import pytest

from qwen3_jax.curation.criteria.guess import guess
from qwen3_jax.curation.criteria.inconsistency import inconsistency
from qwen3_jax.curation.criteria.judged import judged
from qwen3_jax.curation.criteria.language_mix import language_mix
from qwen3_jax.curation.criteria.repetition import repetition
from qwen3_jax.curation.criteria.similarity import ValidationIndex
from qwen3_jax.curation.criteria.style_shift import style_shift
from qwen3_jax.curation.criteria.wrong import wrong
from qwen3_jax.curation.trace import Trace
from qwen3_jax.language_models.language_model import Reply
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.verdict import Verdict

PROBLEM = Problem(
  "p", "mathematics", "sums", "A farmer has 12 cows and buys 7 more. How many cows are there?", {"kind": "x"}, "19"
)


def test_wrong():
  trace = Trace(PROBLEM, 0, "12 + 7 = 19", "19")
  assert wrong(trace, Verdict(1.0)) == ""
  assert wrong(trace, Verdict(0.5, "only half of it")) == "only half of it"
  assert "cut short" in wrong(Trace(PROBLEM, 0, "12 + 7", "19", finished=False), Verdict(1.0))
  assert "no response" in wrong(Trace(PROBLEM, 0, "12 + 7 = 19", " \n"), Verdict(1.0))


@pytest.mark.parametrize(
  "text",
  [
    " ".join(f"Case x = {x} gives a sum of {x + 3}." for x in range(1, 6)),
    "The total is 31. Let me check this again from the start. 5 and 9 make 14. 14 and 17 make 31. Good.",
    "\n".join(["0 0 0 0 0 0 0 0", "0 0 1 0 0 0 0 0"] * 12),
    "```python\n" + "".join(f"if value == {i}:\n  print('the value is now {i}')\n" for i in range(12)) + "```",
    "We use $\\frac{a b c d e}{f}$ and $\\frac{a b c d e}{f}$ and $\\frac{a b c d e}{f}$ and $\\frac{a b c d e}{f}$.",
    "Ein Apfel kostet 3 Euro. Zwei Äpfel kosten 6 Euro. Drei Äpfel kosten 9 Euro. Vier Äpfel kosten 12 Euro.",
  ],
  ids=["cases", "checked once", "grid", "code", "formulas", "another language"],
)
def test_no_repetition(text):
  assert repetition(text) == ""


def test_a_question_may_be_quoted():
  said = " ".join([PROBLEM.prompt] * 3)
  rest = " Some twelve cows graze on the hill, while seven others come up the road with their calves."
  assert repetition(said + rest, PROBLEM.prompt) == ""
  assert "over and over" in repetition("so we go on and on " * 12)
  assert "said twice before" in repetition(
    " ".join(f"Maybe I should look at it from the other side. Then there are {i} of them." for i in range(5))
  )


def test_guess():
  assert guess("", "19", PROBLEM.prompt)
  assert guess("I think it is 19.", "The answer is 19", PROBLEM.prompt)
  assert guess(PROBLEM.prompt + " Probably 19.", "The answer is 19", PROBLEM.prompt)
  assert not guess("12 + 7 = 19", "The answer is 19", PROBLEM.prompt)
  maybe = "Maybe one adds them. There are 12 cows at first, so with 7 more the cows are 12 + 7 = 19."
  assert not guess(maybe, "The answer is 19", PROBLEM.prompt)
  assert not guess("Il y a 12 vaches, puis 7 de plus: 12 + 7 = 19.", "19", "Un fermier a 12 vaches et en achète 7.")


@pytest.mark.parametrize(
  ("thinking", "response", "agree"),
  [
    ("12 + 7 = 19, so 19.", "The answer is 19", True),
    ("12 + 7 = 19, so 19.", "The answer is 18", False),
    ("So the answer is 18.", "There are 19. The answer is 19", False),
    ("12 and 7 are nineteen.", "\\boxed{19}", True),
    ("The answer is 1/2.", "The answer is 0.5", True),
    ("That makes 1,234 in all.", "\\boxed{1234}", True),
    ("5 - 8 leaves -3.", "The answer is -3", True),
    ("8 - 5 leaves 3.", "The answer is -3", False),
    ("First I thought 18. But 12 + 7 is 19. Check: 19 - 7 = 12, fine.", "The answer is 19", True),
    ("It follows, so it is true.", "Yes, it does. The answer is Yes", True),
    ("The claim does not hold. The answer is False", "The answer is True", False),
    ("a comes before b, so: apple, bread, cake", "The answer is apple, bread, cake", True),
    ("a comes before b, so the answer is apple, bread, cake", "The answer is bread, apple, cake", False),
    ("", "The answer is 19", True),
  ],
)
def test_inconsistency(thinking, response, agree):
  assert bool(inconsistency(thinking, response, "How many?")) != agree


def test_a_choice_stands_for_its_text():
  prompt = "What is the capital of France?\nA) Rome\nB) Paris\nC) Bonn"
  assert inconsistency("France is ruled from the Seine, that is Paris.", "\\boxed{B}", prompt) == ""
  assert inconsistency("France is ruled from the Seine, that is Paris.", "\\boxed{C}", prompt)


def test_language_mix():
  sound = "There are twelve cows at first and then seven more come, so nineteen in all."
  assert language_mix(sound, "19", PROBLEM.prompt) == ""
  assert language_mix(sound, "Il y a maintenant dix-neuf vaches dans le champ du fermier.", PROBLEM.prompt).startswith(
    "response"
  )
  assert "'所以'" in language_mix(f"{sound} 所以 19.", "19", PROBLEM.prompt)
  assert language_mix(f'{sound} The word for it is "所以" in another language.', "19", PROBLEM.prompt) == ""
  assert language_mix("α + β = 90, so γ = 90.", "90", PROBLEM.prompt) == ""
  french = "Le fermier a douze vaches et il en achète sept autres au marché du village."
  assert language_mix(f"{sound} {french} {french}", "19", PROBLEM.prompt)
  assert (
    language_mix(sound, french, "Un fermier a 12 vaches et en achète 7. Combien de vaches a-t-il maintenant ?") == ""
  )
  assert language_mix(sound, french, "Translate into French: the farmer has twelve cows and buys seven others.") == ""
  chinese = "农夫有十二头牛,又买了七头,所以一共有十九头牛。"
  assert language_mix(chinese, "十九头牛。", "农夫有12头牛,又买了7头。一共有多少头?") == ""
  assert language_mix(chinese, "19", PROBLEM.prompt)


def test_style_shift():
  calm = [
    "There are twelve cows at first.",
    "Then seven more are bought.",
    "Twelve and seven are nineteen.",
    "That is all.",
  ]
  loud = "NOW I WILL COUNT THEM ALL AGAIN. NOTHING CAN GO WRONG WITH IT NOW, I AM SURE."
  assert style_shift(" ".join(calm)) == ""
  assert style_shift(" ".join([*calm, loud])).startswith("capitals")
  assert style_shift(" ".join([*calm, "lol bro this is soooo easy, ngl i could do it in my sleep haha!!"])).startswith(
    "chat"
  )
  assert style_shift(loud) == ""  # one style throughout
  secret = "Decrypted it reads: MEET ME AT THE OLD BRIDGE TONIGHT. BRING ALL OF THE MONEY AND COME ALONE."
  assert (
    style_shift(
      " ".join([*calm, secret]),
      "The answer is meet me at the old bridge tonight. Bring all of the money and come alone.",
    )
    == ""
  )


def test_similarity():
  ask = lambda id, text: Problem(id, "mathematics", "sums", text, {"kind": "x"}, "")
  make = lambda a, b, c: f"A farmer has {a} cows and buys {b} more, then sells {c}. How many cows are there?"
  train = [ask(f"t{i}", make(100 + i, 20 + i, 3 + 2 * i)) for i in range(20)]
  validation = [ask(f"v{i}", make(300 + i, 60 + i, 41 + 2 * i)) for i in range(5)]
  index = ValidationIndex(validation, train)
  assert [index.similarity(one) for one in train] == [""] * 20
  assert "v3" in index.similarity(ask("x", validation[3].prompt.upper() + " Thank you!"))
  long = ask(
    "w", "Marta sold 118 tulips, 73 roses, 941 daisies, 66 lilies and 207 orchids at 14 markets in Utrecht and Leiden."
  )
  index = ValidationIndex([*validation, long], train)
  edited = long.prompt.replace("66 lilies", "67 poppies").replace("Marta", "Petra")
  assert "w" in index.similarity(ask("x", edited))
  assert "w" in index.quoted(f"This reminds me of another one: {long.prompt} But here we have cows.", train[0])
  assert index.quoted("100 cows and 20 more are 120, without 3 of them 117.", train[0]) == ""


def test_judged():
  class Model:
    name = "judge"

    def answer(self, requests, on_progress=None):
      texts = [request.messages[0]["content"] for request in requests]
      assert all(not request.enable_thinking and request.seed is not None for request in requests)
      word = lambda text: "VERDICT: GUESSED" if "wild" in text else "VERDICT: SOUND" if "calm" in text else "no idea"
      return [[Reply(word(text), "", "stop", 1, 1)] for text in texts]

  traces = [Trace(PROBLEM, i, thinking, "19") for i, thinking in enumerate(["wild", "calm", "else"])]
  said = judged(traces, Model(), 0, lambda *_: None, 0.0)
  assert said == [("guess", "guessed, says the model"), ("", ""), ("", "")]
