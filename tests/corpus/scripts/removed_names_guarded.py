import importlib.util

import transformers
from packaging.version import Version

try:
    from transformers import AutoModelForImageTextToText as AutoVLM
except ImportError:
    from transformers import AutoModelForVision2Seq as AutoVLM
if Version(transformers.__version__) < Version("4.50"):
    from transformers import AdamW
else:
    from torch.optim import AdamW
try:
    from transformers import MistralCommonBackend
except ImportError:
    MistralCommonBackend = None
from transformers import MistralCommonBackend as Backend
from transformers.utils import is_peft_available
from transformers.trainer_utils import get_last_checkpoint
from transformers.models.llava.modeling_llava import LlavaForConditionalGeneration
from transformers import TrainerCallback, TrainerControl, TrainerState, logging

if importlib.util.find_spec("trl"):
    import trl
model_class = getattr(transformers, "AutoModelForVision2Seq", AutoVLM)
print(AdamW, MistralCommonBackend, Backend, is_peft_available, get_last_checkpoint, LlavaForConditionalGeneration, model_class)
