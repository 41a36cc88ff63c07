import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.utils.data import DataLoader
from transformers import BitsAndBytesConfig, InstructBlipForConditionalGeneration, InstructBlipProcessor

MODEL = "Salesforce/instructblip-flan-t5-xl"
processor = InstructBlipProcessor.from_pretrained(MODEL)
model = InstructBlipForConditionalGeneration.from_pretrained(
    MODEL,
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float16),
    torch_dtype=torch.float16,
    device_map="auto",
)
config = LoraConfig(
    r=16, lora_alpha=32, target_modules=["query", "key", "value", "dense"], lora_dropout=0.05, bias="none",
    task_type=TaskType.FEATURE_EXTRACTION,
)
model = get_peft_model(model, config)
model = model.half()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)


class VQA(torch.utils.data.Dataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        row = self.rows[i]
        enc = processor(images=row["image"], text=row["question"], padding="max_length", truncation=True, return_tensors="pt")
        enc["labels"] = processor.tokenizer(row["answer"], padding="max_length", max_length=16, return_tensors="pt").input_ids
        return {k: v.squeeze(0) for k, v in enc.items()}


for epoch in range(3):
    for batch in DataLoader(VQA([]), batch_size=1):
        batch = {k: v.to("cuda") for k, v in batch.items()}
        batch["pixel_values"] = batch["pixel_values"].half()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
