accelerate launch qwen_image_train_network.py --dit C:\models\q.safetensors --network_module networks.lora_qwen_image ^
 --network_dim 16 --optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False ^
 --learning_rate 5e-5 --max_train_epochs 8 --dataset_config C:\nowhere\data.toml --fp8_base --fp8_scaled --seed 1
