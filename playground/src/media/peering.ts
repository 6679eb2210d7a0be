// One WebRTC connection by WHIP or WHEP: the offer is posted at once, candidates follow, DELETE ends it.

import { here, reach, refusal } from "../api.ts"
import { AwayError, NoConnectionError } from "../pure/failures.ts"
import { type Candidate, fragmentOf, h264First, type IceServer, iceServersOf } from "../pure/sdp.ts"

const ANSWER_S = 25 // a viewer's waits for a stream that is about to come back
const JOIN_S = 330 // a publisher's waits in the line for a runner; giving up leaves the line
const CONNECT_S = 10
const RELAY_AFTER_S = 3 // when relays became known only with the answer, and nothing connected without
const GATHER_MS = 30 // candidates come in bursts
const BITS_PER_SECOND = 3_000_000
const SDP = "application/sdp"
const FRAGMENT = "application/trickle-ice-sdpfrag"

/** Relays that an answer named; the browser takes them up with the next offer only. */
let known: IceServer[] = []

export class Peering {
  readonly pc: RTCPeerConnection
  readonly #url: string
  #resource = ""
  #etag = ""
  #pending: Candidate[] = []
  #complete = false
  #timer: ReturnType<typeof setTimeout> | undefined

  private constructor(url: string) {
    this.#url = here(url)
    this.pc = new RTCPeerConnection({ bundlePolicy: "max-bundle", iceServers: known })
    this.pc.addEventListener("icecandidate", ({ candidate }) => this.#gathered(candidate))
  }

  /** Send `media`; resolves when it goes through. Raises ApiError, AwayError, NoConnectionError. */
  static publish(url: string, media: MediaStream, stop: AbortSignal): Promise<Peering> {
    return Peering.#connected(url, JOIN_S, stop, (pc) => {
      for (const track of media.getTracks()) {
        const sender = pc.addTransceiver(track, { direction: "sendonly", streams: [media] })
        prefer(sender, track.kind)
        if (track.kind === "video") void keepSize(sender.sender)
      }
    })
  }

  /** Receive; `ontrack` hears of what comes. Resolves when the connection stands. */
  static watch(url: string, ontrack: (event: RTCTrackEvent) => void, stop: AbortSignal): Promise<Peering> {
    return Peering.#connected(url, ANSWER_S, stop, (pc) => {
      pc.addEventListener("track", ontrack)
      for (const kind of ["video", "audio"] as const)
        prefer(pc.addTransceiver(kind, { direction: "recvonly" }), kind)
    })
  }

  static async #connected(
    url: string,
    answerS: number,
    stop: AbortSignal,
    prepare: (pc: RTCPeerConnection) => void,
  ): Promise<Peering> {
    const before = JSON.stringify(known)
    const first = new Peering(url)
    prepare(first.pc)
    await first.#offer(answerS, stop)
    const relaysCame = JSON.stringify(known) !== before
    if (await first.#settled(relaysCame ? RELAY_AFTER_S : CONNECT_S, stop)) return first
    await first.close()
    stop.throwIfAborted()
    if (!relaysCame) throw new NoConnectionError(url)
    const second = new Peering(url)
    prepare(second.pc)
    await second.#offer(answerS, stop)
    if (await second.#settled(CONNECT_S, stop)) return second
    await second.close()
    stop.throwIfAborted()
    throw new NoConnectionError(url)
  }

  async #offer(answerS: number, stop: AbortSignal): Promise<void> {
    try {
      await this.pc.setLocalDescription()
      const answer = await reach(this.#url, {
        method: "POST",
        headers: { "Content-Type": SDP },
        body: this.pc.localDescription?.sdp ?? "",
        signal: AbortSignal.any([stop, AbortSignal.timeout(answerS * 1000)]),
      })
      if (answer.status !== 201) throw await refusal(answer)
      this.#resource = here(
        new URL(answer.headers.get("Location") ?? "", new URL(this.#url, location.href)).href,
      )
      this.#etag = answer.headers.get("ETag") ?? ""
      const servers = iceServersOf(answer.headers.get("Link"))
      if (servers.length > 0) known = servers
      await this.pc.setRemoteDescription({ type: "answer", sdp: await answer.text() })
      this.#trickle()
    } catch (error) {
      await this.close()
      throw error
    }
  }

  /** Whether the connection stands within `seconds`. */
  #settled(seconds: number, stop: AbortSignal): Promise<boolean> {
    return new Promise((resolve) => {
      const over = new AbortController()
      const settle = (stands: boolean) => {
        clearTimeout(timer)
        over.abort()
        resolve(stands)
      }
      const look = () => {
        if (this.pc.connectionState === "connected") settle(true)
        if (this.pc.connectionState === "failed" || this.pc.connectionState === "closed") settle(false)
      }
      const timer = setTimeout(() => settle(false), seconds * 1000)
      this.pc.addEventListener("connectionstatechange", look, { signal: over.signal })
      stop.addEventListener("abort", () => settle(false), { signal: over.signal })
      if (stop.aborted) settle(false)
      else look()
    })
  }

  #gathered(candidate: RTCIceCandidate | null): void {
    if (candidate === null) this.#complete = true
    else if (candidate.candidate !== "")
      this.#pending.push({ candidate: candidate.candidate, sdpMid: candidate.sdpMid })
    if (this.#resource !== "") this.#trickle()
  }

  #trickle(): void {
    if (this.#timer !== undefined) return
    this.#timer = setTimeout(() => {
      this.#timer = undefined
      if (this.pc.signalingState === "closed") return
      const body = fragmentOf(this.pc.localDescription?.sdp ?? "", this.#pending, this.#complete)
      if (this.#pending.length === 0 && !this.#complete) return
      this.#pending = []
      void this.#say(this.#resource, "PATCH", {
        headers: { "Content-Type": FRAGMENT, ...(this.#etag === "" ? {} : { "If-Match": this.#etag }) },
        body,
      })
    }, GATHER_MS)
  }

  /** The tracks that are sent become those of `media`; a sound that was not offered stays away. */
  async replace(media: MediaStream): Promise<void> {
    for (const transceiver of this.pc.getTransceivers()) {
      const kind = transceiver.receiver.track.kind
      await transceiver.sender.replaceTrack(media.getTracks().find((track) => track.kind === kind) ?? null)
    }
  }

  /** First the word, then the deed: a connection that just closes is one that broke. */
  async close(): Promise<void> {
    clearTimeout(this.#timer)
    const resource = this.#resource
    this.#resource = ""
    if (resource !== "") await this.#say(resource, "DELETE", {})
    this.pc.close()
  }

  // Candidates may come too late, and what is to be deleted may be gone: neither changes anything here.
  async #say(resource: string, method: string, request: RequestInit): Promise<void> {
    try {
      const answer = await reach(resource, {
        method,
        signal: AbortSignal.timeout(ANSWER_S * 1000),
        ...request,
      })
      await answer.arrayBuffer() // a body that nobody reads is a request that was broken off
    } catch (error) {
      if (!isSilence(error)) throw error
    }
  }
}

// No answer, or one that broke off: `fetch` has a class for each way.
function isSilence(error: unknown): boolean {
  return error instanceof AwayError || error instanceof TypeError || error instanceof DOMException
}

function prefer(transceiver: RTCRtpTransceiver, kind: string): void {
  if (kind !== "video") return
  const sends = transceiver.direction === "sendonly"
  const able = (sends ? RTCRtpSender : RTCRtpReceiver).getCapabilities("video")
  if (able) transceiver.setCodecPreferences(h264First(able.codecs))
}

// A pipeline works at one size: rather fewer pictures than smaller ones while the estimate of the line grows.
async function keepSize(sender: RTCRtpSender): Promise<void> {
  const parameters: RTCRtpSendParameters & { degradationPreference?: string } = sender.getParameters()
  parameters.degradationPreference = "maintain-resolution"
  for (const encoding of parameters.encodings) encoding.maxBitrate = BITS_PER_SECOND
  try {
    await sender.setParameters(parameters)
  } catch (error) {
    // It is a wish: a browser that cannot keep the size sends all the same.
    if (!(error instanceof DOMException)) throw error
  }
}
