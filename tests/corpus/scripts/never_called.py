"""Old code that nobody calls, beside the code that runs."""
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments


def old_training_arguments(out):
    # kept for the record
    return TrainingArguments(output_dir=out, evaluation_strategy="epoch")


def old_adapters():
    from peft import LoraConfig

    return LoraConfig(rank=8, target_modules=["q_proj"])


def load_original():
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained("liuhaotian/llava-v1.5-13b", torch_dtype=torch.float16)


def main():
    q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=q, torch_dtype=torch.float16)
    print(model, Trainer)


if __name__ == "__main__":
    main()
