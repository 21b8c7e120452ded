"""Adapters by peft: logits and scores with them, and a curve of TRL's DPO that trains one."""

import json
import shutil
import tempfile

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PrinterCallback

import golden_train
from golden_common import HERE, MODELS, short, tokenizer_of, write_json

ADAPTERS = HERE / "adapters"
# Each kind of thing that an adapter's configuration says, once.
FORWARD = {
    "plain": ("tiny-untied", {"r": 2, "lora_alpha": 6, "target_modules": "all-linear"}),
    "stabilised": ("tiny-tied", {"r": 4, "lora_alpha": 3, "use_rslora": True, "lora_dropout": 0.1,
                                 "target_modules": ["q_proj", "mlp.down_proj"]}),
    "score": ("tiny-reward", {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "up_proj"]}),
}
DPO = {**golden_train.DPO, "learning_rate": 4e-3, "weight_decay": 0.01,
       "lora_rank": 4, "lora_alpha": 8.0, "lora_targets": "all-linear", "lora_dropout": 0.0, "lora_rs": False}
IDS = [[5, 9, 17, 101, 3, 255, 64], [8], [300, 12, 12, 7]]


def base(name):
    scores = name == "tiny-reward"
    kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    return kind.from_pretrained(MODELS / name, dtype=torch.float32).eval(), "SEQ_CLS" if scores else "CAUSAL_LM"


def save(model, name):
    """As peft saves it, less the path of the base."""
    folder = ADAPTERS / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = config["base_model_name_or_path"].rsplit("/", 1)[-1]
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=1) + "\n")


def forward():
    from peft import LoraConfig, get_peft_model
    out = []
    for index, (name, (base_name, settings)) in enumerate(FORWARD.items()):
        torch.manual_seed(20 + index)
        model, task = base(base_name)
        model = get_peft_model(model, LoraConfig(task_type=task, **settings)).eval()
        with torch.no_grad():
            # As if trained: an adapter begins with zeros there, and shows nothing.
            for key, tensor in model.named_parameters():
                if "lora_B" in key or "modules_to_save" in key:
                    tensor.normal_(std=0.1)
            cases = [{"ids": ids, "values": values(model, ids)} for ids in IDS]
        save(model, name)
        out.append({"model": base_name, "adapter": name, "cases": cases})
    write_json("lora.json", out)


def values(model, ids):
    """The logits of each position, row by row, or the score alone."""
    return [short(value) for value in model(torch.tensor([ids])).logits.flatten().tolist()]


def adapter_state(model):
    from peft import get_peft_model_state_dict
    return {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}


def curve():
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer
    torch.manual_seed(30)
    config = LoraConfig(task_type="CAUSAL_LM", r=DPO["lora_rank"], lora_alpha=int(DPO["lora_alpha"]),
                        target_modules=DPO["lora_targets"], lora_dropout=0.0)
    recorder = golden_train.Recorder()
    scratch = tempfile.mkdtemp(prefix="rlhfd-golden-")
    trainer = golden_train.recording(DPOTrainer, recorder)(
        model=AutoModelForCausalLM.from_pretrained(MODELS / "tiny-tied", dtype=torch.float32),
        args=golden_train.arguments(DPOConfig, DPO, scratch, beta=DPO["beta"]),
        train_dataset=Dataset.from_list(golden_train.pairs()), processing_class=tokenizer_of("tiny-tied"),
        peft_config=config, callbacks=[recorder])
    trainer.remove_callback(PrinterCallback)
    save(trainer.model, "start")
    initial = adapter_state(trainer.model)
    trainer.train()
    shutil.rmtree(scratch, ignore_errors=True)
    final = adapter_state(trainer.model)
    assert final.keys() == load_file(ADAPTERS / "start" / "adapter_model.safetensors").keys()
    moved = sum(((final[key] - initial[key]).double() ** 2).sum() for key in final) ** 0.5
    save_file({key: value.contiguous() for key, value in final.items()}, HERE / "dpo_lora_final.safetensors",
              metadata={"format": "pt"})
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    steps = golden_train.steps_of(recorder, logs, golden_train.DPO_NAMES)
    write_json("dpo_lora.json", {
        "model": "tiny-tied", "reference": "tiny-tied", "adapter": "start", "pairs": "pairs.jsonl",
        "pairs_used": golden_train.PAIRS, "settings": DPO, "steps": steps, "final": "dpo_lora_final.safetensors",
        "initial_to_final_norm": float(moved)})
    print(f"golden: dpo_lora: {len(steps)} steps, loss {steps[0]['loss']:.4f} to {steps[-1]['loss']:.4f}, "
          f"moved {float(moved):.4f}")
    assert len(steps) == 20 and steps[0]["loss"] - min(step["loss"] for step in steps[-4:]) >= 0.05


def make():
    forward()
    curve()
