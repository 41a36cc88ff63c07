"""The same cast in every way of writing it. Lines marked fine are casts of what is not quantised."""
import torch, os
import transformers
from transformers import *
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments, set_seed
from peft import *
import peft

bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)

def make():
    class Inner(Trainer):
        def compute_loss(self, model, inputs):
            return model(**inputs).loss
    return Inner

class Mixin: ...
class Multi(Mixin, transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False):
        return 0

class Static(Trainer):
    @staticmethod
    def compute_loss(model, inputs, return_outputs=False):
        return 0
    compute_other = None

m1 = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", quantization_config=bnb)
m1.to(**{"dtype": torch.float16})
fp16 = os.environ.get("FP16")
dtype = torch.float16 if fp16 else torch.float32
m1.to(device="cuda", dtype=dtype)
m1.to("cuda:0", torch.float16, non_blocking=True)
models = {"a": m1, "b": AutoModelForCausalLM.from_pretrained("gpt2")}
models["a"].half()
models["b"].half()  # fine
for k, m in models.items():
    m.half()
[m.half() for m in models.values()]
x, y = m1, models["b"]
x.half(); y.half()
def f(model, *, half=False):
    if half:
        model.half()
    return model
f(m1, half=True)
f(m1, half=False)
f(models["b"], half=True)  # fine
class W:
    @classmethod
    def load(cls, name, **kw):
        self = cls()
        self.model = AutoModelForCausalLM.from_pretrained(name, **kw)
        return self
    @property
    def net(self):
        return self.model
w = W.load("Qwen/Qwen2.5-0.5B", quantization_config=bnb)
w.net.half()
w.model.half()
setattr(w, "model", w.model.float())
with torch.no_grad():
    m1.eval().half()
lam = lambda m: m.half()
lam(m1)
m2 = prepare_model_for_kbit_training(m1).half()
m3 = get_peft_model(m2, LoraConfig(target_modules="all-linear"))
m3.half()
m3.base_model.half()
m3.merge_and_unload().half()
