import assert from "node:assert/strict"
import { test } from "node:test"
import { linesOf, shellQuoted } from "../src/pure/lines.ts"

const STREAM = {
  id: "str_1",
  pipeline: "effects",
  stream_key: "stk_1",
  whip_url: "http://host:8000/whip/stk_1",
  whep_url: "http://host:8000/webrtc/whep/pbk_1",
  rtmp_url: "rtmp://host:1935/live/stk_1",
  hls_url: "http://host:8000/hls/pbk_1/index.m3u8",
  publish_url: "http://host:8000/ts/stk_1",
  play_url: "http://host:8000/ts/pbk_1",
}
const lines = (needsKey: boolean, params = {}) =>
  new Map(
    linesOf(STREAM, params, "http://host:8000", needsKey).flatMap((group) =>
      group.lines.map(({ label, text }) => [label, text] as const),
    ),
  )

test("OBS is told server and key apart", () => {
  assert.equal(lines(false).get("OBS, RTMP"), "Server: rtmp://host:1935/live   Stream key: stk_1")
})

test("calls carry a key where one is needed, and leave it to the shell", () => {
  assert.match(lines(true).get("curl, change") ?? "", /Bearer \$SLUICE_API_KEY/)
  assert.doesNotMatch(lines(false).get("curl, change") ?? "", /Authorization/)
})

test("what is set is in the lines, safe for a shell", () => {
  const made = lines(false, { prompt: "it's neon" })
  assert.match(
    made.get("curl, new") ?? "",
    /'\{"pipeline":"effects","params":\{"prompt":"it'\\''s neon"\}\}'$/,
  )
})

test("the command is told where the platform is, unless it knows", () => {
  assert.equal(lines(false).get("sluice play"), "sluice play str_1 --url http://host:8000")
  const [send] = linesOf(STREAM, {}, "http://localhost:8000", false)
  assert.equal(send?.lines.at(-1)?.text, "sluice publish clip.mp4 --stream str_1")
})

test("what a shell reads as it is stays as it is", () => {
  assert.equal(shellQuoted("rtmp://host:1935/live/stk_1"), "rtmp://host:1935/live/stk_1")
  assert.equal(shellQuoted("a b"), "'a b'")
  assert.equal(shellQuoted(""), "''")
})
