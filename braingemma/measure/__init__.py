"""What is measured in the picture itself, without the model: lateral ventricles and midline."""
