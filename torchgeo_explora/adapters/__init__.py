"""Surgery on other people's vision transformers: adapt, merge, save."""

from torchgeo_explora.adapters.config import ExPLoRAConfig, lora_finetuning
from torchgeo_explora.adapters.decoder import apply_explora_to_decoder
from torchgeo_explora.adapters.merge import blend, merge_lora, trained_in_full
from torchgeo_explora.adapters.peft import save_peft
from torchgeo_explora.adapters.state import (
    Adapter,
    adapter_state_dict,
    base_fingerprint,
    load_adapter,
    load_adapter_state_dict,
    read_adapter,
    save_adapter,
)
from torchgeo_explora.adapters.surgery import AdapterReport, apply_explora

__all__ = [
    'Adapter',
    'AdapterReport',
    'ExPLoRAConfig',
    'adapter_state_dict',
    'apply_explora',
    'apply_explora_to_decoder',
    'base_fingerprint',
    'blend',
    'load_adapter',
    'load_adapter_state_dict',
    'lora_finetuning',
    'merge_lora',
    'read_adapter',
    'save_adapter',
    'save_peft',
    'trained_in_full',
]
