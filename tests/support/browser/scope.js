// A page that speaks to Scope's API in the order of its documentation: servers, channel, track, offer, candidates.

globalThis.scope = {
  heard: [],
  states: [],

  async start(base, picture, initialParameters) {
    const { iceServers } = await (await fetch(`${base}/api/v1/webrtc/ice-servers`)).json();
    const pc = new RTCPeerConnection({ iceServers });
    const channel = pc.createDataChannel("parameters", { ordered: true });
    channel.onmessage = (event) => scope.heard.push(JSON.parse(event.data));
    const opened = new Promise((resolve) => { channel.onopen = resolve; });
    for (const track of picture.getVideoTracks()) pc.addTrack(track, picture);

    const video = document.createElement("video");
    video.muted = video.autoplay = video.playsInline = true;
    document.body.append(video);
    pc.ontrack = (event) => { [video.srcObject] = event.streams; };
    pc.onconnectionstatechange = () => scope.states.push(pc.connectionState);

    let session = null;
    const early = [];
    const trickle = async ({ candidate, sdpMid, sdpMLineIndex }) => {
      const answer = await fetch(`${base}/api/v1/webrtc/offer/${session}`, {
        method: "PATCH",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ candidates: [{ candidate, sdpMid, sdpMLineIndex }] }),
      });
      scope.states.push(`candidate ${answer.status}`);
    };
    pc.onicecandidate = ({ candidate }) => {
      if (!candidate) return;
      if (session) trickle(candidate);
      else early.push(candidate);
    };

    await pc.setLocalDescription(await pc.createOffer());
    const began = performance.now();
    const answer = await fetch(`${base}/api/v1/webrtc/offer`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...pc.localDescription.toJSON(), initialParameters }),
    });
    if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
    const { sessionId, sdp, type } = await answer.json();
    session = sessionId;
    await pc.setRemoteDescription({ sdp, type });
    for (const candidate of early.splice(0)) await trickle(candidate);

    await opened;
    const firstPicture = await new Promise((resolve) => video.requestVideoFrameCallback(resolve));
    Object.assign(scope, { pc, channel, video, session, picture });
    return { session, firstPictureMs: firstPicture - began, width: video.videoWidth, height: video.videoHeight };
  },

  say: (message) => scope.channel.send(JSON.stringify(message)),

  async hears(type, count, ms) {
    const until = performance.now() + ms;
    for (;;) {
      const found = scope.heard.filter((one) => one.type === type);
      if (found.length >= count) return found[count - 1];
      if (performance.now() > until) throw new Error(`no ${type} in ${JSON.stringify(scope.heard)}`);
      await new Promise((resolve) => { setTimeout(resolve, 20); });
    }
  },

  // The mean brightness of what is shown, 0 to 255.
  brightness() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [64, 64];
    const context = canvas.getContext("2d");
    context.drawImage(scope.video, 0, 0, 64, 64);
    const { data } = context.getImageData(0, 0, 64, 64);
    let sum = 0;
    for (let at = 0; at < data.length; at += 4) sum += data[at] + data[at + 1] + data[at + 2];
    return sum / (data.length / 4) / 3;
  },

  async stop() {
    scope.channel.close();
    scope.pc.close();
    for (const track of scope.picture.getTracks()) track.stop();
  },
};
