"""Keras's side of the comparison on the same batches: reads the order, writes its initial head, prints its epoch losses.

Runs in the peer's environment: python keras_same_batches.py WEIGHTS.h5 FOLDER
"""

import json
import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers

weights, folder = sys.argv[1:]
order = json.loads(Path(f"{folder}/batches.json").read_text())
keras.utils.set_random_seed(0)
base = keras.applications.VGG16(weights=weights, include_top=False, input_shape=(224, 224, 3))
base.trainable = False
dense, last = layers.Dense(256, activation="relu"), layers.Dense(len(order["classes"]), activation="softmax")
model = keras.Sequential([base, layers.Flatten(), dense, last])
model.compile(optimizer=keras.optimizers.Adam(1e-4), loss="categorical_crossentropy")
values = [np.asarray(v) for layer in (dense, last) for v in layer.get_weights()]
np.savez(f"{folder}/head.npz", kernel1=values[0], bias1=values[1], kernel2=values[2], bias2=values[3])

losses, per_epoch = [], len(order["batches"]) // order["epochs"]
for epoch in range(order["epochs"]):
    total = count = 0.0
    for paths in order["batches"][epoch * per_epoch : (epoch + 1) * per_epoch]:
        images = np.stack([keras.utils.img_to_array(keras.utils.load_img(path, target_size=(224, 224))) for path in paths]) / 255
        labels = keras.utils.to_categorical([order["classes"].index(path.split("/")[-2]) for path in paths], len(order["classes"]))
        model.reset_metrics()
        total += float(np.asarray(model.train_on_batch(images, labels)).ravel()[0]) * len(paths)
        count += len(paths)
    losses.append(total / count)
print(json.dumps({"losses": losses}))
