// What the browser measures of the two connections, as differences from one look to the next.

import type { Peering } from "./peering.ts"

/** Milliseconds are per picture, over the last second. Null where nothing was measured yet. */
export interface Link {
  readonly width: number
  readonly height: number
  readonly fps: number
  readonly bitsPerSecond: number
  readonly encodeMs: number | null
  readonly upMs: number | null
  readonly downMs: number | null
  readonly receiveMs: number | null
}

type Report = Record<string, number | string | boolean | undefined>

export class LinkMeter {
  #encoded = { seconds: 0, pictures: 0 }
  #received = { seconds: 0, pictures: 0 }
  #bytes = { count: 0, atMs: 0 }

  async look(publisher: Peering | null, viewer: Peering | null): Promise<Link> {
    const up = publisher === null ? [] : await reports(publisher.pc)
    const down = viewer === null ? [] : await reports(viewer.pc)
    const sent = find(up, "outbound-rtp")
    const got = find(down, "inbound-rtp")
    const encoded = { seconds: figure(sent.totalEncodeTime), pictures: figure(sent.framesEncoded) }
    const received = { seconds: figure(got.totalProcessingDelay), pictures: figure(got.framesDecoded) }
    const bytes = { count: figure(got.bytesReceived), atMs: figure(got.timestamp) }
    const link = {
      width: figure(got.frameWidth),
      height: figure(got.frameHeight),
      fps: figure(got.framesPerSecond),
      bitsPerSecond: perSecond(this.#bytes, bytes),
      encodeMs: eachMs(this.#encoded, encoded),
      upMs: oneWayMs(up),
      downMs: oneWayMs(down),
      receiveMs: eachMs(this.#received, received),
    }
    this.#encoded = encoded
    this.#received = received
    this.#bytes = bytes
    return link
  }
}

/**
 * From the source's picture to this screen, as far as anybody measured it: the browser's encoding, half a round
 * trip each way, the platform's own time, the browser's buffer and decoding. It is more than that: what cameras,
 * displays and the waiting for their next picture add, nobody here can see.
 */
export function latencyOf(link: Link, platformMs: number): number | null {
  const { encodeMs, upMs, downMs, receiveMs } = link
  if (downMs === null || receiveMs === null) return null
  return (encodeMs ?? 0) + (upMs ?? 0) + platformMs + downMs + receiveMs
}

async function reports(pc: RTCPeerConnection): Promise<Report[]> {
  const found: Report[] = []
  const stats = await pc.getStats()
  stats.forEach((report: Report) => {
    found.push(report)
  })
  return found
}

const find = (all: readonly Report[], type: string): Report =>
  all.find((report) => report.type === type && report.kind === "video") ?? {}

function oneWayMs(all: readonly Report[]): number | null {
  const trip = all.find(
    (report) => report.type === "candidate-pair" && report.nominated === true,
  )?.currentRoundTripTime
  return typeof trip === "number" ? (trip * 1000) / 2 : null
}

interface Total {
  readonly seconds: number
  readonly pictures: number
}

function eachMs(before: Total, now: Total): number | null {
  const pictures = now.pictures - before.pictures
  return pictures > 0 && now.seconds >= before.seconds
    ? ((now.seconds - before.seconds) * 1000) / pictures
    : null
}

function perSecond(before: { count: number; atMs: number }, now: { count: number; atMs: number }): number {
  const ms = now.atMs - before.atMs
  return before.atMs > 0 && ms > 0 && now.count >= before.count ? ((now.count - before.count) * 8000) / ms : 0
}

const figure = (value: unknown): number => (typeof value === "number" ? value : 0)
