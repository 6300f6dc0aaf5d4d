"""Log-likelihoods and greedy text by hand, and the harness's interface, stubbed and real."""

import fnmatch
import json
import math
import random
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
import tokenizers
import torch

from bitwright.quant import (
    InputError,
    LanguageModel,
    LlamaConfig,
    generate,
    lm_eval_model,
    load_model,
    loglikelihood,
    perplexity,
    rolling_loglikelihood,
    zero_shot_scores,
)

# Not part of the face.
_tokenizer = import_module("bitwright.quant.models.tokenizer")
_zero_shot = import_module("bitwright.quant.zero_shot")
split_tokens = _zero_shot.split_tokens

CONFIG = LlamaConfig(1, 2, 1, 1, 2, 2, 2, 100.0, 0.0, False, 8)


class Letters:
    """a = 0, b = 1."""

    def encode(self, text):
        return ["ab".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("ab"[i] for i in ids)


class Fixed(LanguageModel):
    """After a: b with probability 3/4; after b: either. Remembers what it was given to read."""

    TABLE = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])

    def __init__(self, tokenizer=None):
        super().__init__("fixed", CONFIG, {}, tokenizer or Letters(), "by hand")
        self.read = []

    def hidden(self, tokens, linear=None, *, observe=None, cache=None):
        self.read += tokens.tolist()
        return self.TABLE[tokens]

    def head(self, hidden):
        return hidden


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


PROMPT = "The following sections describe the"

# --- where a continuation begins ---


@pytest.mark.parametrize(
    "context, continuation, before, scored",
    [
        ("ab", "c", b"ab", b"c"),
        ("ab", " c", b"ab", b" c"),
        ("ab \n", "c", b"ab", b" \nc"),
        ("", "c", b"", b"c"),
        (" ", "c", b"", b" c"),
        ("grün", "é", "grün".encode(), "é".encode()),
    ],
)
def test_bytes_are_split_exactly(tiny, context, continuation, before, scored):
    assert split_tokens(tiny.tokenizer, context, continuation) == (list(before), list(scored))


@pytest.mark.parametrize(
    "context, continuation, before, scored",
    [
        ("a", "a", [0], [0]),
        ("ab", "ca", [0, 1], [0]),  # all is a, bc, a: two tokens as in "ab", then a
        ("ab", "c", [0, 1], [2]),  # all is a, bc: nothing is left behind two tokens
    ],
    ids=["exact", "a token across", "nothing left"],
)
def test_a_token_may_span_both_parts(context, continuation, before, scored):
    vocab = {"a": 0, "b": 1, "c": 2, "bc": 3}
    bpe = tokenizers.models.BPE(vocab=vocab, merges=[("b", "c")])
    tokenizer = _tokenizer.BpeTokenizer(tokenizers.Tokenizer(bpe))
    assert tokenizer.encode("abc") == [0, 3]
    assert split_tokens(tokenizer, context, continuation) == (before, scored)


# --- log-likelihoods ---


@pytest.mark.parametrize(
    "context, continuation, likelihood, greedy",
    [
        ("a", "b", 3 / 4, True),
        ("a", "a", 1 / 4, False),
        ("bba", "ba", 3 / 4 / 2, True),  # of equals the lower token id ranks first
        ("a", "bb", 3 / 4 / 2, False),
        ("", "ab", 3 / 4, True),
        ("", "a", 1, True),  # nothing to predict
    ],
)
def test_loglikelihood_by_hand(context, continuation, likelihood, greedy):
    total, was_greedy = loglikelihood(Fixed(), context, continuation)
    assert total == pytest.approx(math.log(likelihood))
    assert was_greedy is greedy


def test_loglikelihood_is_a_sum_over_the_logits(tiny):
    context, continuation = PROMPT, " types that are built in"
    ids = list((context + continuation).encode())
    scores = tiny.logits(torch.tensor([ids]))[0].double().log_softmax(-1)
    by_hand = sum(scores[i - 1, ids[i]].item() for i in range(len(context), len(ids)))
    assert loglikelihood(tiny, context, continuation)[0] == pytest.approx(by_hand, rel=1e-5)


