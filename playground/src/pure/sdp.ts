// The texts of WHIP and WHEP beside the offer and the answer: trickled candidates and ICE servers. Pure.

export interface Candidate {
  readonly candidate: string
  readonly sdpMid: string | null
}

/** Candidates as `application/trickle-ice-sdpfrag`, RFC 8840; the credentials are those of the offer. */
export function fragmentOf(offer: string, candidates: readonly Candidate[], complete: boolean): string {
  const lines = [lineOf(offer, "a=ice-ufrag:"), lineOf(offer, "a=ice-pwd:")].filter((line) => line !== "")
  const mids = [...new Set(candidates.map((one) => one.sdpMid ?? "0"))]
  if (mids.length === 0) mids.push(lineOf(offer, "a=mid:").slice("a=mid:".length) || "0")
  for (const mid of mids) {
    lines.push(mediaLineOf(offer, mid), `a=mid:${mid}`)
    for (const one of candidates) if ((one.sdpMid ?? "0") === mid) lines.push(`a=${one.candidate}`)
    if (complete) lines.push("a=end-of-candidates")
  }
  return `${lines.join("\r\n")}\r\n`
}

function lineOf(sdp: string, start: string): string {
  return sdp.split(/\r?\n/).find((line) => line.startsWith(start)) ?? ""
}

// RFC 8840 §4.4: the pseudo m-line repeats the one that the candidates belong to.
function mediaLineOf(sdp: string, mid: string): string {
  const section = sdp.split(/\r?\n(?=m=)/).find((part) => part.split(/\r?\n/).includes(`a=mid:${mid}`))
  return section?.split(/\r?\n/)[0] ?? "m=audio 9 UDP/TLS/RTP/SAVPF 0"
}

export interface IceServer {
  urls: string
  username?: string
  credential?: string
}

/** ICE servers of `Link: <turn:...>; rel="ice-server"; username="..."; credential="..."`, RFC 9725 §4.6. */
export function iceServersOf(link: string | null): IceServer[] {
  const found: IceServer[] = []
  for (const [, urls, attributes] of (link ?? "").matchAll(
    /<([^>]*)>((?:\s*;\s*[\w-]+\s*=\s*(?:"[^"]*"|[^\s;,]+))*)/g,
  )) {
    const given = new Map<string, string>()
    for (const [, name, quoted, bare] of (attributes ?? "").matchAll(
      /;\s*([\w-]+)\s*=\s*(?:"([^"]*)"|([^\s;,]+))/g,
    )) {
      given.set((name ?? "").toLowerCase(), quoted ?? bare ?? "")
    }
    if (given.get("rel") !== "ice-server" || !urls) continue
    const [username, credential] = [given.get("username"), given.get("credential")]
    found.push({
      urls,
      ...(username === undefined ? {} : { username }),
      ...(credential === undefined ? {} : { credential }),
    })
  }
  return found
}

/** H.264 first: the platform sends it on as it came, and converts anything else. */
export function h264First<Codec extends { readonly mimeType: string }>(codecs: readonly Codec[]): Codec[] {
  const is = (codec: Codec) => codec.mimeType.toLowerCase() === "video/h264"
  return [...codecs.filter(is), ...codecs.filter((codec) => !is(codec))]
}
