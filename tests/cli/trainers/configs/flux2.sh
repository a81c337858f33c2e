accelerate launch flux_2_train_network.py --model_version klein-base-4b --dit /models/f2.safetensors --network_module networks.lora_flux_2 \
  --network_dim 16 --network_alpha 8 --network_args rank_dropout=0.1 loraplus_lr_ratio=4 --optimizer_type Lion --learning_rate 3e-5 \
  --lr_scheduler cosine --lr_warmup_steps 0.1 --max_train_steps 3000 --mixed_precision bf16 --seed 7