def test_parts_of_a_continuation_add_up(tiny):
    first = loglikelihood(tiny, PROMPT, " types")[0]
    second = loglikelihood(tiny, PROMPT + " types", " that")[0]
    assert loglikelihood(tiny, PROMPT, " types that")[0] == pytest.approx(first + second, rel=1e-5)


def test_a_long_context_is_cut_from_the_left():
    model = Fixed()
    loglikelihood(model, "abbabbabbabb", "ab")
    loglikelihood(model, "abbabb", "ab", window=3)
    assert model.read == [Letters().encode("bbabbabba"[-8:]), [1, 1, 0]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("a", ""), "^the continuation is empty; its log-likelihood needs at least one token$"),
        (
            ("a", "b" * 9),
            "^a continuation of 9 tokens does not fit a window of 8 tokens; model fixed can read 8",
        ),
    ],
    ids=["empty", "too long"],
)
def test_continuations_that_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        loglikelihood(Fixed(), *arguments)


@pytest.mark.parametrize("window", [0, 9])
def test_windows_that_are_refused(window):
    message = f"^window {window} must be from 1 to 8, the context of model fixed$"
    with pytest.raises(InputError, match=message):
        loglikelihood(Fixed(), "a", "b", window=window)
    with pytest.raises(InputError, match=message):
        rolling_loglikelihood(Fixed(), "ab", window)
    with pytest.raises(InputError, match=message):
        generate(Fixed(), "a", 1, window=window)


def test_steps_of_a_long_text():
    """Ten tokens, window 4: 1 .. 4 from 0 .. 3, 5 .. 8 from 4 .. 7, and 9 from 5 .. 8."""
    model, ids = Fixed(), [0, 1, 1, 0, 0, 1, 0, 1, 1, 1]
    total = rolling_loglikelihood(model, Letters().decode(ids), 4)
    assert model.read == [ids[0:4], ids[4:8], ids[5:9]]
    # Pairs: 01 three times 3/4, 00 once 1/4, and 11, 10, 10, 11, 11 1/2 each.
    assert total == pytest.approx(3 * math.log(3 / 4) + math.log(1 / 4) + 5 * math.log(1 / 2))


@pytest.mark.parametrize("text", ["", "a"])
def test_nothing_is_predicted_in_a_text_under_two_tokens(text):
    assert rolling_loglikelihood(Fixed(), text) == 0


def test_a_text_of_one_window_is_that_of_perplexity(tiny):
    text = PROMPT + " types that are built into the interpreter"
    nll = perplexity(tiny, text, window=len(text), max_tokens=None).nll
    assert rolling_loglikelihood(tiny, text) == pytest.approx(-nll * (len(text) - 1), rel=1e-6)


# --- greedy text ---


@pytest.mark.parametrize(
    "stop, text",
    [
        ((), "bababa"),
        (("ab",), "b"),
        (("bab", "a"), "b"),  # the one that appears first
        (("bab", "ab"), ""),  # both appear with the third token; bab begins earlier
        (("x", ""), "bababa"),
    ],
)
def test_generation_by_hand(stop, text):
    assert generate(Fixed(), "a", 6, stop) == text


def test_a_long_prompt_is_cut_so_that_all_tokens_fit():
    model = Fixed()
    generate(model, "ab" * 9, 3)
    assert [len(row) for row in model.read] == [6, 7, 8]
    assert model.read[0] == [0, 1] * 3


def test_a_space_that_belongs_to_a_token_is_kept():
    class Words:
        def encode(self, text):
            return [["yes", "no"].index(word) for word in text.split()]

        def decode(self, ids):
            return " ".join(["yes", "no"][i] for i in ids)

    assert generate(Fixed(Words()), "yes", 2) == " no yes"


def test_what_is_generated_is_greedy(tiny):
    text = generate(tiny, PROMPT, 16)
    assert len(text) == 16
    assert loglikelihood(tiny, PROMPT, text)[1]
    other = text[:-1] + ("x" if text[-1] != "x" else "y")
    assert not loglikelihood(tiny, PROMPT, other)[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("", 1),
            "^the prompt is empty; generation needs a token to go on from, and no begin token is "
            "added$",
        ),
        (("a", 0), "^max_tokens 0 must be from 1 to 8, the window that model fixed reads here$"),
        (("a", 9), "^max_tokens 9 must be from 1 to 8"),
    ],
    ids=["no prompt", "no tokens", "too many tokens"],
)
def test_generation_that_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        generate(Fixed(), *arguments)


