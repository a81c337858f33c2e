# Study C: Lion and max-norm, dim 128 with weights of blocks.
accelerate launch --num_cpu_threads_per_process 4 train_network.py \
  --pretrained_model_name_or_path="/models/anime.safetensors" --train_data_dir="/data/outfits" --reg_data_dir="" \
  --resolution=512,512 --enable_bucket --bucket_no_upscale --bucket_reso_steps=64 --train_batch_size=6 --max_train_epochs=10 \
  --network_module=networks.lora --network_dim=128 --network_alpha=32 \
  --network_args "conv_dim=32" "conv_alpha=16" "down_lr_weight=0,0,0,0,1,1,1,1,1,1,1,1" "mid_lr_weight=0" "up_lr_weight=1,1,1,1,1,1,1,1,1,1,1,1" \
  --unet_lr=1e-4 --text_encoder_lr=5e-5 --optimizer_type=Lion --lr_scheduler=constant --scale_weight_norms=1 \
  --multires_noise_iterations=8 --multires_noise_discount=0.3 --keep_tokens=3 --shuffle_caption --caption_extension=.txt \
  --mixed_precision=fp16 --save_precision=fp16 --seed=1234 --clip_skip=2 --cache_latents --xformers
