"""What to install: the newest set of torch, transformers, peft, accelerate and bitsandbytes that one machine can run."""
