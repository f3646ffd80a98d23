"""Compares a trace of ours on the CPU with transformers in 32-bit floats, for models that do not fit into memory at once.

    mgsd model trace --model MODEL --chat chat.json --out trace.safetensors --device cpu
    python docs/check_large.py MODEL trace.safetensors

Weights are read when a module runs and forgotten afterwards. Needs: pip install torch transformers safetensors
"""

import json
import os
import sys

import torch
from safetensors import safe_open
from transformers import AutoConfig, Qwen3VLForConditionalGeneration

model_folder, trace_file = sys.argv[1:3]
with safe_open(trace_file, "pt") as file:
    trace = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("vision.block")}
index = os.path.join(model_folder, "model.safetensors.index.json")
places = json.load(open(index))["weight_map"]
files = {name: safe_open(os.path.join(model_folder, name), "pt") for name in set(places.values())}

config = AutoConfig.from_pretrained(model_folder)
config._attn_implementation = "eager"
with torch.device("meta"):
    model = Qwen3VLForConditionalGeneration(config).eval()


def own(module):
    """Parameters of the module itself."""
    return list(module.named_parameters(recurse=False))


def fill(name):
    def hook(module, _):
        for key, parameter in own(module):
            full = f"{name}.{key}"
            value = files[places[full]].get_tensor(full).float()
            setattr(module, key, torch.nn.Parameter(value, requires_grad=False))

    return hook


def forget(module, *_):
    for key, parameter in own(module):
        setattr(module, key, torch.nn.Parameter(parameter.to("meta"), requires_grad=False))


for name, module in model.named_modules():
    if own(module):
        module.register_forward_pre_hook(fill(name))
        module.register_forward_hook(forget)
# The frequencies of the rotations are computed, not stored.
half_head = config.vision_config.hidden_size // config.vision_config.num_heads // 2
for module in model.modules():
    for key, buffer in list(module.named_buffers(recurse=False)):
        if buffer.is_meta:
            made = type(module)(module.config) if hasattr(module, "config") else type(module)(half_head)
            setattr(module, key, getattr(made, key))

ids = trace["input_ids"]
pictures = (ids == config.image_token_id).long()
given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": pictures}
for name in ("pixel_values", "image_grid_thw"):
    given[name] = trace[name]


def compare(index):
    def hook(_, __, out):
        out = out[0] if isinstance(out, tuple) else out
        ours = trace[f"text.layer{index}.out"].reshape(out.shape)
        apart = ((ours - out).norm() / out.norm()).item()
        print(f"layer {index}: relative distance {apart:.2e}", flush=True)

    return hook


for index, layer in enumerate(model.model.language_model.layers):
    if f"text.layer{index}.out" in trace and index % 6 == 5:
        layer.register_forward_hook(compare(index))
with torch.no_grad():
    reference = model(**given, use_cache=False).logits
ours = trace["logits"].reshape(reference.shape)
relative = ((ours - reference).norm() / reference.norm()).item()
largest = (ours - reference).abs().max().item()
agree = (ours.argmax(-1) == reference.argmax(-1)).float().mean().item()
print(f"logits {tuple(reference.shape)}, standard deviation {reference.std().item():.3f}")
print(f"relative distance {relative:.2e}, largest {largest:.2e}, same likeliest token {agree:.4f}")
