"""Feature caches: patch tokens of every camera frame of a dataset, encoded once and kept on disk.

identity.py    what a cache was made from: the fields that name it
source.py      the dataset side of that identity: frames, files and their hashes
table.py       which frame of which file each frame of a dataset is
frames.py      frames of one camera, decoded in order
storage.py     token dtypes: float32, float16, bfloat16, int8 with a scale per token
pooling.py     14x14 patch grids pooled to smaller ones
shard.py       one safetensors file of consecutive frames
manifest.py    the JSON file that makes a folder of shards a cache
reader.py      FeatureCache: open, gather
plan.py        what a run will do, known before it starts
precompute.py  dataset -> cache
dataset.py     opening the dataset that it is made from
work.py        which shards are there, which are to be made, which are ours to make
claim.py       several processes at one cache: claims on shards, a lock against deletion
shard_size.py  frames per shard, settled once for all who build a cache
reuse.py       shards that another cache of the dataset holds already
make.py        making shards: decode -> encode -> write
originals.py   whether the dataset is still the one that was hashed
loaded.py      whether what LeRobot loaded is what the data files hold
pipeline.py    threads a few items ahead of their caller, and one behind it
video.py       a video file read front to back
encode.py      frames -> tokens as stored, on a device
publish.py     the manifest, when all shards are there
catalog.py     which cache under a root serves a dataset, and if none, why not
root.py        where caches are kept
files.py       write, sync, rename
errors.py      what can go wrong
"""

from lerobot_theia.cache.errors import CacheDamagedError, CacheError, CacheMismatchError, FrameError
from lerobot_theia.cache.reader import FeatureCache

__all__ = ["CacheDamagedError", "CacheError", "CacheMismatchError", "FeatureCache", "FrameError"]
