$model = "D:\models\anime.safetensors"
$arguments = @("--network_dim=128", "--network_alpha=32")
accelerate launch --num_cpu_threads_per_process=4 "./sd-scripts/train_network.py" `
  --pretrained_model_name_or_path=$model --train_data_dir="D:\data\outfits" `
  --network_module=networks.lora @arguments --optimizer_type=DAdaptLion --unet_lr=1 --text_encoder_lr=1 `
  --resolution=512,512 --max_train_epochs=10 --train_batch_size=6 --scale_weight_norms=1 --seed=1234
