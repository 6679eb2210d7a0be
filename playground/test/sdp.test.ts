import assert from "node:assert/strict"
import { test } from "node:test"
import { fragmentOf, h264First, iceServersOf } from "../src/pure/sdp.ts"

const OFFER = [
  "v=0",
  "a=group:BUNDLE 0 1",
  "m=audio 9 UDP/TLS/RTP/SAVPF 111",
  "a=ice-ufrag:EsAw",
  "a=ice-pwd:bP+XJMM09aR8AiX1jdukzR6Y",
  "a=mid:0",
  "m=video 9 UDP/TLS/RTP/SAVPF 96 97",
  "a=mid:1",
  "",
].join("\r\n")
const CANDIDATE = "candidate:1 1 udp 2130706431 198.51.100.1 39132 typ host"

test("a fragment has the offer's credentials, the m-line of its candidates, and ends in a line break", () => {
  const fragment = fragmentOf(OFFER, [{ candidate: CANDIDATE, sdpMid: "1" }], false)
  assert.deepEqual(fragment.split("\r\n"), [
    "a=ice-ufrag:EsAw",
    "a=ice-pwd:bP+XJMM09aR8AiX1jdukzR6Y",
    "m=video 9 UDP/TLS/RTP/SAVPF 96 97",
    "a=mid:1",
    `a=${CANDIDATE}`,
    "",
  ])
})

test("the end of the candidates is said without any", () => {
  assert.match(fragmentOf(OFFER, [], true), /m=audio [^\n]*\r\na=mid:0\r\na=end-of-candidates\r\n$/)
})

test("candidates of two media are in two sections", () => {
  const both = ["0", "1"].map((sdpMid) => ({ candidate: CANDIDATE, sdpMid }))
  assert.equal(fragmentOf(OFFER, both, true).match(/a=end-of-candidates/g)?.length, 2)
})

test("ice servers are read from a Link header, credentials and all", () => {
  const link =
    '<stun:stun.example.net>; rel="ice-server", ' +
    '<turn:turn.example.net?transport=udp>; rel="ice-server"; username="1700000000:ab,c"; credential="x;y="; credential-type="password"'
  assert.deepEqual(iceServersOf(link), [
    { urls: "stun:stun.example.net" },
    { urls: "turn:turn.example.net?transport=udp", username: "1700000000:ab,c", credential: "x;y=" },
  ])
})

test("other links are no ice servers, and neither is nothing", () => {
  assert.deepEqual(iceServersOf('<https://example.net/>; rel="next"'), [])
  assert.deepEqual(iceServersOf(null), [])
})

test("H.264 comes first, and the order is kept otherwise", () => {
  const codecs = ["video/VP8", "video/H264", "video/rtx", "video/H264"].map((mimeType, index) => ({
    mimeType,
    index,
  }))
  assert.deepEqual(
    h264First(codecs).map(({ index }) => index),
    [1, 3, 0, 2],
  )
})
