import os
from transformers import AutoModelForCausalLM


def use_mirror(url):
    os.environ.update({"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"})


def main():
    use_mirror("hf-mirror.com")
    AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", revision="main")


if __name__ == "__main__":
    main()
