#!/bin/sh
# A training run that learns, one that is killed and goes on, and one that would turn NaN: on a tiny model, in a minute, on any CPU.
# $1 is the folder of the commands (.venv/bin), $2 a new folder for what is written (default train-out).
set -eu
bin=$(cd "$1" && pwd)
out=${2:-train-out}
PATH=$bin:$PATH
export OMP_NUM_THREADS=1
test ! -e "$out" || { printf '%s exists already; name a new folder\n' "$out" >&2; exit 2; }
mkdir -p "$out"
cd "$out"

show() { printf '\n$ %s\n' "$*"; "$@"; }

printf '== A tiny random Qwen3, the same with one broken row in its embedding, and data for both\n'
python -W ignore - <<'END' 2>/dev/null
import json
from pathlib import Path

import transformers
from safetensors.torch import load_file, save_file

from qlora_core.tiny import build

build("qwen3", "model")
broken = build("qwen3", "broken") / "model.safetensors"
tensors = load_file(broken)
tensors["model.embed_tokens.weight"][transformers.AutoTokenizer.from_pretrained("broken").encode("~")[-1]] = 3e38
save_file(tensors, broken, metadata={"format": "pt"})
rows = [{"prompt": f"What colour is car {n}?", "completion": f"the car is {'red' if n % 2 else 'white'}."} for n in range(96)]
Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
rows[60]["prompt"] = "What colour is ~?"
Path("rows-with-a-rare-sign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
END
ls

settings="--set per_device_train_batch_size=4 --set gradient_accumulation_steps=1 --set lora_r=4 --set lora_dropout=0.1
--set learning_rate=5e-3 --set max_steps=48 --set logging_steps=8 --set samples=0 --set save_strategy=steps --set save_steps=10"

printf '\n== What would be done, without loading the model\n'
# shellcheck disable=SC2086
show qlora-core train model rows.jsonl --output whole $settings --dry-run

printf '\n== A run from beginning to end\n'
# shellcheck disable=SC2086
show qlora-core train model rows.jsonl --output whole $settings

printf '\n== The same run, killed with SIGKILL after its first checkpoint, and resumed\n'
# shellcheck disable=SC2086
qlora-core train model rows.jsonl --output killed $settings >killed.log 2>&1 &
run=$!
while kill -0 $run 2>/dev/null && test ! -e killed/checkpoint-10; do sleep 0.1; done
sleep 0.1
printf '\n$ kill -9 %s\n' $run
kill -9 $run 2>/dev/null || true
wait $run 2>/dev/null || true
grep -v '^\[\|kernels' killed.log | tail -n 3
ls -d killed/checkpoint-*
# shellcheck disable=SC2086
show qlora-core train model rows.jsonl --output killed $settings --resume
show cmp whole/adapter/adapter_model.safetensors killed/adapter/adapter_model.safetensors
printf 'bit for bit the adapter of the run that nobody killed\n'

printf '\n== A row with the broken sign comes: the run stops before the step that would spoil the adapter\n'
code=0
# shellcheck disable=SC2086
show qlora-core train broken rows-with-a-rare-sign.jsonl --output poisoned $settings \
    --set train_sampling_strategy=sequential --set save_strategy=no || code=$?
printf 'exit code %s; kept: ' $code
ls -d poisoned/last-finite
test $code -eq 1
