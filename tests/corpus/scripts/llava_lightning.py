import lightning as L
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.utils.data import DataLoader
from transformers import AutoProcessor, BitsAndBytesConfig, LlavaForConditionalGeneration

MODEL_ID = "llava-hf/llava-1.5-7b-hf"
USE_LORA, USE_QLORA = False, True


def find_linear_names(model):
    names = set()
    for name, module in model.named_modules():
        if any(k in name for k in ("multi_modal_projector", "vision_tower")):
            continue
        if isinstance(module, torch.nn.Linear):
            names.add(name.split(".")[-1])
    names.discard("lm_head")
    return list(names)


if USE_QLORA or USE_LORA:
    bnb_config = None
    if USE_QLORA:
        bnb_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16)
    model = LlavaForConditionalGeneration.from_pretrained(MODEL_ID, torch_dtype=torch.float16, quantization_config=bnb_config)
else:
    model = LlavaForConditionalGeneration.from_pretrained(MODEL_ID, torch_dtype=torch.float16, _attn_implementation="flash_attention_2")

lora = LoraConfig(r=8, lora_alpha=8, lora_dropout=0.1, target_modules=find_linear_names(model), init_lora_weights="gaussian")
model = prepare_model_for_kbit_training(model)
model = get_peft_model(model, lora)
processor = AutoProcessor.from_pretrained(MODEL_ID)


class LlavaModule(L.LightningModule):
    def __init__(self, config, processor, model):
        super().__init__()
        self.config, self.processor, self.model = config, processor, model

    def training_step(self, batch, batch_idx):
        input_ids, attention_mask, pixel_values, labels = batch
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values.half(), labels=labels)
        self.log("train_loss", out.loss)
        return out.loss

    def validation_step(self, batch, batch_idx, dataset_idx=0):
        input_ids, attention_mask, pixel_values, answers = batch
        ids = self.model.generate(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, max_new_tokens=64)
        self.log("val_edit_distance", float(len(ids) - len(answers)))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.config["lr"])

    def train_dataloader(self):
        return DataLoader(self.config["train"], batch_size=1)


module = LlavaModule({"lr": 1e-4, "train": []}, processor, model)
trainer = L.Trainer(accelerator="gpu", devices=[0], max_epochs=2, precision="16-mixed", accumulate_grad_batches=8)
trainer.fit(module)
