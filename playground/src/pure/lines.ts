// The lines that use a stream from elsewhere: curl, WHIP, OBS, ffmpeg, players and the command. Pure.

import type { Params } from "./schema.ts"

export interface Addresses {
  readonly id: string
  readonly pipeline: string
  readonly stream_key: string
  readonly whip_url: string
  readonly whep_url: string
  readonly rtmp_url: string
  readonly hls_url: string
  readonly publish_url: string
  readonly play_url: string
}
export interface Line {
  readonly label: string
  readonly text: string
}
export interface Group {
  readonly title: string
  readonly lines: readonly Line[]
}

const COMMANDS_OWN = "http://localhost:8000" // what `sluice` calls unless it is told otherwise
const X264 = "-c:v libx264 -preset veryfast -tune zerolatency -bf 0 -g 60 -pix_fmt yuv420p"

/** `base`: where the API is; `needsKey`: whether calls of it must carry one, which these lines leave to the shell. */
export function linesOf(stream: Addresses, params: Params, base: string, needsKey: boolean): Group[] {
  const key = needsKey ? ' -H "Authorization: Bearer $SLUICE_API_KEY"' : ""
  const json = ` -H 'Content-Type: application/json'`
  const url = base === COMMANDS_OWN ? "" : ` --url ${base}`
  const server = stream.rtmp_url.slice(0, stream.rtmp_url.lastIndexOf("/"))
  const name = stream.rtmp_url.slice(server.length + 1)
  const body = (value: unknown) => shellQuoted(JSON.stringify(value))
  return [
    {
      title: "Send",
      lines: [
        { label: "WHIP", text: stream.whip_url },
        { label: "OBS, WHIP", text: `Service: WHIP   Server: ${stream.whip_url}` },
        { label: "OBS, RTMP", text: `Server: ${server}   Stream key: ${name}` },
        {
          label: "ffmpeg, RTMP",
          text: `ffmpeg -re -i clip.mp4 ${X264} -c:a aac -f flv ${shellQuoted(stream.rtmp_url)}`,
        },
        {
          label: "ffmpeg, MPEG-TS",
          text: `ffmpeg -re -i clip.mp4 ${X264} -c:a aac -f mpegts ${shellQuoted(stream.publish_url)}`,
        },
        { label: "sluice publish", text: `sluice publish clip.mp4 --stream ${stream.id}${url}` },
      ],
    },
    {
      title: "Watch",
      lines: [
        { label: "WHEP", text: stream.whep_url },
        { label: "HLS", text: stream.hls_url },
        { label: "ffplay", text: `ffplay -fflags nobuffer -flags low_delay ${shellQuoted(stream.play_url)}` },
        { label: "sluice play", text: `sluice play ${stream.id}${url}` },
      ],
    },
    {
      title: "Steer",
      lines: [
        {
          label: "curl, new",
          text: `curl -s ${base}/v1/streams${key}${json} -d ${body({ pipeline: stream.pipeline, params })}`,
        },
        {
          label: "curl, change",
          text: `curl -s -X PATCH ${base}/v1/streams/${stream.id}${key}${json} -d ${body({ params })}`,
        },
      ],
    },
  ]
}

export function shellQuoted(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`
}
