import transformers
from transformers import AdamW, AutoModelForCausalLM, is_torch_tpu_available
from transformers import AutoModelForVision2Seq as VLM
from peft import prepare_model_for_int8_training, get_peft_model, LoraConfig


def lazily():
    from transformers import HybridCache

    return HybridCache


model = prepare_model_for_int8_training(AutoModelForCausalLM.from_pretrained("gpt2"))
model = get_peft_model(model, LoraConfig(r=8))
optimizer = AdamW(model.parameters(), lr=1e-4)
extractor = transformers.CLIPFeatureExtractor.from_pretrained("openai/clip-vit-base-patch32")
print(VLM, is_torch_tpu_available, extractor, optimizer)
