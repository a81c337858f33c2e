"""`optbench resize`: finished LoRA files made smaller."""
