from __future__ import annotations

import numpy as np
import pytest

from services.inference.packets import Media
from sluice.pipeline import ModelCache
from tests.support.engine import decoded, engine, video
from tests.unit.inference.streamdiffusion.driving import SIDE

HERE = {"streamdiffusion": {"model_id": "sd-turbo", "width": SIDE, "height": SIDE}}


@pytest.mark.timeout(120)
def test_an_engine_repaints_video_and_takes_a_prompt_beside_the_frames(
    models: ModelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_MODELS", str(models.root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sent = video(12)
    with engine("streamdiffusion", timeout_s=100.0, here=HERE) as child:
        (offer,) = child.messages("ready")[0].fields["pipelines"]
        assert offer["params_schema"]["properties"]["model_id"]["default"] == "sd-turbo"
        child.open("streamdiffusion")
        child.send(*sent[:5])
        child.until(lambda one: isinstance(one, Media) and one.pts == sent[4].pts)
        child.say("update", revision=2, patch={"prompt": "cats"}, apply_at_pts=0)
        child.send(*sent[5:])
        child.say("end_of_input")
        child.until_said("finished")
        applied = child.messages("applied")[-1].fields
        assert (applied["revision"], applied["applies"]) == (2, "warm")
        assert [one.pts for one in child.media()] == [one.pts for one in sent]
        shown = [frame.rgb() for frame in decoded(child.media())]
        child.close_all()
    assert {picture.shape for picture in shown} == {(SIDE, SIDE, 3)}
    assert float(np.std(shown[-1])) > 5
