"""A worker of a cluster (TF_CONFIG): Keras' own fit. What spatlib imports would take seconds."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

if __name__ == "__main__":
    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        model = keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(np.zeros((24, 4)), np.zeros(24, int), batch_size=8, verbose=0)
