"""The guides' loader and trainer, rewritten by `fix --apply --unsafe`: for transformers 4.44 and for 5.23, and really run."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent / "guides"
OLD = {
    "transformers": "4.44.2",
    "peft": "0.12.0",
    "bitsandbytes": "0.44.1",
    "accelerate": "0.33.0",
    "datasets": "2.21.0",
}
NEW = {
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
    "datasets": "5.0.0",
}
IGNORED = ("--offline", "--ignore", "QD0,QD2,QD4,QD108,QD622")


@pytest.fixture
def fixed(here: Any, project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fixes a guide's script for a set of packages; gives the text before and after, and the environment's python."""

    def fix(name: str, packages: dict[str, str]) -> tuple[str, str]:
        site = project.path.parent / "site"
        for package, version in packages.items():
            info = site / f"{package}-{version}.dist-info"
            info.mkdir(parents=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n\n")
        folder = project.path.parent / "venv"
        real = os.path.realpath(sys.executable)
        (folder / "bin").mkdir(parents=True)
        os.symlink(real, folder / "bin" / "python")
        (folder / "pyvenv.cfg").write_text(f"home = {os.path.dirname(real)}\ninclude-system-site-packages = false\n")
        monkeypatch.setenv("PYTHONPATH", str(site))
        script = project.path / name
        before = (HERE / name).read_bytes()
        script.write_bytes(before)
        target = (name, "--python", folder / "bin" / "python", *IGNORED)
        assert here("check", *target, "--format", "json").json["findings"]
        run = here("fix", *target, "--apply", "--unsafe")
        assert (run.code, run.err) == (0, ""), run.out
        assert here("check", *target, "--format", "json").json["findings"] == []
        after = script.read_bytes()
        ast.parse(after)
        here("undo")
        assert script.read_bytes() == before
        return before.decode(), after.decode()

    return fix


@pytest.mark.parametrize(("packages", "keyword"), [(OLD, "torch_dtype"), (NEW, "dtype")], ids=["4.44", "5.23"])
def test_the_loader_gets_the_converted_model_and_its_dtype_under_the_right_keyword(
    fixed: Any, packages: dict[str, str], keyword: str
) -> None:
    before, after = fixed("loader.py", packages)
    expected = before.replace("liuhaotian/llava-v1.5-7b", "llava-hf/llava-1.5-7b-hf")
    expected = expected.replace('load_kwargs = {"trust_remote_code": True}', "load_kwargs = {}")
    line = '        load_kwargs["quantization_config"] = quantization_config\n'
    assert after == expected.replace(line, f'{line}        load_kwargs["{keyword}"] = torch.bfloat16\n')


@pytest.mark.parametrize(("packages", "keyword"), [(OLD, "torch_dtype"), (NEW, "dtype")], ids=["4.44", "5.23"])
def test_the_trainer_gets_the_words_of_its_transformers(fixed: Any, packages: dict[str, str], keyword: str) -> None:
    before, after = fixed("trainer.py", packages)
    # transformers 4.44 has no Qwen3 of its own: there the repository's code is needed.
    kept = "    trust_remote_code=True,\n" if packages is OLD else ""
    expected = before.replace("    trust_remote_code=True,\n)", f"{kept}    {keyword}=torch.bfloat16,\n)")
    if packages is NEW:
        expected = expected.replace("    tokenizer=tokenizer,\n", "    processing_class=tokenizer,\n")
    expected = expected.replace("evaluation_strategy=", "eval_strategy=")
    assert after == expected


def stack_python() -> str:
    """A Python with the training stack: this one, or the one that QLORA_DOCTOR_STACK names."""
    named = os.environ.get("QLORA_DOCTOR_STACK", "")
    if named:
        return named
    if all(find_spec(n) for n in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")):
        return sys.executable
    pytest.skip("torch, transformers, peft, bitsandbytes, accelerate and datasets are not installed")


MAKE = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *map(chr, range(32, 127)), *"指令解释写诗回答床前明月光低秩增量通过"])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>").save_pretrained(sys.argv[1])
config = Qwen3Config(vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, head_dim=16, max_position_embeddings=128)
Qwen3ForCausalLM(config).save_pretrained(sys.argv[1])
"""


@pytest.mark.torch
def test_the_trainer_of_the_guide_stops_before_the_fix_and_trains_after_it(project: Any) -> None:
    python = stack_python()
    model = project.path / "tiny"
    environ = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run([python, "-c", MAKE, str(model)], check=True, env=environ, capture_output=True)
    script = project.path / "train.py"
    text = (HERE / "trainer.py").read_text().replace('"Qwen/Qwen3-4b"', json.dumps(str(model)))
    text = text.replace("    bf16=True,\n", "    bf16=True,\n    use_cpu=True,\n")  # there is no GPU where this runs
    script.write_text(text)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "train.py"],
            cwd=project.path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    before = run()
    assert (before.returncode, "evaluation_strategy" in before.stderr) == (1, True), before.stderr[-2000:]
    fix = ("fix", "train.py", "--python", python, "--offline", "--ignore", "QD0,QD2,QD4", "--apply", "--unsafe")
    done = project.run(*fix)
    assert done.code == 0, done.out + done.err
    after = run()
    assert after.returncode == 0, after.stderr[-3000:]
    assert "train_loss" in after.stdout
    assert project.run("undo").code == 0
    assert script.read_text() == text


MAKE_LLAVA = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration,
                          LlavaProcessor, PreTrainedTokenizerFast)
words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "<image>", *map(chr, range(32, 127))])}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
LlavaProcessor(images, fast, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(sys.argv[1])
text = LlamaConfig(vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=4, max_position_embeddings=128)
vision = CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=14)
LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=words["<image>"])).save_pretrained(sys.argv[1])
"""
RUN_LLAVA = """
import torch, train
model, processor = train.load()
assert model.is_loaded_in_4bit
assert {p.dtype for p in model.parameters()} == {torch.uint8, torch.bfloat16}, {p.dtype for p in model.parameters()}
print(type(processor).__name__)
"""


@pytest.mark.torch
def test_the_loader_of_the_guide_finds_its_model_only_after_the_fix(project: Any) -> None:
    python = stack_python()
    model = project.path / "llava-hf" / "llava-1.5-7b-hf"
    environ = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HOME": str(project.path.parent / "hf"),
    }
    made = subprocess.run(
        [python, "-c", MAKE_LLAVA, str(model)], env=environ, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr[-3000:]
    script = project.path / "train.py"
    script.write_bytes((HERE / "loader.py").read_bytes())

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-c", RUN_LLAVA],
            cwd=project.path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    assert run().returncode != 0
    fix = ("fix", "train.py", "--python", python, "--offline", "--ignore", "QD0,QD2,QD4", "--apply", "--unsafe")
    done = project.run(*fix)
    assert done.code == 0, done.out + done.err
    after = run()
    assert (after.returncode, after.stdout.strip()[-14:]) == (0, "LlavaProcessor"), after.stderr[-3000:]
