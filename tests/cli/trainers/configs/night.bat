@echo off
set MODEL=C:\models\xl.safetensors
set EPOCHS=8
accelerate launch sdxl_train_network.py --pretrained_model_name_or_path="%MODEL%" --train_data_dir="C:\data" ^
 --network_module=networks.lora --network_dim=32 --network_alpha=16 --resolution=1024,1024 --enable_bucket ^
 --max_train_epochs=%EPOCHS% --optimizer_type=Prodigy --learning_rate=1 --optimizer_args "decouple=True" "weight_decay=0.01" "d_coef=2" ^
 --lr_scheduler=cosine --network_train_unet_only --cache_text_encoder_outputs --mixed_precision=bf16 --seed=7
