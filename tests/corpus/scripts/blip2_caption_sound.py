import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, Dataset
from transformers import AutoProcessor, BitsAndBytesConfig, Blip2ForConditionalGeneration

processor = AutoProcessor.from_pretrained("Salesforce/blip2-opt-2.7b")
model = Blip2ForConditionalGeneration.from_pretrained(
    "Salesforce/blip2-opt-2.7b", device_map="auto", quantization_config=BitsAndBytesConfig(load_in_8bit=True)
)
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", target_modules=["q_proj", "k_proj"]))


class Captions(Dataset):
    def __init__(self, rows, processor):
        self.rows, self.processor = rows, processor

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        item = self.rows[index]
        encoding = self.processor(images=item["image"], padding="max_length", return_tensors="pt")
        encoding = {k: v.squeeze() for k, v in encoding.items()}
        encoding["text"] = item["text"]
        return encoding


def collate(batch):
    out = {"pixel_values": torch.stack([b["pixel_values"] for b in batch])}
    text = processor.tokenizer([b["text"] for b in batch], padding=True, return_tensors="pt")
    out["input_ids"], out["attention_mask"] = text["input_ids"], text["attention_mask"]
    return out


loader = DataLoader(Captions([], processor), shuffle=True, batch_size=2, collate_fn=collate)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
device = "cuda" if torch.cuda.is_available() else "cpu"
model.train()
for batch in loader:
    ids = batch.pop("input_ids").to(device)
    pixels = batch.pop("pixel_values").to(device, torch.float16)
    loss = model(input_ids=ids, pixel_values=pixels, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
