"""The adapter of lm-evaluation-harness: what each request gives, from the model by other ways."""

import logging

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.evaluation.lm_eval_adapter import Qwen3LM
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.rollout.generate import complete
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from tests.rollout.chain_model import CONFIG, chain, chain_model


@pytest.fixture(scope="module")
def adapter(model, tokenizer):
  return Qwen3LM(model, tokenizer)


def requests(kind, *arguments):
  return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def test_loglikelihood(adapter, reference, tokenizer):
  """After a context, after one that ends in a space, after nothing, and of two continuations that share one."""
  pairs = [("def f(", "x):"), ("import ", "os"), ("", "class A"), ("for i in", " range"), ("for i in", " None")]
  found = adapter.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
  for (context, continuation), (total, greedy) in zip(pairs, found):
    ids = tokenizer.encode(context + continuation)
    before = tokenizer.encode(context.rstrip())
    if not context:
      ids, before = [tokenizer.eos_id, *ids], [tokenizer.eos_id]
    expected, choices = reference(ids)
    count = len(ids) - len(before)
    assert 0 < count < len(ids)
    assert total == pytest.approx(expected[-count:].sum(), abs=1e-4) and total < -1
    assert greedy == choices[-count:].all()
  assert found[3][0] != found[4][0]


def test_greedy_continuations(adapter, model, tokenizer):
  """Are those that the model writes, and no others."""
  prompt = tokenizer.encode("import")
  ((completion,),) = complete(model, tokenizer, [prompt], temperature=0.0, max_new_tokens=6)
  ids = completion.token_ids
  other = [*ids[:-1], (ids[-1] + 1) % 512]
  (total, greedy), (_, not_greedy) = adapter._loglikelihood_tokens([(("", ""), prompt, ids), (("", ""), prompt, other)])
  assert greedy is True and not_greedy is False
  assert total == pytest.approx(sum(completion.logprobs), abs=1e-3)


def test_long_contexts_lose_their_beginning(adapter, reference):
  rng = np.random.default_rng(0)
  context, continuation = rng.integers(0, 512, 400).tolist(), rng.integers(0, 512, 5).tolist()
  ((total, _),) = adapter._loglikelihood_tokens([(("", ""), context, continuation)])
  assert total == pytest.approx(reference([*context, *continuation][-257:])[0][-5:].sum(), abs=1e-4)
  for bad in ([], [1] * 257):
    with pytest.raises(ValueError, match=f"has {len(bad)} tokens, expected 1 to 256"):
      adapter._loglikelihood_tokens([(("", ""), [1], bad)])


def test_loglikelihood_rolling(adapter, reference, tokenizer):
  """Control tokens in a document are text."""
  texts = ["import os", "x<|im_end|>"]
  for text, total in zip(
    texts, adapter.loglikelihood_rolling(requests("loglikelihood_rolling", *((t,) for t in texts)))
  ):
    ids = [tokenizer.eos_id, *tokenizer.encode(text, allow_special=False)]
    assert total == pytest.approx(reference(ids)[0].sum(), abs=1e-3) and total < -1


def test_generate_until(adapter, model, tokenizer, caplog):
  """In the order of requests, though those with the same options are generated together."""
  prompts = ["def f(", "import", "for i in"]
  long, short = {"until": ["\n\n"], "max_gen_toks": 12}, {"until": [], "max_new_tokens": 5, "num_beams": 1}
  asked = [(prompts[0], long), (prompts[1], short), (prompts[2], long), (prompts[0], short)]
  with caplog.at_level(logging.WARNING):
    found = adapter.generate_until(requests("generate_until", *asked))
  assert "change nothing here: num_beams" in caplog.text
  ids = [tokenizer.encode(prompt) for prompt in prompts]
  twelve = [c.text for (c,) in complete(model, tokenizer, ids, temperature=0.0, max_new_tokens=12)]
  five = [c.text for (c,) in complete(model, tokenizer, ids, temperature=0.0, max_new_tokens=5)]
  assert found == [twelve[0].split("\n\n")[0], five[1], twelve[2].split("\n\n")[0], five[0]]
  assert len(set(found)) == 4 and all(found)
  place = next(i for i in range(2, 20) if twelve[2].find(twelve[2][i : i + 2]) == i)
  stop = twelve[2][place : place + 2]
  (cut,) = adapter.generate_until(requests("generate_until", (prompts[2], {"until": stop, "max_gen_toks": 12})))
  assert cut == twelve[2].split(stop)[0] and len(cut) == place


