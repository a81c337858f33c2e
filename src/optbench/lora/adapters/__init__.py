"""Adapter files of anyone's, put into a base for a while: LoRA, LoCon, DoRA, LoHa and LoKr."""
