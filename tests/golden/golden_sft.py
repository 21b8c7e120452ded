"""Supervised fine-tuning: transformers' assistant masks, and TRL's training curve with packing."""

import json
import random
import shutil
import tempfile

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from golden_common import HERE, MODELS, read_json, tokenizer_of, write_json
from golden_train import COMMON, Recorder, arguments, recording

CONVERSATIONS = 60
SETTINGS = {
    "learning_rate": 1e-3, "schedule": "cosine", "warmup_ratio": 0.1, "epochs": 5,
    "batch_sequences": 6, "micro_batch_sequences": 2, "packing": True, "block_tokens": 256,
    **{key: COMMON[key] for key in ("max_grad_norm", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")},
}
# ChatML as the tiny models have it, with the assistant's text and stop id marked; the line's end that
# follows the stop id is not.
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Marks that end in the middle of a token, of a character's bytes, or of the text.
MARKED_CONTENT = MARKED.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}")
MARKED_END = MARKED.replace("{% endgeneration %}{% else %}", "{{ '\\n' }}{% endgeneration %}{% else %}")


def masks():
    tokenizer = tokenizer_of("tiny-tied")
    answered = [
        (index, messages) for index, messages in enumerate(read_json("conversations.json"))
        if any(message["role"] == "assistant" for message in messages)]
    out = []
    for name, template in (("marked", MARKED), ("content", MARKED_CONTENT), ("end", MARKED_END)):
        cases = []
        for index, messages in answered:
            result = tokenizer.apply_chat_template(
                messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True)
            mask = result["assistant_masks"]
            # Runs of equal values are short to write: [first, one past the last] of the ones.
            spans = [[at, at] for at in range(len(mask)) if mask[at] and (at == 0 or not mask[at - 1])]
            for span in spans:
                span[1] = next((at for at in range(span[0], len(mask)) if not mask[at]), len(mask))
            cases.append({"conversation": index, "tokens": len(mask), "assistant": spans})
        assert len(cases) >= 20 and sum(len(case["assistant"]) > 1 for case in cases) >= 5
        out.append({"name": name, "template": template, "cases": cases})
    write_json("masks.json", out)
    print(f"golden: masks of {len(answered)} conversations by {len(out)} templates")


def conversations():
    source = random.Random(11)
    things = ["the fox", "a lamp", "42 boats", "the river", "an apple", "the night", "a story", "stones"]
    out = []
    for index in range(CONVERSATIONS):
        messages = []
        if index % 4 == 0:
            messages.append({"role": "system", "content": "A good answer is short."})
        for _ in range(source.choice([1, 1, 1, 2, 3])):
            thing, other = source.sample(things, 2)
            question = source.choice([f"Tell me about {thing}.", f"Where is {thing}?", "",
                                      f"A list of {other} and {thing}, please! é 🌊"])
            answer = source.choice([f"{thing.capitalize()} is kind and true.", "It waits for the tide.",
                                    " and ".join(source.choices(things, k=source.randint(2, 6))) + " 🦊."])
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        out.append({"messages": messages})
    return out


def keeps_documents_apart(trainer):
    """TRL's own forward of a packed block on this machine's attention, against each document alone."""
    features = next(block for block in trainer.train_dataset if len(block["seq_lengths"]) > 1)
    batch = trainer.data_collator([features])
    model, lengths = trainer.model.eval(), features["seq_lengths"]
    labels = batch.pop("labels")
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0]
        alone = torch.cat([model(ids[None]).logits[0] for ids in batch["input_ids"][0].split(lengths)])
        mixed = model(batch["input_ids"]).logits[0]
    model.train()
    apart, contaminated = (packed - alone).abs().max(), (mixed - alone).abs().max()
    assert apart < 1e-4 < 1e-1 < contaminated, (apart, contaminated)
    assert (labels[0] != -100).any()
    print(f"golden: a packed block differs from its documents alone by {apart:.1e}, without borders by "
          f"{contaminated:.1e}")


def curve():
    from trl import SFTConfig, SFTTrainer
    data = conversations()
    (HERE / "conversations_sft.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in data), encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "tiny-tied", dtype=torch.float32)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokenizer = tokenizer_of("tiny-tied")
    tokenizer.chat_template = MARKED
    recorder = SumRecorder()
    settings = {**SETTINGS, "batch_pairs": SETTINGS["batch_sequences"],
                "micro_batch_pairs": SETTINGS["micro_batch_sequences"], "max_length": SETTINGS["block_tokens"]}
    out = tempfile.mkdtemp(prefix="rlhfd-golden-")
    config = arguments(SFTConfig, settings, out, packing=True, packing_strategy="bfd",
                       assistant_only_loss=True, shuffle_dataset=False)
    trainer = recording(SFTTrainer, recorder)(
        model=model, args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer,
        callbacks=[recorder])
    keeps_documents_apart(trainer)
    blocks = [block["seq_lengths"] for block in trainer.train_dataset]
    # TRL cuts a longer conversation, where ours drops it.
    assert max(max(lengths) for lengths in blocks) < SETTINGS["block_tokens"]
    trainer.train()
    shutil.rmtree(out, ignore_errors=True)
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    steps = [
        {"step": index + 1, "loss": loss, "lr": rate, "grad_norm": log["grad_norm"]}
        for index, (loss, rate, log) in enumerate(zip(recorder.losses, recorder.rates, logs, strict=True))]
    final = {key: value.contiguous().clone() for key, value in trainer.model.state_dict().items()
             if key != "lm_head.weight"}
    moved = sum(((final[key] - initial[key]).double() ** 2).sum() for key in final) ** 0.5
    save_file(final, HERE / "sft_final.safetensors", metadata={"format": "pt"})
    write_json("sft.json", {
        "model": "tiny-tied", "template": MARKED, "conversations": "conversations_sft.jsonl",
        "settings": SETTINGS, "blocks": blocks, "steps": steps, "final": "sft_final.safetensors",
        "initial_to_final_norm": float(moved)})
    clipped = sum(step["grad_norm"] > SETTINGS["max_grad_norm"] for step in steps)
    print(f"golden: sft: {len(blocks)} blocks, {len(steps)} steps, loss {steps[0]['loss']:.4f} to "
          f"{steps[-1]['loss']:.4f}, {clipped} clipped, moved {float(moved):.4f}")
    assert len(steps) == 20 and clipped and steps[0]["loss"] - steps[-1]["loss"] >= 0.5
    assert len(blocks) % SETTINGS["batch_sequences"] != 0


class SumRecorder(Recorder):
    """Here a micro-batch's loss is its share of the step's: divided by the step's learnt tokens."""

    def on_step_end(self, args, state, control, **_):
        self.losses.append(sum(self.micro))
        self.micro.clear()


def make():
    masks()
    curve()
