accelerate launch krea2_train_network.py --dit /models/k.safetensors --network_module networks.lokr --network_dim 8 \
  --optimizer_type schedulefree.AdamWScheduleFree --learning_rate 1e-3 --max_train_steps 400 --scale_weight_norms 1 --gradient_accumulation_steps 4
