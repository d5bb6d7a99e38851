"""What results on the images of `tiny.yaml` are called."""

SHAPES = "shapes_image_size_16_num_evaluation_24_num_train_96"
