// What tests do in a page: a picture source with a time code, WebRTC over one POST as WHIP and WHEP have it,
// and how old each picture is when it is painted. Everything lives in `sluice`; every wait has a bound.
"use strict";

globalThis.sluice = (() => {
  // The time code: 24 bits of tenths of a millisecond and 8 of parity, as bars over the whole width at the top.
  const BARS = 32;
  const BAR_HEIGHT = 1 / 12; // of the picture: large enough for any codec at any bit rate
  const TICKS_PER_MS = 10;
  const WRAP = 2 ** 24;
  const PARITY_SEED = 0xa5; // so that a black picture is no time code
  const OLDEST_MS = 20_000; // what seems older is a picture without a code whose parity fits by chance
  const CONNECT_MS = 10_000;

  const peers = new Map();
  let source = null;
  let nextPeer = 1;

  const parity = (ticks) => (ticks ^ (ticks >> 8) ^ (ticks >> 16) ^ PARITY_SEED) & 0xff;

  function within(promise, ms, what) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`not within ${ms} ms: ${what}`)), ms);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
  }

  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  // --- the source

  function drawTimeCode(context, width, height) {
    const ticks = Math.round(performance.now() * TICKS_PER_MS) % WRAP;
    const code = ticks * 256 + parity(ticks);
    const tall = Math.ceil(height * BAR_HEIGHT);
    for (let bar = 0; bar < BARS; bar++) {
      const left = Math.round((bar * width) / BARS);
      const right = Math.round(((bar + 1) * width) / BARS);
      context.fillStyle = Math.floor(code / 2 ** (BARS - 1 - bar)) % 2 ? "#fff" : "#000";
      context.fillRect(left, 0, right - left, tall);
    }
  }

  function grain(size) {
    const canvas = new OffscreenCanvas(size, size);
    const context = canvas.getContext("2d");
    const image = context.createImageData(size, size);
    for (let place = 0; place < image.data.length; place += 4) {
      const shade = 110 + Math.random() * 24; // more, and key frames alone would fill the bit rate
      image.data.set([shade, shade * 0.9, shade * 1.1, 255], place);
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  /** Begin to draw: standing grain, a patch of it that moves, and the time code. Sound is a quiet tone.
   *
   * 29.6 and not 30 pictures a second: the phase drifts over the screen's, so that no measurement is locked to it.
   */
  function startSource({ width = 512, height = 512, fps = 29.6, sound = true } = {}) {
    stopSource();
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const ground = grain(Math.max(width, height));
    const patch = grain(96);
    const stream = canvas.captureStream(0);
    const [track] = stream.getVideoTracks();
    track.contentHint = "detail";
    const begun = performance.now();
    let number = 0;
    let timer = 0;
    const draw = () => {
      context.drawImage(ground, 0, 0);
      const across = Math.max(1, width - 96);
      context.drawImage(patch, (number * 7) % across, height / 2 + 40 * Math.sin(number / 9));
      drawTimeCode(context, width, height);
      track.requestFrame();
      number += 1;
      timer = setTimeout(draw, begun + (number * 1000) / fps - performance.now());
    };
    let audio = null;
    if (sound) {
      audio = new AudioContext();
      const tone = audio.createOscillator();
      const quiet = audio.createGain();
      const out = audio.createMediaStreamDestination();
      quiet.gain.value = 0.05;
      tone.connect(quiet).connect(out);
      tone.start();
      stream.addTrack(out.stream.getAudioTracks()[0]);
    }
    draw();
    source = { stream, stop: () => (clearTimeout(timer), audio?.close(), track.stop()) };
  }

  function stopSource() {
    source?.stop();
    source = null;
  }

  const drawing = () => source !== null;
  const sourceStream = () => source.stream;

  // --- peers

  function prefer(transceiver, codec, capabilities) {
    const rest = (one) => (one.mimeType.toLowerCase() === codec.toLowerCase() ? 0 : 1);
    transceiver.setCodecPreferences([...capabilities.codecs].sort((a, b) => rest(a) - rest(b)));
  }

  function addMedia(pc, { send, receive, codec, maxBitrate, streams }) {
    const direction = send && receive ? "sendrecv" : send ? "sendonly" : "recvonly";
    for (const kind of ["video", "audio"]) {
      const track = send ? streams.getTracks().find((one) => one.kind === kind) : undefined;
      if (send && !track) continue;
      const encodings = kind === "video" && send ? [{ maxBitrate }] : [];
      const transceiver = pc.addTransceiver(track ?? kind, { direction, sendEncodings: encodings });
      if (kind !== "video") continue;
      prefer(transceiver, codec, (send ? RTCRtpSender : RTCRtpReceiver).getCapabilities("video"));
      if (send) {
        const parameters = transceiver.sender.getParameters();
        parameters.degradationPreference = "maintain-resolution";
        transceiver.sender.setParameters(parameters);
      }
    }
  }

  /** Chromium begins at 300 kbit/s and halves the picture for it; a measurement wants one size from the start. */
  function atFullRate(sdp, kilobits) {
    return sdp.replace(/^(a=fmtp:\d+ .*)$/gm, (line) =>
      /apt=/.test(line) ? line : `${line};x-google-start-bitrate=${kilobits};x-google-min-bitrate=${kilobits}`,
    );
  }

  function connected(pc) {
    const done = new Promise((resolve, reject) => {
      const look = () => {
        if (pc.connectionState === "connected") resolve();
        if (pc.connectionState === "failed") reject(new Error("the connection failed"));
      };
      pc.addEventListener("connectionstatechange", look);
      look();
    });
    return within(done, CONNECT_MS, `a connection; it is ${pc.connectionState}`);
  }

  function screen(track) {
    const video = document.createElement("video");
    video.muted = true;
    video.autoplay = true;
    video.playsInline = true;
    video.srcObject = new MediaStream([track]);
    document.body.append(video);
    video.play().catch(() => {});
    return video;
  }

  function remember(peer) {
    const id = nextPeer++;
    peers.set(id, peer);
    peer.pc.addEventListener("track", ({ track }) => {
      peer.tracks.push(track.kind);
      if (track.kind === "video") peer.video = screen(track);
    });
    return id;
  }

  /** Post an offer to `url` and connect. The answer's headers that clients read come back with the peer's id. */
  async function connect(url, options = {}) {
    const asked = {
      send: false,
      receive: false,
      codec: "video/H264",
      maxBitrate: 1_500_000,
      startKilobits: 1000,
      headers: {},
      ...options,
    };
    const pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    const peer = { pc, video: null, tracks: [], resource: null, postedAt: 0 };
    const id = remember(peer);
    try {
      addMedia(pc, { ...asked, streams: source?.stream });
      await pc.setLocalDescription();
      peer.postedAt = performance.now();
      const answer = await within(
        fetch(url, {
          method: "POST",
          headers: { "Content-Type": "application/sdp", ...asked.headers },
          body: pc.localDescription.sdp,
        }),
        CONNECT_MS,
        "an answer",
      );
      const body = await within(answer.text(), CONNECT_MS, "an answer's body");
      if (!answer.ok) throw new Error(`HTTP ${answer.status}: ${body}`);
      const place = answer.headers.get("Location");
      peer.resource = place && new URL(place, answer.url).href;
      const sdp = asked.send ? atFullRate(body, asked.startKilobits) : body;
      await pc.setRemoteDescription({ type: "answer", sdp });
      await connected(pc);
      return {
        id,
        status: answer.status,
        resource: peer.resource,
        etag: answer.headers.get("ETag"),
        link: answer.headers.get("Link"),
        playback: answer.headers.get("Livepeer-Playback-URL"),
        answer: body,
        offer: pc.localDescription.sdp,
        postedAt: peer.postedAt,
      };
    } catch (error) {
      await stop(id);
      throw error;
    }
  }

  /** Publish the source by WHIP. */
  const publish = (url, options = {}) => connect(url, { send: true, ...options });

  /** Watch by WHEP; the picture is painted in the page. */
  const watch = (url, options = {}) => connect(url, { receive: true, ...options });

  /** Two peers in this page, nothing between them: what any service's path is compared with. */
  async function direct({ codec = "video/H264", maxBitrate = 1_500_000, startKilobits = 1000 } = {}) {
    const from = { pc: new RTCPeerConnection(), video: null, tracks: [], resource: null, postedAt: 0 };
    const to = { pc: new RTCPeerConnection(), video: null, tracks: [], resource: null, postedAt: 0 };
    const [sender, receiver] = [remember(from), remember(to)];
    from.pc.addEventListener("icecandidate", ({ candidate }) => candidate && to.pc.addIceCandidate(candidate));
    to.pc.addEventListener("icecandidate", ({ candidate }) => candidate && from.pc.addIceCandidate(candidate));
    addMedia(from.pc, { send: true, receive: false, codec, maxBitrate, streams: source.stream });
    await from.pc.setLocalDescription();
    to.postedAt = performance.now();
    await to.pc.setRemoteDescription(from.pc.localDescription);
    await to.pc.setLocalDescription();
    const sdp = atFullRate(to.pc.localDescription.sdp, startKilobits);
    await from.pc.setRemoteDescription({ type: "answer", sdp });
    await Promise.all([connected(from.pc), connected(to.pc)]);
    return { sender, id: receiver, postedAt: to.postedAt };
  }

  /** Leave: DELETE the resource, if there is one, and close. `silently` closes only, as a crash looks. */
  async function stop(id, { silently = false } = {}) {
    const peer = peers.get(id);
    if (!peer) return;
    peers.delete(id);
    peer.video?.remove();
    try {
      if (peer.resource && !silently) {
        await within(fetch(peer.resource, { method: "DELETE" }), CONNECT_MS, "an answer to DELETE");
      }
    } finally {
      peer.pc.close();
    }
  }

  // --- what is painted

  const reader = new OffscreenCanvas(BARS * 8, 4).getContext("2d", { willReadFrequently: true });

  /** When the painted picture was drawn, in this page's clock; null if it carries no time code. */
  function drawnAt(video, now) {
    const tall = video.videoHeight * BAR_HEIGHT;
    reader.drawImage(video, 0, tall / 4, video.videoWidth, tall / 2, 0, 0, BARS * 8, 4);
    const { data } = reader.getImageData(0, 0, BARS * 8, 4);
    let code = 0;
    for (let bar = 0; bar < BARS; bar++) {
      let light = 0;
      for (let row = 1; row < 3; row++) {
        for (let column = 2; column < 6; column++) light += data[4 * (row * BARS * 8 + bar * 8 + column) + 1];
      }
      code = code * 2 + (light / 8 > 127 ? 1 : 0);
    }
    const ticks = Math.floor(code / 256);
    if (code % 256 !== parity(ticks)) return null;
    const age = ((Math.round(now * TICKS_PER_MS) - ticks + WRAP) % WRAP) / TICKS_PER_MS;
    return age > OLDEST_MS ? null : now - age;
  }

  /** Call `each(now, drawn)` for every picture painted, until it returns true or `ms` are over. */
  function painted(id, ms, each) {
    const { video } = peers.get(id);
    if (!video) return Promise.reject(new Error("the peer has no video"));
    return new Promise((resolve, reject) => {
      const over = setTimeout(() => ((open = false), resolve(false)), ms);
      let open = true;
      const look = () => {
        if (!open) return;
        const now = performance.now();
        try {
          if (each(now, drawnAt(video, now), video)) {
            open = false;
            clearTimeout(over);
            resolve(true);
            return;
          }
        } catch (error) {
          open = false;
          clearTimeout(over);
          reject(error);
          return;
        }
        video.requestVideoFrameCallback(look);
      };
      video.requestVideoFrameCallback(look);
    });
  }

  /** Wait for a picture drawn at or after `since`; returns when it was painted, on the same clock. */
  async function firstPicture(id, { since = 0, withinMs = 10_000 } = {}) {
    let at = 0;
    const found = await painted(id, withinMs, (now, drawn) => {
      at = now;
      return drawn !== null && drawn >= since;
    });
    if (!found) throw new Error(`no picture with a time code was painted within ${withinMs} ms`);
    return at;
  }

  /** The age in ms of every picture painted in `ms`, after `warmUpMs`; `unread` carried no time code. */
  async function ages(id, { ms = 10_000, warmUpMs = 0 } = {}) {
    await pause(warmUpMs);
    const found = [];
    const sizes = new Set();
    let unread = 0;
    let backwards = 0;
    let newest = 0;
    await painted(id, ms, (now, drawn, video) => {
      sizes.add(`${video.videoWidth}x${video.videoHeight}`);
      if (drawn === null) {
        unread += 1;
        return false;
      }
      if (drawn < newest) backwards += 1;
      newest = Math.max(newest, drawn);
      found.push(now - drawn);
      return false;
    });
    return { ages: found, unread, backwards, sizes: [...sizes] };
  }

  /** What the browser counted: the inbound and outbound RTP streams, by kind. */
  async function stats(id) {
    const report = await peers.get(id).pc.getStats();
    const found = {};
    report.forEach((one) => {
      if (one.type === "inbound-rtp" || one.type === "outbound-rtp") {
        const codec = report.get(one.codecId)?.mimeType;
        found[`${one.type.split("-")[0]}_${one.kind}`] = { ...one, codec };
      }
    });
    return found;
  }

  const state = (id) => peers.get(id)?.pc.connectionState ?? "closed";
  const tracks = (id) => peers.get(id)?.tracks ?? [];

  /** Leave everything, as at the end of a test. */
  async function stopAll() {
    await Promise.allSettled([...peers.keys()].map((id) => stop(id)));
    stopSource();
  }

  return {
    ages,
    connect,
    direct,
    drawnAt,
    drawing,
    firstPicture,
    publish,
    sourceStream,
    startSource,
    state,
    stats,
    stop,
    stopAll,
    stopSource,
    tracks,
    watch,
    within,
  };
})();