def test_linear_and_cache_are_passed_on(tiny):
    def nothing(name, y):
        return 0 * y

    def no_weights(name, x):
        return 0 * (x @ tiny.weight(name).T)

    for measure in (
        lambda **parts: loglikelihood(tiny, PROMPT, " types", **parts),
        lambda **parts: rolling_loglikelihood(tiny, PROMPT, **parts),
        lambda **parts: generate(tiny, PROMPT, 8, **parts),
    ):
        plain = measure()
        assert measure(cache=nothing) != plain
        assert measure(linear=no_weights) != plain


# --- the harness ---


def without_the_harness(monkeypatch):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)  # makes the import fail


def test_the_harness_is_an_extra(monkeypatch):
    without_the_harness(monkeypatch)
    message = r"^zero-shot tasks need the lm-eval package; pip install 'bitwright\[zero-shot\]'$"
    with pytest.raises(InputError, match=message):
        zero_shot_scores(Fixed(), ["piqa"])
    with pytest.raises(InputError, match=message):
        lm_eval_model(Fixed())


@pytest.fixture
def stub(monkeypatch):
    """The part of the harness that the adapter is made from."""
    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
    modules["lm_eval.api.model"].LM = type("LM", (), {})
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def requests(*arguments):
    return [SimpleNamespace(args=one) for one in arguments]


def test_the_adapter_answers_in_order(stub):
    told = []
    adapter = lm_eval_model(Fixed(), progress=lambda *arguments: told.append(arguments))
    answers = adapter.loglikelihood(requests(("a", "b"), ("a", "a")))
    assert answers == [
        (pytest.approx(math.log(3 / 4)), True),
        (pytest.approx(math.log(1 / 4)), False),
    ]
    assert told == [(1, 2, "log-likelihoods"), (2, 2, "log-likelihoods")]
    assert adapter.loglikelihood_rolling(requests(("ab",))) == [pytest.approx(math.log(3 / 4))]


@pytest.mark.parametrize(
    "options, text",
    [
        ({"until": ["aba"], "max_gen_toks": 4}, "b"),
        ({"until": "aba", "max_gen_toks": 4}, "b"),
        ({"max_gen_toks": 2}, "ba"),
        ({"until": None, "max_new_tokens": 3, "temperature": 0.0}, "bab"),
        ({"max_tokens": 1, "do_sample": False, "temperature": 0.7}, "b"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_the_adapter_generates(stub, options, text):
    assert lm_eval_model(Fixed()).generate_until(requests(("a", options))) == [text]


def test_further_stop_strings(stub):
    adapter = lm_eval_model(Fixed(), stop=["bb", "ab"])
    assert adapter.generate_until(requests(("a", {"max_gen_toks": 6}))) == ["b"]


@pytest.mark.parametrize("options", [{"do_sample": True}, {"temperature": 0.7}])
def test_sampling_is_refused(stub, options):
    with pytest.raises(
        InputError, match="^a task asks for sampled text; only greedy generation is supported$"
    ):
        lm_eval_model(Fixed()).generate_until(requests(("a", options)))


def test_the_adapter_keeps_to_its_window(stub):
    model = Fixed()
    adapter = lm_eval_model(model, window=3)
    adapter.loglikelihood(requests(("aaaaaa", "b")))
    adapter.loglikelihood_rolling(requests(("aaaaaa",)))
    adapter.generate_until(requests(("aaaaaa", {"max_gen_toks": 2})))
    assert max(len(row) for row in model.read) == 3


class Tasks:
    """The part of the harness that knows its tasks."""

    all_tasks = ["arc_easy", "arc_challenge", "piqa"]

    def match_tasks(self, patterns):
        return sorted(fnmatch.filter(self.all_tasks, patterns[0]))


def test_tasks_are_matched_in_the_order_given():
    found = _zero_shot._matching(Tasks(), ["piqa", "arc_*", "arc_easy"])
    assert found == ["piqa", "arc_challenge", "arc_easy"]


@pytest.mark.parametrize(
    "tasks, message",
    [
        (["piqa", "piqua"], r"^unknown zero-shot task 'piqua'; did you mean piqa\?$"),
        (["x"], "^unknown zero-shot task 'x'; see lm-eval ls tasks$"),
        ([], "^no zero-shot task given; name at least one, such as piqa$"),
    ],
    ids=["near", "far", "none"],
)
def test_unknown_tasks(tasks, message):
    with pytest.raises(InputError, match=message):
        _zero_shot._matching(Tasks(), tasks)


# --- the real harness, where it is installed ---

QUESTIONS = 200


@pytest.fixture
def harness(tmp_path):
    """Three tasks on data of our own: choices at random, a word to repeat, and texts."""
    pytest.importorskip("lm_eval", reason="needs lm-eval (the zero-shot extra)")
    generator = random.Random(0)

    def word():
        return "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=5))

    rows = [
        {
            "question": f"{word()} {word()}?",
            "choices": [word() for _ in range(4)],
            "answer": generator.randrange(4),
        }
        for _ in range(QUESTIONS)
    ]
    tasks = {
        "four_way": {
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        "repeat": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
            "metric_list": [{"metric": "exact_match"}],
        },
        "texts": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{question}}",
            "metric_list": [{"metric": "byte_perplexity"}],
        },
    }
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, task in tasks.items():
        task |= {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data)},
                "cache_dir": str(tmp_path / "cache"),
            },
            "test_split": "test",
        }
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps(task), encoding="utf-8")
    return SimpleNamespace(folder=folder, rows=rows)


