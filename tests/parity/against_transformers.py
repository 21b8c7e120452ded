"""Rendering, ids, logits, greedy tokens, log-probs and scores, held against transformers."""

import json
import random

import numpy
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from golden_train import pairs, split_pair
from parity_common import GOLDEN, MODEL, read_lines, write_lines

LOGITS_WITHIN = 1e-3
SCORES_WITHIN = 1e-4
# Two logits nearer than this may change places between two ways of adding the same numbers up.
CLEAR_CHOICE = 1e-4
GREEDY_PROMPTS = 20
GREEDY_TOKENS = 32
LENGTHS = (1, 3, 17, 60)


def compare(ours, report):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    rendering(ours, report, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    logits(ours, report, model)
    greedy(ours, report, model, tokenizer)
    logprobs(ours, report, model, tokenizer)
    for name in ("tiny-reward", "tiny-reward-stop"):
        scores(ours, report, GOLDEN / "models" / name, name)


def rendering(ours, report, tokenizer):
    conversations = json.loads((GOLDEN / "conversations.json").read_text(encoding="utf-8"))
    lines = [{"messages": messages, "add_generation_prompt": messages[-1]["role"] == "user"}
             for messages in conversations]
    out = ours.path("tokens.jsonl")
    ours.inspect("tokens", MODEL, write_lines(ours.path("conversations.jsonl"), lines), out)
    texts = ids = 0
    for line, got in zip(lines, read_lines(out), strict=True):
        wanted = tokenizer.apply_chat_template(
            line["messages"], tokenize=False, add_generation_prompt=line["add_generation_prompt"])
        texts += got["text"] == wanted
        ids += got["ids"] == tokenizer(wanted, add_special_tokens=False)["input_ids"]
    count = len(lines)
    report.check("chat template", texts == count, f"{texts} of {count} texts identical")
    report.check("token ids", ids == count, f"{ids} of {count} conversations identical")


def logits(ours, report, model):
    source = random.Random(1)
    rows = [[source.randrange(model.config.vocab_size) for _ in range(length)] for length in LENGTHS]
    out = ours.path("logits.f32")
    ours.inspect("logits", MODEL, write_lines(ours.path("ids.jsonl"), [{"ids": ids} for ids in rows]), out)
    got = numpy.fromfile(out, dtype="<f4").reshape(-1, model.config.vocab_size)
    with torch.no_grad():
        wanted = torch.cat([model(torch.tensor([ids])).logits[0] for ids in rows]).numpy()
    worst = float(numpy.abs(got - wanted).max())
    report.check("logits", worst <= LOGITS_WITHIN, f"largest difference {worst:.2e}, at most {LOGITS_WITHIN}")


def greedy_prompts():
    return [f"{ask} {what}" for what in ("the sea.", "a lamp that talks.", "why bread rises.", "7 times 8?", "Paris.")
            for ask in ("Tell me about", "Write two sentences on", "What is", "Explain to a child:")]


def greedy(ours, report, model, tokenizer):
    prompts = greedy_prompts()[:GREEDY_PROMPTS]
    out = ours.path("greedy.jsonl")
    ours.run("generate", "--model", MODEL, "--prompts",
             write_lines(ours.path("prompts.jsonl"), [{"prompt": prompt} for prompt in prompts]),
             "--n", 1, "--max-new-tokens", GREEDY_TOKENS, "--temperature", 0, "--out", out)
    got = sorted(read_lines(out), key=lambda line: line["prompt_index"])
    asked = [tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
             ["input_ids"] for prompt in prompts]
    same = excused = 0
    worst = 0.0
    for ids, line, wanted in zip(asked, got, greedy_of(model, asked), strict=True):
        response = line["responses"][0]
        if response["token_ids"] == wanted:
            same += 1
            summed = own_logprob(model, ids, wanted)
            worst = max(worst, abs(summed - response["logprob"]) / len(wanted))
        else:
            excused += not_clear(model, ids, wanted, response["token_ids"])
    report.check("greedy tokens", same + excused == len(prompts),
                 f"{same} of {len(prompts)} identical, {excused} part after a near tie")
    report.check("log-prob of a response", worst <= LOGITS_WITHIN, f"largest difference a token {worst:.2e}")


def greedy_of(model, prompts):
    """transformers' greedy answers to all prompts in one batch, padded at the left."""
    longest = max(map(len, prompts))
    pad, stops = model.generation_config.pad_token_id, {model.generation_config.eos_token_id}
    rows = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    out = model.generate(rows, attention_mask=mask, do_sample=False, max_new_tokens=GREEDY_TOKENS)
    for row in out[:, longest:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        yield row[:end]


def not_clear(model, ids, wanted, got):
    """Whether the two best logits were nearer than CLEAR_CHOICE where the two first part."""
    parted = next((i for i, (a, b) in enumerate(zip(wanted, got)) if a != b), None)
    if parted is None:
        return False
    with torch.no_grad():
        best = model(torch.tensor([ids + wanted[:parted]])).logits[0, -1].topk(2).values
    return bool(best[0] - best[1] < CLEAR_CHOICE)


def own_logprob(model, prompt, response):
    with torch.no_grad():
        rows = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1:-1].double()
    return torch.log_softmax(rows, -1).gather(1, torch.tensor(response)[:, None]).sum().item()


def logprobs(ours, report, model, tokenizer):
    data = pairs()[:8]
    out = ours.path("logprobs.jsonl")
    ours.run("logprobs", "--model", MODEL, "--data", write_lines(ours.path("pairs.jsonl"), data), "--out", out)
    worst = 0.0
    for pair, got in zip(data, read_lines(out), strict=True):
        prompt, chosen, rejected = split_pair(tokenizer, pair)
        for side, ids in (("chosen", chosen), ("rejected", rejected)):
            worst = max(worst, abs(own_logprob(model, prompt, ids) - got[side]) / len(ids))
    report.check("log-probs of pairs", worst <= LOGITS_WITHIN, f"largest difference a token {worst:.2e}")


def scores(ours, report, folder, name, count=40):
    """Ours by file mode against AutoModelForSequenceClassification, on whole conversations."""
    conversations = json.loads((GOLDEN / "conversations.json").read_text(encoding="utf-8"))
    data = [m for m in conversations if m[-1]["role"] == "assistant"][:count]
    out = ours.path("scores.jsonl")
    ours.run("score", "--model", folder, "--data",
             write_lines(ours.path("messages.jsonl"), [{"messages": m} for m in data]), "--out", out)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    worst = 0.0
    for messages, got in zip(data, read_lines(out), strict=True):
        ids = tokenizer.apply_chat_template(messages)["input_ids"]
        with torch.no_grad():
            worst = max(worst, abs(model(torch.tensor([ids])).logits[0, 0].item() - got["score"]))
    report.check(f"scores of {name}", worst <= SCORES_WITHIN, f"largest difference {worst:.2e} of {len(data)}")
