"""A folder of pictures in Keras, by its own reader: FOLDER/{train,test}/CLASS/*.png.

Run: python examples/imagefolder_keras.py FOLDER
"""

import sys
from pathlib import Path

import keras

import spatlib
from spatlib_tf.models import small_cnn

SIZE = 16, 16


def main(folder: str, epochs: int = 10) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    settings = {"image_size": SIZE, "crop_to_aspect_ratio": True, "batch_size": 32, "seed": 0}
    read = keras.utils.image_dataset_from_directory
    train = read(Path(folder, "train"), **settings)  # floats from 0 to 255
    test = read(Path(folder, "test"), shuffle=False, **settings)
    model = keras.Sequential(
        [
            keras.layers.Input((*SIZE, 3)),
            keras.layers.Rescaling(1 / 255),
            small_cnn((*SIZE, 3), len(train.class_names)),
        ]
    )
    result = spatlib.train(
        model,
        (train, test),
        backend="tf",
        config=spatlib.SPATConfig(eps=8, bounds=(0, 255), steps=5),
        training=spatlib.TrainConfig(epochs=epochs, lr=0.05),
    )
    return result.metrics


if __name__ == "__main__":
    main(sys.argv[1])
