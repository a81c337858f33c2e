accelerate launch wan_train_network.py `
  --task t2v-14B --dit D:\models\wan.safetensors --network_module networks.lora_wan --network_dim 16 --network_alpha 16 `
  --optimizer_type AdamW --learning_rate 2e-4 --lr_scheduler constant_with_warmup --lr_warmup_steps 100 --max_train_epochs 10 --seed 5
