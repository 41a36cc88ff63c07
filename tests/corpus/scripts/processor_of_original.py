from transformers import AutoProcessor, CLIPImageProcessor, LlavaProcessor

MODELS = {"7b": "liuhaotian/llava-v1.5-7b", "7b-hf": "llava-hf/llava-1.5-7b-hf"}


def processor_for(size="7b"):
    return AutoProcessor.from_pretrained(MODELS[size])


good = LlavaProcessor.from_pretrained(MODELS["7b-hf"])
bad = processor_for()
clip = CLIPImageProcessor.from_pretrained("openai/clip-vit-large-patch14-336")
