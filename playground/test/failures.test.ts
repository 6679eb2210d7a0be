import assert from "node:assert/strict"
import { test } from "node:test"
import { ApiError, AwayError, endingOf, failureOf, NoConnectionError } from "../src/pure/failures.ts"

test("without capacity the page offers to wait as long as the platform says", () => {
  const failure = failureOf(new ApiError("no slot", 503, "STREAMS/NO_CAPACITY", null, 7))
  assert.deepEqual([failure.title, failure.remedy, failure.afterS], ["All runners are busy", "wait", 7])
})

test("who was refused hears the place in the line", () => {
  const place = { position: 3, expected_wait_s: 20 }
  const failure = failureOf(new ApiError("no slot", 503, "STREAMS/NO_CAPACITY", null, 7, place))
  assert.equal(failure.text, "One of them has to become free first: 3rd in line, about 20 s.")
})

test("a part that is away is waited for too, and said to be something else", () => {
  const failure = failureOf(new ApiError("billing is away", 503, "SLUICE/BILLING_UNREACHABLE"))
  assert.deepEqual(
    [failure.title, failure.text, failure.remedy],
    ["Not available right now", "billing is away", "wait"],
  )
  assert.ok(failure.afterS > 0)
})

test("each refusal says what to do", () => {
  assert.equal(failureOf(new ApiError("", 401)).remedy, "key")
  assert.match(failureOf(new ApiError("", 402)).title, /credit/)
  assert.equal(failureOf(new ApiError("busy", 409)).text, "busy")
  assert.equal(failureOf(new ApiError("strength: too large", 400)).text, "strength: too large")
  assert.equal(failureOf(new ApiError("internal error", 500)).title, "The server failed")
})

test("silence of the server, and of the network behind it, are told apart", () => {
  assert.equal(failureOf(new AwayError("/v1/streams")).remedy, "wait")
  assert.match(failureOf(new NoConnectionError("/whip/x")).text, /UDP/)
})

test("a camera that may not, is not there, or is taken", () => {
  const titles = ["NotAllowedError", "NotFoundError", "NotReadableError"].map(
    (name) => failureOf(new DOMException("", name)).title,
  )
  assert.deepEqual(titles, ["No permission", "No camera found", "The camera is in use"])
})

test("an orderly end is no breakdown, and its message is not repeated", () => {
  assert.deepEqual(endingOf("input_ended", "the body ended"), {
    title: "Finished",
    text: "The source ended.",
    orderly: true,
  })
})

test("a breakdown says what the platform said", () => {
  const ending = endingOf("pipeline_failed", "CUDA out of memory")
  assert.deepEqual([ending.orderly, ending.text], [false, "CUDA out of memory"])
})

test("a reason that this page does not know is shown", () => {
  assert.equal(endingOf("moon_phase", "").text, "moon phase")
})
