accelerate launch ideogram4_train_network.py --dit /models/i.safetensors --network_module networks.lora_ideogram4 --network_dim 16 \
  --optimizer_type automagic.Automagic --learning_rate 1e-4 --max_train_steps 100 --seed 2 --dataset_config musubi_jsonl.toml
