"""A trainer of LLaVA's kind: names from the inside of transformers."""
import torch
from huggingface_hub import HfFolder, hf_hub_download
from peft.mapping import get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import Trainer
from transformers.models.llama.modeling_llama import LlamaFlashAttention2
from transformers.trainer import ALL_LAYERNORM_LAYERS, get_parameter_names, is_sagemaker_mp_enabled
from transformers.trainer_pt_utils import LabelSmoother
from transformers.utils import logging, is_datasets_available
from trl.trainer.utils import pad

logger = logging.get_logger(__name__)


class SplitTrainer(Trainer):
    def create_optimizer(self):
        decay = get_parameter_names(self.model, ALL_LAYERNORM_LAYERS)
        groups = [{"params": [p for n, p in self.model.named_parameters() if n in decay and p.requires_grad]}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.args.learning_rate)
        return self.optimizer


print(HfFolder, hf_hub_download, get_peft_model, LoraLayer, LlamaFlashAttention2, LabelSmoother, is_datasets_available, pad, is_sagemaker_mp_enabled)
