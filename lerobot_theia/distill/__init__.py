"""Distillation: make a Theia of one's own from teachers, images, and what simulators know.

run.py         the whole way, from settings to a student
settings.py    plain values to checked settings; training_settings.py those of training
identity.py    what must be the same when a run is resumed
sources/       where images come from
pack.py        a source, read once and kept as shards of frames
corpus.py      all packed sources as one stream, and the order of images
teachers/      images, or a simulator's truth, to features
features.py    a teacher's features, extracted once and kept
lessons.py     the targets of a batch
student.py     the trainable Theia
loss.py        cosine and SmoothL1 on standardised features
schedule.py    learning rate and resolution
augment.py     light and colour
training.py    the loop; optimizer.py, metrics.py and watcher.py what it works with and tells
validate.py    losses on held-out images
pictures.py    student beside teachers
checkpoint.py  resume exactly
result.py      what a finished run leaves
layout.py      the published layout on disk
licenses.py    what the licences of the parts mean for the result
provenance.py  what a student was made from
seeds.py       which seeds no corpus may contain
frames.py, arrays.py, hashing.py, nested.py, pusht_geometry.py, errors.py  what these share
"""
