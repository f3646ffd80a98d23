#!/usr/bin/env bash
# The whole network of a published size with random weights, ours on a GPU beside transformers there (check_cuda.py).
#
#   docs/check_cuda.sh 4b FOLDER      # or 8b; FOLDER takes the model (9 or 18 GB), the conversation and the trace
#
# MGSD names the program (default: mgsd). The tokenizer is the embedded model's: its words are few, and weights are random.
set -euo pipefail
MGSD=${MGSD:-mgsd}
[ $# = 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
size=$1 folder=$2 here=$(dirname "$0")
mkdir -p "$folder/config"
cp "$here"/../assets/nano/*.json "$here"/../assets/nano/*.jinja "$folder/config/"
python3 - "$size" "$folder" <<'PYTHON'
import json, sys
size, folder = sys.argv[1:]
sizes = {
    "4b": (dict(hidden_size=2560, intermediate_size=9728), True, dict(hidden_size=1024, depth=24, intermediate_size=4096,
           deepstack_visual_indexes=[5, 11, 17])),
    "8b": (dict(hidden_size=4096, intermediate_size=12288), False, dict(hidden_size=1152, depth=27, intermediate_size=4304,
           deepstack_visual_indexes=[8, 16, 24])),
}
if size not in sizes:
    sys.exit(f"size {size!r}; expected one of {', '.join(sizes)}")
text, tied, vision = sizes[size]
config = json.load(open(f"{folder}/config/config.json"))
config.update(dtype="bfloat16", tie_word_embeddings=tied)
config["text_config"].update(text, dtype="bfloat16", head_dim=128, num_hidden_layers=36, num_attention_heads=32,
                             num_key_value_heads=8, vocab_size=151936)
config["text_config"]["rope_scaling"]["mrope_section"] = [24, 20, 20]
config["vision_config"].update(vision, num_heads=16, num_position_embeddings=2304, out_hidden_size=text["hidden_size"])
json.dump(config, open(f"{folder}/config/config.json", "w"), indent=1)
words = "\n".join(["maze read " + " ".join(["up down left right"] * 12)] * 3)
picture = {"type": "image_url", "image_url": {"url": "board/Maze/level6/image/0000.png"}}
json.dump([{"role": "user", "content": [picture, {"type": "text", "text": words}]}], open(f"{folder}/chat.json", "w"))
PYTHON
"$MGSD" tasks generate --task maze --levels 6 --count 1 --out "$folder/board"
model=$folder/$size
if [ ! -d "$model" ]; then
    "$MGSD" model init --config "$folder/config" --out "$model.part" --seed 1
    mv "$model.part" "$model"
fi
"$MGSD" model trace --model "$model" --chat "$folder/chat.json" --out "$folder/trace.safetensors" \
    --device "${DEVICE:-cuda}" --generate 16
python3 "$here/check_cuda.py" "$model" "$folder/trace.safetensors"
