"""Supervised fine-tuning on rows, with TRL's SFTTrainer: `apr train sft`."""
