import assert from "node:assert/strict"
import { test } from "node:test"
import {
  appliedWords,
  comingWords,
  loadingWords,
  movedWords,
  parameterIn,
  placeWords,
  stateWords,
  troubleOf,
} from "../src/pure/condition.ts"

const PROBLEM = {
  stage: "process",
  kind: "pipeline_error",
  error: "ZeroDivisionError",
  message: "division by zero",
  action: "held",
  frame: 412,
}

test("loading says what it is at", () => {
  assert.equal(loadingWords({ why: "start", stage: "weights", percent: 40 }), "Loading weights, 40 %")
  assert.equal(loadingWords({ why: "warm", stage: "lora_dict", percent: 5 }), "Preparing: lora dict, 5 %")
  assert.equal(loadingWords({ why: "restart", stage: "", percent: 0 }), "Restarting, 0 %")
  assert.equal(loadingWords({ why: "somehow", stage: "x", percent: 1 }), "Loading x, 1 %")
})

test("a problem says what failed, where, and what the viewers see", () => {
  assert.deepEqual(troubleOf(PROBLEM), {
    title: "The pipeline fails in picture 412",
    text: "ZeroDivisionError: division by zero",
    action: "Showing the last good picture.",
  })
  assert.equal(
    troubleOf({ ...PROBLEM, frame: null, stage: "load" }).title,
    "The pipeline fails while it loads",
  )
})

test("words that a newer platform may send are no failure of the page", () => {
  const odd = { ...PROBLEM, kind: "gremlins", stage: "cellar", action: "prayed", frame: null, error: "" }
  assert.deepEqual(troubleOf(odd), { title: "Something failed", text: "division by zero", action: "" })
  assert.equal(stateWords("live", { state: "degraded_inference", cause: "gremlins" }), "not as it should be")
  assert.equal(appliedWords("someday") + comingWords("someday"), "on its way…")
})

test("the health is more exact than the phase", () => {
  assert.equal(stateWords("degraded", { state: "degraded_input", cause: "input_slow" }), "the source is slow")
  assert.equal(stateWords("degraded", null), "not as it should be")
  assert.equal(stateWords("paused", { state: "idle", cause: "no_input" }), "no video arrives")
  assert.equal(stateWords("live", { state: "online", cause: null }), "")
})

test("a field within a parameter is that parameter's", () => {
  assert.equal(parameterIn("params.controlnets.0.model_id"), "controlnets")
  assert.equal(parameterIn("lora_dict"), "lora_dict")
  assert.equal(parameterIn(null), "")
})

test("a place in the line is said as people say it", () => {
  assert.equal(placeWords({ position: 2, expected_wait_s: 19.6 }), "2nd in line, about 20 s")
  assert.equal(placeWords({ position: 11, expected_wait_s: 0.2 }), "11th in line, about 1 s")
  assert.equal(placeWords({ position: 23, expected_wait_s: null }), "23rd in line")
})

test("a move says for how long the picture stood, if anybody could see it", () => {
  assert.equal(movedWords({ freeze_ms: 412 }), "moved to another runner, 0.4 s")
  assert.equal(movedWords({ freeze_ms: 40 }), "moved to another runner")
})