def test_long_prompts_lose_their_beginning(adapter, model, tokenizer):
  prompt = "import os\n" * 300
  (found,) = adapter.generate_until(requests("generate_until", (prompt, {"until": [], "max_gen_toks": 6})))
  ids = tokenizer.encode(prompt)[-250:]
  assert found == complete(model, tokenizer, [ids], temperature=0.0, max_new_tokens=6)[0][0].text
  with pytest.raises(ValueError, match="an answer of 256 tokens leaves no room for a prompt in a context of 256"):
    adapter.generate_until(requests("generate_until", ("import", {"until": []})))


def test_sampling_options(model, tokenizer):
  """The seed fixes samples, of which repeated requests give several."""
  options = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.3, "top_k": 50}
  asked = requests("generate_until", *[("import", options)] * 3)
  found = Qwen3LM(model, tokenizer, seed=1).generate_until(asked)
  assert len(set(found)) == 3
  expected = complete(
    model, tokenizer, [tokenizer.encode("import")], num_samples=3, seed=1, max_new_tokens=6, temperature=1.3, top_p=1.0,
    top_k=50,
  )  # fmt: skip
  assert found == [sample.text for sample in expected[0]]
  assert Qwen3LM(model, tokenizer, seed=1, slots=1).generate_until(asked) == found
  assert Qwen3LM(model, tokenizer, seed=2).generate_until(asked) != found


def test_chat_prompts(adapter, model, tokenizer):
  history = [{"role": "user", "content": "Hi"}]
  for thinks in (False, True):
    text = Qwen3LM(model, tokenizer, enable_thinking=thinks).apply_chat_template(history)
    assert text == tokenizer.apply_chat_template(history, enable_thinking=thinks)
    assert text.endswith("assistant\n") if thinks else text.endswith("</think>\n\n")
  for begun in ("def f(", "The answer is "):  # what the model continues
    opened = adapter.apply_chat_template([*history, {"role": "assistant", "content": begun}], False)
    assert opened.endswith(f"assistant\n<think>\n\n</think>\n\n{begun}")
  names = {Qwen3LM(model, tokenizer, enable_thinking=thinks).tokenizer_name for thinks in (False, True)}
  assert len(names) == 2


@pytest.fixture
def thinker(tokenizer):
  """Greedily thinks three words and answers two; the words."""
  words = [id for id in range(400, 512) if tokenizer.token_bytes(id).strip().isalpha()][:5]
  prompt = encode_conversation(tokenizer, [{"role": "user", "content": "Hi"}], add_generation_prompt=True).ids
  script = chain(
    prompt[-1], tokenizer.think_start_id, *words[:3], tokenizer.think_end_id, *words[3:], tokenizer.im_end_id
  )
  script[ThinkingTokens.of(tokenizer).sentence[-1]] = words[3]
  return from_parameters(CONFIG, chain_model(script)), [tokenizer.decode([word]) for word in words]


@pytest.mark.parametrize("budget", [None, 1])
def test_answers_follow_the_thinking(thinker, tokenizer, budget):
  """What ends an answer ends no thinking, and the thinking is no part of the answer."""
  model, words = thinker
  lm = Qwen3LM(model, tokenizer, enable_thinking=True, thinking_budget=budget)
  prompt = lm.apply_chat_template([{"role": "user", "content": "Hi"}])
  untils = [["\n\n", words[0]], [words[4]]]
  asked = [(prompt, {"until": until, "max_gen_toks": 20}) for until in untils]
  assert lm.generate_until(requests("generate_until", *asked)) == ["".join(words[3:]), words[3]]
  with pytest.raises(ValueError, match="a chat that thinks cannot be scored"):
    lm.loglikelihood(requests("loglikelihood", (prompt, "yes")), disable_tqdm=True)
  ((total, _),) = lm.loglikelihood(requests("loglikelihood", ("not a chat", "yes")), disable_tqdm=True)
  assert total < -1


def test_made_of_a_folder_by_its_name(golden, adapter, tokenizer, tmp_path):
  tokenizer.save(tmp_path)
  arguments = f"pretrained={golden / 'dense'},tokenizer={tmp_path},dtype=float32"
  made = get_model("qwen3_jax").create_from_arg_string(arguments, {"batch_size": 1, "max_batch_size": None})
  asked = requests("loglikelihood", ("def f(", "x):"))
  assert made.loglikelihood(asked, disable_tqdm=True) == adapter.loglikelihood(asked, disable_tqdm=True)
  assert (made.rank, made.world_size, made.max_length) == (0, 1, 256)
  with pytest.raises(TypeError, match="enable_thinkin"):
    get_model("qwen3_jax").create_from_arg_string(f"{arguments},enable_thinkin=True")
  with pytest.raises(ValueError, match="has no tokenizer"):
    Qwen3LM(golden / "dense", dtype="float32")
