"""SPAT in Keras: wrap the model, then compile and fit as ever.

Run: python examples/keras_fit.py
"""

import keras

import spatlib
import spatlib_tf


def main(epochs: int = 5) -> dict[str, float]:
    keras.utils.set_random_seed(0)
    data = spatlib.load_data("digits")
    base = keras.Sequential(
        [
            keras.layers.Input((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(32, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),  # logits: no softmax
        ]
    )
    model = spatlib_tf.SPATModel(base, spatlib.SPATConfig(eps=0.15, steps=7), seed=0)  # the line
    model.compile(optimizer=keras.optimizers.SGD(0.05, momentum=0.9), metrics=["accuracy"])
    stop = keras.callbacks.EarlyStopping("val_adv_accuracy", mode="max", patience=3)
    history = model.fit(
        *data.train,
        batch_size=64,
        epochs=epochs,
        validation_data=data.test,
        callbacks=[stop],
        verbose=2,
    )
    report = spatlib.evaluate(model.base, data, model.config)
    print(report)
    return {"val_adv_accuracy": history.history["val_adv_accuracy"][-1], **report.metrics}


if __name__ == "__main__":
    main()
