accelerate launch anima_train_network.py --pretrained_model_name_or_path=/models/anima.safetensors --train_data_dir=/data \
  --network_module=networks.lora_anima --network_dim=16 --network_alpha=16 --learning_rate=1e-4 --optimizer_type=AdamW8bit \
  --max_train_epochs=10 --resolution=1024,1024 --qwen3=/models/qwen3.safetensors --seed=4
