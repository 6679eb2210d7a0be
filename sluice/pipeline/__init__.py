"""What the author of a pipeline imports: the class to write, its parameters, its frames. No torch, no numpy.

A pipeline is a class with a name, declared parameters and one method that turns a frame into a frame:

    class Invert(Pipeline):
        name, version, description = "invert", "1.0", "The negative of the picture."
        params = {"amount": Param(default=1.0, help="0 keeps the picture.", minimum=0, maximum=1)}

        def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
            amount = params["amount"]
            return frame.with_rgb(cv2.addWeighted(frame.rgb, 1 - amount, ~frame.rgb, amount, 0))

`load` is called once before the first frame, with what this machine has (`Setup`) and the parameters.

Parameters come as a mapping with each call, not as attributes of the pipeline: a frame sees one coherent set,
which changes between frames and never within one; the pipeline holds no second copy to go stale; and the keys
are those of the JSON that a client sends, so there is one spelling to search for. The mapping has every
declared parameter, validated against `schema()`, so its values are `Any` and need no checks in `process`.

Sound goes round a pipeline and meets its picture again behind it. One that says so gets the sound as well:

    class Night(Pipeline):
        name, version, description = "night", "1.0", "Darker and quieter."
        processes_audio = True

        def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
            return frame.with_rgb(frame.rgb // 4)

        def process_audio(self, frame: AudioFrame, params: Mapping[str, Any]) -> AudioFrame:
            return frame.with_samples(frame.samples * np.float32(0.25))

What else it finds out it says, and every client that listens is told with the time of the frame:

    class Faces(Pipeline):
        name, version, description = "faces", "1.0", "Says where faces are."

        def process(self, frame: VideoFrame, params: Mapping[str, Any]) -> VideoFrame:
            self.say({"faces": [[float(side) for side in box] for box in find(frame.rgb)]})
            return frame

A mistake in the class body is a `TypeError` where the class is defined; not at the first stream.
"""

from sluice.pipeline.author import Pipeline, defaults, schema
from sluice.pipeline.batching import Batcher
from sluice.pipeline.frames import SAMPLE_RATE, TICKS_PER_SECOND, AudioFrame, Fit, VideoFrame, fit
from sluice.pipeline.models import ModelCache, ModelMissingError, ModelTooLargeError
from sluice.pipeline.params import Apply, Json, Param, ParamError, Prompt, weighted_texts
from sluice.pipeline.setup import Setup
from sluice.pipeline.sharing import Shared, Sharing

__all__ = [
    "SAMPLE_RATE",
    "TICKS_PER_SECOND",
    "Apply",
    "AudioFrame",
    "Batcher",
    "Fit",
    "Json",
    "ModelCache",
    "ModelMissingError",
    "ModelTooLargeError",
    "Param",
    "ParamError",
    "Pipeline",
    "Prompt",
    "Setup",
    "Shared",
    "Sharing",
    "VideoFrame",
    "defaults",
    "fit",
    "schema",
    "weighted_texts",
]
