from dataclasses import dataclass

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, BitsAndBytesConfig


@dataclass
class Pipeline:
    name: str = "Qwen/Qwen2-VL-2B-Instruct"

    def setup(self):
        self.tok = AutoTokenizer.from_pretrained(self.name)
        self.model = AutoModelForImageTextToText.from_pretrained(
            self.name,
            dtype=torch.bfloat16,
            quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16"),
        )

    def __call__(self, path, question):
        image = Image.open(path)
        batch = self.tok(question, images=image, return_tensors="pt")
        return self.model.generate(**batch)


pipe = Pipeline()
pipe.setup()
print(pipe("x.png", "what?"))