def random_model():
    """Bytes, with weights that were never trained."""
    config = LlamaConfig(1, 16, 2, 2, 8, 16, 256, 100.0, 1e-5, True, 64)
    generator = torch.Generator().manual_seed(0)
    shapes = config.weight_shapes()
    noise = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return LanguageModel("random", config, noise, _tokenizer.ByteTokenizer(), "random numbers")


@pytest.mark.filterwarnings("ignore")
def test_random_weights_score_by_chance(harness, capsys):
    """1 in 4, give or take three standard deviations of sqrt(3/16 / 200) = 0.031."""
    scores = zero_shot_scores(random_model(), ["four_way"], task_folder=harness.folder)
    assert scores.keys() == {"four_way"}
    assert scores["four_way"].keys() == {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr"}
    assert scores["four_way"]["acc"] == pytest.approx(1 / 4, abs=0.092)
    assert capsys.readouterr().out == ""


@pytest.mark.filterwarnings("ignore")
def test_the_harness_counts_our_answers(tiny, harness):
    first = harness.rows[:20]
    scores = zero_shot_scores(
        tiny, ["four_way", "repeat", "texts"], limit=20, task_folder=harness.folder
    )
    right = 0
    for row in first:
        likelihoods = [loglikelihood(tiny, row["question"], f" {c}")[0] for c in row["choices"]]
        right += likelihoods.index(max(likelihoods)) == row["answer"]
    assert scores["four_way"]["acc"] == right / 20
    assert scores["repeat"]["exact_match"] == 0
    total = sum(rolling_loglikelihood(tiny, row["question"]) for row in first)
    length = sum(len(row["question"]) for row in first)
    assert scores["texts"]["byte_perplexity"] == pytest.approx(math.exp(-total / length))


@pytest.mark.filterwarnings("ignore")
def test_tokens_are_split_as_in_the_harness(tiny):
    model = pytest.importorskip("lm_eval.api.model", reason="needs lm-eval (the zero-shot extra)")
    theirs = SimpleNamespace(backend="causal", tok_encode=tiny.tokenizer.encode)
    for context, continuation in (("ab", "c"), ("ab \n", "c"), ("ab", " c"), ("grün ", "é")):
        split = model.TemplateLM._encode_pair(theirs, context, continuation)
        assert split_tokens(tiny.tokenizer, context, continuation) == split


@pytest.mark.filterwarnings("ignore")
def test_tasks_that_cannot_be_had(harness):
    (harness.folder.parent / "rows.jsonl").unlink()
    with pytest.raises(InputError, match="^data of zero-shot tasks texts cannot be had .*; go onl"):
        zero_shot_scores(random_model(), ["texts"], task_folder=harness.folder)
    with pytest.raises(InputError, match="^task folder .*nowhere is missing; name one that holds"):
        zero_shot_scores(random_model(), ["texts"], task_folder=harness.folder / "nowhere")
