import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, CLIPVisionModel


def halve(m):
    return m.half()


class Holder:
    def __init__(self, four_bit):
        cfg = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16) if four_bit else None
        self.llm = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1", quantization_config=cfg, torch_dtype=torch.float16)
        self.four_bit = four_bit
        self.vision = CLIPVisionModel.from_pretrained("openai/clip-vit-large-patch14").half()

    def ready(self):
        if not self.four_bit:
            self.llm = self.llm.half().cuda()
        self.vision.to(dtype=torch.float16, device="cuda")
        return self


maybe = Holder(four_bit=True).ready()
always = AutoModelForCausalLM.from_pretrained(
    "mistralai/Mistral-7B-v0.1",
    quantization_config=BitsAndBytesConfig(load_in_8bit=True),
)
always = halve(always)
dtype = torch.bfloat16
other = AutoModelForCausalLM.from_pretrained("mistralai/Mistral-7B-v0.1", load_in_8bit=False)
other.to(dtype)
third = AutoModelForCausalLM.from_pretrained(
    "mistralai/Mistral-7B-v0.1", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
)
third.to("cuda", dtype)
embed = AutoModel.from_pretrained("BAAI/bge-m3").half()
ids = torch.ones(1, 4).long().to(third.device)
logits = third(ids).logits.float()
for name, param in third.named_parameters():
    if param.ndim == 1:
        param.data = param.data.to(torch.float32)
for name, module in third.named_modules():
    if "norm" in name:
        module = module.to(torch.float32)
third.lm_head = third.lm_head.float()
print(logits, embed, maybe)
