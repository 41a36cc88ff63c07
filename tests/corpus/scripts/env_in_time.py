from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_ENDPOINT", "https://hf-mirror.com")
os.environ["HF_HOME"] = os.path.join(os.getcwd(), "hf")
if "--gpu" in sys.argv:
    os.environ["CUDA_VISIBLE_DEVICES"] = sys.argv[sys.argv.index("--gpu") + 1]

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

print("endpoint:", os.environ["HF_ENDPOINT"], os.environ.get("HF_HUB_OFFLINE"))


def offline():
    """Only for child processes."""
    env = dict(os.environ, HF_HUB_OFFLINE="1")
    import subprocess

    subprocess.run([sys.executable, "-c", "pass"], env=env, check=True)


model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", torch_dtype=torch.float16)
offline()
