import torch
from accelerate import Accelerator, PartialState
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

state = PartialState()
accelerator = Accelerator()
model = AutoModelForCausalLM.from_pretrained(
    "Qwen/Qwen2.5-7B",
    quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16),
    torch_dtype=torch.float16,
    device_map={"": state.local_process_index},
)
model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(r=8, target_modules=["q_proj"]))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model, optimizer = accelerator.prepare(model, optimizer)
for batch in []:
    loss = model(**batch).loss
    accelerator.backward(loss)
    optimizer.step()
unwrapped = accelerator.unwrap_model(model)
unwrapped.save_pretrained("adapter")
