accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 src/musubi_tuner/zimage_train_network.py \
  --dit /models/z.safetensors --vae /models/ae.safetensors --text_encoder /models/qwen.safetensors \
  --dataset_config musubi_data.toml --sdpa --mixed_precision bf16 --timestep_sampling shift --weighting_scheme none \
  --discrete_flow_shift 2.0 --optimizer_type adamw8bit --learning_rate 1e-4 --gradient_checkpointing \
  --max_data_loader_n_workers 2 --network_module networks.lora_zimage --network_dim 32 --max_train_epochs 16 \
  --save_every_n_epochs 1 --seed 42 --output_dir out --output_name z
