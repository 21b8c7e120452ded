"""Logits, greedy tokens, log-probs and scores of the tiny models, by transformers."""

import random

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from golden_common import MODELS, POLICIES, REWARDS, read_json, short, tokenizer_of, write_json
from golden_models import VOCABULARY
from golden_train import pairs, split_pair

LOGIT_LENGTHS = (1, 2, 7, 13)
GREEDY_NEW_TOKENS = 24


def policy(model):
    return AutoModelForCausalLM.from_pretrained(MODELS / model, dtype=torch.float32).eval()


def logits_of(model):
    source = random.Random(11)
    loaded = policy(model)
    cases = []
    for length in LOGIT_LENGTHS:
        ids = [source.randrange(VOCABULARY) for _ in range(length)]
        with torch.no_grad():
            logits = loaded(torch.tensor([ids])).logits[0]
        cases.append({"ids": ids, "logits": [[short(x) for x in row] for row in logits]})
    return {"model": model, "cases": cases}


def greedy_of(model, conversations):
    loaded, tokenizer = policy(model), tokenizer_of(model)
    stops = loaded.generation_config.eos_token_id
    stops = set(stops if isinstance(stops, list) else [stops])
    prompts = [tokenizer.apply_chat_template(m, add_generation_prompt=True)["input_ids"]
               for m in conversations if m[-1]["role"] == "user"][:20]
    # Prompts after which the most likely token soon is a stop id are rare with random weights:
    # some are searched for, so that stopping is tested too.
    source = random.Random(5)
    stopped = 0
    for _ in range(4000):
        if stopped == 5:
            break
        ids = [source.randrange(VOCABULARY) for _ in range(source.randint(2, 9))]
        tokens, _ = greedy(loaded, ids, stops)
        if 1 < len(tokens) < GREEDY_NEW_TOKENS:
            prompts.append(ids)
            stopped += 1
    assert stopped == 5
    cases = []
    for ids in prompts:
        tokens, gap_min = greedy(loaded, ids, stops)
        cases.append({"prompt_ids": ids, "max_new_tokens": GREEDY_NEW_TOKENS, "token_ids": tokens,
                      "finish": "stop" if tokens[-1] in stops else "length", "gap_min": gap_min})
        # transformers' own generate, greedy and without the folder's sampling settings, agrees.
        out = loaded.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)).long(),
                              max_new_tokens=GREEDY_NEW_TOKENS, do_sample=False, temperature=None,
                              top_p=None, repetition_penalty=1.0)[0, len(ids):].tolist()
        assert out == tokens, (out, tokens)
    return {"model": model, "cases": cases}


def greedy(loaded, ids, stops):
    ids, tokens, gap_min = list(ids), [], float("inf")
    while len(tokens) < GREEDY_NEW_TOKENS:
        with torch.no_grad():
            best = loaded(torch.tensor([ids])).logits[0, -1].topk(2)
        gap_min = min(gap_min, (best.values[0] - best.values[1]).item())
        token = best.indices[0].item()
        tokens.append(token)
        ids.append(token)
        if token in stops:
            break
    return tokens, short(gap_min)


def logprobs_of(model):
    loaded, tokenizer = policy(model), tokenizer_of(model)
    cases = []
    for pair in pairs()[:10]:
        prompt, chosen, rejected = split_pair(tokenizer, pair)
        case = {**pair, "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for side, response in (("chosen", chosen), ("rejected", rejected)):
            with torch.no_grad():
                logits = loaded(torch.tensor([prompt + response])).logits[0]
            rows = torch.log_softmax(logits.double(), -1)[len(prompt) - 1:-1]
            values = rows.gather(1, torch.tensor(response)[:, None])[:, 0]
            case[f"{side}_logprobs"] = [short(x) for x in values]
            case[f"{side}_logprob"] = short(values.sum())
        cases.append(case)
    return {"model": model, "cases": cases}


def scores_of(model, conversations):
    loaded = AutoModelForSequenceClassification.from_pretrained(
        MODELS / model, dtype=torch.float32).eval()
    tokenizer, pad = tokenizer_of(model), loaded.config.pad_token_id
    cases = []
    for messages in [m for m in conversations if m[-1]["role"] == "assistant"][:30]:
        ids = tokenizer.apply_chat_template(messages)["input_ids"]
        with torch.no_grad():
            score = loaded(torch.tensor([ids])).logits[0, 0].item()
            hidden = loaded.model(torch.tensor([ids])).last_hidden_state[0]
            by_position = loaded.score(hidden)[:, 0]
        position = max((i for i, token in enumerate(ids) if token != pad), default=0)
        assert abs(by_position[position].item() - score) < 1e-6
        cases.append({"messages": messages, "ids": ids, "score": short(score),
                      "score_last": short(by_position[-1].item()), "position": position,
                      "position_last": len(ids) - 1})
    return {"model": model, "cases": cases}


def make():
    conversations = read_json("conversations.json")
    write_json("logits.json", [logits_of(model) for model in POLICIES])
    write_json("greedy.json", [greedy_of(model, conversations) for model in POLICIES])
    write_json("logprobs.json", [logprobs_of(model) for model in POLICIES])
    write_json("scores.json", [scores_of(model, conversations) for model in REWARDS])
